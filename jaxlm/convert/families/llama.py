"""LLaMA, OLMo 2 and Phi-3 checkpoints."""

from typing import Any

from jaxlm.convert import config_json, weight_rows
from jaxlm.convert.config_json import Fields
from jaxlm.convert.families import rope_parameters
from jaxlm.convert.weight_rows import Row, Table, linear, same
from jaxlm.models import llama

OUTER = [
    same("embed/table", "model.embed_tokens.weight"),
    same("norm", "model.norm.weight"),
    linear("unembed", "lm_head.weight"),
]
PRE = [
    same("attn_norm", "input_layernorm.weight"),
    same("ffn_norm", "post_attention_layernorm.weight"),
]
POST = [
    same("attn_post_norm", "post_attention_layernorm.weight"),
    same("ffn_post_norm", "post_feedforward_layernorm.weight"),
    same("attn/q_norm", "self_attn.q_norm.weight"),
    same("attn/k_norm", "self_attn.k_norm.weight"),
]
ROWS = [
    linear("attn/q", "self_attn.q_proj.weight"),
    linear("attn/k", "self_attn.k_proj.weight"),
    linear("attn/v", "self_attn.v_proj.weight"),
    linear("attn/o", "self_attn.o_proj.weight"),
    same("attn/q_bias", "self_attn.q_proj.bias"),
    same("attn/k_bias", "self_attn.k_proj.bias"),
    same("attn/v_bias", "self_attn.v_proj.bias"),
    same("attn/o_bias", "self_attn.o_proj.bias"),
    linear("ffn/gate", "mlp.gate_proj.weight"),
    linear("ffn/up", "mlp.up_proj.weight"),
    linear("ffn/down", "mlp.down_proj.weight"),
    same("ffn/gate_bias", "mlp.gate_proj.bias"),
    same("ffn/up_bias", "mlp.up_proj.bias"),
    same("ffn/down_bias", "mlp.down_proj.bias"),
]
FUSED = [
    weight_rows.fused(
        weight_rows.TORCH, ("attn/q", "attn/k", "attn/v"), "self_attn.qkv_proj.weight"
    ),
    linear("attn/o", "self_attn.o_proj.weight"),
    weight_rows.fused(weight_rows.TORCH, ("ffn/gate", "ffn/up"), "mlp.gate_up_proj.weight"),
    linear("ffn/down", "mlp.down_proj.weight"),
]


def _table(rows: list[Row]) -> Table:
    stack = weight_rows.Stack("model.layers.{i}.", rows)
    return Table(OUTER, {"stack": stack}, (r"rotary_emb\.inv_freq",))


def names(cfg: llama.Config) -> Table:
    """The rows of a `llama` Config."""
    return _table(PRE + ROWS)


def olmo2_names(cfg: llama.Config) -> Table:
    """The rows of an `olmo2` Config."""
    return _table(POST + ROWS)


def phi3_names(cfg: llama.Config) -> Table:
    """The rows of a `phi3` Config."""
    return _table(PRE + FUSED)


def read(f: Fields) -> llama.Config:
    """Our Config of a `llama` config.json."""
    bias = f.get("attention_bias", False)
    return llama.Config(
        **_sizes(f, f.get("max_position_embeddings", 2048)),
        eps=f.get("rms_norm_eps", 1e-6),
        bias=bias,
        out_bias=bias,
        ffn_bias=f.get("mlp_bias", False),
    )


def olmo2_read(f: Fields) -> llama.Config:
    """Our Config of an `olmo2` config.json."""
    bias = f.get("attention_bias", False)
    return llama.Config(
        **_sizes(f, f.get("max_position_embeddings", 2048)),
        eps=f.get("rms_norm_eps", 1e-5),
        bias=bias,
        out_bias=bias,
        norm="post",
        qk_norm_all=True,
    )


