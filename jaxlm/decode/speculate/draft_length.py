"""Number of tokens that a row drafts next: the length with the most expected tokens for its cost.

If every draft is accepted with probability a, independently, a pass over L drafts gives
1 + a + ... + a^L tokens (Leviathan et al. 2023, eq. 1). a is estimated for each row from its own
recent passes alone, so that a row's tokens do not depend on its batch.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

DECAY = 0.9  # of what is remembered, at every pass
ASSUMED = 0.7  # acceptance before anything was seen, with the weight of two drafts
WEIGHT = 2.0
PLACE = 0.05  # of a pass, for one more token in it


class Recent(NamedTuple):
    """Drafts of each row that were accepted, and that were tried: those up to the first rejection;
    float32[B], older passes counting less."""

    accepted: jax.Array
    tried: jax.Array


def begun(rows: int) -> Recent:
    """Nothing seen yet."""
    return Recent(jnp.zeros(rows), jnp.zeros(rows))


def seen(recent: Recent, accepted: jax.Array, offered: jax.Array) -> Recent:
    """The Recent after a pass that accepted int32[B] of offered int32[B] drafts. Where none are
    offered for long, the estimate returns to what was assumed, and drafting is tried again."""
    tried = jnp.minimum(accepted + 1, offered)
    return Recent(DECAY * recent.accepted + accepted, DECAY * recent.tried + tried)


def best(recent: Recent, lengths: tuple[int, ...], costs: tuple[float, ...]) -> jax.Array:
    """int32[B]: the one of `lengths` that gives most tokens for its cost; costs: those of a pass
    with so many drafts, drafting included, in any unit."""
    a = (recent.accepted + WEIGHT * ASSUMED) / (recent.tried + WEIGHT)
    powers = a[:, None] ** jnp.arange(max(lengths) + 1)
    tokens = jnp.cumsum(powers, axis=1)[:, jnp.array(lengths)]  # [B, lengths]
    return jnp.array(lengths, jnp.int32)[jnp.argmax(tokens / jnp.array(costs), axis=1)]


def lengths(longest: int, adaptive: bool) -> tuple[int, ...]:
    """The lengths that are compiled: none, half of the longest and the longest, or it alone."""
    return tuple(sorted({0, (longest + 1) // 2, longest})) if adaptive else (longest,)


def costs(lengths: tuple[int, ...], ratio: float) -> tuple[float, ...]:
    """The cost of a pass with so many drafts, in passes of the model over one token: ratio is the
    size of what drafts over that of the model, and verifying costs PLACE a token."""
    return tuple(1 + (ratio + PLACE) * n for n in lengths)
