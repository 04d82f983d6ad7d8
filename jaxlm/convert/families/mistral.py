"""Mistral, Mixtral and GPT-OSS checkpoints."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from jaxlm.convert import config_json, weight_rows
from jaxlm.convert.config_json import Fields
from jaxlm.convert.families import expert_weights, rope_parameters
from jaxlm.convert.weight_rows import Arrays, Row, Table, linear, same
from jaxlm.core import param
from jaxlm.models import mistral

ROWS = [
    same("attn_norm", "input_layernorm.weight"),
    same("ffn_norm", "post_attention_layernorm.weight"),
    linear("attn/q", "self_attn.q_proj.weight"),
    linear("attn/k", "self_attn.k_proj.weight"),
    linear("attn/v", "self_attn.v_proj.weight"),
    linear("attn/o", "self_attn.o_proj.weight"),
]
DENSE = [
    linear("ffn/gate", "mlp.gate_proj.weight"),
    linear("ffn/up", "mlp.up_proj.weight"),
    linear("ffn/down", "mlp.down_proj.weight"),
]
# GPT-OSS's own
BIASES = [
    same("attn/q_bias", "self_attn.q_proj.bias"),
    same("attn/k_bias", "self_attn.k_proj.bias"),
    same("attn/v_bias", "self_attn.v_proj.bias"),
    same("attn/o_bias", "self_attn.o_proj.bias"),
    same("attn/sinks", "self_attn.sinks"),
    linear("moe/router", "mlp.router.weight"),
    same("moe/router_bias", "mlp.router.bias"),
]
OUTER = [
    same("embed/table", "model.embed_tokens.weight"),
    same("norm", "model.norm.weight"),
    linear("unembed", "lm_head.weight"),
]
LAYERS = "model.layers.{i}."
# Rotary positions of GPT-OSS where its config.json has none.
STRETCHED = {
    "rope_type": "yarn", "factor": 32.0, "beta_fast": 32.0, "beta_slow": 1.0, "truncate": False,
    "original_max_position_embeddings": 4096,
}  # fmt: skip
IGNORED = (r"rotary_emb\.inv_freq",)


def mistral_names(cfg: mistral.Config) -> Table:
    """The rows of a dense Config."""
    return Table(OUTER, {"stack": weight_rows.Stack(LAYERS, ROWS + DENSE)}, IGNORED)


def mixtral_names(cfg: mistral.Config) -> Table:
    """The rows of a Config with experts: one tensor for each expert and matrix, as on disk, or all
    of a layer's in two (`mlp.experts.gate_up_proj`)."""
    count = cfg.experts or 0
    rows = [
        linear("moe/router", "block_sparse_moe.gate.weight"),
        linear("moe/router", "mlp.gate.weight"),
        *expert_weights.rows("moe", "block_sparse_moe.experts.", count, ("w1", "w3", "w2")),
        *expert_weights.rows("moe", "mlp.experts.", count, ("w1", "w3", "w2")),
    ]
    return Table(OUTER, {"stack": weight_rows.Stack(LAYERS, ROWS + rows)}, IGNORED)


def gpt_oss_names(cfg: mistral.Config) -> Table:
    """The rows of GPT-OSS: all experts' matrices in two tensors that multiply from the right, gate
    and up alternating."""
    rows = [
        *BIASES,
        _turns("gate", "up", "gate_up_proj"),
        _turns("gate_bias", "up_bias", "gate_up_proj_bias"),
        _whole("down", "down_proj"),
        _whole("down_bias", "down_proj_bias"),
    ]
    return Table(OUTER, {"stack": weight_rows.Stack(LAYERS, ROWS + rows)}, IGNORED)


def _turns(even: str, odd: str, theirs: str) -> Row:
    """Two of our weights [E, ..., F] as one of theirs [E, ..., 2F], element after element."""

    def write(arrays: Arrays, ps: Sequence[param.Param]) -> Arrays:
        return [np.stack(arrays, axis=-1).reshape(*arrays[0].shape[:-1], -1)]

    return Row(
        (f"moe/{even}", f"moe/{odd}"),
        (f"mlp.experts.{theirs}",),
        lambda arrays, ps: [arrays[0][..., ::2], arrays[0][..., 1::2]],
        write,
        lambda ps: [(*ps[0].shape[:-1], 2 * ps[0].shape[-1])],
    )


def _whole(ours: str, theirs: str) -> Row:
    """A weight of all experts that is stored as ours is."""
    return Row(
        (f"moe/{ours}",),
        (f"mlp.experts.{theirs}",),
        lambda arrays, ps: arrays,
        lambda arrays, ps: arrays,
        lambda ps: [ps[0].shape],
    )


def read_mistral(f: Fields) -> mistral.Config:
    """Our Config of a `mistral` config.json."""
    return mistral.Config(**_shape(f, f.get("rms_norm_eps", 1e-6), 10000.0, 4096, None))


def read_mixtral(f: Fields) -> mistral.Config:
    """Our Config of a `mixtral` config.json."""
    return mistral.Config(
        **_shape(f, f.get("rms_norm_eps", 1e-5), 1e6, None, None),
        experts=f.take("num_local_experts"),
        active=f.take("num_experts_per_tok"),
    )


