"""Rewards to advantages: estimators of a KL divergence, advantages over time and over groups, and
the controller of a penalty. All of it in float32, of arrays [B, T] with explicit weights.

A weight is 1 at what a response's author chose, 0 elsewhere; nothing at a 0 changes a result.
"""

import chex
import jax
import jax.numpy as jnp

from jaxlm.core import precision
from jaxlm.ops.losses import surrogate

EPS = 1e-6  # added to a group's deviation, as in verl; TRL adds 1e-4
VAR_EPS = 1e-8  # added to a variance, as in TRL and verl


def k1(log_prob: jax.Array, reference: jax.Array) -> jax.Array:
    """log_prob - reference: unbiased of KL(policy || reference) where the policy sampled, of either
    sign. Schulman 2020, "Approximating KL Divergence".

    As a term of a loss its gradient is 0 in expectation: it belongs into a reward.
    """
    return log_prob - reference


def k2(log_prob: jax.Array, reference: jax.Array) -> jax.Array:
    """(log_prob - reference)^2 / 2: never negative, biased in value; its gradient, where the policy
    sampled, is that of KL(policy || reference) in expectation. Schulman 2020."""
    return 0.5 * jnp.square(log_prob - reference)


def k3(log_prob: jax.Array, reference: jax.Array) -> jax.Array:
    """exp(d) - 1 - d with d = reference - log_prob: unbiased of KL(policy || reference) where the
    policy sampled, and never negative, in rounded arithmetic too. Schulman 2020.

    Its gradient is that of the forward divergence KL(reference || policy) instead; times the ratio
    of policies, differentiated with it, it is the reverse one's. Grows as exp(d) where the
    reference is much likelier, up to d = 20, beyond which it is a constant, as in verl.
    """
    d = jnp.minimum(reference - log_prob, surrogate.LARGEST)
    # expm1(d) - d loses its digits to cancellation near 0; four terms of the series have them
    series = d * d * (0.5 + d * (1 / 6 + d * (1 / 24 + d / 120)))
    near = jnp.abs(d) < 0.03
    return jnp.where(near, series, jnp.expm1(jnp.where(near, 0.0, d)) - d)


KL = {"k1": k1, "k2": k2, "k3": k3}


def gae(
    reward: jax.Array, value: jax.Array, weight: jax.Array, gamma: float, lam: float
) -> tuple[jax.Array, jax.Array]:
    """(advantages, returns), float32[B, T], by generalised advantage estimation. Schulman et al.
    2016, eq. 16; the returns are advantage + value.

    reward, value, weight [B, T]: what step t earned, what was expected before it, and 1 where there
    was a step. What follows a step is the next one with weight 1, and nothing follows the last: its
    value is of nothing but its own reward. Both results are 0 where the weight is.
    lam=0 is the one-step error of the value; lam=1 the discounted sum of rewards minus the value.

    Raises: ValueError if the shapes differ.
    """
    chex.assert_equal_shape(
        [reward, value, weight], custom_message="reward, value, weight", exception_type=ValueError
    )
    there = weight > 0

    def back(carry: tuple, at: tuple) -> tuple[tuple, jax.Array]:
        later, expected = carry
        r, v, now = at
        estimates = r + gamma * expected - v + gamma * lam * later
        return (jnp.where(now, estimates, later), jnp.where(now, v, expected)), estimates

    nothing = jnp.zeros_like(reward[:, 0])
    columns = (reward.T, value.T, there.T)  # [T, B] each
    _, estimates = jax.lax.scan(back, (nothing, nothing), columns, reverse=True)
    advantage = jnp.where(there, estimates.T, 0.0)
    return advantage, jnp.where(there, advantage + value, 0.0)


def to_go(reward: jax.Array, weight: jax.Array, gamma: float) -> jax.Array:
    """float32[B, T]: the discounted sum of this and all later rewards of the row."""
    return gae(reward, jnp.zeros_like(reward), weight, gamma, 1.0)[0]


def whiten(x: jax.Array, weight: jax.Array, keep: float = 0.0) -> jax.Array:
    """float32[B, T] with mean 0 and variance 1 over the places of weight 1, 0 elsewhere.

    The variance is Bessel-corrected (TRL, verl; the original code of Ziegler et al. 2019 divides by
    n), and that of one place alone is 0. keep: the share of the mean that is added back; with 1
    the mean is left as it was, as is usual for rewards.
    """
    chex.assert_equal_shape([x, weight], custom_message="x, weight", exception_type=ValueError)
    here = (weight > 0).astype(precision.wide())
    n = jnp.sum(here)
    mean = jnp.sum(here * x) / jnp.maximum(n, 1.0)
    variance = jnp.sum(here * jnp.square(x - mean)) / jnp.maximum(n - 1.0, 1.0)
    return here * ((x - mean) * jax.lax.rsqrt(variance + VAR_EPS) + keep * mean)


