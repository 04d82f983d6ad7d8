"""Qwen checkpoints: `qwen2` (2 and 2.5), `qwen3`, `qwen3_moe` and `qwen2_moe` (1.5 and 2)."""

from typing import Any

from jaxlm.convert import config_json, weight_rows
from jaxlm.convert.config_json import Fields
from jaxlm.convert.families import expert_weights, layer_types, rope_parameters
from jaxlm.convert.families.layer_types import Reach
from jaxlm.convert.weight_rows import Table, linear, same
from jaxlm.models import qwen

OUTER = [
    same("embed/table", "model.embed_tokens.weight"),
    same("norm", "model.norm.weight"),
    linear("unembed", "lm_head.weight"),
]
ROWS = [
    same("attn_norm", "input_layernorm.weight"),
    same("ffn_norm", "post_attention_layernorm.weight"),
    linear("attn/q", "self_attn.q_proj.weight"),
    linear("attn/k", "self_attn.k_proj.weight"),
    linear("attn/v", "self_attn.v_proj.weight"),
    linear("attn/o", "self_attn.o_proj.weight"),
    same("attn/q_bias", "self_attn.q_proj.bias"),
    same("attn/k_bias", "self_attn.k_proj.bias"),
    same("attn/v_bias", "self_attn.v_proj.bias"),
    same("attn/o_bias", "self_attn.o_proj.bias"),
    same("attn/q_norm", "self_attn.q_norm.weight"),
    same("attn/k_norm", "self_attn.k_norm.weight"),
    linear("ffn/gate", "mlp.gate_proj.weight"),
    linear("ffn/up", "mlp.up_proj.weight"),
    linear("ffn/down", "mlp.down_proj.weight"),
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
    stack = weight_rows.Stack("model.layers.{i}.", rows)
    return Table(OUTER, {"stack": stack}, (r"rotary_emb\.inv_freq",))


def read2(f: Fields) -> qwen.Config:
    """Our Config of a `qwen2` config.json."""
    sizes = _sizes(f, 32)
    head = f.get("head_dim", sizes["embed"] // sizes["heads"])
    return qwen.Config(**sizes, **_late(f, sizes["layers"]), head=head, bias=True)


def read3(f: Fields) -> qwen.Config:
    """Our Config of a `qwen3` config.json."""
    sizes = _sizes(f, 32) | _biases(f)
    head = f.get("head_dim", 128)
    return qwen.Config(**sizes, **_late(f, sizes["layers"]), head=head, qk_norm=True)


def read3_moe(f: Fields) -> qwen.Config:
    """Our Config of a `qwen3_moe` config.json, of which a window is every layer's."""
    sizes = _sizes(f, 4) | _biases(f)
    window = _given(f)
    return qwen.Config(
        **sizes,
        **_experts(f, sizes["layers"], 8, 128, 768),
        head=f.get("head_dim", sizes["embed"] // sizes["heads"]),
        pattern=("global",) if window is None else ("local",),
        window=window,
        qk_norm=True,
    )


def read2_moe(f: Fields) -> qwen.Config:
    """Our Config of a `qwen2_moe` config.json, of which by default every other layer has the
    window, up to `max_window_layers`."""
    sizes = _sizes(f, 16)
    layers, window = sizes["layers"], _given(f)
    last = f.get("max_window_layers", 28)
    last = 0 if window is None else last
    default: list[Reach] = ["local" if i % 2 == 0 and i < last else "global" for i in range(layers)]
    return qwen.Config(
        **sizes,
        **_experts(f, layers, 4, 60, 1408),
        **_reach(layer_types.read(f, layers, default), window),
        head=f.get("head_dim", sizes["embed"] // sizes["heads"]),
        bias=f.get("qkv_bias", True),
        shared_ffn=f.get("shared_expert_intermediate_size", 5632),
    )


def _sizes(f: Fields, kv: int) -> dict[str, Any]:
    """Config fields of all four. kv: the model_type's default; null means as many as heads."""
    f.only("hidden_act", "silu", "swish")
    heads, context = f.take("num_attention_heads"), f.get("max_position_embeddings", 32768)
    turns = rope_parameters.read(f, context)
    if turns.share != 1.0:
        raise ValueError(
            f"partial_rotary_factor={turns.share} is not supported; this model_type turns whole "
            "heads"
        )
    return {
        "vocab": f.take("vocab_size"),
        "embed": f.take("hidden_size"),
        "layers": f.take("num_hidden_layers"),
        "heads": heads,
        "kv": f.maybe("num_key_value_heads", kv) or heads,
        "ffn": f.take("intermediate_size"),
        "eps": f.get("rms_norm_eps", 1e-6),
        "context": context,
        "theta": turns.theta,
        "scaling": turns.scaling,
        "tied": f.get("tie_word_embeddings", False),
    }


def _biases(f: Fields) -> dict[str, Any]:
    """Qwen 3's biases: on all four products of attention, or on none."""
    bias = f.get("attention_bias", False)
    return {"bias": bias, "out_bias": bias}


def _given(f: Fields) -> int | None:
    """The window, if there is one: configs give its size where it is off, too."""
    window = f.maybe("sliding_window", 4096)
    return window if f.get("use_sliding_window", False) else None


def _late(f: Fields, layers: int) -> dict[str, Any]:
    """Windows of `qwen2` and `qwen3`: by default from layer `max_window_layers` on."""
    window = _given(f)
    first = f.get("max_window_layers", 28)
    default: list[Reach] = ["global" if i < first else "local" for i in range(layers)]
    if window is None:
        default = ["global"] * layers
    return _reach(layer_types.read(f, layers, default), window)


def _reach(pattern: tuple[Reach, ...], window: int | None) -> dict[str, Any]:
    return {"pattern": pattern, "window": window if "local" in pattern else None}


def _experts(f: Fields, layers: int, active: int, count: int, ffn: int) -> dict[str, Any]:
    step, dense = f.get("decoder_sparse_step", 1), f.get("mlp_only_layers", [])
    return {
        "experts": f.get("num_experts", count, "num_local_experts"),
        "active": f.get("num_experts_per_tok", active),
        "expert_ffn": f.get("moe_intermediate_size", ffn),
        "renormalise": f.get("norm_topk_prob", False),
        "dense": tuple(i for i in range(layers) if i in dense or (i + 1) % step),
    }


def write2(cfg: qwen.Config) -> dict[str, Any]:
    """The `qwen2` config.json of a Config. Raises: ValueError for what it cannot express."""
    config_json.fixed(cfg, experts=None, bias=True, out_bias=False, qk_norm=False)
    return _said(cfg, "qwen2", "Qwen2ForCausalLM") | _said_reach(cfg)


def write3(cfg: qwen.Config) -> dict[str, Any]:
    """The `qwen3` config.json of a Config. Raises: ValueError for what it cannot express."""
    config_json.fixed(cfg, experts=None, out_bias=cfg.bias, qk_norm=True)
    said = _said(cfg, "qwen3", "Qwen3ForCausalLM") | _said_reach(cfg)
    return said | {"attention_bias": cfg.bias}


def write3_moe(cfg: qwen.Config) -> dict[str, Any]:
    """The `qwen3_moe` config.json of a Config. Raises: ValueError for what it cannot express."""
    config_json.fixed(cfg, out_bias=cfg.bias, qk_norm=True, shared_ffn=None)
    if len(set(layer_types.write(cfg.kinds))) > 1:
        raise ValueError(
            f"model.pattern={cfg.pattern} has no counterpart (all layers see the same)"
        )
    said = _said(cfg, "qwen3_moe", "Qwen3MoeForCausalLM") | _said_experts(cfg)
    return said | {"attention_bias": cfg.bias, **_said_window(cfg)}


def write2_moe(cfg: qwen.Config) -> dict[str, Any]:
    """The `qwen2_moe` config.json of a Config. Raises: ValueError for what it cannot express."""
    config_json.fixed(cfg, out_bias=False, qk_norm=False)
    if cfg.shared_ffn is None:
        raise ValueError("model.shared_ffn=None has no counterpart (always a shared expert)")
    said = _said(cfg, "qwen2_moe", "Qwen2MoeForCausalLM") | _said_experts(cfg) | _said_reach(cfg)
    own = {"qkv_bias": cfg.bias, "shared_expert_intermediate_size": cfg.shared_ffn}
    return said | own


def _said(cfg: qwen.Config, kind: str, architecture: str) -> dict[str, Any]:
    return {
        "architectures": [architecture],
        "model_type": kind,
        "vocab_size": cfg.vocab,
        "hidden_size": cfg.embed,
        "num_hidden_layers": cfg.layers,
        "num_attention_heads": cfg.heads,
        "num_key_value_heads": cfg.kv,
        "head_dim": cfg.head,
        "intermediate_size": cfg.ffn,
        "hidden_act": "silu",
        "rms_norm_eps": cfg.eps,
        "tie_word_embeddings": cfg.tied,
        **rope_parameters.write(cfg.head, cfg.theta, cfg.scaling, cfg.context),
    }


def _said_window(cfg: qwen.Config) -> dict[str, Any]:
    return {"use_sliding_window": cfg.window is not None, "sliding_window": cfg.window}


def _said_reach(cfg: qwen.Config) -> dict[str, Any]:
    types = layer_types.write(cfg.kinds)
    first = types.index(layer_types.NAMES["local"]) if cfg.window is not None else cfg.layers
    return {**_said_window(cfg), "layer_types": types, "max_window_layers": first}


def _said_experts(cfg: qwen.Config) -> dict[str, Any]:
    config_json.fixed(cfg, capacity=None)
    if cfg.experts is None:
        raise ValueError("model.experts=None has no counterpart (always experts)")
    return {
        "num_experts": cfg.experts,
        "num_experts_per_tok": cfg.active,
        "moe_intermediate_size": cfg.expert_ffn,
        "norm_topk_prob": cfg.renormalise,
        "mlp_only_layers": list(cfg.dense),
        "decoder_sparse_step": 1,
    }


QWEN2 = read2, write2, names
QWEN3 = read3, write3, names
QWEN3_MOE = read3_moe, write3_moe, names
QWEN2_MOE = read2_moe, write2_moe, names
