"""Which drafted tokens stay, and the token after them: exact in distribution.

Leviathan et al. 2023 (arXiv:2211.17192), algorithm 1; Chen et al. 2023 (arXiv:2302.01318),
theorem 1: a token drawn from q stays with probability min(1, p / q), and one from the normalised
max(p - q, 0) replaces the first that does not; p and q are the laws after all processors.
"""

import jax
import jax.numpy as jnp

from jaxlm.ops import sampling

# Roles of a row's noise at a position: no two share any, nor has a plain draw theirs.
DRAFT, ACCEPT, REPLACE = range(3)


def at_place(keys: jax.Array, position: jax.Array) -> jax.Array:
    """The key of each row's noise at position int32[B]; a role is folded into it for each use."""
    return jax.vmap(jax.random.fold_in)(keys, position)


def verify(
    x: jax.Array,
    drafts: jax.Array,
    law: jax.Array | None,
    offered: jax.Array,
    keys: jax.Array,
    position: jax.Array,
    greedy: jax.Array,
) -> tuple[jax.Array, jax.Array]:
    """(tokens int32[B, L + 1], accepted int32[B]): the first `accepted` drafts of each row, and one
    more token after them; what follows counts for nothing.

    x float32[B, L + 1, V]: the model's logits after all processors, before the first draft and
    after each. drafts int32[B, L], of which a row's first offered int32[B] may stay; law
    float32[B, L, V]: the distribution each was drawn from, None where each was certain. keys [B];
    position int32[B]: of the first draft. greedy bool[B]: rows that take the likeliest token, and
    so accept it alone.
    """
    batch, width, vocab = x.shape
    best = sampling.first_largest(x.reshape(-1, vocab)).reshape(batch, width)
    chosen = jnp.pad(drafts, ((0, 0), (0, 1)))  # [B, L+1]
    offer = jnp.arange(width) < offered[:, None]

    def stays(kept: jax.Array) -> jax.Array:
        return jnp.sum(jnp.cumprod(kept & offer, axis=1, dtype=jnp.int32), axis=1)

    def likeliest() -> tuple[jax.Array, jax.Array]:
        accepted = stays(chosen == best)
        return accepted, jnp.take_along_axis(best, accepted[:, None], axis=1)[:, 0]

    def drawn() -> tuple[jax.Array, jax.Array]:
        p = jax.nn.softmax(x, axis=-1)
        p_draft = jnp.take_along_axis(p, chosen[:, :, None], axis=2)[..., 0]
        q = jnp.zeros_like(p[:, :1])
        if law is None:
            q_draft = jnp.ones_like(p_draft)
        else:
            q = jnp.concatenate([law, q], axis=1)  # [B, L+1, V]
            q_draft = jnp.take_along_axis(q, chosen[:, :, None], axis=2)[..., 0]
        kept = _uniform(keys, position, width) * q_draft < p_draft
        accepted = stays(jnp.where(greedy[:, None], chosen == best, kept))
        here = accepted[:, None]
        p = jnp.take_along_axis(p, here[:, :, None], axis=1)[:, 0]  # [B, V]
        if law is None:
            token = jnp.take_along_axis(chosen, here, axis=1)
            q = (token == jnp.arange(vocab)).astype(p.dtype)
        else:
            q = jnp.take_along_axis(q, here[:, :, None], axis=1)[:, 0]
        # after all that was offered nothing was rejected, and the law is p
        rest = jnp.maximum(p - jnp.where(here < offered[:, None], q, 0.0), 0.0)
        # p and q that differ by rounding alone may leave nothing
        rest = jnp.where(jnp.sum(rest, axis=1, keepdims=True) > 0, rest, p)
        likeliest = jnp.take_along_axis(best, here, axis=1)[:, 0]
        places, role = at_place(keys, position + accepted), jnp.full(batch, REPLACE)
        token = sampling.sample(jnp.log(rest), places, role, jnp.zeros_like(greedy))
        return accepted, jnp.where(greedy, likeliest, token)

    accepted, token = jax.lax.cond(jnp.all(greedy), likeliest, drawn)
    after = jnp.arange(width) == accepted[:, None]
    return jnp.where(after, token[:, None], chosen), accepted


def _uniform(keys: jax.Array, position: jax.Array, width: int) -> jax.Array:
    """float32[B, width] in [0, 1) for the places from position int32[B] on."""

    def draw(key: jax.Array, position: jax.Array) -> jax.Array:
        key = jax.random.fold_in(jax.random.fold_in(key, position), ACCEPT)
        return jax.random.uniform(key, (), jnp.float32)

    places = position[:, None] + jnp.arange(width)
    return jax.vmap(jax.vmap(draw, (None, 0)))(keys, places)