def phi3_read(f: Fields) -> llama.Config:
    """Our Config of a `phi3` config.json."""
    context = f.get("max_position_embeddings", 4096)
    return llama.Config(
        **_sizes(f, context, partial=True),
        eps=f.get("rms_norm_eps", 1e-5),
        window=f.get("sliding_window", None),
    )


def _sizes(f: Fields, context: int, partial: bool = False) -> dict[str, Any]:
    embed, heads = f.take("hidden_size"), f.take("num_attention_heads")
    rotary = rope_parameters.read(f, context)
    if rotary.share != 1.0 and not partial:
        raise ValueError(
            f"partial_rotary_factor={rotary.share} is not supported; this model_type turns whole "
            "heads"
        )
    return {
        "vocab": f.take("vocab_size"),
        "embed": embed,
        "layers": f.take("num_hidden_layers"),
        "heads": heads,
        "kv": f.get("num_key_value_heads", heads),
        "head": f.get("head_dim", embed // heads),
        "ffn": f.take("intermediate_size"),
        "context": context,
        "theta": rotary.theta,
        "scaling": rotary.scaling,
        "rotary_share": rotary.share,
        "activation": f.among("hidden_act", "silu", config_json.ACTIVATIONS),
        "tied": f.get("tie_word_embeddings", False),
    }


def write(cfg: llama.Config) -> dict[str, Any]:
    """The `llama` config.json of a Config. Raises: ValueError for what it cannot express."""
    config_json.fixed(
        cfg, norm="pre", qk_norm_all=False, window=None, rotary_share=1.0, out_bias=cfg.bias
    )
    biases = {"attention_bias": cfg.bias, "mlp_bias": cfg.ffn_bias}
    return {"architectures": ["LlamaForCausalLM"], "model_type": "llama"} | _said(cfg) | biases


def olmo2_write(cfg: llama.Config) -> dict[str, Any]:
    """The `olmo2` config.json of a Config. Raises: ValueError for what it cannot express."""
    config_json.fixed(
        cfg, norm="post", qk_norm_all=True, window=None, rotary_share=1.0, out_bias=cfg.bias,
        ffn_bias=False,
    )  # fmt: skip
    biases = {"attention_bias": cfg.bias}
    return {"architectures": ["Olmo2ForCausalLM"], "model_type": "olmo2"} | _said(cfg) | biases


def phi3_write(cfg: llama.Config) -> dict[str, Any]:
    """The `phi3` config.json of a Config. Raises: ValueError for what it cannot express."""
    config_json.fixed(
        cfg, norm="pre", qk_norm_all=False, bias=False, out_bias=False, ffn_bias=False
    )
    own = {"sliding_window": cfg.window}
    said = _said(cfg)
    rope_type = said["rope_parameters"]["rope_type"]
    if rope_type not in ("default", "longrope"):
        raise ValueError(
            f"model.scaling={cfg.scaling!r} has no counterpart (always None or LongRope)"
        )
    if rope_type == "longrope":
        # there this field wins over the record's
        own["original_max_position_embeddings"] = said["rope_parameters"][
            "original_max_position_embeddings"
        ]
    return {"architectures": ["Phi3ForCausalLM"], "model_type": "phi3"} | said | own


def _said(cfg: llama.Config) -> dict[str, Any]:
    config_json.fixed(cfg, gated=True, qk_norm=False, softcap=None)
    return {
        "vocab_size": cfg.vocab,
        "hidden_size": cfg.embed,
        "num_hidden_layers": cfg.layers,
        "num_attention_heads": cfg.heads,
        "num_key_value_heads": cfg.kv,
        "head_dim": cfg.head,
        "intermediate_size": cfg.ffn,
        "hidden_act": config_json.activation(cfg.activation),
        "rms_norm_eps": cfg.eps,
        "tie_word_embeddings": cfg.tied,
        **rope_parameters.write(cfg.head, cfg.theta, cfg.scaling, cfg.context, cfg.rotary_share),
    }
