"""Rings: the cache of a layer with a window holds the last tokens alone.

A layer's entries have n slots where the cache counts S > n of them: the token of slot i is in slot
i mod n of the layer, where it takes the place of the token n slots earlier. Which token a slot of
the ring holds follows from `Cache.filled`, and its segment and position are those in `Cache.at`, so
a ring has no state of its own, and to take tokens back is to lower `filled`.

n is the window in whole blocks (`ops.attention.BLOCK`), and a block or more for the tokens that are
written at once or taken back. So of each block of the ring all that is seen was in one block of the
dense cache, at the same place; added up in the order of their positions, blocks give the same bits.
A row's tokens have to be next to each other in the cache, with padding before or after all of them.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from jaxlm.core import param
from jaxlm.ops.attention import BLOCK, At

Spec = dict[str, param.Param]


def size(window: int | None, slack: int, slots: int) -> int:
    """Slots of a layer in a cache of `slots`, if up to `slack` tokens are written at once or taken
    back; no ring is larger than the cache."""
    if window is None:
        return slots
    return min(slots, BLOCK * (-(-window // BLOCK) + -(-max(slack, 1) // BLOCK)))


def spec(layer: Callable[[int], Spec], window: int | None, slack: int, slots: int) -> Spec:
    """The spec of a layer's entries, where layer(slots) -> that of so many."""
    return layer(size(window, slack, slots))


def tokens(filled: jax.Array, n: int) -> jax.Array:
    """The slot of the cache that each of n slots of a ring holds, int32[n], or [B, n] where filled
    is int32[B]; negative where it holds none yet."""
    newest = filled[..., None] - 1
    return newest - (newest - jnp.arange(n, dtype=jnp.int32)) % n


def read(at: At, filled: jax.Array, n: int) -> tuple[At, jax.Array | None]:
    """(segments and positions int32[B, n] of a layer's slots, the block of them to be added up
    first, int32 or int32[B]): those of the cache [B, S], and None, where it has as many."""
    if n == at.segments.shape[1]:
        return at, None
    held = jnp.broadcast_to(tokens(filled, n), (len(at.segments), n))
    segments, positions = (
        jnp.take_along_axis(x, jnp.maximum(held, 0), axis=1) for x in (at.segments, at.positions)
    )
    return At(jnp.where(held >= 0, segments, 0), positions), (filled // BLOCK + 1) % (n // BLOCK)


def append(old: jax.Array, fresh: jax.Array, first: jax.Array, axis: int) -> jax.Array:
    """The ring with T slots, `fresh`, written from slot `first` (int32, or int32[B]) of the cache
    on, in place."""
    shape = (len(old), fresh.shape[axis])  # [B, T]
    places = (first[..., None] + jnp.arange(shape[1])) % old.shape[axis]
    rows = jnp.arange(shape[0])[:, None]
    index = (rows, *[slice(None)] * (axis - 1), jnp.broadcast_to(places, shape))
    return old.at[index].set(jnp.moveaxis(fresh, axis, 1), unique_indices=True)


def gathered(x: jax.Array, filled: jax.Array, n: int, axis: int) -> jax.Array:
    """The ring of n slots that holds the last of the `filled` (int32, or int32[B]) slots of x."""
    held = jnp.broadcast_to(tokens(filled, n), (len(x), n))
    shape = [len(x) if i == 0 else n if i == axis else 1 for i in range(x.ndim)]
    return jnp.take_along_axis(x, jnp.maximum(held, 0).reshape(shape), axis=axis)


def check(window: int | None, n: int, slots: int, at: At) -> None:
    """Raises: ValueError for more new tokens at once than a ring of n slots has room for, and for
    tokens that see a choice of slots (`At.views`): a ring holds the last ones, whoever sees them.
    """
    if n == slots:
        return
    new, most = at.segments.shape[1], n - (window or 0)
    if new > most:
        raise ValueError(
            f"cache: {new} tokens at once; a ring of {n} slots for a window of {window} takes at "
            f"most {most}"
        )
    if at.views is not None:
        raise ValueError("cache: branches of a text need a dense cache, and this one has rings")
