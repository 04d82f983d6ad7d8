"""Losses of a policy from its own samples: surrogates by token, and how tokens become one number.

Each surrogate takes log_ratio = log policy - log behaviour, [N, T] by token or [N, 1] by response,
and advantage [N, T], and returns (loss, whether clipping bound it), which broadcast to [N, T].
At ratio 1 the gradient of each is that of -advantage * log policy.

A ratio is exp of a log-ratio clipped to [-LARGEST, LARGEST], as in verl: exp(89) is no float32, and
the gradient of a token whose ratio was infinite would be NaN, also where clipping leaves it none.
"""

from typing import Literal

import jax
import jax.numpy as jnp

from jaxlm.core import precision

# Divisors of a sum over tokens:
#   token          the tokens of the batch (DAPO, PPO in TRL)
#   sequence       its response's tokens, then the responses of the batch (GRPO)
#   sequence_sum   the responses of the batch
#   constant       a constant, and the responses of the batch (Dr. GRPO)
Aggregate = Literal["token", "sequence", "sequence_sum", "constant"]

# The largest |log ratio| of which exp is taken, in nats: beyond it a ratio is a constant.
LARGEST = 20.0


def ratio(log_ratio: jax.Array) -> jax.Array:
    """exp(log_ratio), float32[...], at least exp(-LARGEST) and at most exp(LARGEST) = 4.9e8."""
    return jnp.exp(jnp.clip(log_ratio, -LARGEST, LARGEST))


def clipped(
    log_ratio: jax.Array,
    advantage: jax.Array,
    low: float,
    high: float,
    most: float | None = None,
    dual: float | None = None,
) -> tuple[jax.Array, jax.Array]:
    """-min(r A, clip(r, 1 - low, 1 + high) A). Schulman et al. 2017 (PPO), eq. 7; Yu et al. 2025
    (DAPO), eq. 10, for high > low.

    most: r alone is at most this, also where A < 0, where PPO bounds nothing (INTELLECT-2, Prime
    Intellect 2025). dual: where A < 0 the loss is at most -dual A (Ye et al. 2020, eq. 5).
    """
    r = ratio(log_ratio)
    free = advantage * (r if most is None else jnp.minimum(r, most))
    bound = advantage * jnp.clip(r, 1.0 - low, 1.0 + high)
    loss = -jnp.minimum(free, bound)
    if dual is not None:
        loss = jnp.where(advantage < 0, jnp.minimum(loss, -dual * advantage), loss)
    return loss, bound < free


def capped(
    log_ratio: jax.Array, advantage: jax.Array, log_prob: jax.Array, most: float
) -> tuple[jax.Array, jax.Array]:
    """-min(r, most) A log policy, the ratio not differentiated: every token keeps its gradient.
    MiniMax 2025 (CISPO), eq. 4. Its value is not that of the others; its gradient is."""
    r = ratio(log_ratio)
    loss = -jax.lax.stop_gradient(jnp.minimum(r, most)) * advantage * log_prob
    return loss, (r > most) & (advantage > 0)


def gated(
    log_ratio: jax.Array, advantage: jax.Array, rise: float = 1.0, fall: float = 1.05
) -> tuple[jax.Array, jax.Array]:
    """-(4 / tau) sigmoid(tau (r - 1)) A: a soft gate in place of the clip, tau being `rise` where
    A > 0 and `fall` elsewhere. Gao et al. 2025 (SAPO), eq. 5 and 6. Nothing counts as clipped."""
    tau = jnp.where(advantage > 0, rise, fall)
    loss = -jax.nn.sigmoid(tau * (ratio(log_ratio) - 1.0)) * 4.0 / tau * advantage
    return loss, jnp.zeros_like(loss, bool)


def shaped(
    log_ratio: jax.Array,
    advantage: jax.Array,
    log_prob: jax.Array,
    rise: tuple[float, float] = (2.0, 3.0),
    fall: tuple[float, float] = (3.0, 2.0),
) -> tuple[jax.Array, jax.Array]:
    """-phi(w) A log policy with phi(w) = w^k exp(l (1 - w)), not differentiated, of a response's
    ratio w; (k, l) is `rise` where A >= 0 and `fall` elsewhere. VESPO 2026, as TRL has it.

    log_ratio [N, 1]: of the whole response, its tokens' summed.
    """
    log_w = jnp.clip(log_ratio, jnp.log(1e-8), LARGEST)
    k = jnp.where(advantage >= 0, rise[0], fall[0])
    scale = jnp.where(advantage >= 0, rise[1], fall[1])
    phi = jnp.exp(scale + k * log_w - scale * jnp.exp(log_w))
    loss = -jax.lax.stop_gradient(phi) * advantage * log_prob
    return loss, jnp.zeros_like(loss, bool)


def of_response(log_ratio: jax.Array, weight: jax.Array, mean: bool) -> jax.Array:
    """float32[N, 1] from log-ratios by token: of the response as a whole. Their mean, so that the
    ratio is a geometric mean (Zheng et al. 2025, GSPO, eq. 7), or their sum, so that it is the
    ratio of the responses' probabilities (Ahmadian et al. 2024, RLOO)."""
    total = jnp.sum(weight * log_ratio, axis=1, keepdims=True)
    return total / jnp.maximum(jnp.sum(weight, axis=1, keepdims=True), 1.0) if mean else total


def value(
    now: jax.Array, before: jax.Array, returns: jax.Array, clip: float | None
) -> tuple[jax.Array, jax.Array]:
    """(max of (v - R)^2 / 2 with v as it is and with v at most `clip` from what it was, whether the
    latter is the larger), [N, T]; without a clip the former alone. Schulman et al. 2017's code, as
    in Ziegler et al. 2019."""
    loss = 0.5 * jnp.square(now - returns)
    if clip is None:
        return loss, jnp.zeros_like(loss, bool)
    near = 0.5 * jnp.square(jnp.clip(now, before - clip, before + clip) - returns)
    return jnp.maximum(loss, near), near > loss


def total(
    loss: jax.Array, weight: jax.Array, aggregate: Aggregate, constant: float = 1.0
) -> tuple[jax.Array, jax.Array]:
    """(sum, weight): a loss by token [N, T], summed so that the sum over all parts of a batch
    divided by the sum of weights is the mean that `aggregate` names, however it is cut."""
    tokens = jnp.sum(weight, axis=1)  # [N]
    responses = jnp.sum((tokens > 0).astype(precision.wide()))
    by_row = jnp.sum(jnp.where(weight > 0, weight * loss, 0.0), axis=1)  # [N]
    if aggregate == "token":
        return jnp.sum(by_row), jnp.sum(weight)
    if aggregate == "sequence":
        return jnp.sum(by_row / jnp.maximum(tokens, 1.0)), responses
    if aggregate == "sequence_sum":
        return jnp.sum(by_row), responses
    if aggregate == "constant":
        return jnp.sum(by_row) / constant, responses
    raise ValueError(f"aggregate: {aggregate!r} is none of token, sequence, sequence_sum, constant")
