"""Test of whether the largest sizes were trained worse than the rest, and the law without that.

    effect = tuning.test(t, fit)                    # None without evidence for it
    tuning.correct(t, fit, effect, replicates=1000, seed=0)

A learning rate or batch that was chosen at small sizes and kept costs more the larger the model.
Every form takes such a loss for a property of scale: N* and the forecast go wrong by several of
their standard errors while residuals look small. What gives it away is that the excess begins at
one size and is alike at all D. So a term

    log L = log law(N, D) + excess * max(0, log(N / knot)),    excess > 0

is tried at several knots by a score test (Rao 1948) with Huber's scores, and where it is beyond
noise the law is fitted with it and planned without it.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from jaxlm.scaling import table
from jaxlm.scaling.laws import fitting, loss_laws, solve
from jaxlm.scaling.planning import experiment_design

# Sizes at these quantiles are tried as knots.
KNOTS = (0.5, 0.6, 0.7, 0.8, 0.9)
# The least t of an excess that counts. The largest of five correlated t's exceeds 2 in 5 % of 160
# simulated studies whose sizes were tuned alike, and in 86 % of those whose largest sizes were not.
BEYOND_NOISE = 2.0
# Points above the knot, and points in all beyond the parameters, without which nothing is tested.
ABOVE, SPARE = 3, 4
# Residuals count up to so many robust standard deviations.
CLIP = 2.0

Array = np.ndarray


class Excess(NamedTuple):
    """Loss that the largest sizes have above the law."""

    knot: float
    """N from which on it grows."""
    t: float
    """Its size in standard errors."""
    at_largest: float
    """Excess of log loss at the largest N."""
    runs: int
    """Points above the knot."""


class Corrected(NamedTuple):
    """The law fitted together with the excess."""

    theta: Array
    """[k] natural parameters of the law alone."""
    draws: Array
    """[R, k] of the bootstrap, those that arrived."""


def test(t: table.Table, fitted: fitting.Fit) -> Excess | None:
    """The Excess of a chinchilla fit's residuals at the knot where it is clearest; None where its t
    is below BEYOND_NOISE or the points are too few."""
    law = loss_laws.LAWS[fitted.law]
    n, k = len(t.loss), len(law.names)
    log_n = np.log(t.params)
    scale = 1.4826 * float(np.median(np.abs(fitted.residual)))
    if n < k + 1 + SPARE or scale == 0:
        return None
    score = np.clip(fitted.residual, -CLIP * scale, CLIP * scale)
    design, _ = np.linalg.qr(
        experiment_design.gradients(law, fitting.values(fitted), fitting.inputs(law, t))
    )
    spread = float(np.sqrt(score @ score / (n - k - 1)))
    best = None
    for knot in np.unique(np.quantile(log_n, KNOTS)):
        h = np.maximum(log_n - knot, 0.0)
        above = int(np.sum(h > 0))
        own = h - design @ (design.T @ h)
        length = float(np.linalg.norm(own))
        if above < ABOVE or length < 1e-6 * np.linalg.norm(h):
            continue
        value = float(own @ score) / length / spread
        if value >= BEYOND_NOISE and (best is None or value > best.t):
            size = float(own @ score) / length**2 * float(h.max())
            best = Excess(float(np.exp(knot)), value, size, above)
    return best


def correct(
    t: table.Table, fitted: fitting.Fit, excess: Excess, replicates: int, seed: int
) -> Corrected | None:
    """The fit and its case bootstrap with the excess as a nuisance; None where it does not
    arrive."""
    law = loss_laws.LAWS[fitted.law]
    n, k = len(t.loss), len(law.names)
    ready = fitting.prepare(law, t, None, (), fitted.delta, True)
    h = np.maximum(np.log(t.params / excess.knot), 0.0)
    logs, centre = np.concatenate([ready.logs, h[None]]), np.append(ready.centre, 0.0)
    start = np.append(
        law.internal(fitting.values(fitted), ready.centre), excess.at_largest / h.max()
    )

    def solved(start: Array, weights: Array) -> solve.Solved:
        task = solve.Task(start, ready.y, weights, logs, centre, np.ones(k + 1, bool))
        return solve.minimise_all(_model, _derivatives, [task], fitted.delta, True)[0]

    best = solved(start[None], ready.weights)
    if not best.arrived[0] or not best.phi[0, k] > 0:
        return None
    times = np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), replicates)
    many = solved(np.tile(best.phi, (replicates, 1)), times * ready.weights)
    theta = law.natural(many.phi[:, :k], ready.centre)
    return Corrected(law.natural(best.phi[0, :k], ready.centre), theta[many.arrived])


def _model(phi: Any, logs: Any, centre: Any) -> Any:
    """log loss [n] of chinchilla's internal parameters and the excess; logs [2] is the hinge."""
    return loss_laws.CHINCHILLA.model(phi[:5], logs[:2], centre[:2]) + phi[5] * logs[2]


def _derivatives(phi: Array, logs: Array, centre: Array) -> tuple[Array, Callable]:
    """(log loss [S,n], more) of phi [S,6], for `slopes.by_derivatives`.

    The logarithms of the three terms are linear in phi, g_i their slopes and p_i their shares: the
    slope is s = sum p_i g_i, the second derivative sum p_i g_i g_i^T - s s^T.
    """
    e, a, b, alpha, beta, excess = phi.T[:, :, None]
    every_x, every_z, every_hinge = logs - centre
    parts = np.exp(a - e - alpha * every_x), np.exp(b - e - beta * every_z)
    total = 1 + parts[0] + parts[1]

    def more(rows: slice | Array) -> tuple[Array, Callable]:
        rest, x, z, hinge = 1 / total[rows], every_x[rows], every_z[rows], every_hinge[rows]
        p, q = parts[0][rows] * rest, parts[1][rows] * rest
        slope = np.empty((len(p), 6, x.shape[1]))
        slope[:, 0], slope[:, 1], slope[:, 2] = rest, p, q
        slope[:, 3], slope[:, 4], slope[:, 5] = -p * x, -q * z, hinge

        def curvature(u: Array) -> Array:
            """[R,6,6] sum over points of u [R,n] times the second derivatives."""
            out = np.zeros((len(p), 6, 6))
            shares = slope[:, :5]
            out[:, :5, :5] = -(shares * u[:, None]) @ shares.transpose(0, 2, 1)
            out[:, 0, 0] += (u * rest).sum(1)
            for i, share, at in ((1, p, x), (2, q, z)):
                weight = u * share
                out[:, i, i] += weight.sum(1)
                turn = np.einsum("sn,sn->s", weight, at)
                out[:, i, i + 2] -= turn
                out[:, i + 2, i] -= turn
                out[:, i + 2, i + 2] += np.einsum("sn,sn,sn->s", weight, at, at)
            return out

        return slope, curvature

    return e + np.log(total) + excess * every_hinge, more
