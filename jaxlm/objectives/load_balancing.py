"""Losses that keep a mixture's experts in use, and metrics of their loads."""

from typing import Any

import jax
import jax.numpy as jnp

from jaxlm.core import check
from jaxlm.models.layers import moe
from jaxlm.models.model import Model
from jaxlm.ops import routing

# The layers' statistics, as `models.moe.apply` makes them: float32[layers with experts, ...].
Stats = dict[str, jax.Array]


def check_model(cfg: Any, model: Model) -> None:
    """Raises: ValueError for balance, router_z or bias_speed of an objective's Config where the
    model has no experts, or no bias to move."""
    routed, biased = moe.has(model.spec), moe.has(model.spec, "select_bias")
    for name in ("balance", "router_z"):
        value = getattr(cfg, name)
        fits = "0 for a model without experts"
        check.field(f"objective.{name}", value, routed or not value, fits)
    ok, fits = biased or not cfg.bias_speed, "0 for a model without select_bias"
    check.field("objective.bias_speed", cfg.bias_speed, ok, fits)


def loss(stats: Stats, balance: float, router_z: float) -> jax.Array:
    """balance x the load-balancing loss + router_z x the routers' z-loss, float32 scalar, each the
    mean over layers and of the tokens at hand (Fedus et al. 2022; Zoph et al. 2022 sum over layers:
    their coefficients are these divided by the number of layers).

    The load-balancing loss is a product of two means over tokens: the mean of its values for
    micro-batches is not that of the whole batch. So cutting the batch changes the step a little.
    """
    z = stats["router_z"] / jnp.maximum(stats["routed"], 1.0)
    each = balance * routing.balance(stats["load"], stats["shares"]) + router_z * z
    return jnp.mean(each)


def sums(stats: Stats) -> Stats:
    """The statistics as sums of a step, which carry no gradient."""
    names = ("routed", "load", "shares", "router_z", "router_entropy", "dropped")
    return {name: jax.lax.stop_gradient(stats[name]) for name in names}


def report(sums: Stats) -> dict[str, jax.Array]:
    """Metrics of a step, float32 scalars, exact over its micro-batches.

    balance, router_z, router_entropy: see `ops.route`; dropped: the share of choices that found no
    place. Means over layers. load_peak: the largest load over the mean load, in the worst layer;
    dead_experts: the share of all layers' experts that no token chose.
    """
    load, routed = sums["load"], jnp.maximum(sums["routed"], 1.0)
    mean = jnp.maximum(jnp.mean(load, axis=-1), 1e-9)
    choices = jnp.maximum(jnp.sum(load, axis=-1), 1.0)
    return {
        "balance": jnp.mean(routing.balance(load, sums["shares"])),
        "router_z": jnp.mean(sums["router_z"] / routed),
        "router_entropy": jnp.mean(sums["router_entropy"] / routed),
        "dropped": jnp.mean(sums["dropped"] / choices),
        "load_peak": jnp.max(jnp.max(load, axis=-1) / mean),
        "dead_experts": jnp.mean(load == 0),
    }
