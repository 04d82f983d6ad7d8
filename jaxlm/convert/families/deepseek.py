"""DeepSeek checkpoints: `deepseek_v2` (V2, V2-Lite) and `deepseek_v3` (V3, R1).

Released V3 checkpoints hold multi-token prediction as a layer after the last one, with copies of
the model's embedding and output matrix. transformers neither reads nor writes it, although its
config.json still counts it. So the tensors decide: `settle` leaves it out where they are absent.
"""

import dataclasses
from collections.abc import Collection, Sequence
from typing import Any

import numpy as np

from jaxlm.convert import config_rows, weight_rows
from jaxlm.convert.config_json import Fields
from jaxlm.convert.config_rows import Architecture, always, field, nullable, only, required, same_as
from jaxlm.convert.families import expert_weights, rope_parameters
from jaxlm.convert.families.llama import FFN, IGNORED, LAYERS, OUTER, PRE
from jaxlm.convert.weight_rows import Arrays, Row, Table, linear, same
from jaxlm.core import param
from jaxlm.models import deepseek

MATRICES = ("gate_proj", "up_proj", "down_proj")
SHARED = [
    linear("moe/shared/gate", "mlp.shared_experts.gate_proj.weight"),
    linear("moe/shared/up", "mlp.shared_experts.up_proj.weight"),
    linear("moe/shared/down", "mlp.shared_experts.down_proj.weight"),
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
        # [heads, rank, nope + value]
        both = arrays[0].reshape(heads, nope + value, rank).swapaxes(1, 2)
        return [both[..., :nope], both[..., nope:]]

    def write(arrays: Arrays, ps: Sequence[param.Param]) -> Arrays:
        both = np.concatenate(arrays, -1).swapaxes(1, 2)  # [heads, nope + value, rank]
        return [both.reshape(-1, both.shape[-1])]  # [heads * (nope + value), rank]

    def shapes(ps: Sequence[param.Param]) -> list[tuple[int, ...]]:
        heads, nope, value, rank = _values(ps)
        return [(heads * (nope + value), rank)]

    name = "self_attn.kv_b_proj.weight"
    return Row(("attn/k", "attn/v"), (name,), read, write, shapes)


def _attention() -> list[Row]:
    return [
        *PRE,
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
    return [*_attention(), *_queries(cfg), *FFN, *router, *SHARED, *each]


def names(cfg: deepseek.Config) -> Table:
    """The rows of a Config."""
    stacks = {
        "stack": weight_rows.Stack(LAYERS, _rows(cfg)),
        "ahead": weight_rows.Stack(LAYERS, [*FURTHER, *map(_inside, _rows(cfg))], first=cfg.layers),
    }
    copies = r"(^|\.)layers\.\d+\.(embed_tokens|shared_head\.head)\.weight"
    return Table(OUTER, stacks, (*IGNORED, copies))


def _inside(row: Row) -> Row:
    """A row of a layer for the layer of a step ahead."""
    return row._replace(ours=tuple(f"layer/{name}" for name in row.ours))


def settle(cfg: deepseek.Config, tensors: Collection[str]) -> deepseek.Config:
    """The Config of a checkpoint with these tensors: without multi-token prediction where there is
    nothing of it."""
    there = any(name.startswith(f"model.layers.{cfg.layers}.") for name in tensors)
    return cfg if there else dataclasses.replace(cfg, ahead=0)


def _read_keys(f: Fields, cfg: Any) -> dict[str, Any]:
    keys = f.get("num_key_value_heads", 128)
    if keys != cfg.heads:
        raise ValueError(
            f"num_key_value_heads={keys} is not supported; there is {cfg.heads}, as heads"
        )
    return {}


def _read_groups(f: Fields, cfg: Any) -> dict[str, Any]:
    """V2's groups of experts, whose numbers are given where they are off, too."""
    methods = {"greedy": False, "group_limited_greedy": True}
    grouped = f.among("topk_method", "greedy", methods)
    count, chosen = f.get("n_group", 1), f.get("topk_group", 1)
    return {"groups": count if grouped else 1, "groups_chosen": chosen if grouped else 1}


def _write_groups(cfg: deepseek.Config) -> dict[str, Any]:
    method = "group_limited_greedy" if cfg.groups > 1 else "greedy"
    return {"topk_method": method, "n_group": cfg.groups, "topk_group": cfg.groups_chosen}


FIELDS = [
    required("vocab", "vocab_size"),
    required("embed", "hidden_size"),
    required("layers", "num_hidden_layers"),
    nullable("q_rank", "q_lora_rank", 1536),
    field("rank", "kv_lora_rank", 512),
    field("nope", "qk_nope_head_dim", 128),
    field("rotary", "qk_rope_head_dim", 64),
    field("value", "v_head_dim", 128),
    # transformers derives both, and lets a file overrule that
    only("head_dim", same_as("rotary")),
    only("qk_head_dim", lambda cfg: cfg.nope + cfg.rotary),
    required("ffn", "intermediate_size"),
    only("hidden_act", "silu", "swish", export=True),
    only("attention_bias", False, export=True),
    only("moe_layer_freq", 1),
    field("eps", "rms_norm_eps", 1e-6),
    field("tied", "tie_word_embeddings", False),
]
V2_FIELDS = [
    *FIELDS,
    rope_parameters.row(2048, head="rotary"),
    field("heads", "num_attention_heads", 32),
    only("num_key_value_heads", same_as("heads"), export=True),
    field("dense", "first_k_dense_replace", 0),
    field("experts", "n_routed_experts", 64, "num_experts"),
    required("active", "num_experts_per_tok"),
    field("shared", "n_shared_experts", 2),
    field("expert_ffn", "moe_intermediate_size", 1407),
    config_rows.Row(("groups", "groups_chosen"), _read_groups, _write_groups),
    field("routed_scale", "routed_scaling_factor", 1.0),
    only("scoring_func", "softmax", export=True),
    only("norm_topk_prob", False, export=True),
    only("mlp_bias", False),
    always(score="softmax", select_bias=False, renormalise=False, group_best=1),
]
V2 = Architecture("deepseek_v2", deepseek.Config, "DeepseekV2ForCausalLM", V2_FIELDS, names)
# Multi-token prediction, which config.json counts, is there or not: `settle` decides.
V3_FIELDS = [
    *FIELDS,
    rope_parameters.row(4096, head="rotary"),
    field("heads", "num_attention_heads", 128),
    config_rows.Row((), _read_keys, lambda cfg: {"num_key_value_heads": cfg.heads}),
    field("dense", "first_k_dense_replace", 3),
    field("experts", "n_routed_experts", 256, "num_local_experts"),
    field("active", "num_experts_per_tok", 8),
    field("shared", "n_shared_experts", 1),
    field("expert_ffn", "moe_intermediate_size", 2048),
    field("renormalise", "norm_topk_prob", True),
    field("groups", "n_group", 8),
    field("groups_chosen", "topk_group", 4),
    field("routed_scale", "routed_scaling_factor", 2.5),
    only("scoring_func", "sigmoid", export=True),
    only("topk_method", "noaux_tc", export=True),
    field("interleaved", "rope_interleave", True),
    field("ahead", "num_nextn_predict_layers", 1, "num_mtp_layers"),
]
V3 = Architecture("deepseek_v3", deepseek.Config, "DeepseekV3ForCausalLM", V3_FIELDS, names, settle)
