"""Perplexity of held-out text: nats per token, bits per byte.

A model that fills in hidden tokens or spans is scored on these alone, and has no bits per byte.
"""

import dataclasses
import itertools
import math
from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxlm.core import param
from jaxlm.core.batch import Batch, Pairs
from jaxlm.data import pretraining
from jaxlm.data.tokenized import shards, texts
from jaxlm.models import model as models
from jaxlm.models.model import Model
from jaxlm.ops.losses import cross_entropy
from jaxlm.parallel import transfer
from jaxlm.parallel.plan import Plan

# (params, batch) -> {"nll", "correct", "weight", "counts" [V]}: float32 sums over the targets.
Scorer = Callable[[param.Tree, Batch | Pairs], dict[str, jax.Array]]


@dataclasses.dataclass(frozen=True)
class Score:
    """A model on a text. Means are over targets: every token but each document's first, or what
    data.corrupt hides."""

    nll: float
    """Nats per token."""
    bits_per_byte: float | None
    """Bits per UTF-8 byte of text, ends of documents paid for: comparable across tokenizers. None
    where not all tokens are targets (data.corrupt)."""
    perplexity: float
    """exp(nll)."""
    accuracy: float
    """Share of tokens that had the largest logit."""
    tokens: int
    """Tokens predicted."""
    bytes: int
    """Bytes of text they spell. Estimated from the share of tokens if not the whole split; the
    bytes of the whole split with data.corrupt."""
    unigram: float
    """Nats per token of the best guess from the frequency of each target alone: the entropy of the
    targets scored. A model that has learnt nothing but frequencies ends there."""


def scorer(model: Model, plan: Plan) -> Scorer:
    """The compiled function that scores a batch; dropout is off."""

    def score(params: param.Tree, batch: Batch | Pairs) -> dict[str, jax.Array]:
        x = models.read(model, params, batch).x
        _, sums = cross_entropy.cross_entropy(
            model.unembed,
            model.head(params),
            x,
            batch.targets,
            batch.weight,
            chunk=plan.loss_tokens,
        )
        counts = jnp.zeros(model.cfg.vocab).at[batch.targets].add(batch.weight)
        total = {"nll": sums["nll"], "correct": sums["correct"]}
        return total | {"weight": jnp.sum(batch.weight), "counts": counts}

    return jax.jit(score, out_shardings=plan.replicated)


def evaluate(
    score: Scorer,
    params: param.Tree,
    data: pretraining.Data,
    split: shards.Shards,
    plan: Plan,
    batches: int | None = None,
) -> Score:
    """The Score on a split, or on its first `batches` batches.

    Exact: every target of the split counts once, padding not at all, and sums run in float64, so
    data.batch changes nothing but rounding. Every process gets the same Score.

    Raises: ValueError for an empty split.
    """
    total, size = _sums(score, params, data, split, plan, batches)
    return _score(data, total, size, size)


def scores(
    score: Scorer,
    params: param.Tree,
    data: pretraining.Data,
    text: texts.Text,
    plan: Plan,
    batches: int | None = None,
) -> dict[str, Any]:
    """The Score on a split, as JSON. batches: as `evaluate`.

    A mixture has that of all its held-out text, whatever the weights, and "nll/NAME" and
    "bits_per_byte/NAME" of each source. batches: of each source; in the Score of all they count as
    much as the rest of their source would.
    """
    if not isinstance(text, dict):
        return dataclasses.asdict(evaluate(score, params, data, text, plan, batches))
    every: dict[str, Any] = {"nll": 0.0, "correct": 0.0, "weight": 0.0, "counts": 0.0}
    by_source: dict[str, Any] = {}
    seen, estimated, tokens = 0, 0.0, 0
    for name, own in pretraining.parts(data).items():
        total, size = _sums(score, params, own, text[name], plan, batches)
        single = _score(own, total, size, size)
        by_source[f"nll/{name}"] = single.nll
        if single.bits_per_byte is not None:
            by_source[f"bits_per_byte/{name}"] = single.bits_per_byte
        factor = 1.0
        if batches is not None:
            rows = pretraining.val_rows(own, text[name])
            factor = rows / min(rows, batches * own.batch)
        every = {key: every[key] + factor * total[key] for key in every}
        seen, estimated, tokens = seen + size, estimated + factor * size, tokens + single.tokens
    combined = dataclasses.replace(_score(data, every, seen, estimated), tokens=tokens)
    return dataclasses.asdict(combined) | by_source


def _sums(
    score: Scorer,
    params: param.Tree,
    data: pretraining.Data,
    split: shards.Shards,
    plan: Plan,
    batches: int | None,
) -> tuple[dict[str, Any], int]:
    """(`sums` over a split or its first batches, bytes of their text)."""
    local = pretraining.val_batches(data, split, *transfer.reader(plan))
    total = sums(score, params, itertools.islice(local, batches), plan)
    if not total["weight"]:
        raise ValueError(f"{split.folder}: the {split.split!r} split has no token to predict")
    tokens, targets = round(float(total["weight"])), split.tokens - split.documents
    partial = data.corrupt is None and tokens != targets
    return total, round(split.bytes * tokens / targets) if partial else split.bytes


def _score(data: pretraining.Data, total: dict[str, Any], size: int, spelt: float) -> Score:
    """The Score of these sums. size: bytes of the text read; spelt: those that the sums stand
    for."""
    nll = float(total["nll"] / total["weight"])
    return Score(
        nll=nll,
        bits_per_byte=None if data.corrupt else float(total["nll"]) / math.log(2) / spelt,
        perplexity=math.exp(min(nll, 700.0)),
        accuracy=float(total["correct"] / total["weight"]),
        tokens=round(float(total["weight"])),
        bytes=size,
        unigram=entropy(total["counts"]),
    )


def entropy(counts: np.ndarray) -> float:
    """The entropy in nats of the distribution with these counts."""
    p = counts[counts > 0] / counts.sum()
    return float(-(p * np.log(p)).sum())


def sums(score: Scorer, params: param.Tree, local: Iterable[Any], plan: Plan) -> dict[str, Any]:
    """{"nll", "correct", "weight", "counts"} summed over batches, in float64 on the host."""
    total: dict[str, Any] = {"nll": 0.0, "correct": 0.0, "weight": 0.0, "counts": 0.0}
    ahead: list[dict[str, jax.Array]] = []
    for batch in local:
        ahead.append(score(params, transfer.batch(plan, batch)))
        # One batch is computed while the next is read; more would pile up on the device.
        if len(ahead) > 2:
            _add(total, ahead.pop(0))
    for part in ahead:
        _add(total, part)
    return total


def _add(total: dict[str, Any], part: dict[str, jax.Array]) -> None:
    for name in total:
        total[name] += np.asarray(part[name], np.float64)
