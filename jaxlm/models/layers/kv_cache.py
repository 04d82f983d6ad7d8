"""Writing new entries into a cache of keys and values, in place."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from jaxlm.core import param
from jaxlm.models.layers import ring_cache
from jaxlm.models.layers.quantised_cache import SCALE
from jaxlm.models.model import Cache
from jaxlm.ops.attention import At


def append(
    cache: Cache,
    new: Sequence[dict[str, jax.Array]],
    at: At,
    x: jax.Array,
    spec: tuple[dict[str, param.Param], ...],
) -> Cache:
    """The cache after writing T new slots after the filled ones; each write is in place. A cache
    without slots (prefill) takes the size and dtype of what is written.

    new: entries of T slots, a dict a layer. x [B, T, D]: what the model computed from the old
    cache. spec: the cache's, which names the axis of slots.

    Raises: ValueError for more tokens than slots.
    """
    slots, width = cache.at.segments.shape[1], at.segments.shape[1]
    if not slots:
        return Cache(tuple(new), At(at.segments, at.positions), cache.filled + width)
    if slots < width:
        raise ValueError(f"cache: {width} tokens do not fit in {slots} slots")
    room = slots - width
    # `first` is cache.filled, as there is room. But to compute it x must be known, and so every
    # read of the old cache is over: XLA would else copy the cache, to be free to write it sooner.
    first = jnp.minimum(cache.filled, room + (x[0, 0, 0] > 0))

    def put(old: jax.Array, fresh: jax.Array, axis: int) -> jax.Array:
        n, fresh = old.shape[axis], fresh.astype(old.dtype)
        if n < slots and width > 1:
            return ring_cache.append(old, fresh, first, axis)
        return _written(old, fresh, first if n == slots else first % n, axis)

    layers = []
    for old, fresh, params in zip(cache.layers, new, spec, strict=True):
        # T of S slots, along the axis that counts them: [B, K, S, H] of keys and values
        # (scales have the axes of what they are of, but for the last)
        axes = {n: params[n.removesuffix(SCALE)].axes.index("seq") for n in old}
        layers.append({n: put(old[n], fresh[n], axes[n]) for n in old})
    seen = At(*(put(a, b, 1) for a, b in zip(cache.at[:2], at[:2], strict=True)))
    return Cache(tuple(layers), seen, cache.filled + width)


def _written(old: jax.Array, fresh: jax.Array, first: jax.Array, axis: int) -> jax.Array:
    """The entries with T slots written from slot `first` (int32, or int32[B]) on."""
    if first.ndim == 0:
        return jax.lax.dynamic_update_slice_in_dim(old, fresh, first, axis)
    for row in range(old.shape[0]):  # each where its own filled slots end
        start = [jnp.zeros((), jnp.int32)] * old.ndim
        start[0], start[axis] = jnp.asarray(row, jnp.int32), first[row].astype(jnp.int32)
        old = jax.lax.dynamic_update_slice(old, fresh[row : row + 1], start)
    return old


def slots(entries: dict[str, jax.Array], spec: dict[str, param.Param]) -> int:
    """The number of slots of a layer's entries."""
    name, p = next(iter(spec.items()))
    return entries[name].shape[p.axes.index("seq")]
