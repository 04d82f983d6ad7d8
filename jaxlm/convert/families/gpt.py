"""GPT-1, GPT-2, OPT and BLOOM checkpoints.

Dropout of residuals is `Config.dropout`; dropout of attention probabilities, which only training
uses, is not kept.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from jaxlm.convert import config_rows, weight_rows
from jaxlm.convert.config_json import ACTIVATIONS, Fields
from jaxlm.convert.config_rows import (
    Architecture,
    always,
    choice,
    field,
    only,
    required,
    same_as,
    written,
)
from jaxlm.convert.families import fused_heads
from jaxlm.convert.weight_rows import (
    PLAIN,
    Row,
    Table,
    biased,
    conv1d,
    fused,
    layer_norm,
    linear,
    same,
)
from jaxlm.core import param
from jaxlm.models import gpt

QKV = ("attn/q", "attn/k", "attn/v")
QKV_BIAS = ("attn/q_bias", "attn/k_bias", "attn/v_bias")

# GPT-1 and GPT-2: products are Conv1D, with [in, out] matrices.
CONV1D = [
    *layer_norm("attn_norm", "ln_1"),
    *layer_norm("ffn_norm", "ln_2"),
    fused(PLAIN, QKV, "attn.c_attn.weight"),
    fused(PLAIN, QKV_BIAS, "attn.c_attn.bias"),
    conv1d("attn/o", "attn.c_proj.weight"),
    same("attn/o_bias", "attn.c_proj.bias"),
    conv1d("ffn/up", "mlp.c_fc.weight"),
    same("ffn/up_bias", "mlp.c_fc.bias"),
    conv1d("ffn/down", "mlp.c_proj.weight"),
    same("ffn/down_bias", "mlp.c_proj.bias"),
]
HEAD = linear("unembed", "lm_head.weight")
# The causal mask, which old files hold as a buffer.
MASKS = (r"\.attn\.(bias|masked_bias)$",)


def _table(outer: list[Row], rows: list[Row], ignored: tuple[str, ...] = ()) -> Table:
    stack = weight_rows.Stack("transformer.h.{i}.", rows)
    return Table(outer, {"stack": stack}, ignored, prefix="transformer")


GPT2_OUTER = [
    same("embed/table", "transformer.wte.weight"),
    same("embed/positions", "transformer.wpe.weight"),
    *layer_norm("norm", "transformer.ln_f"),
    HEAD,
]
GPT2_WEIGHTS = _table(GPT2_OUTER, CONV1D, MASKS)


GPT1_OUTER = [
    same("embed/table", "transformer.tokens_embed.weight"),
    same("embed/positions", "transformer.positions_embed.weight"),
    HEAD,
]
GPT1_WEIGHTS = _table(GPT1_OUTER, CONV1D, (*MASKS, r"\.position_ids$"))


# OPT's table of positions begins with two rows that no token reads (fairseq's padding).
OFFSET = 2


def _shifted(ours: str, theirs: str) -> Row:
    def shapes(ps: Sequence[param.Param]) -> list[tuple[int, ...]]:
        return [(ps[0].shape[0] + OFFSET, *ps[0].shape[1:])]

    return Row(
        (ours,),
        (theirs,),
        lambda arrays, ps: [arrays[0][OFFSET:]],
        lambda arrays, ps: [np.pad(arrays[0], ((OFFSET, 0), (0, 0)))],
        shapes,
    )


OPT_ROWS = [
    *layer_norm("attn_norm", "self_attn_layer_norm"),
    *layer_norm("ffn_norm", "final_layer_norm"),
    *biased("attn/q", "self_attn.q_proj"),
    *biased("attn/k", "self_attn.k_proj"),
    *biased("attn/v", "self_attn.v_proj"),
    *biased("attn/o", "self_attn.out_proj"),
    *biased("ffn/up", "fc1"),
    *biased("ffn/down", "fc2"),
]
OPT_OUTER = [
    same("embed/table", "model.decoder.embed_tokens.weight"),
    _shifted("embed/positions", "model.decoder.embed_positions.weight"),
    *layer_norm("norm", "model.decoder.final_layer_norm"),
    HEAD,
]
OPT_WEIGHTS = Table(OPT_OUTER, {"stack": weight_rows.Stack("model.decoder.layers.{i}.", OPT_ROWS)})


BLOOM_ROWS = [
    *layer_norm("attn_norm", "input_layernorm"),
    *layer_norm("ffn_norm", "post_attention_layernorm"),
    fused_heads.grouped(QKV, "self_attention.query_key_value.weight"),
    fused_heads.grouped(QKV_BIAS, "self_attention.query_key_value.bias"),
    *biased("attn/o", "self_attention.dense"),
    *biased("ffn/up", "mlp.dense_h_to_4h"),
    *biased("ffn/down", "mlp.dense_4h_to_h"),
]
BLOOM_OUTER = [
    same("embed/table", "transformer.word_embeddings.weight"),
    *layer_norm("embed/norm", "transformer.word_embeddings_layernorm"),
    *layer_norm("norm", "transformer.ln_f"),
    HEAD,
]
BLOOM_WEIGHTS = _table(BLOOM_OUTER, BLOOM_ROWS)


def _read_ffn(f: Fields, cfg: Any) -> dict[str, Any]:
    width = f.get("n_inner", 4 * cfg.embed)
    return {"ffn": None if width == 4 * cfg.embed else width}


def _read_scaled(f: Fields, cfg: Any) -> dict[str, Any]:
    return {"query_scalar": None if f.get("scale_attn_weights", True) else 1.0}


def _write_scaled(cfg: gpt.Config) -> dict[str, Any]:
    if cfg.query_scalar not in (None, 1.0, config_rows.head_size(cfg)):
        config_rows.refuse(cfg, "query_scalar", "None, 1.0 or model.embed / model.heads")
    return {"scale_attn_weights": cfg.query_scalar != 1.0}


def _read_bloom(f: Fields, cfg: Any) -> dict[str, Any]:
    if f.get("slow_but_exact", False) and f.get("pretraining_tp", 1) > 1:
        f.only("slow_but_exact", False)  # transformers leaves out two biases of each layer then
    return {}


def _refuse_width(cfg: gpt.Config) -> dict[str, Any]:
    if cfg.width != 4 * cfg.embed:
        config_rows.refuse(cfg, "ffn", "None or 4 model.embed")
    return {}


SIZES = [
    required("vocab", "vocab_size"),
    required("embed", "n_embd", "hidden_size"),
    required("layers", "n_layer", "num_hidden_layers"),
    required("heads", "n_head", "num_attention_heads"),
]
EPS = field("eps", "layer_norm_epsilon", 1e-5)
TIED = field("tied", "tie_word_embeddings", True)
# One rate here; that of attention's probabilities is not kept.
DROPOUT = [
    field("dropout", "resid_pdrop", 0.1),
    written("embd_pdrop", same_as("dropout")),
    written("attn_pdrop", 0.0),
]
FOURFOLD = config_rows.Row(("ffn",), write=_refuse_width)
# GPT-1's own names, where "gelu" is the tanh form.
AFN = {"gelu": "gelu_tanh", "relu": "relu", "silu": "silu", "swish": "silu"}

GPT2_FIELDS = [
    *SIZES,
    field("context", "n_positions", 1024, "max_position_embeddings"),
    config_rows.Row(("ffn",), _read_ffn, lambda cfg: {"n_inner": cfg.ffn}),
    choice("activation", "activation_function", "gelu_new", ACTIVATIONS),
    EPS,
    *DROPOUT,
    TIED,
    config_rows.Row(("query_scalar",), _read_scaled, _write_scaled),
    field("scale_by_layer", "scale_attn_by_inverse_layer_idx", False),
    only("add_cross_attention", False),
]
GPT2 = Architecture("gpt2", gpt.Config, "GPT2LMHeadModel", GPT2_FIELDS, GPT2_WEIGHTS)
GPT1_FIELDS = [
    *SIZES,
    field("context", "n_positions", 512, "max_position_embeddings"),
    choice("activation", "afn", "gelu", AFN),
    EPS,
    *DROPOUT,
    TIED,
    FOURFOLD,
    always(norm="post"),
]
GPT1 = Architecture("openai-gpt", gpt.Config, "OpenAIGPTLMHeadModel", GPT1_FIELDS, GPT1_WEIGHTS)
OPT_FIELDS = [
    required("vocab", "vocab_size"),
    required("embed", "hidden_size"),
    only("word_embed_proj_dim", same_as("embed"), export=True),
    required("layers", "num_hidden_layers"),
    required("heads", "num_attention_heads"),
    field("context", "max_position_embeddings", 2048),
    field("ffn", "ffn_dim", 3072, none=lambda cfg: 4 * cfg.embed),
    choice("activation", "activation_function", "relu", ACTIVATIONS),
    field("bias", "enable_bias", True),
    choice("norm", "do_layer_norm_before", True, {True: "pre", False: "post"}),
    field("dropout", "dropout", 0.1),
    TIED,
    only("_remove_final_layer_norm", False),
    only("layer_norm_elementwise_affine", True),
]
OPT = Architecture("opt", gpt.Config, "OPTForCausalLM", OPT_FIELDS, OPT_WEIGHTS)
BLOOM_FIELDS = [
    required("vocab", "vocab_size"),
    required("embed", "hidden_size", "n_embed"),
    required("layers", "n_layer", "num_hidden_layers"),
    required("heads", "n_head", "num_attention_heads"),
    field("context", "seq_length", 2048),
    EPS,
    field("dropout", "hidden_dropout", 0.0),
    written("attention_dropout", 0.0),
    TIED,
    FOURFOLD,
    always(positions="alibi", embed_norm=True),
    only("apply_residual_connection_post_layernorm", False),
    config_rows.Row((), _read_bloom),
]
BLOOM = Architecture("bloom", gpt.Config, "BloomForCausalLM", BLOOM_FIELDS, BLOOM_WEIGHTS)
