"""Dropout. Srivastava et al. 2014, scaled while training."""

import jax
import jax.numpy as jnp


def dropout(x: jax.Array, rate: float, key: jax.Array | None) -> jax.Array:
    """x with each element 0 with probability `rate` and else divided by 1 - rate; x itself without
    a key (evaluation) or at rate 0."""
    if rate == 0 or key is None:
        return x
    keep = jax.random.bernoulli(key, 1 - rate, x.shape)
    return jnp.where(keep, x / (1 - rate), 0).astype(x.dtype)
