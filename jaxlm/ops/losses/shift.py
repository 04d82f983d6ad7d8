"""Looking ahead in packed rows."""

import jax
import jax.numpy as jnp


def later(x: jax.Array, segments: jax.Array, k: int) -> tuple[jax.Array, jax.Array]:
    """(x [B, T] of k tokens later, 0 where that is no token of the same document; and where it is
    one, bool[B, T]).

    segments int32[B, T]: the document, 0 for padding; each is contiguous.
    """
    moved = _moved(segments, k)
    same = (moved == segments) & (segments != 0)
    return jnp.where(same, _moved(x, k), 0), same


def _moved(x: jax.Array, k: int) -> jax.Array:
    return jnp.pad(x[:, k:], ((0, 0), (0, min(k, x.shape[1]))))
