"""Dropout. Srivastava et al. 2014, scaled while training."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp


def split(key: jax.Array | None, count: int) -> Sequence[jax.Array | None]:
    """So many keys of a key's shape; None's without one."""
    if key is None:
        return count * (None,)
    if key.ndim == 0:
        return [*jax.random.split(key, count)]
    return [*jax.vmap(lambda k: jax.random.split(k, count), out_axes=1)(key)]


def dropout(x: jax.Array, rate: float, key: jax.Array | None) -> jax.Array:
    """x with each element 0 with probability `rate` and else divided by 1 - rate; x itself without
    a key (evaluation) or at rate 0. keys [B] draw each row of x [B, ...] by itself."""
    if rate == 0 or key is None:
        return x
    if key.ndim == 0:
        keep = jax.random.bernoulli(key, 1 - rate, x.shape)
    else:
        keep = jax.vmap(lambda k: jax.random.bernoulli(k, 1 - rate, x.shape[1:]))(key)
    return jnp.where(keep, x / (1 - rate), 0).astype(x.dtype)
