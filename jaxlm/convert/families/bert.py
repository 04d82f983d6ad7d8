"""BERT, RoBERTa and Longformer checkpoints with the masked-language-model head.

Their output matrix is the embedding table; the output bias is stored a second time under older
names (`cls.predictions.decoder.bias`, `lm_head.decoder.bias`).
"""

import dataclasses
import functools
from collections.abc import Collection
from typing import Any

from jaxlm.convert import config_rows, weight_rows
from jaxlm.convert.config_json import Fields
from jaxlm.convert.config_rows import Architecture, choice, field, only, required, same_as, written
from jaxlm.convert.weight_rows import Table, biased, layer_norm, linear, same, unchanged
from jaxlm.models import bert

ACTIVATIONS = {"gelu": "gelu", "gelu_new": "gelu_tanh", "relu": "relu"}
_HEADS = {
    "bert": ("cls.predictions.transform.dense", "cls.predictions.transform.LayerNorm"),
    "roberta": ("lm_head.dense", "lm_head.layer_norm"),
}

ROWS = [
    *biased("attn/q", "attention.self.query"),
    *biased("attn/k", "attention.self.key"),
    *biased("attn/v", "attention.self.value"),
    *biased("attn/global/q", "attention.self.query_global"),
    *biased("attn/global/k", "attention.self.key_global"),
    *biased("attn/global/v", "attention.self.value_global"),
    *biased("attn/o", "attention.output.dense"),
    *layer_norm("attn_norm", "attention.output.LayerNorm"),
    *biased("ffn/up", "intermediate.dense"),
    *biased("ffn/down", "output.dense"),
    *layer_norm("ffn_norm", "output.LayerNorm"),
]


def _table(kind: str) -> Table:
    """The rows as the model_type `kind` names them.

    What is left out, the next-sentence head, is not read by masked tokens.
    """
    dense, norm = _HEADS["bert" if kind == "bert" else "roberta"]
    outer = [
        same("embed/table", f"{kind}.embeddings.word_embeddings.weight"),
        same("embed/positions", f"{kind}.embeddings.position_embeddings.weight"),
        unchanged("embed/types", f"{kind}.embeddings.token_type_embeddings.weight"),
        *layer_norm("embed/norm", f"{kind}.embeddings.LayerNorm"),
        linear("mlm/dense", f"{dense}.weight"),
        same("mlm/bias", f"{dense}.bias"),
        *layer_norm("mlm/norm", norm),
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


def settle(kind: str, cfg: bert.Config, tensors: Collection[str]) -> bert.Config:
    """The Config with the pooler, if its tensors are present: no field of theirs records it."""
    return dataclasses.replace(cfg, pooler=f"{kind}.pooler.dense.weight" in tensors)


def _read_padding(f: Fields, cfg: Any) -> dict[str, Any]:
    """RoBERTa counts positions from the one after the padding id, and pads with that row."""
    offset = f.get("pad_token_id", 1) + 1
    return {"offset": offset, "context": f.get("max_position_embeddings", 512) - offset}


def _write_padding(cfg: bert.Config) -> dict[str, Any]:
    if not cfg.offset:
        config_rows.refuse(cfg, "offset", "1 or more")
    return {
        "max_position_embeddings": cfg.context + cfg.offset,
        "pad_token_id": cfg.offset - 1,
    }


def _read_window(f: Fields, cfg: Any) -> dict[str, Any]:
    window = f.get("attention_window", 512)
    widths = [window] * cfg.layers if isinstance(window, int) else list(window)
    if any(w % 2 or w < 2 for w in widths):
        raise ValueError(f"config.json: attention_window={window!r}: even numbers are needed")
    return {"window": tuple(w // 2 + 1 for w in widths)}


def _write_window(cfg: bert.Config) -> dict[str, Any]:
    if min(cfg.window, default=0) < 2:
        config_rows.refuse(cfg, "window", "2 or more for each layer")
    return {"attention_window": [2 * (w - 1) for w in cfg.window]}


def _write_head_act(cfg: bert.Config) -> dict[str, Any]:
    if (cfg.head_act or cfg.act) != "gelu":
        config_rows.refuse(cfg, "head_act", "always 'gelu'")
    return {}


FIELDS = [
    required("vocab", "vocab_size"),
    required("embed", "hidden_size"),
    required("layers", "num_hidden_layers"),
    required("heads", "num_attention_heads"),
    required("ffn", "intermediate_size"),
    field("types", "type_vocab_size", 2),
    choice("act", "hidden_act", "gelu", ACTIVATIONS),
    field("eps", "layer_norm_eps", 1e-12),
    written("hidden_dropout_prob", same_as("dropout"), "dropout"),
    only("tie_word_embeddings", True, export=True),
    only("position_embedding_type", "absolute"),
    only("add_cross_attention", False),
    only("is_decoder", False),
]
PADDED = [
    *FIELDS,
    config_rows.Row(("offset", "context"), _read_padding, _write_padding),
    # the head is exact GELU, whatever hidden_act is
    config_rows.Row(
        ("head_act",),
        lambda f, cfg: {"head_act": None if cfg.act == "gelu" else "gelu"},
        _write_head_act,
    ),
]
BERT_FIELDS = [
    *FIELDS,
    field("context", "max_position_embeddings", 512),
    written("pad_token_id", 0),
]
BERT = Architecture(
    "bert",
    bert.Config,
    "BertForMaskedLM",
    BERT_FIELDS,
    _table("bert"),
    functools.partial(settle, "bert"),
)
ROBERTA = Architecture(
    "roberta",
    bert.Config,
    "RobertaForMaskedLM",
    PADDED,
    _table("roberta"),
    functools.partial(settle, "roberta"),
)
LONGFORMER_FIELDS = [
    *PADDED,
    config_rows.Row(("window",), _read_window, _write_window),
    only("attention_mode", "longformer"),
    only("ignore_attention_mask", False),
]
LONGFORMER = Architecture(
    "longformer",
    bert.Config,
    "LongformerForMaskedLM",
    LONGFORMER_FIELDS,
    _table("longformer"),
    functools.partial(settle, "longformer"),
)
