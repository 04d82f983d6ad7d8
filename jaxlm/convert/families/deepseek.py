"""DeepSeek checkpoints: `deepseek_v2` (V2, V2-Lite) and `deepseek_v3` (V3, R1).

Released V3 checkpoints hold multi-token prediction as a layer after the last one, with copies of
the model's embedding and output matrix. transformers neither reads nor writes it, although its
config.json still counts it. So the tensors decide: `settle` leaves it out where they are absent.
"""

import dataclasses
from collections.abc import Collection, Sequence
from typing import Any

import numpy as np

from jaxlm.convert import config_json, weight_rows
from jaxlm.convert.config_json import Fields
from jaxlm.convert.families import expert_weights, rope_parameters
from jaxlm.convert.weight_rows import Arrays, Row, Table, linear, same
from jaxlm.core import param
from jaxlm.models import deepseek

MATRICES = ("gate_proj", "up_proj", "down_proj")
DENSE = [
    linear("ffn/gate", "mlp.gate_proj.weight"),
    linear("ffn/up", "mlp.up_proj.weight"),
    linear("ffn/down", "mlp.down_proj.weight"),
]
SHARED = [
    linear("moe/shared/gate", "mlp.shared_experts.gate_proj.weight"),
    linear("moe/shared/up", "mlp.shared_experts.up_proj.weight"),
    linear("moe/shared/down", "mlp.shared_experts.down_proj.weight"),
]
OUTER = [
    same("embed/table", "model.embed_tokens.weight"),
    same("norm", "model.norm.weight"),
    linear("unembed", "lm_head.weight"),
]
# weights around the layer that predicts further ahead
FURTHER = [
    same("token_norm", "enorm.weight"),
    same("hidden_norm", "hnorm.weight"),
    linear("join", "eh_proj.weight"),
    same("norm", "shared_head.norm.weight"),
]


def _values(ps: Sequence[param.Param]) -> tuple[int, int, int, int]:
    """(heads, a key's size without positions, a value's, rank)."""
    (heads, rank, nope), value = ps[0].shape, ps[1].shape[2]
    return heads, nope, value, rank


def _up() -> Row:
    """kv_b_proj: of each head its key's rows, then its value's."""

    def read(arrays: Arrays, ps: Sequence[param.Param]) -> Arrays:
        heads, nope, value, rank = _values(ps)
        both = arrays[0].reshape(heads, nope + value, rank).swapaxes(1, 2)
        return [both[..., :nope], both[..., nope:]]

    def write(arrays: Arrays, ps: Sequence[param.Param]) -> Arrays:
        both = np.concatenate(arrays, -1).swapaxes(1, 2)
        return [both.reshape(-1, both.shape[-1])]

    def shapes(ps: Sequence[param.Param]) -> list[tuple[int, ...]]:
        heads, nope, value, rank = _values(ps)
        return [(heads * (nope + value), rank)]

    name = "self_attn.kv_b_proj.weight"
    return Row(("attn/k", "attn/v"), (name,), read, write, shapes)


def _attention() -> list[Row]:
    return [
        same("attn_norm", "input_layernorm.weight"),
        same("ffn_norm", "post_attention_layernorm.weight"),
        weight_rows.fused(
            weight_rows.TORCH, ("attn/latent", "attn/rope"), "self_attn.kv_a_proj_with_mqa.weight"
        ),
        same("attn/latent_norm", "self_attn.kv_a_layernorm.weight"),
        _up(),
        linear("attn/o", "self_attn.o_proj.weight"),
    ]


def _queries(cfg: deepseek.Config) -> list[Row]:
    if cfg.q_rank is None:
        return [linear("attn/q", "self_attn.q_proj.weight")]
    return [
        linear("attn/q_latent", "self_attn.q_a_proj.weight"),
        same("attn/q_latent_norm", "self_attn.q_a_layernorm.weight"),
        linear("attn/q", "self_attn.q_b_proj.weight"),
    ]


