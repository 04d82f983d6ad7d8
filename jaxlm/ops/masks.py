"""Scores of queries and keys: which may meet, how a score bends, the parts of a masked softmax."""

from collections.abc import Callable
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp

# A term added to the scaled scores, from how far ahead of the query the key is: ALiBi, T5's
# buckets. int32[B,T,S] -> float32, broadcast to [B,N,T,S].
Bias = Callable[[jax.Array], jax.Array]


class At(NamedTuple):
    """The place of each token.

    segments int32[B,T]: the document, 0 for padding or an empty slot; those of S keys may also be
    int32[B,T,S], as each query sees them. positions int32[B,T] within the document. shared
    bool[B,T], or None for none: tokens that all of their segment see, whatever the mask (the prefix
    of a prefix-LM; Longformer's global tokens, which without a causal mask also see all of their
    segment). views int32[B,T,S], or None: of tokens that read a cache, the segments of its slots as
    each of them sees these, in place of the slots' own.
    """

    segments: jax.Array
    positions: jax.Array
    shared: jax.Array | None = None
    views: jax.Array | None = None


class Rule(NamedTuple):
    """Everything about a score that is not an array; static in the compiled program."""

    causal: bool
    window: int | None
    softcap: float | None
    scale: float


def rule(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    causal: bool,
    window: int | None,
    softcap: float | None,
    scale: float | None,
) -> Rule:
    """The Rule of q [B,T,N,H] over k [B,S,K,H], v [B,S,K,H'].

    Raises: ValueError for shapes that do not fit, or numbers out of range.
    """
    shapes = f"q [B,T,N,H], k [B,S,K,H], v [B,S,K,H']: {q.shape}, {k.shape}, {v.shape}"
    refuse: Any = {"custom_message": shapes, "exception_type": ValueError}
    chex.assert_rank([q, k, v], 4, **refuse)
    chex.assert_shape(k, (q.shape[0], None, None, q.shape[3]), **refuse)
    chex.assert_equal_shape_prefix([k, v], 3, **refuse)
    if q.shape[2] % k.shape[2]:
        raise ValueError(f"heads must be a multiple of kv, got {q.shape[2]} and {k.shape[2]}")
    if window is not None and window < 1:
        raise ValueError(f"window must be at least 1 key, got {window}")
    if softcap is not None and softcap <= 0:
        raise ValueError(f"softcap must be positive, got {softcap}")
    return Rule(causal, window, softcap, q.shape[-1] ** -0.5 if scale is None else scale)


def allowed(q_at: At, k_at: At, rule: Rule) -> jax.Array:
    """Whether a query may see a key, bool[B,T,S]."""
    query, key = q_at.segments[:, :, None], k_at.segments  # [B,T,1]
    key = key if key.ndim == 3 else key[:, None, :]  # [B,T,S] or [B,1,S]
    together, gap = (query == key) & (query != 0), ahead(q_at, k_at)  # [B,T,S]
    near = jnp.ones_like(together)
    if rule.causal:
        near &= gap <= 0
    if rule.window is not None:
        near &= jnp.abs(gap) < rule.window
    if k_at.shared is not None:
        near |= k_at.shared[:, None, :]  # [B,1,S]
    if q_at.shared is not None and not rule.causal:
        near |= q_at.shared[:, :, None]
    return together & near


def ahead(q_at: At, k_at: At) -> jax.Array:
    """Number of positions a key is ahead of a query, int32[B,T,S]; negative for the past."""
    return k_at.positions[:, None, :] - q_at.positions[:, :, None]


def bent(products: jax.Array, rule: Rule) -> jax.Array:
    """Products q.k scaled and, with a soft-cap, bent."""
    s = products * rule.scale
    return s if rule.softcap is None else rule.softcap * jnp.tanh(s / rule.softcap)


def grouped_heads(x: jax.Array, kv: int) -> jax.Array:
    """[..., N, T, S] as [..., K, G, T, S]; an array without heads as it broadcasts."""
    if x.ndim < 3 or x.shape[-3] == 1:
        return x[..., None, :, :] if x.ndim >= 3 else x
    return x.reshape(*x.shape[:-3], kv, -1, *x.shape[-2:])


def group(q: jax.Array, kv: int) -> jax.Array:
    """q [B,T,N,H] as [B,T,K,G,H]: G query heads share a key head, which is never repeated."""
    return q.reshape(*q.shape[:2], kv, -1, q.shape[-1])


def peak(scores: jax.Array, allowed: jax.Array) -> jax.Array:
    """The largest allowed score of each row, or 0 where there is none; carries no gradient."""
    largest = jnp.max(jnp.where(allowed, scores, -jnp.inf), axis=-1, keepdims=True)
    return jax.lax.stop_gradient(jnp.where(jnp.isfinite(largest), largest, 0.0))


def mass(scores: jax.Array, allowed: jax.Array, peak: jax.Array) -> jax.Array:
    """exp(scores - peak) where allowed, and 0 elsewhere."""
    return jnp.exp(jnp.where(allowed, scores, -jnp.inf) - peak)


def nonzero(total: jax.Array) -> jax.Array:
    """A sum to divide by: 1 for a row that sees nothing."""
    return jnp.where(total == 0, 1.0, total)
