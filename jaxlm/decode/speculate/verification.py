"""Which drafted tokens stay, and the token after them: those that plain decoding draws.

The token at a place is drawn by the noise of its row and place (`sampling.sample`), whatever was
drafted there; a draft stays where it is that token. So a row's tokens are those of plain decoding
under every setting, and depend neither on what drafts, nor on how much, nor on the batch. The
drafts are drawn by the same noise: where q is a draft's law and p the model's, the two Gumbel-max
draws are equal with probability (1 - d) / (1 + d) or more, d the total variation distance of p and
q (Daliri, Musco and Suresh 2024, arXiv:2408.07978); for a draft that was certain it is p of it.
Rejection sampling (Leviathan et al. 2023) accepts with probability 1 - d, which is the most that is
possible, at the price of tokens that depend on all of these.
"""

import jax
import jax.numpy as jnp

from jaxlm.ops import sampling


def verify(
    x: jax.Array,
    drafts: jax.Array,
    offered: jax.Array,
    keys: jax.Array,
    position: jax.Array,
    greedy: jax.Array,
) -> tuple[jax.Array, jax.Array]:
    """(tokens int32[B, L + 1], accepted int32[B]): the first `accepted` tokens of each row are
    drafts, and one more comes after them; what follows counts for nothing.

    x float32[B, L + 1, V]: the model's logits after all processors, before the first draft and
    after each. drafts int32[B, L], of which a row's first offered int32[B] may stay. keys [B];
    position int32[B]: of the first draft. greedy bool[B]: rows that take the likeliest token.
    """
    batch, width, vocab = x.shape

    def each(value: jax.Array) -> jax.Array:
        return jnp.repeat(value, width, axis=0)  # [B * (L+1)]

    places = position[:, None] + jnp.arange(width)  # [B, L+1]
    flat = x.reshape(-1, vocab)
    tokens = sampling.sample(flat, each(keys), places.reshape(-1), each(greedy))
    tokens = tokens.reshape(batch, width)
    stays = (tokens[:, :-1] == drafts) & (jnp.arange(width - 1) < offered[:, None])
    return tokens, jnp.sum(jnp.cumprod(stays, axis=1, dtype=jnp.int32), axis=1)
