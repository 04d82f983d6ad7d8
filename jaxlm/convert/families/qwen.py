"""Qwen checkpoints: `qwen2` (2 and 2.5), `qwen3`, `qwen3_moe` and `qwen2_moe` (1.5 and 2)."""

from typing import Any

from jaxlm.convert import config_rows, weight_rows
from jaxlm.convert.config_json import Fields
from jaxlm.convert.config_rows import Architecture, always, field, nullable, only, same_as
from jaxlm.convert.families import expert_weights, layer_types, rope_parameters
from jaxlm.convert.families.layer_types import Reach
from jaxlm.convert.families.llama import (
    ATTENTION,
    ATTENTION_BIASES,
    BIASES,
    FFN,
    IGNORED,
    LAYERS,
    OUTER,
    PRE,
    WIDTHS,
)
from jaxlm.convert.weight_rows import Table, linear, same
from jaxlm.models import qwen

ROWS = [
    *PRE,
    *ATTENTION,
    *ATTENTION_BIASES,
    same("attn/q_norm", "self_attn.q_norm.weight"),
    same("attn/k_norm", "self_attn.k_norm.weight"),
    *FFN,
    linear("moe/router", "mlp.gate.weight"),
    linear("moe/shared/gate", "mlp.shared_expert.gate_proj.weight"),
    linear("moe/shared/up", "mlp.shared_expert.up_proj.weight"),
    linear("moe/shared/down", "mlp.shared_expert.down_proj.weight"),
    linear("moe/shared_gate", "mlp.shared_expert_gate.weight"),
]
MATRICES = ("gate_proj", "up_proj", "down_proj")


def names(cfg: qwen.Config) -> Table:
    """The rows of a Config."""
    rows = [*ROWS, *expert_weights.rows("moe", "mlp.experts.", cfg.experts or 0, MATRICES)]
    return Table(OUTER, {"stack": weight_rows.Stack(LAYERS, rows)}, IGNORED)


def _window(f: Fields) -> int | None:
    """The window, if there is one: configs give its size where it is off, too."""
    window = f.maybe("sliding_window", 4096)
    return window if f.get("use_sliding_window", False) else None


def _write_window(cfg: qwen.Config) -> dict[str, Any]:
    return {"use_sliding_window": cfg.window is not None, "sliding_window": cfg.window}


def _read_last_layers(f: Fields, cfg: Any) -> dict[str, Any]:
    """The window of `qwen2` and `qwen3`: by default from layer `max_window_layers` on."""
    first = f.get("max_window_layers", 28)
    default: list[Reach] = ["global" if i < first else "local" for i in range(cfg.layers)]
    return _read_layers(f, cfg.layers, default)


def _read_other_layers(f: Fields, cfg: Any) -> dict[str, Any]:
    """The window of `qwen2_moe`: by default of every other layer, up to `max_window_layers`."""
    last = f.get("max_window_layers", 28)
    near = [i % 2 == 0 and i < last for i in range(cfg.layers)]
    default: list[Reach] = ["local" if is_near else "global" for is_near in near]
    return _read_layers(f, cfg.layers, default)


def _read_layers(f: Fields, layers: int, default: list[Reach]) -> dict[str, Any]:
    window = _window(f)
    pattern = layer_types.read(f, layers, ["global"] * layers if window is None else default)
    return {"pattern": pattern, "window": window if "local" in pattern else None}


def _write_layers(cfg: qwen.Config) -> dict[str, Any]:
    types = layer_types.write(cfg.kinds)
    first = types.index(layer_types.NAMES["local"]) if cfg.window is not None else cfg.layers
    return {**_write_window(cfg), "layer_types": types, "max_window_layers": first}


def _read_all_layers(f: Fields, cfg: Any) -> dict[str, Any]:
    """The window of `qwen3_moe`, which every layer has."""
    window = _window(f)
    return {"pattern": ("global",) if window is None else ("local",), "window": window}


def _write_all_layers(cfg: qwen.Config) -> dict[str, Any]:
    if len(set(layer_types.write(cfg.kinds))) > 1:
        config_rows.refuse(cfg, "pattern", "the same for every layer")
    return _write_window(cfg)


def _read_dense(f: Fields, cfg: Any) -> dict[str, Any]:
    step, dense = f.get("decoder_sparse_step", 1), f.get("mlp_only_layers", [])
    return {"dense": tuple(i for i in range(cfg.layers) if i in dense or (i + 1) % step)}


def _write_dense(cfg: qwen.Config) -> dict[str, Any]:
    return {"mlp_only_layers": list(cfg.dense), "decoder_sparse_step": 1}


def _fields(*, kv: int) -> list[config_rows.Row]:
    """Fields that all four have. kv: the default of a model_type."""
    return [
        *WIDTHS,
        only("hidden_act", "silu", "swish", export=True),
        nullable("kv", "num_key_value_heads", kv, null=same_as("heads")),
        field("eps", "rms_norm_eps", 1e-6),
        rope_parameters.row(32768),
        field("tied", "tie_word_embeddings", False),
    ]


def _experts(*, experts: int, active: int, width: int) -> list[config_rows.Row]:
    """Fields of a mixture. experts, active, width: the defaults of a model_type."""
    return [
        field("experts", "num_experts", experts, "num_local_experts"),
        field("active", "num_experts_per_tok", active),
        field("expert_ffn", "moe_intermediate_size", width),
        field("renormalise", "norm_topk_prob", False),
        config_rows.Row(("dense",), _read_dense, _write_dense),
    ]


QWEN2_FIELDS = [
    *_fields(kv=32),
    field("head", "head_dim", config_rows.head_size),
    config_rows.Row(("pattern", "window"), _read_last_layers, _write_layers),
    always(bias=True),
]
QWEN2 = Architecture("qwen2", qwen.Config, "Qwen2ForCausalLM", QWEN2_FIELDS, names)
QWEN3_FIELDS = [
    *_fields(kv=32),
    field("head", "head_dim", 128),
    config_rows.Row(("pattern", "window"), _read_last_layers, _write_layers),
    *BIASES,
    always(qk_norm=True),
]
QWEN3 = Architecture("qwen3", qwen.Config, "Qwen3ForCausalLM", QWEN3_FIELDS, names)
QWEN3_MOE_FIELDS = [
    *_fields(kv=4),
    field("head", "head_dim", config_rows.head_size),
    config_rows.Row(("pattern", "window"), _read_all_layers, _write_all_layers),
    *BIASES,
    always(qk_norm=True),
    *_experts(experts=128, active=8, width=768),
]
QWEN3_MOE = Architecture("qwen3_moe", qwen.Config, "Qwen3MoeForCausalLM", QWEN3_MOE_FIELDS, names)
QWEN2_MOE_FIELDS = [
    *_fields(kv=16),
    field("head", "head_dim", config_rows.head_size),
    config_rows.Row(("pattern", "window"), _read_other_layers, _write_layers),
    field("bias", "qkv_bias", True),
    *_experts(experts=60, active=4, width=1408),
    field("shared_ffn", "shared_expert_intermediate_size", 5632),
]
QWEN2_MOE = Architecture("qwen2_moe", qwen.Config, "Qwen2MoeForCausalLM", QWEN2_MOE_FIELDS, names)
