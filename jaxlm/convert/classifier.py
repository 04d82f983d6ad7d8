"""Reward models as transformers' sequence classification with one label, for decoders, both ways.

Its head is `score.weight` [1, D] without a bias, read at the last token that is not the pad id: the
last token of a text here too, as long as no text ends in the pad id (`pad`). The output matrix of
the language model is not part of it.
"""

import dataclasses
import re
from typing import Any

from jaxlm import models
from jaxlm.convert.weight_rows import Row, Table
from jaxlm.core import param
from jaxlm.data.templates import template
from jaxlm.data.tokenizers import tokenizer as tokenizers

# The class of each model_type; transformers has none for cohere, and those of encoders read their
# first token through a layer of their own.
CLASSES = {
    "gpt2": "GPT2ForSequenceClassification",
    "openai-gpt": "OpenAIGPTForSequenceClassification",
    "opt": "OPTForSequenceClassification",
    "bloom": "BloomForSequenceClassification",
    "gptj": "GPTJForSequenceClassification",
    "gpt_neox": "GPTNeoXForSequenceClassification",
    "falcon": "FalconForSequenceClassification",
    "gemma": "GemmaForSequenceClassification",
    "gemma2": "Gemma2ForSequenceClassification",
    "gemma3_text": "Gemma3TextForSequenceClassification",
    "qwen2": "Qwen2ForSequenceClassification",
    "qwen3": "Qwen3ForSequenceClassification",
    "qwen3_moe": "Qwen3MoeForSequenceClassification",
    "qwen2_moe": "Qwen2MoeForSequenceClassification",
    "llama": "LlamaForSequenceClassification",
    "mistral": "MistralForSequenceClassification",
    "mixtral": "MixtralForSequenceClassification",
    "gpt_oss": "GptOssForSequenceClassification",
    "olmo2": "Olmo2ForSequenceClassification",
    "phi3": "Phi3ForSequenceClassification",
    "deepseek_v3": "DeepseekV3ForSequenceClassification",
    "deepseek_v2": "DeepseekV2ForSequenceClassification",
}

SCORE = Row(
    ("score",),
    ("score.weight",),
    lambda arrays, ps: [arrays[0].reshape(ps[0].shape)],
    lambda arrays, ps: [arrays[0].reshape(1, -1)],
    lambda ps: [(1, *ps[0].shape)],
)

_OUTPUT = {"unembed", "unembed_bias"}


def config(kind: str, record: dict[str, Any], pad: int | None) -> dict[str, Any]:
    """The config.json of a language model as that of a classifier with one label.

    Raises: ValueError for a model_type that transformers has no such class for.
    """
    if kind not in CLASSES:
        raise ValueError(
            f"this reward model cannot be exported: transformers has no sequence classification "
            f"for {kind} that reads the last token; it has for {sorted(CLASSES)}"
        )
    labels = {"id2label": {"0": "LABEL_0"}, "label2id": {"LABEL_0": 0}}
    return record | {"architectures": [CLASSES[kind]], "pad_token_id": pad} | labels


def named(record: dict[str, Any]) -> bool:
    """Whether a config.json is that of a sequence classification."""
    return any(
        name.endswith("ForSequenceClassification") for name in record.get("architectures") or ()
    )


def headless(kind: str, cfg: models.AnyConfig) -> models.AnyConfig:
    """The Config of a classifier's model, which has no output matrix: one that shares the embedding
    table, and nobody reads. Raises: ValueError for a model_type not in CLASSES."""
    if kind not in CLASSES:
        raise ValueError(
            f"a sequence classification of {kind} is not supported: its score is not read at the "
            f"last token; those of {sorted(CLASSES)} are"
        )
    there = {f.name for f in dataclasses.fields(cfg)}
    without = {"tied": True, "unembed_bias": False}
    return dataclasses.replace(cfg, **{k: v for k, v in without.items() if k in there})


def table(rows: Table) -> Table:
    """The rows of a language model without its output matrix, and the head's. A file that has the
    matrix all the same is read without it."""
    outer = [row for row in rows.outer if not _OUTPUT & set(row.ours)]
    unread = [name for row in rows.outer if row not in outer for name in row.theirs]
    ignored = (*rows.ignored, *(f"^{re.escape(name)}$" for name in unread))
    return rows._replace(outer=[*outer, SCORE], ignored=ignored)


def spec(model: param.Tree, head: param.Param) -> param.Tree:
    """The weights of a classifier: the model's without its output matrix, and the head."""
    return {name: part for name, part in model.items() if name not in _OUTPUT} | {"score": head}


def pad(tokenizer: tokenizers.Tokenizer, written: template.Template, vocab: int) -> int | None:
    """An id to fill rows with that no text ends in: the tokenizer's own, the one that begins
    texts, or one of the model that the tokenizer has no use for. None if there is no such id:
    transformers then reads one text at a time, and refuses more."""
    ends = {tokenizer.special["eos"], *template.stops(written, tokenizer)}
    own = [tokenizer.special.get("pad"), tokenizers.begin(tokenizer)]
    unused = [i for i in own if i is not None and i not in ends]
    return next(iter([*unused, *range(tokenizer.vocab, vocab)]), None)
