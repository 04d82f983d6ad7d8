"""BERT, RoBERTa and Longformer checkpoints with the masked-language-model head.

Their output matrix is the embedding table; the output bias is stored a second time under older
names (`cls.predictions.decoder.bias`, `lm_head.decoder.bias`).
"""

import dataclasses
import functools
from collections.abc import Collection
from typing import Any

from jaxlm.convert import weight_rows
from jaxlm.convert.config_json import Fields
from jaxlm.convert.weight_rows import Table, linear, same
from jaxlm.models import bert

ACTIVATIONS = {"gelu": "gelu", "gelu_new": "gelu_tanh", "relu": "relu"}
_HEADS = {
    "bert": ("cls.predictions.transform.dense", "cls.predictions.transform.LayerNorm"),
    "roberta": ("lm_head.dense", "lm_head.layer_norm"),
}
_CLASSES = {
    "bert": "BertForMaskedLM",
    "roberta": "RobertaForMaskedLM",
    "longformer": "LongformerForMaskedLM",
}


def _norm(ours: str, theirs: str) -> list[weight_rows.Row]:
    return [same(f"{ours}/scale", f"{theirs}.weight"), same(f"{ours}/bias", f"{theirs}.bias")]


def _dense(ours: str, theirs: str) -> list[weight_rows.Row]:
    return [linear(ours, f"{theirs}.weight"), same(f"{ours}_bias", f"{theirs}.bias")]


ROWS = [
    *_dense("attn/q", "attention.self.query"),
    *_dense("attn/k", "attention.self.key"),
    *_dense("attn/v", "attention.self.value"),
    *_dense("attn/global/q", "attention.self.query_global"),
    *_dense("attn/global/k", "attention.self.key_global"),
    *_dense("attn/global/v", "attention.self.value_global"),
    *_dense("attn/o", "attention.output.dense"),
    *_norm("attn_norm", "attention.output.LayerNorm"),
    *_dense("ffn/up", "intermediate.dense"),
    *_dense("ffn/down", "output.dense"),
    *_norm("ffn_norm", "output.LayerNorm"),
]


def names(kind: str, cfg: bert.Config) -> Table:
    """The rows of a Config as the model_type `kind` names them.

    What is left out, the next-sentence head, is not read by masked tokens.
    """
    dense, norm = _HEADS["bert" if kind == "bert" else "roberta"]
    outer = [
        same("embed/table", f"{kind}.embeddings.word_embeddings.weight"),
        same("embed/positions", f"{kind}.embeddings.position_embeddings.weight"),
        _types(f"{kind}.embeddings.token_type_embeddings.weight"),
        *_norm("embed/norm", f"{kind}.embeddings.LayerNorm"),
        linear("mlm/dense", f"{dense}.weight"),
        same("mlm/bias", f"{dense}.bias"),
        *_norm("mlm/norm", norm),
        same("unembed_bias", "cls.predictions.bias" if kind == "bert" else "lm_head.bias"),
        linear("pooler/dense", f"{kind}.pooler.dense.weight"),
        same("pooler/bias", f"{kind}.pooler.dense.bias"),
    ]
    ignored = (r"embeddings\.position_ids", r"cls\.seq_relationship\.")
    ignored += (r"cls\.predictions\.decoder\.", r"lm_head\.decoder\.")
    stacks = {"stack": weight_rows.Stack(kind + ".encoder.layer.{i}.", ROWS)}
    # the norms' names in the first released files
    old = ((r"LayerNorm\.gamma$", "LayerNorm.weight"), (r"LayerNorm\.beta$", "LayerNorm.bias"))
    return Table(outer, stacks, ignored, old, kind)


def _types(theirs: str) -> weight_rows.Row:
    """A table [types, embed]: a matrix in their file too."""
    return weight_rows.Row(
        ("embed/types",),
        (theirs,),
        lambda arrays, ps: [arrays[0]],
        lambda arrays, ps: [arrays[0]],
        lambda ps: [ps[0].shape],
    )


