"""The error of a form itself: a smooth discrepancy between the law and the runs' losses.

    form = discrepancy.fit(laws.CHINCHILLA, theta, residual, t.params, t.tokens)
    curve = discrepancy.along(form, flops, 6.0)         # of N* and the loss, at compute [g]
    shift = discrepancy.draw(curve, flops, seed=0)      # (of log N*, of log loss), each [R]

Residuals are modelled as log L = log law + d(log N, log D) + noise, with d a Gaussian process
(Kennedy & O'Hagan 2001) proportional to the reducible loss, whose trend is the law's own parameters
(universal kriging). Its size over the noise has a half-Cauchy(1) prior, its length in decades is
one of LENGTHS, and both are integrated over: residuals that look like noise leave little of it, and
those that bend widen the interval by what the bend may become beyond the runs. N* moves by the
slope of d along a budget over the law's curvature there, to first order.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxlm.scaling.laws import loss_laws, optimum
from jaxlm.scaling.planning import experiment_design
from jaxlm.scaling.study_parts import Curve

# Decades over which a discrepancy changes, equally likely before the runs are seen.
LENGTHS = (0.5, 1.0, 2.0, 3.0)
# Its standard deviation over that of the noise, from, to, and how many between.
RATIOS = (0.1, 30.0, 14)
# Residuals count up to so many robust standard deviations.
CLIP = 2.5
# Points beyond the parameters without which nothing is estimated, and points at most: of more a
# subset spread over them all is used, since the work grows with the cube.
SPARE, MOST = 4, 400
# The least share of the loss that is reducible, for a floor above some losses.
REDUCIBLE = 0.02
# Step in log N of slopes along a budget.
STEP = 0.05
# Slopes are extrapolated to first order only up to this change of log N*.
LARGEST = 3.0
# Settings whose posterior is below this are left out.
NEGLIGIBLE = 1e-3
# The compute at which a curve is kept: so many places, up to so many decades beyond the runs.
PLACES, AHEAD = 33, 6.0

Array = np.ndarray


class Form(NamedTuple):
    """A law with the runs that its discrepancy is estimated from, n of them."""

    law: loss_laws.Law
    theta: Array
    """[k] natural parameters."""
    position: Array
    """[n, 2] log10 N and log10 D."""
    scale: Array
    """[n] reducible share of the loss over its median."""
    unit: float
    """That median."""
    trend: Array
    """[n, q] derivatives of log loss by the free parameters, then nuisance columns."""
    free: Array
    """[k] bool, the parameters that were not held."""
    residual: Array
    """[n] clipped."""


def fit(
    law: loss_laws.Law,
    theta: Array,
    residual: Array,
    params: Array,
    tokens: Array,
    knot: float | None = None,
    fixed: Sequence[str] = (),
) -> Form | None:
    """The Form of a law of N and D and its residuals [n]; knot: N from which an excess of the
    largest sizes is a nuisance and no discrepancy; fixed: parameters that were held. None for other
    laws, and for too few points."""
    if law.inputs != ("params", "tokens"):
        return None
    if len(residual) > MOST:
        order = np.argsort(params * tokens, kind="stable")
        some = order[np.linspace(0, len(order) - 1, MOST).astype(int)]
        residual, params, tokens = residual[some], params[some], tokens[some]
    free = np.array([name not in fixed for name in law.names])
    trend = experiment_design.gradients(law, theta, (params, tokens))[:, free]
    if knot is not None:
        trend = np.concatenate([trend, np.maximum(np.log(params / knot), 0.0)[:, None]], 1)
    spread = 1.4826 * float(np.median(np.abs(residual)))
    if len(residual) < trend.shape[1] + SPARE or spread <= 0 or not np.isfinite(trend).all():
        return None
    share = _reducible(law, theta, params, tokens)
    unit = float(np.median(share))
    place = np.log10(np.stack([params, tokens], 1))
    clipped = np.clip(residual, -CLIP * spread, CLIP * spread)
    return Form(law, theta, place, share / unit, unit, trend, free, clipped)


def along(form: Form, flops: Array, per: float) -> Curve | None:
    """The Curve of N* and of the loss there at compute [g]; None where the law has no minimum."""
    best = optimum.at(form.law.name, form.theta, flops, per).params
    if not (np.isfinite(best) & (best > 0)).all():
        return None
    places = np.log(best) + np.array([[-STEP], [0.0], [STEP]])  # [3, g]
    n = np.exp(places)
    d = flops / (per * n)
    low, middle, high = np.log(form.law.predict(form.theta, (n, d)))
    curvature = (low - 2 * middle + high) / STEP**2
    if not (curvature > 0).all():
        return None
    g = len(flops)
    # rows of functionals of the 3 g values: N* by its slope, the loss by the value in the middle
    take = np.zeros((2 * g, 3 * g))
    i = np.arange(g)
    take[i, i] = 1 / (2 * STEP * curvature)
    take[i, 2 * g + i] = -1 / (2 * STEP * curvature)
    take[g + i, g + i] = 1.0
    weight, mean, sd = posterior(form, n.ravel(), d.ravel(), take)
    shape = (len(weight), 2, g)
    mean, sd = (np.swapaxes(x.reshape(shape), 0, 1) for x in (mean, sd))
    return Curve(weight, flops, np.clip(mean, -LARGEST, LARGEST), np.minimum(sd, LARGEST))


def posterior(
    form: Form, params: Array, tokens: Array, take: Array | None = None
) -> tuple[Array, Array, Array]:
    """(weight [m], mean [m, p], sd [m, p]) of the discrepancy with what it moves the law by, at N
    and D [v] or of linear functionals `take` [p, v] of it; sd is beyond that of sampling alone."""
    count, k = form.trend.shape
    there = np.zeros((len(params), k))
    own = experiment_design.gradients(form.law, form.theta, (params, tokens))[:, form.free]
    there[:, : own.shape[1]] = own
    scale = _reducible(form.law, form.theta, params, tokens) / form.unit
    place = np.log10(np.stack([params, tokens], 1))
    if take is None:
        take = np.eye(len(params))
    q, r = np.linalg.qr(form.trend, mode="complete")
    fitted, free = q[:, :k], q[:, k:]
    carried = take @ there @ np.linalg.pinv(r[:k])  # [p, k] of the trend
    # each ratio represents the interval of the prior around it; the first interval holds 0
    ratios = np.geomspace(*RATIOS)
    edges = np.concatenate([[0.0], np.sqrt(ratios[1:] * ratios[:-1]), [np.inf]])
    prior = np.diff(np.arctan(edges)) * 2 / np.pi
    terms = []
    for length in LENGTHS:
        own = _kernel(form.position, form.position, length) * np.outer(form.scale, form.scale)
        cross = _kernel(form.position, place, length) * np.outer(form.scale, scale) @ take.T
        far = take @ (_kernel(place, place, length) * np.outer(scale, scale)) @ take.T
        values, axes = np.linalg.eigh(free.T @ own @ free)
        values = np.maximum(values, 0.0)
        basis = free @ axes  # [n, n - k]
        z = basis.T @ form.residual
        # of the functional less what the trend takes up: covariance with z, variance
        shared = basis.T @ (cross - own @ fitted @ carried.T)
        explained = np.sum(carried * (fitted.T @ cross).T, 1)
        alone = (
            np.diag(far) - 2 * explained + np.sum(carried @ (fitted.T @ own @ fitted) * carried, 1)
        )
        for ratio, share in zip(ratios**2, prior):
            total = 1 + ratio * values
            noise = float(np.mean(z**2 / total))
            likelihood = -0.5 * (np.sum(np.log(total)) + (count - k) * np.log(noise))
            mean = ratio * shared.T @ (z / total)
            less = np.sum(shared**2 / total[:, None], 0)
            variance = noise * ratio * (alone - ratio * less)
            terms.append((likelihood + np.log(share), mean, np.sqrt(np.maximum(variance, 0.0))))
    weight = np.exp(np.array([f[0] for f in terms]) - max(f[0] for f in terms))
    weight /= weight.sum()
    kept = weight > NEGLIGIBLE * weight.max()
    mean, sd = (np.stack([f[i] for f in terms])[kept] for i in (1, 2))
    return weight[kept] / weight[kept].sum(), mean, sd


def draw(curve: Curve, flops: Array, seed: int) -> tuple[Array, Array]:
    """(of log N*, of log loss) each [R] at compute [R], of as many draws; beyond the curve's ends
    as at the ends. A draw keeps its setting and its place within it at every compute."""
    random = np.random.default_rng([seed, 2])
    count = len(flops)
    which = random.choice(len(curve.weight), count, p=curve.weight)
    normal = random.standard_normal((2, count))
    grid, x = np.log(curve.flops), np.log(flops)
    right = np.clip(np.searchsorted(grid, x), 1, len(grid) - 1)
    share = np.clip((x - grid[right - 1]) / (grid[right] - grid[right - 1]), 0.0, 1.0)

    def between(values: Array) -> Array:
        return (1 - share) * values[:, which, right - 1] + share * values[:, which, right]

    size, loss = between(curve.mean) + normal * between(curve.sd)
    return size, loss


def shifts(form: Form, params: float, tokens: float, count: int, seed: int) -> Array:
    """[count] draws of what the discrepancy moves log loss by at one N and D."""
    weight, mean, sd = posterior(form, np.array([params]), np.array([tokens]))
    random = np.random.default_rng([seed, 2])
    which = random.choice(len(weight), count, p=weight)
    return mean[which, 0] + sd[which, 0] * random.standard_normal(count)


def grid(flops: tuple[float, float]) -> Array:
    """[g] compute of a curve, from the least of the runs to AHEAD decades beyond the largest."""
    return np.geomspace(flops[0], flops[1] * 10**AHEAD, PLACES)


def _kernel(a: Array, b: Array, length: float) -> Array:
    apart = np.sum((a[:, None] - b[None]) ** 2, -1)
    return np.exp(-apart / (2 * length**2))


def _reducible(law: loss_laws.Law, theta: Array, params: Array, tokens: Array) -> Array:
    """The share of the law's loss above its floor, 1 where it has none."""
    if "E" not in law.names:
        return np.ones(len(params))
    floor: Any = theta[law.names.index("E")]
    return np.maximum(1 - floor / law.predict(theta, (params, tokens)), REDUCIBLE)
