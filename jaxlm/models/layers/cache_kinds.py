"""The cache that a model decodes with: dense, or with rings for windows, or in 8 bits, or both.

    model                         every layer holds every slot, in the dtype that it computes in
    windowed(model)               a layer with a window holds its last tokens (`ring_cache`)
    quantised(model, "int8")      keys and values, or latents, in 8 bits (`quantised_cache`)

Each is a Model like any other; only the spec of its cache is another one, and the cache itself says
to the layers what it holds.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterator
from typing import get_args

from jaxlm.core import check, param
from jaxlm.models.layers import quantised_cache, ring_cache
from jaxlm.models.model import Model
from jaxlm.ops.attention import BLOCK
from jaxlm.ops.quant.cache_entries import Numbers

Layers = tuple[dict[str, param.Param], ...]
# Tokens that can be taken back from a ring, or written at once, at least.
SLACK = 16


@dataclasses.dataclass(frozen=True)
class Kept:
    """A cache's spec: (rows, slots) -> that of each layer.

    dense: the same without rings and in full numbers. windows: of each layer. slack: tokens that
    are written at once or taken back, None without rings. numbers: None for full ones.
    """

    dense: Callable[[int, int], Layers]
    windows: tuple[int | None, ...]
    slack: int | None = None
    numbers: Numbers | None = None

    def __call__(self, batch: int, slots: int) -> Layers:
        """The spec of each layer's part of a cache."""
        layers = self.dense(batch, slots)
        if self.slack is not None:
            layers = tuple(
                ring_cache.spec(functools.partial(self._layer, i, batch), window, self.slack, slots)
                for i, window in enumerate(self.windows)
            )
        if self.numbers is None:
            return layers
        return tuple(quantised_cache.spec(layer, self.numbers) for layer in layers)

    def _layer(self, number: int, batch: int, slots: int) -> dict[str, param.Param]:
        return self.dense(batch, slots)[number]


def windowed(model: Model, slack: int = SLACK) -> Model:
    """The model whose cache has rings, from which up to `slack` tokens can be taken back, or which
    takes as many at once; no fewer than before, and the same model if no layer has a window."""
    if all(window is None for window in model.windows):
        return model
    kept = _kept(model)
    most = max(slack, SLACK, kept.slack or 0)
    return model._replace(cache=dataclasses.replace(kept, slack=most))


def quantised(model: Model, numbers: Numbers | None) -> Model:
    """The model whose cache is in 8 bits; the same model for None.

    Raises: ValueError as `problems`.
    """
    if numbers is None:
        return model
    check.refuse("", problems(model, numbers))
    return model._replace(cache=dataclasses.replace(_kept(model), numbers=numbers))


def problems(model: Model, numbers: Numbers) -> Iterator[str]:
    """A line for each reason that a model's cache cannot be in these numbers."""
    fits = f"one of {list(get_args(Numbers))}"
    yield from check.problem("cache", numbers, numbers in get_args(Numbers), fits)
    if model.kind == "encoder":
        yield f"cache: {numbers!r} given; bidirectional models have no KV cache"
    elif any("tokens" in layer for layer in model.cache(1, 1)):
        yield f"cache: {numbers!r} given; a Flax module without a KV cache has none to quantise"


def numbers(model: Model) -> Numbers | None:
    """The numbers of the model's cache, None for full ones."""
    return model.cache.numbers if isinstance(model.cache, Kept) else None


def slots(model: Model, least: int) -> int:
    """Slots of a cache for `least` tokens: with rings or in 8 bits whole blocks, if it is more than
    one."""
    if not isinstance(model.cache, Kept) or least <= BLOCK:
        return least
    return -(-least // BLOCK) * BLOCK


def has_rings(model: Model, slots: int) -> bool:
    """Whether a layer of the model has fewer slots than the cache has."""
    if not isinstance(model.cache, Kept) or model.cache.slack is None:
        return False
    slack = model.cache.slack
    return any(ring_cache.size(window, slack, slots) < slots for window in model.cache.windows)


def _kept(model: Model) -> Kept:
    return model.cache if isinstance(model.cache, Kept) else Kept(model.cache, model.windows)
