"""Biases of attention scores by distance alone: ALiBi's slopes, T5's buckets.

Each is a `masks.Bias`: a function of how many positions a key is ahead of its query (negative
for the past), so that packing, padding and a cache need no special case.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np

from jaxlm.core import precision
from jaxlm.ops import masks


def slopes(heads: int) -> np.ndarray:
    """ALiBi's slope of each head, float32[N]. Press et al. 2022, section 3 and their code.

    N a power of two: 2 ** (-8 n / N) for n = 1 .. N. Otherwise the slopes of the power of two
    below N, P, and then every other slope of 2 P, from its first: 12 heads have the 8 slopes of 8
    heads and the 1st, 3rd, 5th and 7th of 16 heads.

    Raises: ValueError for no heads.
    """
    if heads < 1:
        raise ValueError(f"heads must be at least 1, got {heads}")
    power = 1 << int(math.log2(heads))
    first = 2.0 ** (-8 / power * np.arange(1, power + 1))
    more = 2.0 ** (-4 / power * np.arange(1, 2 * (heads - power), 2))
    return np.concatenate([first, more]).astype(np.float32)


def alibi(slope: np.ndarray) -> masks.Bias:
    """The bias -slope * distance of each head, [N,T,S]-shaped for `attention.attend`.

    slope [N], of `slopes`, times whatever the family multiplies it by. It grows with the distance
    on both sides; under a causal mask only the past is seen. It has no gradient.
    """

    def bias(ahead: jax.Array) -> jax.Array:
        distance = jnp.abs(ahead).astype(precision.wide())
        return -jnp.asarray(slope, precision.wide())[:, None, None] * distance[:, None]  # [B,N,T,S]

    return bias


def buckets(ahead: jax.Array, count: int, farthest: int, causal: bool) -> jax.Array:
    """T5's bucket of each distance, int32 in [0, count), of the shape of ahead. Raffel et al. 2020.

    ahead: key position - query position. With causal, keys ahead share bucket 0 with the query's
    own; without, the second half of the buckets is for them. Of each direction's buckets the first
    half holds one distance each, the rest grow as powers up to `farthest`, and all farther ones
    share the last.

    Raises: ValueError if there are too few buckets, or none between the exact and the last.
    """
    own = count if causal else count // 2  # buckets of one direction
    exact = own // 2
    if exact < 1 or farthest <= exact:
        raise ValueError(
            f"T5's buckets need at least {2 if causal else 4} and a farthest distance above half "
            f"of a direction's, got count={count}, farthest={farthest}"
        )
    start = 0 if causal else own * (ahead > 0).astype(jnp.int32)
    distance = jnp.maximum(-ahead, 0) if causal else jnp.abs(ahead)
    # the bounds between buckets in float64, once: a logarithm in float32 can fall on either side
    far = np.arange(exact, farthest)
    bucket = exact + (np.log(far / exact) / math.log(farthest / exact) * (own - exact)).astype(int)
    table = np.concatenate([np.arange(exact), np.minimum(bucket, own - 1), [own - 1]])
    return start + jnp.asarray(table, jnp.int32)[jnp.minimum(distance, farthest)]


def bucketed(table: jax.Array, farthest: int, causal: bool) -> masks.Bias:
    """T5's learnt bias: table [count, N] read at the bucket of each distance. It has a gradient."""

    def bias(ahead: jax.Array) -> jax.Array:
        rows = buckets(ahead, table.shape[0], farthest, causal)  # [B,T,S]
        return jnp.moveaxis(table.astype(precision.wide())[rows], -1, -3)  # [B,N,T,S]

    return bias
