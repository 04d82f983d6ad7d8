"""Inputs of a model's matrices on a text: sums over its tokens, for choosing codes of few bits."""

import math
from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxlm.core import param
from jaxlm.core.batch import Batch, Pairs
from jaxlm.data.tokenizers import tokenizer as tokenizers
from jaxlm.models import model as models
from jaxlm.models.model import Model
from jaxlm.ops import linear

# Bytes of sums that are collected in one pass over the text.
LIMIT = 2 * 2**30


class Inputs(NamedTuple):
    """Sums over the inputs x of a weight's matrices: gram [copies..., n, n] of x x^T, magnitude
    [copies..., n] of |x|; float64. Of an expert they are over the tokens that came to it."""

    gram: np.ndarray
    magnitude: np.ndarray


def windows(
    tokenizer: tokenizers.Tokenizer, texts: Iterable[str], width: int, count: int
) -> np.ndarray:
    """int32[at most count, width]: texts, one after another, each after the token that begins a
    document, cut into rows without padding; a shorter text is one row of its length.

    Raises: ValueError for texts of fewer than two tokens.
    """
    tokens: list[int] = []
    for text in texts:
        tokens += [tokenizers.begin(tokenizer), *tokenizer.encode(text)]
        if len(tokens) >= width * count:
            break
    if len(tokens) < 2:
        raise ValueError("calibration: the text has no token")
    width = min(width, len(tokens))
    rows = min(count, len(tokens) // width)
    return np.array(tokens[: rows * width], np.int32).reshape(rows, width)


def observe(
    model: Model,
    params: param.Tree,
    rows: np.ndarray,
    spec: Mapping[str, param.Param],
    batch: int = 8,
    limit: int = LIMIT,
) -> Iterator[tuple[str, Inputs]]:
    """The Inputs of each of the weights in `spec`, {path: Param}, in its order, while the model
    reads rows int32[R, T]; an encoder-decoder reads them as sources and as targets.

    The inputs are those of `params`, also where weights before them will be in few bits. Weights
    whose sums are within `limit` bytes together are observed in one pass.
    """
    for paths in _groups(spec, limit):
        sums = {path: _zeros(spec[path]) for path in paths}
        collect = _collector(model)
        total: dict[str, Inputs] = {}
        for first in range(0, len(rows), batch):
            part = collect(params, sums, _batch(model, rows[first : first + batch]))
            host = {path: Inputs(*(np.asarray(x, np.float64) for x in part[path])) for path in part}
            for path, new in host.items():
                old = total.get(path)
                total[path] = new if old is None else Inputs(*(a + b for a, b in zip(old, new)))
        yield from ((path, total.pop(path)) for path in paths)


def _groups(spec: Mapping[str, param.Param], limit: int) -> Iterator[list[str]]:
    paths: list[str] = []
    held = 0
    for path, p in spec.items():
        need = 4 * math.prod(p.shape[: p.copies]) * p.fan_in * (p.fan_in + 1)
        if paths and held + need > limit:
            yield paths
            paths, held = [], 0
        paths, held = [*paths, path], held + need
    if paths:
        yield paths


def _zeros(p: param.Param) -> tuple[jax.Array, jax.Array]:
    """Zeros in the shapes of what `linear.Observed` holds next to a weight."""
    lead, n = p.shape[: p.copies], p.fan_in
    return jnp.zeros((*lead, n, n)), jnp.zeros((*lead, n))


def _collector(model: Model):
    """The compiled (params, {path: zeros}, batch) -> {path: sums over the batch}: gradients of
    something that all matrices have a part in, see `linear.Observed`."""

    def collect(params: param.Tree, zeros: dict, rows: Batch | Pairs) -> dict:
        def read(zeros: dict) -> jax.Array:
            flat = param.flatten(params)
            flat |= {path: linear.Observed(flat[path], *zeros[path]) for path in zeros}
            return jnp.sum(models.read(model, param.nested(flat), rows).x.astype(jnp.float32))

        return jax.grad(read)(zeros)

    return jax.jit(collect)


def _batch(model: Model, rows: np.ndarray) -> Batch | Pairs:
    """Rows int32[R, T] as a batch without padding."""
    ones = np.ones_like(rows)
    places = np.broadcast_to(np.arange(rows.shape[1], dtype=np.int32), rows.shape)
    own = Batch(rows, rows, ones.astype(np.float32), ones, places)
    return Pairs(*own, rows, ones, places) if model.kind == "encoder_decoder" else own
