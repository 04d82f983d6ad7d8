"""The next run to train: the one that most narrows the optimum at a target, for its cost.

One more run with loss l(x) informs about log N*(target) as far as the two covary: with T the
uncertainty of the fit, its variance falls by Cov_T(log N*, l)^2 / (Var_T(l) + v), v the variance
of one run's own error (c-optimal design: Atkinson et al. 2007, ch. 10; one step of a Kalman
filter). So the best run is known before it is trained. T is either

the bootstrap     draws of theta, which also holds errors that differ between runs; or
the asymptote     of a fit that minimises sum rho(log L - log f): v (sum g g^T)^-1 with
                  g = d log f / d theta and v = E psi^2 / (E psi')^2 (Huber 1964).
"""

import math
import pathlib
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from jaxlm.scaling import table
from jaxlm.scaling.laws import fitting, loss_laws, optimum
from jaxlm.scaling.reading import rows_of_runs

# Half of a 95 % interval in standard deviations.
NORMAL = 1.959963984540054
# Relative step of the central differences: error h^2 of truncation, eps / h of rounding.
STEP = 1e-5

Array = np.ndarray


class Choice(NamedTuple):
    """Candidates in the order given; the arrays are [m]."""

    params: Array
    """Parameters."""
    tokens: Array
    """Training tokens."""
    cost: Array
    """Training FLOPs."""
    before: float
    """Width of the 95 % interval of log N*(target) now."""
    after: Array
    """Its width when that run is added."""
    gain: Array
    """(before - after) / cost, per FLOP."""
    order: Array
    """Indices, the largest gain first."""


def choose(
    fitted: fitting.Fit,
    t: table.Table,
    params: Array,
    tokens: Array,
    target: float,
    cost: Array | None = None,
    per: float = 6.0,
    draws: Array | None = None,
) -> Choice:
    """Choice among runs of `params` [m] and `tokens` [m], for the optimum at `target` FLOPs.

    fitted: a fit of t by a law of parameters and tokens. draws [R, k]: its bootstrap; None takes
    the asymptote. cost [m]: FLOPs, `per` N D when not given.

    Raises: ValueError naming the candidate, the law, or what the runs do not determine.
    """
    law = loss_laws.LAWS[fitted.law]
    if law.inputs != ("params", "tokens"):
        raise ValueError(f"law: {law.name} reads {law.inputs}; the choice needs params and tokens")
    params, tokens = (np.atleast_1d(np.asarray(a, float)) for a in (params, tokens))
    cost = per * params * tokens if cost is None else np.atleast_1d(np.asarray(cost, float))
    _check(params, tokens, cost)
    theta = fitting.values(fitted)

    def aim(th: Array) -> Array:
        return np.log(optimum.at(law.name, th, target, per=per).params)

    v = noise(fitted.residual, fitted.delta, len(theta))
    if draws is None:
        slope = _slopes(aim, theta)
        design = gradients(law, theta, (t.params, t.tokens))
        more = gradients(law, theta, (params, tokens))
        now, shared, own = _asymptote(design, more, slope, v, law.name)
    else:
        losses = np.log(law.predict(draws.T[:, :, None], (params, tokens)))
        now, shared, own = _moments(aim(draws), losses, law.name)
    then = np.maximum(now - shared**2 / (own + v), 0.0)
    before, after = 2 * NORMAL * math.sqrt(now), 2 * NORMAL * np.sqrt(then)
    gain = (before - after) / cost
    return Choice(params, tokens, cost, before, after, gain, np.argsort(-gain, kind="stable"))


def _check(params: Array, tokens: Array, cost: Array) -> None:
    if not params.shape == tokens.shape == cost.shape:
        raise ValueError(
            f"candidates: params {params.shape}, tokens {tokens.shape} and cost {cost.shape} "
            "differ in shape"
        )
    for name, values in (("params", params), ("tokens", tokens), ("cost", cost)):
        bad = np.flatnonzero(~(np.isfinite(values) & (values > 0)))
        if bad.size:
            raise ValueError(f"candidates: {name}[{bad[0]}] = {values[bad[0]]:g} is not above 0")


def _moments(aim: Array, losses: Array, law: str) -> tuple[float, Array, Array]:
    """(Var of aim [R], [m] its covariance with losses [R, m], [m] their variance)."""
    fine = np.isfinite(aim) & np.all(np.isfinite(losses), axis=1)
    if np.sum(fine) < 10:
        raise ValueError(f"law: {np.sum(fine)} draws of {law} have an optimum; 10 are needed")
    a, b = aim[fine] - np.mean(aim[fine]), losses[fine] - np.mean(losses[fine], 0)
    return float(np.mean(a**2)), np.mean(a[:, None] * b, 0), np.mean(b**2, 0)


def _asymptote(
    design: Array, more: Array, aim: Array, v: float, law: str
) -> tuple[float, Array, Array]:
    """The same of covariance v (design^T design)^-1: slopes aim [k] and more [m, k]."""
    if len(design) < len(aim) or np.linalg.cond(design) > 1e12:
        raise ValueError(
            f"law: {law} has directions that these {len(design)} runs say nothing about; "
            "add runs or take a form with fewer parameters"
        )
    _, r = np.linalg.qr(design)
    half, moved = np.linalg.solve(r.T, aim), np.linalg.solve(r.T, more.T)
    return float(v * half @ half), v * (half @ moved), v * np.sum(moved**2, 0)


def read(path: str | pathlib.Path) -> tuple[Array, Array, Array | None]:
    """(params [m], tokens [m], cost [m] or None) of a CSV file of candidates.

    Formats, names and units are those of a study's table (table.read); flops is the cost.

    Raises: FileNotFoundError; ValueError naming the row and the column.
    """
    path = pathlib.Path(path).expanduser()
    rows_of_runs.exists(path)
    return rows_of_runs.sizes(path)


def noise(residual: Array, delta: float, parameters: int) -> float:
    """v of the covariance v (sum g g^T)^-1 of a Huber fit: E psi^2 / (E psi')^2, unbiased by n - k.

    residual [n]: log L - log fit. With every residual inside delta it is the residual variance.
    Near the absolute value (delta far below the residuals) the density at 0, which E psi' / delta
    estimates, comes from the few runs inside; one more such run is counted to keep it above 0.
    """
    n = len(residual)
    psi = np.clip(residual, -delta, delta)
    inside = np.count_nonzero(np.abs(residual) <= delta)
    share = inside / n if inside else 1 / (n + 1)
    return float(np.mean(psi**2) / share**2 * n / max(n - parameters, 1))


def gradients(law: loss_laws.Law, theta: Array, x: Sequence[Array]) -> Array:
    """d log f / d log|theta| [n, k] of a law at inputs x (arrays [n])."""
    many = [np.asarray(a, float) for a in x]
    # a form may predict no loss at all a step away
    with np.errstate(invalid="ignore", divide="ignore"):
        return _slopes(lambda th: np.log(law.predict(th.T[:, :, None], many)), theta).T


def _slopes(value: Callable[[Array], Array], theta: Array) -> Array:
    """d value / d log|theta| [k, ...] by central differences; value maps [2k, k] to [2k, ...].

    Relative steps: a coefficient of 482 and an exponent of .35 are then of one size.
    """
    steps = np.diag(STEP * np.maximum(np.abs(theta), 1e-8))
    both = np.asarray(value(np.concatenate([theta + steps, theta - steps])))
    return (both[: len(theta)] - both[len(theta) :]) / (2 * STEP)
