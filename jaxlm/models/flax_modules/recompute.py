"""Decoding by recomputation, for modules without a KV cache: the cache holds tokens."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from jaxlm.core import param
from jaxlm.models.model import Cache
from jaxlm.ops.attention import At


def in_order(
    logits: Callable[..., jax.Array],
    params: param.Tree,
    tokens: jax.Array,
    at: At,
    key: jax.Array | None,
) -> jax.Array:
    """Logits [B, T, V] where padding may be at any place of a row: tokens are moved to the front,
    in their order, and their logits back, since a module may count positions by itself."""
    order = jnp.argsort(at.segments == 0, axis=1, stable=True)

    def moved(x: jax.Array, places: jax.Array) -> jax.Array:
        index = places.reshape(*places.shape, *[1] * (x.ndim - 2))
        return jnp.take_along_axis(x, index, axis=1)

    front = At(moved(at.segments, order), moved(at.positions, order))
    out = logits(params, moved(tokens, order), front, key)
    return moved(out, jnp.argsort(order, axis=1))


def slots(batch: int, slots: int) -> tuple[dict[str, param.Param], ...]:
    """The spec of a cache: one layer, which holds the token of every slot."""
    return ({"tokens": param.Param((batch, slots), ("batch", "seq"), param.zeros)},)


def append(cache: Cache, tokens: jax.Array, at: At) -> tuple[Cache, jax.Array]:
    """The cache with these tokens after the filled slots, and the first slot they take. A cache
    without slots (prefill) takes their number.

    Raises: ValueError for more tokens than slots.
    """
    slots, width = cache.at.segments.shape[1], tokens.shape[1]
    if not slots:
        new = Cache(({"tokens": tokens},), At(at.segments, at.positions), cache.filled + width)
        return new, cache.filled
    if slots < width:
        raise ValueError(f"cache: {width} tokens do not fit in {slots} slots")
    first = cache.filled

    def put(old: jax.Array, fresh: jax.Array) -> jax.Array:
        return jax.lax.dynamic_update_slice_in_dim(old, fresh.astype(old.dtype), first, 1)

    layers = ({"tokens": put(cache.layers[0]["tokens"], tokens)},)
    seen = At(put(cache.at.segments, at.segments), put(cache.at.positions, at.positions))
    return Cache(layers, seen, first + width), first