def _rows(cfg: deepseek.Config) -> list[Row]:
    """The rows of one layer, dense or not."""
    router = [
        linear("moe/router", "mlp.gate.weight"),
        same("moe/select_bias", "mlp.gate.e_score_correction_bias"),
    ]
    each = expert_weights.rows("moe", "mlp.experts.", cfg.experts, MATRICES)
    return [*_attention(), *_queries(cfg), *DENSE, *router, *SHARED, *each]


def names(cfg: deepseek.Config) -> Table:
    """The rows of a Config."""
    stacks = {
        "stack": weight_rows.Stack("model.layers.{i}.", _rows(cfg)),
        "ahead": weight_rows.Stack(
            "model.layers.{i}.", [*FURTHER, *map(_inside, _rows(cfg))], first=cfg.layers
        ),
    }
    copies = r"(^|\.)layers\.\d+\.(embed_tokens|shared_head\.head)\.weight"
    return Table(OUTER, stacks, (r"rotary_emb\.inv_freq", copies))


def _inside(row: Row) -> Row:
    """A row of a layer for the layer of a step ahead."""
    return row._replace(ours=tuple(f"layer/{name}" for name in row.ours))


def settle(cfg: deepseek.Config, tensors: Collection[str]) -> deepseek.Config:
    """The Config of a checkpoint with these tensors: without multi-token prediction where there is
    nothing of it."""
    there = any(name.startswith(f"model.layers.{cfg.layers}.") for name in tensors)
    return cfg if there else dataclasses.replace(cfg, ahead=0)


def read_v2(f: Fields) -> deepseek.Config:
    """Our Config of a `deepseek_v2` config.json."""
    f.only("scoring_func", "softmax")
    f.only("norm_topk_prob", False)
    f.only("mlp_bias", False)
    heads, context = f.get("num_attention_heads", 32), f.get("max_position_embeddings", 2048)
    groups = {"greedy": False, "group_limited_greedy": True}
    grouped = f.among("topk_method", "greedy", groups)
    count, chosen = f.get("n_group", 1), f.get("topk_group", 1)
    return deepseek.Config(
        **_sizes(f, heads, heads, context),
        dense=f.get("first_k_dense_replace", 0),
        experts=f.get("n_routed_experts", 64, "num_experts"),
        active=f.take("num_experts_per_tok"),
        shared=f.get("n_shared_experts", 2),
        expert_ffn=f.get("moe_intermediate_size", 1407),
        score="softmax",
        select_bias=False,
        renormalise=False,
        groups=count if grouped else 1,
        groups_chosen=chosen if grouped else 1,
        group_best=1,
        routed_scale=float(f.get("routed_scaling_factor", 1.0)),
    )


def read_v3(f: Fields) -> deepseek.Config:
    """Our Config of a `deepseek_v3` config.json. Whether multi-token prediction, which it counts,
    is there, `settle` decides."""
    f.only("scoring_func", "sigmoid")
    f.only("topk_method", "noaux_tc")
    heads, context = f.get("num_attention_heads", 128), f.get("max_position_embeddings", 4096)
    return deepseek.Config(
        **_sizes(f, heads, 128, context),
        dense=f.get("first_k_dense_replace", 3),
        experts=f.get("n_routed_experts", 256, "num_local_experts"),
        active=f.get("num_experts_per_tok", 8),
        shared=f.get("n_shared_experts", 1),
        expert_ffn=f.get("moe_intermediate_size", 2048),
        score="sigmoid",
        select_bias=True,
        renormalise=f.get("norm_topk_prob", True),
        groups=f.get("n_group", 8),
        groups_chosen=f.get("topk_group", 4),
        group_best=2,
        routed_scale=float(f.get("routed_scaling_factor", 2.5)),
        interleaved=f.get("rope_interleave", True),
        ahead=f.get("num_nextn_predict_layers", 1, "num_mtp_layers"),
    )


