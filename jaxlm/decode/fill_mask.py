"""Predictions of an encoder for the masks of a text: the k likeliest tokens of every hole.

found = saved.load(pathlib.Path("runs/bert_tiny"))
for hole in fill.fill(found.model, found.params, tokenizer, "the <mask> of a list", marks):
    print(hole[0].text, hole[0].probability)
"""

import functools
import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxlm.core import batch as batches
from jaxlm.core import config, param
from jaxlm.data.tokenizers import tokenizer as tokenizers
from jaxlm.decode import token_sampling
from jaxlm.models import model as models
from jaxlm.models.model import Model
from jaxlm.ops.attention import At


class Guess(NamedTuple):
    """One candidate token of a hole."""

    token: int
    text: str
    probability: float


def encode(
    tokenizer: tokenizers.Tokenizer, text: str, marks: Mapping[str, int] | None = None
) -> list[int]:
    """The ids of a text in which special tokens are meant, without begin and eos.

    marks: how they are spelled, and their ids; None: as the tokenizer names them, such as
    "[MASK]", "<mask>" or "<extra_id_0>".
    """
    known = spelled(tokenizer) if marks is None else dict(marks)
    if not known:
        return tokenizer.encode(text)
    parts = re.split("(" + "|".join(re.escape(name) for name in known) + ")", text)
    ids: list[int] = []
    for part in parts:
        ids += [known[part]] if part in known else tokenizer.encode(part)
    return ids


def spelled(tokenizer: tokenizers.Tokenizer) -> dict[str, int]:
    """Spellings of the tokenizer's special tokens in a prompt, with their ids: names in brackets,
    and the mask as "<mask>" and "[MASK]" both."""
    marks = {
        name: i for name, i in tokenizer.special.items() if name[:1] + name[-1:] in ("<>", "[]")
    }
    if "mask" in tokenizer.special:
        marks |= dict.fromkeys(("<mask>", "[MASK]"), tokenizer.special["mask"])
    return marks


def fill(
    model: Model,
    params: param.Tree,
    tokenizer: tokenizers.Tokenizer,
    text: str,
    mask: int,
    top: int = 5,
    marks: Mapping[str, int] | None = None,
) -> list[list[Guess]]:
    """For every mask in the text, in order, its `top` likeliest tokens, likeliest first.

    mask: its id; marks: how it is spelled in the text, as `encode` has it. The model reads the text
    between the tokenizer's begin and eos.

    Raises: ValueError for a text without a mask, one that is too long, and a model that does not
    read both ways.
    """
    ids = [tokenizers.begin(tokenizer), *encode(tokenizer, text, marks), tokenizer.special["eos"]]
    holes = [i for i, token in enumerate(ids) if token == mask]
    if not holes:
        raise ValueError(
            f"{text!r:.60} has nothing to fill in: write "
            f"{' or '.join(n for n, i in (marks or spelled(tokenizer)).items() if i == mask)}"
        )
    scores = log_probs(model, params, ids)[holes]
    best = np.argsort(-scores, axis=-1, kind="stable")[:, :top]
    return [
        [
            Guess(
                int(t),
                tokenizer.decode([int(t)]),
                float(np.exp(p[t])),
            )
            for t in row
        ]
        for row, p in zip(best, scores, strict=True)
    ]


def log_probs(model: Model, params: param.Tree, ids: Sequence[int]) -> np.ndarray:
    """float32[T, V]: log p of every token at every place of one text.

    Raises: ValueError for a model that does not read both ways, and a text longer than its
    positions.
    """
    if model.kind != "encoder":
        raise ValueError(
            f"a {config.kind(type(model.cfg))} model does not read both ways: it fills in no holes"
        )
    if model.context is not None and len(ids) > model.context:
        raise ValueError(
            f"the text has {len(ids)} tokens, and the model {model.context} positions; shorten it"
        )
    tokenizers.check_known(ids, model.cfg.vocab, "the text")
    width = min(token_sampling.bucket(len(ids)), model.context or token_sampling.bucket(len(ids)))
    row = batches.rows([ids], width)
    at = At(jnp.asarray(row.segments), jnp.asarray(row.positions))
    z = _logits(model._replace(spec=None), params, jnp.asarray(row.tokens), at)
    return np.asarray(jax.nn.log_softmax(z[0, : len(ids)]))


@functools.partial(jax.jit, static_argnums=0)
def _logits(model: Model, params: param.Tree, tokens: jax.Array, at: At) -> jax.Array:
    return models.logits(model, params, tokens, at)
