"""Compute multipliers: the worth in compute of a difference in loss.

    multiplier = C(loss of the variant) / C(loss of the baseline)

where C(L) is the compute at which the baseline reaches a loss of L: 1.2 means that the change does
what a fifth more compute would do without it. C(L) is read off a fitted law, along its optimum, or
off the baseline's own runs of several lengths. The variant's own extra cost is divided out.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from scipy import stats

from jaxlm.scaling.ablation import paired
from jaxlm.scaling.laws import optimum

# Losses [n] -> log C [1 + R, n]: by the estimate, then by R draws of what is not certain about it.
Curve = Callable[[np.ndarray], np.ndarray]
_DRAWS = 2000


class Worth(NamedTuple):
    """Compute multipliers; above 1 the variant is better."""

    multiplier: float
    """Estimate, the geometric mean over pairs, cost divided out."""
    low: float
    """The interval's lower end."""
    high: float
    """The interval's upper end; inf where the loss is out of the baseline's reach."""
    cost: float
    """FLOPs of the variant over those of the baseline, as they were run."""


def worth(
    baseline: np.ndarray, variant: np.ndarray, curve: Curve, alpha: float = 0.05, cost: float = 1.0
) -> Worth:
    """The Worth of losses [n] each in pairs, with a 1 - alpha interval.

    Each pair's log multiplier comes from the curve, both losses through the same one; their mean
    has the variance s^2/n of a paired t-test plus that of the curve's draws, with Satterthwaite's
    (1946) degrees of freedom, since only the first is estimated from a few pairs.

    Raises: ValueError as `paired.effect`; for a cost not above 0; for losses that the curve does
    not reach.
    """
    paired.effect(baseline, variant, alpha)
    if not cost > 0:
        raise ValueError(f"cost: {cost} given; a positive ratio of FLOPs is needed")
    n = len(baseline)
    logs = curve(np.concatenate([baseline, variant]))
    gain = logs[:, n:] - logs[:, :n]
    if not np.isfinite(gain[0]).all():
        out = np.concatenate([baseline, variant])[~np.isfinite(logs[0])]
        raise ValueError(
            f"losses {out}: the curve does not reach them at any compute; a floor that lies above "
            "a measured loss is wrong"
        )
    draws = gain[1:].mean(1)
    held = draws[np.isfinite(draws)]
    # more draws than the upper tail has do not reach the losses: no upper end
    unbounded = len(draws) - len(held) > alpha / 2 * len(draws)
    within = float(gain[0].var(ddof=1)) / n
    # half of what 68 % span, not the variance: few draws with a slope near 0 would decide that
    between = 0.0
    if len(held) > 1:
        between = float(np.diff(np.quantile(held, [0.15866, 0.84134]))[0] / 2) ** 2
    total = within + between
    df = total**2 / (within**2 / (n - 1)) if within else math.inf
    width = float(stats.t.ppf(1 - alpha / 2, df)) * math.sqrt(total)
    middle = float(gain[0].mean()) - math.log(cost)
    high = math.inf if unbounded else math.exp(middle + width)
    return Worth(math.exp(middle), math.exp(middle - width), high, cost)


def of_law(law: str, theta: Any, draws: Any, per: float = 6.0) -> Curve:
    """The Curve of a fitted law with N and D along its optimum: theta [k] natural parameters in the
    law's order, draws [R, k] of its bootstrap (R may be 0).

    Raises: ValueError as `optimum.least`.
    """
    rows = np.concatenate([np.atleast_2d(theta), np.reshape(draws, (-1, len(theta)))])

    def curve(losses: np.ndarray) -> np.ndarray:
        least = optimum.least(law, rows, losses, per)
        return np.where(np.isfinite(least), np.log(np.where(least > 0, least, 1.0)), np.nan)

    return curve


def of_runs(flops: np.ndarray, losses: np.ndarray, pair: np.ndarray, seed: int = 0) -> Curve:
    """The Curve through the baseline's own runs at two lengths or more: loss = a + b log C by least
    squares, a straight line near the runs and no farther.

    pair [n] int: runs of one number share their seed and data, and an a of their own, so that what
    these do to a loss does not blur b. What is not certain about b is drawn from its t
    distribution, with n - pairs - 1 degrees of freedom.

    Raises: ValueError for too few runs or lengths, or a loss that does not fall.
    """
    x, y = np.log(np.asarray(flops, np.float64)), np.asarray(losses, np.float64)
    _, own = np.unique(pair, return_inverse=True)
    shared = np.bincount(own)
    near, fall = (v - (np.bincount(own, v) / shared)[own] for v in (x, y))
    free = len(x) - len(shared) - 1
    if free < 1 or np.abs(near).max() < 1e-9:
        raise ValueError(
            f"{len(x)} runs of {len(shared)} pairs at FLOPs {np.unique(flops)}: a slope of loss "
            "and its error need 2 lengths of a pair, and 2 such pairs or 3 lengths"
        )
    slope = float(near @ fall / (near @ near))
    if slope >= 0:
        raise ValueError(f"loss does not fall with compute: slope {slope:.3g} nats per e-fold")
    error = math.sqrt(float(((fall - slope * near) ** 2).sum()) / free / float(near @ near))
    drawn = slope + error * np.random.default_rng(seed).standard_t(free, _DRAWS)
    # a slope of 0 or more reaches no other loss at any compute
    slopes = np.concatenate([[slope], np.where(drawn < 0, drawn, np.nan)])

    def curve(at: np.ndarray) -> np.ndarray:
        return x.mean() + (at - y.mean()) / slopes[:, None]

    return curve