def at_last(score: jax.Array, weight: jax.Array) -> jax.Array:
    """float32[B, T]: score [B] at the last place of each row with weight 1, 0 elsewhere. It is lost
    in a row without one."""
    there = weight > 0
    left = jnp.cumsum(there[:, ::-1].astype(jnp.int32), axis=1)[:, ::-1]  # [B, T] that are left
    return jnp.where(there & (left == 1), score[:, None], 0.0)


def centred(score: jax.Array, group: int) -> jax.Array:
    """float32[N]: each score less the mean of its group, of `group` consecutive ones. Liu et al.
    2025 (Dr. GRPO), eq. 2: without the deviation, which favours prompts that are almost solved."""
    rows, centre, _ = _groups(score, group)
    return (rows - centre).reshape(-1)


def standardised(score: jax.Array, group: int, eps: float = EPS) -> jax.Array:
    """float32[N]: each score less its group's mean, divided by the group's deviation + eps, with
    group - 1 in the denominator. Shao et al. 2024 (GRPO), section 4.1.2. Sums to 0 in a group;
    exactly 0 where a group's scores are all equal."""
    rows, centre, _ = _groups(score, group)
    deviation = jnp.sqrt(jnp.sum(jnp.square(rows - centre), axis=1, keepdims=True) / (group - 1))
    return ((rows - centre) / (deviation + eps)).reshape(-1)


def left_out(score: jax.Array, group: int) -> jax.Array:
    """float32[N]: each score less the mean of the others in its group. Kool et al. 2019; Ahmadian
    et al. 2024 (RLOO), eq. 8. It is group / (group - 1) times `centred`."""
    return group / (group - 1) * centred(score, group)


def alike(score: jax.Array, group: int) -> jax.Array:
    """bool[N]: whether all scores of its group are equal, so that nothing can be learnt from it."""
    return jnp.repeat(_groups(score, group)[2], group)


def _groups(score: jax.Array, group: int) -> tuple[jax.Array, jax.Array, jax.Array]:
    """(scores [N / group, group], the mean of each row, whether its scores are all equal). The mean
    of equal scores is that score, to the last bit."""
    if score.ndim != 1 or group < 2 or score.shape[0] % group:
        raise ValueError(
            f"score {list(score.shape)} does not consist of groups of {group}; a group has at "
            "least 2 responses, and all have as many"
        )
    rows = score.astype(precision.wide()).reshape(-1, group)  # [N / group, group]
    equal = jnp.all(rows == rows[:, :1], axis=1)  # [N / group]
    mean = jnp.mean(rows, axis=1, keepdims=True)  # [N / group, 1]
    return rows, jnp.where(equal[:, None], rows[:, :1], mean), equal


def overlong(length: jax.Array, longest: int, buffer: int) -> jax.Array:
    """float32[N]: the penalty of a response's length, from 0 up to `longest` - `buffer` tokens down
    to -1 at `longest`, in a straight line. Yu et al. 2025 (DAPO), eq. 13."""
    over = length.astype(precision.wide()) - (longest - buffer)
    return -jnp.clip(over / buffer, 0.0, 1.0)


def adapted(
    coefficient: jax.Array, kl: jax.Array, target: float, horizon: float, episodes: jax.Array | int
) -> jax.Array:
    """The coefficient of a KL penalty after `episodes` responses whose divergence was kl, in nats
    of a whole response: larger where kl is above target. Ziegler et al. 2019, section 2.2: the
    error kl / target - 1 counts as at most 0.2 either way."""
    error = jnp.clip(kl / target - 1.0, -0.2, 0.2)
    return coefficient * (1.0 + error * episodes / horizon)


def entropy(logits: jax.Array) -> jax.Array:
    """float32[...]: the entropy in nats of softmax(logits [..., V])."""
    z = logits.astype(precision.wide())
    log_p = z - jax.nn.logsumexp(z, axis=-1, keepdims=True)
    # a forbidden outcome (-inf) has p = 0 and adds nothing
    return -jnp.sum(jnp.exp(log_p) * jnp.where(log_p > -jnp.inf, log_p, 0.0), axis=-1)
