"""The learning rate as a function of the updates done, through optax's schedules.

All start with a linear warm-up whose first update is not wasted on a rate of 0 and whose last one
has the peak; with s updates done, W of warm-up and N in all:

    s < W     peak * (s + 1) / W
    s >= W    peak * shape, below, with x = (s - W) / (N - W) from 0 to 1

    cosine         final + (1 - final) * (1 + cos(pi x)) / 2         Loshchilov & Hutter 2017, eq. 5
    linear         1 - (1 - final) * x                               Bergsma et al. 2025
    wsd            1, then final + (1 - final) * (1 - sqrt(y)) while y goes from 0 to 1 over the
                   last `decay` of all N updates                     Hagele et al. 2024
    inverse_sqrt   sqrt(max(W, 1) / max(s, W, 1))                    Vaswani et al. 2017, eq. 3
    constant       1
"""

from typing import Any, Literal

import jax
import jax.numpy as jnp
import optax

Name = Literal["cosine", "linear", "wsd", "inverse_sqrt", "constant"]


def build(
    name: Name, peak: float, warmup: int, steps: int, final: float, decay: float
) -> optax.Schedule:
    """The schedule: updates done (int32 scalar) -> learning rate (float32 scalar).

    final is the end value as a fraction of the peak, read by cosine, linear and wsd; decay is the
    fraction of all updates over which wsd goes down. warmup is less than steps.
    """
    after = _after(name, peak, warmup, steps, final, decay)
    if not warmup:
        return after
    rise = optax.linear_schedule(peak / warmup, peak, max(warmup - 1, 1))
    return optax.join_schedules([rise, after], [warmup])


def _after(
    name: Name, peak: float, warmup: int, steps: int, final: float, decay: float
) -> optax.Schedule:
    """The part after the warm-up, as a function of the updates since its end."""
    length = steps - warmup
    if name == "cosine":
        return optax.cosine_decay_schedule(peak, length, alpha=final)
    if name == "linear":
        return optax.linear_schedule(peak, final * peak, length)
    if name == "wsd":
        fall = falling(steps, warmup, decay)
        return optax.join_schedules(
            [optax.constant_schedule(peak), _one_minus_sqrt(peak, final, fall)], [length - fall]
        )
    if name == "inverse_sqrt":
        return _inverse_sqrt(peak, max(warmup, 1), warmup)
    return optax.constant_schedule(peak)


def falling(steps: int, warmup: int, decay: float) -> int:
    """The updates at the end over which wsd goes down: all before are those of any longer run."""
    return min(max(round(decay * steps), 1), steps - warmup)


def _one_minus_sqrt(peak: float, final: float, length: int) -> optax.Schedule:
    def at(count: Any) -> jax.Array:
        y = jnp.clip(count / length, 0.0, 1.0)
        return peak * (final + (1 - final) * (1 - jnp.sqrt(y)))

    return at


def _inverse_sqrt(peak: float, reference: int, warmup: int) -> optax.Schedule:
    def at(count: Any) -> jax.Array:
        return peak * jnp.sqrt(reference / jnp.maximum(count + warmup, reference))

    return at
