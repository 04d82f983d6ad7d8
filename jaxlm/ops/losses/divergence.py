"""Divergences of a student's distribution from its teacher's, token by token.

One number, beta, goes from the forward KL divergence to the reverse one (Agarwal et al. 2024,
"On-Policy Distillation of Language Models", eq. 1). For teacher t, student s and their mixture
m = beta t + (1 - beta) s:

    beta = 0        KL(t || s)                                 covers all that the teacher does
    0 < beta < 1    beta KL(t || m) + (1 - beta) KL(s || m)    generalised Jensen-Shannon
    beta = 1        KL(s || t)                                 keeps to what the teacher does most

The ends are KL divergences, as in TRL, not the limits of the middle, which are 0; near them the
middle is about beta KL(t || s) and (1 - beta) KL(s || t).
"""

import chex
import jax
import jax.numpy as jnp

from jaxlm.core import precision


def divergence(teacher: jax.Array, student: jax.Array, beta: float) -> jax.Array:
    """The divergence [...] in nats of log-probabilities float32[..., V]: 0 where they are equal,
    never negative but for rounding. Outcomes of probability 0 (-inf) in either are allowed.

    Raises: ValueError if the shapes differ or beta is not in [0, 1].
    """
    chex.assert_equal_shape(
        [teacher, student], custom_message="teacher, student", exception_type=ValueError
    )
    if not 0 <= beta <= 1:
        raise ValueError(f"beta: {beta} given; it must be in [0, 1]")
    if beta == 0:
        return _kl(teacher, student)
    if beta == 1:
        return _kl(student, teacher)
    mixture = jnp.logaddexp(teacher + jnp.log(beta), student + jnp.log1p(-beta))
    return beta * _kl(teacher, mixture) + (1 - beta) * _kl(student, mixture)


def _kl(p: jax.Array, q: jax.Array) -> jax.Array:
    """KL(p || q) [...] of log-probabilities [..., V], 0 log 0 being 0."""
    there = p > -jnp.inf
    p_safe, q_safe = jnp.where(there, p, 0.0), jnp.where(there, q, 0.0)
    return jnp.sum(jnp.where(there, jnp.exp(p_safe) * (p_safe - q_safe), 0.0), axis=-1)


def softened(logits: jax.Array, temperature: float) -> jax.Array:
    """Log-probabilities float32[..., V] of logits divided by the temperature."""
    return jax.nn.log_softmax(logits.astype(precision.wide()) / temperature, axis=-1)


def top(log_probs: jax.Array, k: int) -> tuple[jax.Array, jax.Array]:
    """(ids int32[..., k] of the k likeliest outcomes, likeliest first; `coarse` of them): what is
    kept of a teacher."""
    ids = jax.lax.top_k(log_probs, k)[1].astype(jnp.int32)
    return ids, coarse(log_probs, ids)


def coarse(log_probs: jax.Array, ids: jax.Array) -> jax.Array:
    """Log-probabilities float32[..., k + 1]: of k outcomes, and of all others together; of all k
    where there are no others (k = V).

    log_probs [..., V], ids int32[..., k] distinct. The divergence of two distributions made coarse
    alike is at most that of the distributions, and is theirs where k = V - 1 or V; a sum cut off
    after k outcomes would be biased, and could be negative.
    """
    kept = jnp.take_along_axis(log_probs, ids, axis=-1)  # [..., k]
    vocab, k = log_probs.shape[-1], ids.shape[-1]
    if k == vocab:
        return kept
    rows = log_probs.reshape(-1, vocab)  # [rows, V]
    # [rows, V] without the k outcomes
    without = rows.at[jnp.arange(len(rows))[:, None], ids.reshape(-1, k)].set(-jnp.inf)
    rest = jax.nn.logsumexp(without, axis=-1).reshape(*kept.shape[:-1], 1)  # [..., 1]
    return jnp.concatenate([kept, rest], axis=-1)  # [..., k + 1]
