"""Two sets of weights of one model on the same documents: what a change to them costs."""

import dataclasses
import itertools
import math
from collections.abc import Iterable

import jax
import jax.numpy as jnp
import numpy as np

from jaxlm.core import batch as batches
from jaxlm.core import config, param
from jaxlm.core.batch import Batch
from jaxlm.data.tokenizers import tokenizer as tokenizers
from jaxlm.models import model as models
from jaxlm.models.model import Model

RESAMPLES = 2000


@dataclasses.dataclass(frozen=True)
class Comparison:
    """The second weights against the first, over every token of the documents but the one that
    begins each."""

    documents: int
    """Documents read."""
    tokens: int
    """Tokens predicted."""
    before: float
    """Nats per token with the first weights."""
    after: float
    """Nats per token with the second."""
    interval: tuple[float, float]
    """95 % interval of after - before, nats per token, over draws of documents (the paired
    bootstrap: Efron and Tibshirani 1993, chapter 13)."""
    agreement: float
    """Share of tokens at which both have the same likeliest token."""
    kl: float
    """Mean of KL(first || second), nats per token."""
    kl_by_position: tuple[tuple[int, float], ...]
    """(first position, mean) of that at positions 0, 1, 2-3, 4-7, 8-15, ... of a document."""

    @property
    def ratio(self) -> float:
        """The second perplexity over the first."""
        return math.exp(self.after - self.before)


def refuse(model: Model) -> None:
    """Raises: ValueError for a model that is no decoder."""
    if model.kind != "decoder":
        raise ValueError(
            f"data: weights are compared on the next token, and a {config.kind(type(model.cfg))} "
            "model predicts none; leave it out"
        )


def documents(
    tokenizer: tokenizers.Tokenizer, texts: Iterable[str], length: int, count: int
) -> list[np.ndarray]:
    """The first `length` tokens of the first `count` texts, each after the token that begins a
    document: int32 arrays. Raises: ValueError where none has a token."""
    first = tokenizers.begin(tokenizer)
    rows = [
        np.array([first, *tokenizer.encode(text)][:length], np.int32)
        for text in itertools.islice(texts, count)
    ]
    rows = [row for row in rows if len(row) > 1]
    if not rows:
        raise ValueError("data: no document has a token to predict")
    return rows


def compare(
    model: Model, first: param.Tree, second: param.Tree, rows: list[np.ndarray], batch: int = 8
) -> Comparison:
    """The Comparison of two sets of weights on documents as token ids.

    Raises: ValueError as `refuse`; FloatingPointError for logits that are not finite.
    """
    refuse(model)
    score, width = _scorer(model), max(len(row) for row in rows)
    parts = []
    for start in range(0, len(rows), batch):
        some = batches.rows(rows[start : start + batch], width, batch)
        host = jax.device_get(score(first, second, some))
        # position t predicts token t + 1
        sizes = [len(row) - 1 for row in rows[start : start + batch]]
        parts += [{k: v[r, :n] for k, v in host.items()} for r, n in enumerate(sizes)]
    sizes = np.array([len(part["kl"]) for part in parts], np.float64)
    before, after = (
        np.array([part[name].sum(dtype=np.float64) for part in parts])
        for name in ("before", "after")
    )
    if not np.isfinite(before + after).all():
        raise FloatingPointError("the logits of one set of weights are not finite")
    total = float(sizes.sum())
    return Comparison(
        documents=len(parts),
        tokens=int(total),
        before=float(before.sum() / total),
        after=float(after.sum() / total),
        interval=interval(after - before, sizes),
        agreement=float(np.concatenate([part["same"] for part in parts]).mean()),
        kl=float(np.concatenate([part["kl"] for part in parts]).mean(dtype=np.float64)),
        kl_by_position=_by_position([part["kl"] for part in parts]),
    )


def interval(differences: np.ndarray, sizes: np.ndarray) -> tuple[float, float]:
    """The 2.5 % and 97.5 % quantiles of sum(differences) / sum(sizes) over draws of documents with
    replacement; differences and sizes [documents]."""
    r = np.random.default_rng(0)
    picked = r.integers(0, len(sizes), (RESAMPLES, len(sizes)))
    means = differences[picked].sum(1) / sizes[picked].sum(1)
    low, high = np.quantile(means, [0.025, 0.975])
    return float(low), float(high)


def _by_position(parts: list[np.ndarray]) -> tuple[tuple[int, float], ...]:
    edges = [0, *(2**i for i in range(max(len(part) for part in parts).bit_length()))]
    rows = []
    for low, high in zip(edges, [*edges[1:], None]):
        inside = np.concatenate([part[low:high] for part in parts])
        if len(inside):
            rows.append((low, float(inside.mean(dtype=np.float64))))
    return tuple(rows)


def _scorer(model: Model):
    """The compiled (first, second, Batch [B, T]) -> {"before", "after": nats of every target, "kl",
    "same"}, each [B, T]."""

    def score(first: param.Tree, second: param.Tree, rows: Batch) -> dict[str, jax.Array]:
        logs = [
            jax.nn.log_softmax(model.unembed(model.head(p), models.read(model, p, rows).x))
            for p in (first, second)
        ]  # [B, T, V] each
        picked = [jnp.take_along_axis(x, rows.targets[..., None], -1)[..., 0] for x in logs]
        kl = jnp.sum(jnp.exp(logs[0]) * (logs[0] - logs[1]), axis=-1)
        same = jnp.argmax(logs[0], axis=-1) == jnp.argmax(logs[1], axis=-1)
        return {"before": -picked[0], "after": -picked[1], "kl": kl, "same": same}

    return jax.jit(score)
