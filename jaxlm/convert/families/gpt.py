"""GPT-1, GPT-2, OPT and BLOOM checkpoints.

Dropout of residuals is `Config.dropout`; dropout of attention probabilities, which only training
uses, is not kept.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from jaxlm.convert import config_json, weight_rows
from jaxlm.convert.config_json import Fields
from jaxlm.convert.families import fused_heads
from jaxlm.convert.weight_rows import PLAIN, Row, Table, conv1d, fused, linear, same
from jaxlm.core import param
from jaxlm.models import gpt

QKV = ("attn/q", "attn/k", "attn/v")
QKV_BIAS = ("attn/q_bias", "attn/k_bias", "attn/v_bias")
# Scores as all but GPT-2 have them.
UNSCALED = {"query_scalar": None, "scale_by_layer": False}


def _norms(**theirs: str) -> list[Row]:
    """The two weights of each LayerNorm: our path, with "__" for "/", and their name."""
    return [
        same(f"{ours.replace('__', '/')}/{part}", f"{name}.{end}")
        for ours, name in theirs.items()
        for part, end in (("scale", "weight"), ("bias", "bias"))
    ]


# GPT-1 and GPT-2: products are Conv1D, with [in, out] matrices.
CONV1D = [
    *_norms(attn_norm="ln_1", ffn_norm="ln_2"),
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


def gpt2_names(cfg: gpt.Config) -> Table:
    """The rows of a `gpt2` checkpoint."""
    outer = [
        same("embed/table", "transformer.wte.weight"),
        same("embed/positions", "transformer.wpe.weight"),
        *_norms(norm="transformer.ln_f"),
        HEAD,
    ]
    stacks = {"stack": weight_rows.Stack("transformer.h.{i}.", CONV1D)}
    return Table(outer, stacks, MASKS, prefix="transformer")


def gpt2_read(f: Fields) -> gpt.Config:
    """Our Config of a `gpt2` config.json."""
    f.only("add_cross_attention", False)
    embed = f.take("n_embd", "hidden_size")
    return gpt.Config(
        vocab=f.take("vocab_size"),
        embed=embed,
        layers=f.take("n_layer", "num_hidden_layers"),
        heads=f.take("n_head", "num_attention_heads"),
        context=f.get("n_positions", 1024, "max_position_embeddings"),
        ffn=_width(f.get("n_inner", 4 * embed), embed),
        activation=f.among("activation_function", "gelu_new", config_json.ACTIVATIONS),
        eps=f.get("layer_norm_epsilon", 1e-5),
        dropout=f.get("resid_pdrop", 0.1),
        tied=f.get("tie_word_embeddings", True),
        query_scalar=None if f.get("scale_attn_weights", True) else 1.0,
        scale_by_layer=f.get("scale_attn_by_inverse_layer_idx", False),
    )


def gpt2_write(cfg: gpt.Config) -> dict[str, Any]:
    """The `gpt2` config.json of a Config. Raises: ValueError for what it cannot express."""
    config_json.fixed(
        cfg, norm="pre", positions="learned", embed_norm=False, bias=True, softcap=None
    )  # fmt: skip
    if cfg.query_scalar not in (None, 1.0, cfg.head):
        raise ValueError(
            f"model.query_scalar={cfg.query_scalar} has no counterpart in this config.json; "
            f"None, 1.0 and model.head={cfg.head} have"
        )
    return _gpt_sizes(cfg) | {
        "architectures": ["GPT2LMHeadModel"],
        "model_type": "gpt2",
        "n_inner": cfg.ffn,
        "activation_function": config_json.activation(cfg.activation),
        "scale_attn_weights": cfg.query_scalar in (None, cfg.head),
        "scale_attn_by_inverse_layer_idx": cfg.scale_by_layer,
    }


def gpt1_names(cfg: gpt.Config) -> Table:
    """The rows of an `openai-gpt` checkpoint."""
    outer = [
        same("embed/table", "transformer.tokens_embed.weight"),
        same("embed/positions", "transformer.positions_embed.weight"),
        HEAD,
    ]
    stacks = {"stack": weight_rows.Stack("transformer.h.{i}.", CONV1D)}
    return Table(outer, stacks, (*MASKS, r"\.position_ids$"), prefix="transformer")


# `openai-gpt` has a table of its own, where "gelu" is the tanh form.
AFN = {"gelu": "gelu_tanh", "relu": "relu", "silu": "silu", "swish": "silu"}


def gpt1_read(f: Fields) -> gpt.Config:
    """Our Config of an `openai-gpt` config.json."""
    return gpt.Config(
        vocab=f.take("vocab_size"),
        embed=f.take("n_embd", "hidden_size"),
        layers=f.take("n_layer", "num_hidden_layers"),
        heads=f.take("n_head", "num_attention_heads"),
        context=f.get("n_positions", 512, "max_position_embeddings"),
        activation=f.among("afn", "gelu", AFN),
        norm="post",
        eps=f.get("layer_norm_epsilon", 1e-5),
        dropout=f.get("resid_pdrop", 0.1),
        tied=f.get("tie_word_embeddings", True),
    )


def gpt1_write(cfg: gpt.Config) -> dict[str, Any]:
    """The `openai-gpt` config.json of a Config. Raises: ValueError for what it cannot express."""
    config_json.fixed(
        cfg, norm="post", positions="learned", width=4 * cfg.embed, embed_norm=False, bias=True,
        softcap=None, **UNSCALED,
    )  # fmt: skip
    known = {ours: theirs for theirs, ours in reversed(AFN.items())}
    if cfg.activation not in known:
        raise ValueError(
            f"model.activation={cfg.activation!r} has no counterpart; there is {known}"
        )
    return _gpt_sizes(cfg) | {
        "architectures": ["OpenAIGPTLMHeadModel"],
        "model_type": "openai-gpt",
        "afn": known[cfg.activation],
    }


def _width(ffn: int, embed: int) -> int | None:
    """`Config.ffn` of a width: None for the usual one."""
    return None if ffn == 4 * embed else ffn


def _gpt_sizes(cfg: gpt.Config) -> dict[str, Any]:
    return {
        "vocab_size": cfg.vocab,
        "n_embd": cfg.embed,
        "n_layer": cfg.layers,
        "n_head": cfg.heads,
        "n_positions": cfg.context,
        "layer_norm_epsilon": cfg.eps,
        "resid_pdrop": cfg.dropout,
        "embd_pdrop": cfg.dropout,
        "attn_pdrop": 0.0,
        "tie_word_embeddings": cfg.tied,
    }


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


def opt_names(cfg: gpt.Config) -> Table:
    """The rows of an `opt` checkpoint."""
    rows = _norms(attn_norm="self_attn_layer_norm", ffn_norm="final_layer_norm")
    for ours, theirs in (
        ("attn/q", "self_attn.q_proj"),
        ("attn/k", "self_attn.k_proj"),
        ("attn/v", "self_attn.v_proj"),
        ("attn/o", "self_attn.out_proj"),
        ("ffn/up", "fc1"),
        ("ffn/down", "fc2"),
    ):
        rows += [linear(ours, f"{theirs}.weight"), same(f"{ours}_bias", f"{theirs}.bias")]
    outer = [
        same("embed/table", "model.decoder.embed_tokens.weight"),
        _shifted("embed/positions", "model.decoder.embed_positions.weight"),
        *_norms(norm="model.decoder.final_layer_norm"),
        HEAD,
    ]
    stacks = {"stack": weight_rows.Stack("model.decoder.layers.{i}.", rows)}
    return Table(outer, stacks)


def opt_read(f: Fields) -> gpt.Config:
    """Our Config of an `opt` config.json."""
    embed = f.take("hidden_size")
    f.only("word_embed_proj_dim", embed)
    f.only("_remove_final_layer_norm", False)
    f.only("layer_norm_elementwise_affine", True)
    return gpt.Config(
        vocab=f.take("vocab_size"),
        embed=embed,
        layers=f.take("num_hidden_layers"),
        heads=f.take("num_attention_heads"),
        context=f.get("max_position_embeddings", 2048),
        ffn=_width(f.get("ffn_dim", 3072), embed),
        activation=f.among("activation_function", "relu", config_json.ACTIVATIONS),
        bias=f.get("enable_bias", True),
        norm="pre" if f.get("do_layer_norm_before", True) else "post",
        dropout=f.get("dropout", 0.1),
        tied=f.get("tie_word_embeddings", True),
    )


def opt_write(cfg: gpt.Config) -> dict[str, Any]:
    """The `opt` config.json of a Config. Raises: ValueError for what it cannot express."""
    config_json.fixed(
        cfg, positions="learned", embed_norm=False, eps=1e-5, softcap=None, **UNSCALED
    )
    return {
        "architectures": ["OPTForCausalLM"],
        "model_type": "opt",
        "vocab_size": cfg.vocab,
        "hidden_size": cfg.embed,
        "word_embed_proj_dim": cfg.embed,
        "num_hidden_layers": cfg.layers,
        "num_attention_heads": cfg.heads,
        "max_position_embeddings": cfg.context,
        "ffn_dim": cfg.width,
        "activation_function": config_json.activation(cfg.activation),
        "enable_bias": cfg.bias,
        "do_layer_norm_before": cfg.norm == "pre",
        "dropout": cfg.dropout,
        "tie_word_embeddings": cfg.tied,
    }


def bloom_names(cfg: gpt.Config) -> Table:
    """The rows of a `bloom` checkpoint."""
    rows = [
        *_norms(attn_norm="input_layernorm", ffn_norm="post_attention_layernorm"),
        fused_heads.grouped(QKV, "self_attention.query_key_value.weight"),
        fused_heads.grouped(QKV_BIAS, "self_attention.query_key_value.bias"),
        linear("attn/o", "self_attention.dense.weight"),
        same("attn/o_bias", "self_attention.dense.bias"),
        linear("ffn/up", "mlp.dense_h_to_4h.weight"),
        same("ffn/up_bias", "mlp.dense_h_to_4h.bias"),
        linear("ffn/down", "mlp.dense_4h_to_h.weight"),
        same("ffn/down_bias", "mlp.dense_4h_to_h.bias"),
    ]
    outer = [
        same("embed/table", "transformer.word_embeddings.weight"),
        *_norms(embed__norm="transformer.word_embeddings_layernorm", norm="transformer.ln_f"),
        HEAD,
    ]
    stacks = {"stack": weight_rows.Stack("transformer.h.{i}.", rows)}
    return Table(outer, stacks, prefix="transformer")


def bloom_read(f: Fields) -> gpt.Config:
    """Our Config of a `bloom` config.json."""
    f.only("apply_residual_connection_post_layernorm", False)
    if f.get("slow_but_exact", False) and f.get("pretraining_tp", 1) > 1:
        f.only("slow_but_exact", False)  # transformers leaves out two biases of each layer then
    return gpt.Config(
        vocab=f.take("vocab_size"),
        embed=f.take("hidden_size", "n_embed"),
        layers=f.take("n_layer", "num_hidden_layers"),
        heads=f.take("n_head", "num_attention_heads"),
        context=f.get("seq_length", 2048),
        positions="alibi",
        embed_norm=True,
        eps=f.get("layer_norm_epsilon", 1e-5),
        dropout=f.get("hidden_dropout", 0.0),
        tied=f.get("tie_word_embeddings", True),
    )


def bloom_write(cfg: gpt.Config) -> dict[str, Any]:
    """The `bloom` config.json of a Config. Raises: ValueError for what it cannot express."""
    config_json.fixed(
        cfg, norm="pre", positions="alibi", embed_norm=True, bias=True, activation="gelu_tanh",
        width=4 * cfg.embed, softcap=None, **UNSCALED,
    )  # fmt: skip
    return {
        "architectures": ["BloomForCausalLM"],
        "model_type": "bloom",
        "vocab_size": cfg.vocab,
        "hidden_size": cfg.embed,
        "n_layer": cfg.layers,
        "n_head": cfg.heads,
        "seq_length": cfg.context,
        "layer_norm_epsilon": cfg.eps,
        "hidden_dropout": cfg.dropout,
        "attention_dropout": 0.0,
        "tie_word_embeddings": cfg.tied,
    }


# (read, write, names) of each model_type.
GPT2 = (gpt2_read, gpt2_write, gpt2_names)
GPT1 = (gpt1_read, gpt1_write, gpt1_names)
OPT = (opt_read, opt_write, opt_names)
BLOOM = (bloom_read, bloom_write, bloom_names)