def _sizes(f: Fields, heads: int, keys: int, context: int) -> dict[str, Any]:
    """The fields that both have. keys: heads of keys where the file has no field for it."""
    f.only("hidden_act", "silu", "swish")
    f.only("attention_bias", False)
    if (keys := f.get("num_key_value_heads", keys)) != heads:
        raise ValueError(f"num_key_value_heads={keys} is not supported; there is {heads}, as heads")
    f.only("moe_layer_freq", 1)
    nope, rotary = f.get("qk_nope_head_dim", 128), f.get("qk_rope_head_dim", 64)
    # transformers derives both, and lets a file overrule that
    f.only("head_dim", rotary)
    f.only("qk_head_dim", nope + rotary)
    turn = rope_parameters.read(f, context)
    if turn.share != 1.0:
        raise ValueError(f"partial_rotary_factor={turn.share} is not supported; 1.0 is")
    return {
        "vocab": f.take("vocab_size"),
        "embed": f.take("hidden_size"),
        "layers": f.take("num_hidden_layers"),
        "heads": heads,
        "q_rank": f.maybe("q_lora_rank", 1536),
        "rank": f.get("kv_lora_rank", 512),
        "nope": nope,
        "rotary": rotary,
        "value": f.get("v_head_dim", 128),
        "ffn": f.take("intermediate_size"),
        "theta": turn.theta,
        "scaling": turn.scaling,
        "eps": f.get("rms_norm_eps", 1e-6),
        "context": context,
        "tied": f.get("tie_word_embeddings", False),
    }


def write_v2(cfg: deepseek.Config) -> dict[str, Any]:
    """The `deepseek_v2` config.json of a Config. Raises: ValueError for what it cannot express."""
    config_json.fixed(
        cfg, score="softmax", select_bias=False, renormalise=False, interleaved=True, ahead=0
    )
    if cfg.groups > 1:
        config_json.fixed(cfg, group_best=1)
    method = "group_limited_greedy" if cfg.groups > 1 else "greedy"
    return _said(cfg, "DeepseekV2ForCausalLM", "deepseek_v2") | {
        "topk_method": method,
        "scoring_func": "softmax",
    }


def write_v3(cfg: deepseek.Config) -> dict[str, Any]:
    """The `deepseek_v3` config.json of a Config. Raises: ValueError for what it cannot express."""
    config_json.fixed(cfg, score="sigmoid", select_bias=True)
    if cfg.groups > 1:
        config_json.fixed(cfg, group_best=2)
    return _said(cfg, "DeepseekV3ForCausalLM", "deepseek_v3") | {
        "topk_method": "noaux_tc",
        "scoring_func": "sigmoid",
        "rope_interleave": cfg.interleaved,
        "num_nextn_predict_layers": cfg.ahead,
    }


def _said(cfg: deepseek.Config, architecture: str, model_type: str) -> dict[str, Any]:
    # transformers gives the latents' norms its default
    config_json.fixed(cfg, capacity=None, latent_eps=1e-6)
    return {
        "architectures": [architecture],
        "model_type": model_type,
        "vocab_size": cfg.vocab,
        "hidden_size": cfg.embed,
        "num_hidden_layers": cfg.layers,
        "num_attention_heads": cfg.heads,
        "num_key_value_heads": cfg.heads,
        "q_lora_rank": cfg.q_rank,
        "kv_lora_rank": cfg.rank,
        "qk_nope_head_dim": cfg.nope,
        "qk_rope_head_dim": cfg.rotary,
        "v_head_dim": cfg.value,
        "intermediate_size": cfg.ffn,
        "moe_intermediate_size": cfg.expert_ffn,
        "first_k_dense_replace": cfg.dense,
        "n_routed_experts": cfg.experts,
        "n_shared_experts": cfg.shared,
        "num_experts_per_tok": cfg.active,
        "n_group": cfg.groups,
        "topk_group": cfg.groups_chosen,
        "norm_topk_prob": cfg.renormalise,
        "routed_scaling_factor": cfg.routed_scale,
        "hidden_act": "silu",
        "attention_bias": False,
        "rms_norm_eps": cfg.eps,
        "tie_word_embeddings": cfg.tied,
        **rope_parameters.write(cfg.rotary, cfg.theta, cfg.scaling, cfg.context),
    }


V2 = (read_v2, write_v2, names)
V3 = (read_v3, write_v3, names, settle)
