"""Share of the memory's bandwidth that decoding takes: a step reads the weights and the cache."""

import time
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxlm.core import param
from jaxlm.models.model import Model
from jaxlm.scaling.cost import flops

_SUMMED = 2**26  # float32, 256 MiB: more than caches of a processor hold


class Reads(NamedTuple):
    """Bytes that a step of decoding reads.

    shared: weights that every step reads. experts: those of all experts, of which a token meets the
    share `met`. token: keys and values of one token in all layers.
    """

    shared: int
    experts: int
    met: float
    token: float

    def step(self, rows: int, tokens: int) -> float:
        """Bytes of a step of so many rows, with `tokens` of prompts and continuations before them.
        Rows choose experts as if independently of each other."""
        met = 1 - (1 - self.met) ** rows
        return self.shared + met * self.experts + tokens * self.token


def reads(model: Model, params: param.Tree, token_bytes: float) -> Reads:
    """The Reads of a model. params: prepared for decoding; a table that is only looked into (an
    embedding that is not also the output matrix) does not count. token_bytes: of its cache."""
    used = {name: part for name, part in params.items() if name not in ("embed", "ahead")}
    leaves = {id(x): x.nbytes for x in jax.tree.leaves((used, model.head(params)))}
    total = sum(leaves.values())
    spec = param.flatten({name: model.spec[name] for name in used})
    of_experts = [p for p in spec.values() if "expert" in p.axes[: p.copies]]
    if not of_experts:
        return Reads(total, 0, 0.0, token_bytes)
    every, count = param.count(model.spec), sum(_size(p) for p in of_experts)
    met = 1 - (every - flops.active(model.cfg)) / count
    experts = int(total * count / sum(map(_size, spec.values())))
    return Reads(total - experts, experts, met, token_bytes)


def _size(p: Any) -> int:
    size = 1
    for n in p.shape:
        size *= n
    return size


def of_memory() -> float:
    """Bytes per second that a plain sum reads from the device's memory: the best of five."""
    x = jnp.ones((2**13, _SUMMED // 2**13), jnp.float32)
    rows = jax.jit(lambda x: jnp.sum(x, axis=1))  # in parallel, where a sum of all may not be
    rows(x).block_until_ready()
    best = 0.0
    for _ in range(5):
        start = time.perf_counter()
        rows(x).block_until_ready()
        best = max(best, x.nbytes / (time.perf_counter() - start))
    return best