def read_gpt_oss(f: Fields) -> mistral.Config:
    """Our Config of a `gpt_oss` config.json."""
    f.only("attention_bias", True)
    layers = f.take("num_hidden_layers")
    every_other = ["sliding_attention", "full_attention"] * layers
    kinds = f.get("layer_types", every_other[:layers])
    known = {"sliding_attention": "local", "full_attention": "global"}
    if len(kinds) != layers or not {*kinds} <= {*known}:
        raise ValueError(f"layer_types={kinds} is not supported; {layers} of {sorted(known)} are")
    return mistral.Config(
        **_shape(f, f.get("rms_norm_eps", 1e-5), 150000.0, 128, 64, STRETCHED),
        pattern=_shortest(tuple(known[kind] for kind in kinds)),
        experts=f.take("num_local_experts", "num_experts"),
        active=f.take("num_experts_per_tok"),
        limit=f.get("swiglu_limit", 7.0),
        alpha=f.get("swiglu_alpha", 1.702),
        bias=True,
        sinks=True,
    )


def _shape(
    f: Fields,
    eps: float,
    theta: float,
    window: int | None,
    head: int | None,
    absent: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """The fields that all three have. theta, window, head, absent (of RoPE): the defaults of the
    model_type; a head that is None is what the width leaves for each."""
    embed, heads = f.take("hidden_size"), f.take("num_attention_heads")
    context = f.get("max_position_embeddings", 131072)
    f.only("hidden_act", "silu", "swish")
    turn = rope_parameters.whole(rope_parameters.read(f, context, theta, absent=absent))
    return {
        "vocab": f.take("vocab_size"),
        "embed": embed,
        "layers": f.take("num_hidden_layers"),
        "heads": heads,
        "kv": f.maybe("num_key_value_heads", 8) or heads,
        "head": f.maybe("head_dim", head) or embed // heads,
        "ffn": f.take("intermediate_size"),
        "window": f.maybe("sliding_window", window),
        "theta": turn.theta,
        "scaling": turn.scaling,
        "context": context,
        "eps": eps,
        "tied": f.get("tie_word_embeddings", False),
    }


def _shortest(kinds: tuple[Any, ...]) -> tuple[Any, ...]:
    """The shortest pattern that gives these kinds when it is repeated."""
    sizes = range(1, len(kinds) + 1)
    return next(kinds[:n] for n in sizes if (kinds[:n] * len(kinds))[: len(kinds)] == kinds)


def write_mistral(cfg: mistral.Config) -> dict[str, Any]:
    """The `mistral` config.json of a Config. Raises: ValueError for what it cannot express."""
    config_json.fixed(cfg, experts=None, bias=False, sinks=False)
    return _record(cfg, "MistralForCausalLM", "mistral")


def write_mixtral(cfg: mistral.Config) -> dict[str, Any]:
    """The `mixtral` config.json of a Config. Raises: ValueError for what it cannot express."""
    config_json.fixed(cfg, limit=None, capacity=None, bias=False, sinks=False)
    if cfg.experts is None:
        raise ValueError("model.experts: None is a dense model")
    return _record(cfg, "MixtralForCausalLM", "mixtral") | {
        "num_local_experts": cfg.experts,
        "num_experts_per_tok": cfg.active,
    }


def write_gpt_oss(cfg: mistral.Config) -> dict[str, Any]:
    """The `gpt_oss` config.json of a Config. Raises: ValueError for what it cannot express."""
    config_json.fixed(cfg, bias=True, sinks=True, capacity=None)
    if cfg.experts is None or cfg.limit is None:
        raise ValueError(f"model.experts: {cfg.experts}, model.limit: {cfg.limit}; it has both")
    known = {"local": "sliding_attention", "global": "full_attention"}
    return _record(cfg, "GptOssForCausalLM", "gpt_oss", mixed=True) | {
        "num_local_experts": cfg.experts,
        "num_experts_per_tok": cfg.active,
        "layer_types": [known[kind] for kind in cfg.kinds],
        "swiglu_limit": cfg.limit,
        "swiglu_alpha": cfg.alpha,
        "attention_bias": True,
    }


def _record(
    cfg: mistral.Config, architecture: str, model_type: str, mixed: bool = False
) -> dict[str, Any]:
    if not mixed and cfg.window is not None and {*cfg.kinds} != {"local"}:
        raise ValueError(f"model.pattern: {cfg.pattern} has no counterpart, only ('local',) has")
    return {
        "architectures": [architecture],
        "model_type": model_type,
        "vocab_size": cfg.vocab,
        "hidden_size": cfg.embed,
        "num_hidden_layers": cfg.layers,
        "num_attention_heads": cfg.heads,
        "num_key_value_heads": cfg.kv,
        "head_dim": cfg.head,
        "intermediate_size": cfg.ffn,
        "hidden_act": "silu",
        "rms_norm_eps": cfg.eps,
        "sliding_window": cfg.window,
        "tie_word_embeddings": cfg.tied,
        **rope_parameters.write(cfg.head, cfg.theta, cfg.scaling, cfg.context),
    }


MISTRAL = (read_mistral, write_mistral, mistral_names)
MIXTRAL = (read_mixtral, write_mixtral, mixtral_names)
GPT_OSS = (read_gpt_oss, write_gpt_oss, gpt_oss_names)
