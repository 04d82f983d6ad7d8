"""Targets from an encoder-decoder: the source is read once, its keys and values are remembered."""

import functools
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxlm.core import batch as batches
from jaxlm.core import config, param
from jaxlm.decode import sampling_loop, token_sampling
from jaxlm.models.model import Model
from jaxlm.ops.attention import At

Sources = Sequence[Sequence[int]]


class Conditioned(NamedTuple):
    """A decoder and what it is to read: a model like any other to `sampling_loop.generate`, and the
    weights to give it, with the keys and values of the source in every layer."""

    model: Model
    params: param.Tree


def conditioned(
    model: Model,
    params: param.Tree,
    source: jax.Array,
    at: At,
    origin: jax.Array | None = None,
) -> Conditioned:
    """The decoder of sources int32[B, S] at `at`: rows of the same segment read them. origin
    int32[N]: the source of each of N rows, None where row r reads source r.

    Raises: ValueError for a model that is no encoder-decoder.
    """
    if model.encode is None or model.cross is None:
        raise ValueError(
            f"a {config.kind(type(model.cfg))} model reads no source: it is no encoder-decoder"
        )
    x = model.encode(params, source, at)
    if origin is not None:
        x, at = jax.tree.map(lambda y: y[origin], (x, at))
    # layers apart before keys are in them: unstacking later would copy those too
    read = model.cross(sampling_loop.unstacked(params), x)
    hidden = functools.partial(model.hidden, source=(None, at))
    return Conditioned(model._replace(hidden=hidden), read)


def generate(
    model: Model,
    params: param.Tree,
    sources: Sources,
    sampling: token_sampling.Sampling | Sequence[token_sampling.Sampling],
) -> sampling_loop.Generation:
    """The n targets of each source, as numpy arrays [B, largest max_new], ordered as those of
    `token_sampling.generate`.

    sources: token ids, at least one each, eos included where the model was trained with it; of any
    lengths. sampling: as there; stop tokens end a target. One compiled program for a bucket of
    shapes.

    Raises: ValueError, before any compute, for an empty source, a token outside the vocabulary and
    stop strings; FloatingPointError if the logits are not finite.
    """
    settings = token_sampling.each(sampling, len(sources))
    if any(s.stop_strings for s in settings):
        raise ValueError("sampling.stop_strings: targets end at stop tokens only")
    start = [[model.cfg.start]] * len(sources)
    token_sampling.check_prompts(model, start, settings)
    arrays = check_sources(model, sources)
    width = token_sampling.bucket(max(len(a) for a in arrays))
    batch = batches.rows(arrays, width, token_sampling.bucket(len(arrays), 1))
    rows, count = token_sampling.rows_from(settings)
    new = max(s.max_new for s in settings)
    out = _generate(
        model._replace(spec=None),
        token_sampling.bucket(new),
        params,
        jnp.asarray(batch.tokens),
        At(jnp.asarray(batch.segments), jnp.asarray(batch.positions)),
        rows,
    )
    host = token_sampling.on_host(out, count, new)
    token_sampling.check_choices(host)
    return token_sampling.chosen(host, settings)


def check_sources(model: Model, sources: Sources) -> list[np.ndarray]:
    """The sources as int32 arrays. Raises: ValueError for one that is empty, and a token outside
    the vocabulary."""
    return [_checked(r, row, model.cfg.vocab) for r, row in enumerate(sources)]


def _checked(r: int, source: Sequence[int], vocab: int) -> np.ndarray:
    row = np.asarray(source)
    if not row.size or row.ndim != 1 or row.dtype.kind not in "iu":
        raise ValueError(f"source {r}: at least one token id is needed, got {source!r:.60}")
    wrong = row[(row < 0) | (row >= vocab)]
    if wrong.size:
        raise ValueError(f"source {r}: token {wrong[0]} is outside the vocabulary 0..{vocab - 1}")
    return row.astype(np.int32)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _generate(
    model: Model, room: int, params: param.Tree, source: jax.Array, at: At, rows: sampling_loop.Rows
) -> sampling_loop.Generation:
    read = conditioned(model, params, source, at, rows.origin)
    first = jnp.full((len(rows.limit), 1), model.cfg.start, jnp.int32)
    begin = At(jnp.ones_like(first), jnp.zeros_like(first))
    rows = rows._replace(origin=None)
    return sampling_loop.generate(read.model, read.params, first, begin, rows, room)
