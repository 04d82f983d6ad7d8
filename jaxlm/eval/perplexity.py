"""How well a model predicts held-out text: nats per token, bits per byte."""

import dataclasses
import itertools
import math
from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp

from jaxlm.core import param
from jaxlm.core.batch import Batch
from jaxlm.data import loader, shards
from jaxlm.models.model import Model
from jaxlm.ops import loss as ops_loss
from jaxlm.ops.attention import At
from jaxlm.parallel import place
from jaxlm.parallel.plan import Plan

# (params, batch) -> {"nll", "correct", "weight"}: float32 sums over the batch's targets.
Scorer = Callable[[param.Tree, Batch], dict[str, jax.Array]]


@dataclasses.dataclass(frozen=True)
class Score:
    """A model on a text. Means are over targets: every token but each document's first."""

    nll: float
    """Nats per token."""
    bits_per_byte: float
    """Bits per UTF-8 byte of text, ends of documents paid for: comparable across tokenizers."""
    perplexity: float
    """exp(nll)."""
    accuracy: float
    """Share of tokens that had the largest logit."""
    tokens: int
    """Tokens predicted."""
    bytes: int
    """Bytes of text they spell. Estimated from the share of tokens if not the whole split."""


def scorer(model: Model, plan: Plan) -> Scorer:
    """The compiled function that scores a batch; dropout is off."""

    def score(params: param.Tree, batch: Batch) -> dict[str, jax.Array]:
        x = model.hidden(params, batch.tokens, At(batch.segments, batch.positions)).x
        _, sums = ops_loss.cross_entropy(
            model.unembed,
            model.head(params),
            x,
            batch.targets,
            batch.weight,
            chunk=plan.loss_chunk,
        )
        return {"nll": sums["nll"], "correct": sums["correct"], "weight": jnp.sum(batch.weight)}

    return jax.jit(score, out_shardings=plan.replicated)


def evaluate(
    score: Scorer,
    params: param.Tree,
    data: loader.Data,
    found: shards.Shards,
    plan: Plan,
    batches: int | None = None,
) -> Score:
    """The Score on a split, or on its first `batches` batches.

    Exact: every target of the split counts once, padding not at all, and sums run in float64, so
    data.batch changes nothing but rounding. Every process gets the same Score.

    Raises: ValueError for an empty split.
    """
    local = loader.val_batches(data, found, jax.process_index(), jax.process_count())
    total = sums(score, params, itertools.islice(local, batches), plan)
    if not total["weight"]:
        raise ValueError(f"{found.folder}: the {found.split!r} split has no token to predict")
    tokens, whole = round(total["weight"]), found.tokens - found.documents
    size = found.bytes if tokens == whole else round(found.bytes * tokens / whole)
    nll = total["nll"] / total["weight"]
    return Score(
        nll=nll,
        bits_per_byte=total["nll"] / math.log(2) / size,
        perplexity=math.exp(min(nll, 700.0)),
        accuracy=total["correct"] / total["weight"],
        tokens=tokens,
        bytes=size,
    )


def sums(score: Scorer, params: param.Tree, local: Iterable[Any], plan: Plan) -> dict[str, float]:
    """{"nll", "correct", "weight"} summed over batches, in float64 on the host."""
    total = {"nll": 0.0, "correct": 0.0, "weight": 0.0}
    ahead: list[dict[str, jax.Array]] = []
    for batch in local:
        ahead.append(score(params, place.batch(plan, batch)))
        # One batch is computed while the next is read; more would pile up on the device.
        if len(ahead) > 2:
            _add(total, ahead.pop(0))
    for part in ahead:
        _add(total, part)
    return total


def _add(total: dict[str, float], part: dict[str, jax.Array]) -> None:
    for name in total:
        total[name] += float(part[name])
