"""Batched nonlinear least squares in float64 NumPy: many small problems of one model at a time.

    solved = least_squares.minimise(value, start, y, weights)

Levenberg-Marquardt with a Jacobian by central differences, for models of up to a dozen parameters
whose values may have any sign. Laws of loss under Huber's delta have their own exact solver,
solve.py; this one serves what is fitted to accuracies, surfaces and other columns.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

Array = np.ndarray
# value(theta [R,k]) -> predictions [R,n]
Value = Callable[[Array], Array]

# Relative step of the differences; damping at the start, after a better and after a worse step.
STEP, DAMPING, EASIER, HARDER = 1e-6, 1e-3, 0.2, 4.0
# A problem has converged when a step promises less than this share of its sum of squares, or, where
# the model is exact, than this share of the sum of y^2.
CONVERGED, EXACT = 1e-13, 1e-26


class Solved(NamedTuple):
    """R problems' optima."""

    theta: Array  # [R,k]
    cost: Array  # [R] sum of w (y - value)^2
    converged: Array  # [R] bool


def minimise(
    value: Value,
    start: Array,
    y: Array,
    weights: Array | None = None,
    *,
    low: Array | None = None,
    high: Array | None = None,
    steps: int = 300,
) -> Solved:
    """The minima of sum w (y - value(theta))^2 from starts [R,k], within low [k] and high [k].

    y and weights are [n], shared, or [R,n]. A parameter that reaches a bound is held there while
    the gradient pushes it outwards.
    """
    theta = np.array(start, np.float64)
    many, k = theta.shape
    low = np.full(k, -np.inf) if low is None else np.asarray(low, np.float64)
    high = np.full(k, np.inf) if high is None else np.asarray(high, np.float64)
    theta = np.clip(theta, low, high)
    y = np.broadcast_to(y, (many, np.shape(y)[-1]))
    w = np.ones_like(y) if weights is None else np.broadcast_to(weights, y.shape)
    cost = _cost(value, theta, y, w)
    damping, converged = np.full(many, DAMPING), np.zeros(many, bool)
    active = np.isfinite(cost)
    size = (w * y**2).sum(1)
    for _ in range(steps):
        at = np.flatnonzero(active)
        if not at.size:
            break
        step, promised = _step(value, theta[at], y[at], w[at], damping[at], low, high)
        trial = np.clip(theta[at] + step, low, high)
        new = _cost(value, trial, y[at], w[at])
        better = new <= cost[at]
        done = promised <= CONVERGED * cost[at] + EXACT * size[at]
        theta[at[better]], cost[at[better]] = trial[better], new[better]
        damping[at] = np.where(better, damping[at] * EASIER, damping[at] * HARDER)
        damping[at] = np.maximum(damping[at], 1e-12)
        stuck = damping[at] > 1e12
        converged[at] = done | stuck
        active[at] = ~(done | stuck)
    return Solved(theta, cost, converged)


def best(solved: Solved) -> tuple[Array, float, float]:
    """(theta [k], cost, share of the starts within 1e-6 of that cost) of starts of one problem.

    Raises: ValueError if no start ended at a finite sum of squares.
    """
    if not np.isfinite(solved.cost).any():
        raise ValueError("no start of the fit has a finite sum of squares")
    i = int(np.nanargmin(np.where(np.isfinite(solved.cost), solved.cost, np.inf)))
    least = float(solved.cost[i])
    same = solved.cost <= least * (1 + 1e-6) + 1e-20
    return solved.theta[i], least, float(np.mean(same))


def _cost(value: Value, theta: Array, y: Array, w: Array) -> Array:
    with np.errstate(all="ignore"):
        cost = (w * (y - value(theta)) ** 2).sum(1)
    return np.where(np.isfinite(cost), cost, np.inf)


def _step(
    value: Value, theta: Array, y: Array, w: Array, damping: Array, low: Array, high: Array
) -> tuple[Array, Array]:
    """(step [R,k], decrease that the linear model promises [R])."""
    many, k = theta.shape
    jacobian = np.empty((many, y.shape[1], k))
    with np.errstate(all="ignore"):
        residual = y - value(theta)
        for i in range(k):
            h = STEP * np.maximum(np.abs(theta[:, i]), 1e-2)
            up, down = theta.copy(), theta.copy()
            up[:, i] += h
            down[:, i] -= h
            jacobian[:, :, i] = (value(up) - value(down)) / (2 * h)[:, None]
    jacobian = np.nan_to_num(jacobian, nan=0.0, posinf=0.0, neginf=0.0)
    gradient = np.einsum("rnk,rn->rk", jacobian, w * residual)
    normal = np.einsum("rnk,rn,rnl->rkl", jacobian, w, jacobian)
    outwards = ((theta <= low) & (gradient < 0)) | ((theta >= high) & (gradient > 0))
    free = ~outwards
    normal *= free[:, :, None] * free[:, None, :]
    gradient = gradient * free
    diagonal = np.einsum("rkk->rk", normal)
    scale = np.where(diagonal > 0, diagonal, 1.0)
    unit = 1 / np.sqrt(scale)
    system = normal * unit[:, :, None] * unit[:, None, :]
    system += (damping[:, None] + ~free)[:, :, None] * np.eye(k)
    step = np.linalg.solve(system, (gradient * unit)[:, :, None])[:, :, 0] * unit
    return step, np.einsum("rk,rk->r", step, gradient)
