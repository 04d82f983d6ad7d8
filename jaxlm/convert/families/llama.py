"""LLaMA, OLMo 2 and Phi-3 checkpoints."""

from typing import Any

from jaxlm.convert import config_rows, weight_rows
from jaxlm.convert.config_json import ACTIVATIONS
from jaxlm.convert.config_rows import (
    Architecture,
    always,
    choice,
    field,
    nullable,
    required,
    same_as,
)
from jaxlm.convert.families import rope_parameters
from jaxlm.convert.weight_rows import Row, Table, linear, same
from jaxlm.models import llama
from jaxlm.ops import rope

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
ATTENTION = [
    linear("attn/q", "self_attn.q_proj.weight"),
    linear("attn/k", "self_attn.k_proj.weight"),
    linear("attn/v", "self_attn.v_proj.weight"),
    linear("attn/o", "self_attn.o_proj.weight"),
]
ATTENTION_BIASES = [
    same("attn/q_bias", "self_attn.q_proj.bias"),
    same("attn/k_bias", "self_attn.k_proj.bias"),
    same("attn/v_bias", "self_attn.v_proj.bias"),
    same("attn/o_bias", "self_attn.o_proj.bias"),
]
FFN = [
    linear("ffn/gate", "mlp.gate_proj.weight"),
    linear("ffn/up", "mlp.up_proj.weight"),
    linear("ffn/down", "mlp.down_proj.weight"),
]
FFN_BIASES = [
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


LAYERS = "model.layers.{i}."
IGNORED = (r"rotary_emb\.inv_freq",)


def _table(*rows: Row) -> Table:
    return Table(OUTER, {"stack": weight_rows.Stack(LAYERS, [*rows])}, IGNORED)


WIDTHS = [
    required("vocab", "vocab_size"),
    required("embed", "hidden_size"),
    required("layers", "num_hidden_layers"),
    required("heads", "num_attention_heads"),
    required("ffn", "intermediate_size"),
]
FIELDS = [
    *WIDTHS,
    field("kv", "num_key_value_heads", same_as("heads")),
    field("head", "head_dim", config_rows.head_size),
    choice("activation", "hidden_act", "silu", ACTIVATIONS),
    field("tied", "tie_word_embeddings", False),
]
BIASES = [field("bias", "attention_bias", False), always(out_bias=same_as("bias"))]


def _original(cfg: llama.Config) -> dict[str, Any]:
    """Phi-3's field for the original context, which wins over the one in its record."""
    match cfg.scaling:
        case rope.LongRope(original=original):
            return {"original_max_position_embeddings": original}
        case None | rope.Ntk():
            return {}
    config_rows.refuse(cfg, "scaling", "None, Ntk or LongRope")


LLAMA_FIELDS = [
    *FIELDS,
    rope_parameters.row(2048),
    field("eps", "rms_norm_eps", 1e-6),
    *BIASES,
    field("ffn_bias", "mlp_bias", False),
]
LLAMA_WEIGHTS = _table(*PRE, *ATTENTION, *ATTENTION_BIASES, *FFN, *FFN_BIASES)
LLAMA = Architecture("llama", llama.Config, "LlamaForCausalLM", LLAMA_FIELDS, LLAMA_WEIGHTS)
OLMO2_FIELDS = [
    *FIELDS,
    rope_parameters.row(2048),
    field("eps", "rms_norm_eps", 1e-5),
    *BIASES,
    always(norm="post", qk_norm_all=True),
]
OLMO2_WEIGHTS = _table(*POST, *ATTENTION, *ATTENTION_BIASES, *FFN, *FFN_BIASES)
OLMO2 = Architecture("olmo2", llama.Config, "Olmo2ForCausalLM", OLMO2_FIELDS, OLMO2_WEIGHTS)
PHI3_FIELDS = [
    *FIELDS,
    rope_parameters.row(4096, share=True),
    config_rows.Row((), write=_original),
    field("eps", "rms_norm_eps", 1e-5),
    nullable("window", "sliding_window", None),
]
PHI3_WEIGHTS = _table(*PRE, *FUSED)
PHI3 = Architecture("phi3", llama.Config, "Phi3ForCausalLM", PHI3_FIELDS, PHI3_WEIGHTS)