def read(kind: str, f: Fields) -> bert.Config:
    """Our Config of a config.json of model_type `kind`."""
    layers = f.take("num_hidden_layers")
    # RoBERTa counts positions from the one after the padding id, and pads with row pad_token_id
    offset = 0 if kind == "bert" else f.get("pad_token_id", 1) + 1
    window = f.get("attention_window", 512) if kind == "longformer" else ()
    if kind == "longformer":
        f.only("attention_mode", "longformer")
        f.only("ignore_attention_mask", False)
    widths = layers * [window] if isinstance(window, int) else list(window)
    odd = [w for w in widths if w % 2 or w < 2]
    if odd:
        raise ValueError(f"config.json: attention_window={window!r}: even numbers are needed")
    f.only("position_embedding_type", "absolute")
    f.only("add_cross_attention", False)
    f.only("is_decoder", False)
    f.only("tie_word_embeddings", True)
    act = f.among("hidden_act", "gelu", ACTIVATIONS)
    return bert.Config(
        vocab=f.take("vocab_size"),
        embed=f.take("hidden_size"),
        layers=layers,
        heads=f.take("num_attention_heads"),
        ffn=f.take("intermediate_size"),
        context=f.get("max_position_embeddings", 512) - offset,
        offset=offset,
        types=f.get("type_vocab_size", 2),
        act=act,
        # the head of the other two is exact GELU, whatever hidden_act is
        head_act=None if kind == "bert" or act == "gelu" else "gelu",
        eps=f.get("layer_norm_eps", 1e-12),
        window=tuple(w // 2 + 1 for w in widths),
    )


def write(kind: str, cfg: bert.Config) -> dict[str, Any]:
    """The config.json of a Config as model_type `kind`. Raises: ValueError for what it cannot
    express: of a Config one model_type is the right one."""
    right = "longformer" if cfg.window else "roberta" if cfg.offset else "bert"
    if kind != right:
        raise ValueError(
            f"model.offset={cfg.offset}, model.window={cfg.window}: this is a {right} model, not "
            f"model_type={kind!r}"
        )
    if cfg.window and not cfg.offset:
        raise ValueError("model.offset: 0 given; model_type='longformer' has 1 or more")
    if min(cfg.window, default=2) < 2:
        raise ValueError(f"model.window: {cfg.window} given; longformer's are 2 or more")
    head_act = cfg.head_act or cfg.act
    always = cfg.act if kind == "bert" else "gelu"
    if head_act != always:
        raise ValueError(
            f"model.head_act={cfg.head_act!r}, model.act={cfg.act!r}: the head of model_type="
            f"{kind!r} is always {always!r}, which config.json has no field for"
        )
    theirs = {ours: name for name, ours in ACTIVATIONS.items()}
    record = {
        "architectures": [_CLASSES[kind]],
        "model_type": kind,
        "vocab_size": cfg.vocab,
        "hidden_size": cfg.embed,
        "num_hidden_layers": cfg.layers,
        "num_attention_heads": cfg.heads,
        "intermediate_size": cfg.ffn,
        "hidden_act": theirs[cfg.act],
        "hidden_dropout_prob": cfg.dropout,
        "layer_norm_eps": cfg.eps,
        "max_position_embeddings": cfg.context + cfg.offset,
        "type_vocab_size": cfg.types,
        "tie_word_embeddings": True,
        "pad_token_id": cfg.offset - 1 if cfg.offset else 0,
    }
    if cfg.window:
        record["attention_window"] = [2 * (w - 1) for w in cfg.window]
    return record


def settle(kind: str, cfg: bert.Config, tensors: Collection[str]) -> bert.Config:
    """The Config with the pooler, if its tensors are present: no field of theirs records it."""
    return dataclasses.replace(cfg, pooler=f"{kind}.pooler.dense.weight" in tensors)


def _architecture(kind: str) -> tuple[Any, Any, Any, Any]:
    read_, write_, names_, settle_ = (
        functools.partial(f, kind) for f in (read, write, names, settle)
    )
    return read_, write_, names_, settle_


BERT = _architecture("bert")
ROBERTA = _architecture("roberta")
LONGFORMER = _architecture("longformer")
