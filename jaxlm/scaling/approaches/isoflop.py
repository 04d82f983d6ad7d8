"""Approach 2: the best size of each compute budget, and its power law N*(C) = k C^a.

    result = isoflop.fit(t, "akima", noise=0.002, replicates=1000, seed=0)
    result.exponent, result.interval                # a and its 95 % interval
    [m.left_out for m in result.minima]            # why a budget was not used, or ""

parabola7   loss as a parabola in log N through the lowest point and three on each side
            (Hoffmann et al. 2022, section 3.2, fit one per budget)
parabola    the same through all points
akima       log loss in log N by Akima's spline (1970) on 25 (m - 1) geometric nodes, the lowest
            node that is no end (Porian et al. 2024, appendix B)

A parabola is biased where the loss is no parabola, even without noise: see `bias`.
"""

from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np

from jaxlm.scaling.study_parts import Minimum
from jaxlm.scaling.table import Table

Method = Literal["parabola7", "parabola", "akima"]
METHODS: tuple[Method, ...] = ("parabola7", "parabola", "akima")
# A budget's largest C is at most this times its least. Budgets are a factor of 2 or 3 apart, runs
# end within a step; C read off a figure is within a tenth (Besiroglu et al. 2024).
TOLERANCE = 1.25
SIZES = 3  # the fewest sizes that show a minimum
NODES = 25  # of Akima's spline between two sizes, on average
# The least sd of log N*, in spacings of the sizes: a third (Porian et al. 2024).
LEAST_SD = 0.33
# A minimum so far below every loss of its budget is the spline's, between sizes nearly the same.
OVERSHOOT = 0.98
SIDE = 3  # points on each side of the lowest one, of parabola7


class Power(NamedTuple):
    """y = exp(intercept) x^exponent."""

    exponent: float
    intercept: float
    r2: float
    """Share of the weighted variance of log y that it explains."""


class IsoFlop(NamedTuple):
    """Approach 2's result."""

    method: str
    minima: tuple[Minimum, ...]
    """Minima by budget, those left out among them."""
    stray: int
    """Points in no budget."""
    exponent: float
    """a of N* = exp(intercept) C^a."""
    intercept: float
    """log k."""
    per: float
    """C / (N D) of the points, by which D* follows from N*."""
    noise: float
    """Standard deviation of the loss that the replicas had, nats per token."""
    draws: np.ndarray
    """[R, 2] exponent and intercept over noise replicas."""
    interval: tuple[float, float]
    """95 % percentile interval of the exponent; (nan, nan) without replicas."""


def fit(
    t: Table,
    method: Method = "akima",
    *,
    noise: float | None = None,
    replicates: int = 1000,
    seed: int = 0,
    tolerance: float = TOLERANCE,
) -> IsoFlop:
    """Approach 2 on a table whose points are on several budgets.

    noise: the standard deviation of a run's loss between seeds, nats per token; None measures it
    by `scatter`. The interval is over replicas with that noise. Of akima N* is their median and
    budgets are weighted with 1 / sd^2 of log N*, as Porian et al. do; of parabolas, and of akima
    with noise 0 or no replicates, N* is the points' own and all budgets weigh the same.

    Raises: ValueError for fewer than two budgets with a minimum inside, saying what is wrong with
    each budget.
    """
    if method not in METHODS:
        raise ValueError(f"method: {method!r} is none of {', '.join(METHODS)}")
    groups = budgets(t, tolerance)
    if len(groups) < 2:
        what = "one budget" if groups else "no budget"
        raise ValueError(
            f"flops: {what} in C from {t.flops.min():.4g} to {t.flops.max():.4g}; approach 2 needs "
            f"two or more, each of {SIZES} runs or more within a ratio of {tolerance:g}"
        )
    noise = scatter(t, groups) if noise is None else noise
    if not noise >= 0 or replicates < 0:
        raise ValueError(f"noise, replicates: {noise}, {replicates} given; 0 or more are needed")
    random = np.random.default_rng(seed)
    times = replicates if noise > 0 else 0
    minima, replicas = zip(*(_minimum(t, g, method, noise, times, random) for g in groups))
    used = [m for m in minima if not m.left_out]
    if len(used) < 2:
        reasons = "; ".join(f"{m.flops:.4g}: {m.left_out or 'used'}" for m in minima)
        raise ValueError(
            f"flops: {len(used)} budget with a minimum inside, 2 are needed ({reasons})"
        )
    c = np.log([m.flops for m in used])
    weighted = times and method == "akima"
    weights = np.array([m.sd for m in used]) ** -2.0 if weighted else np.ones(len(used))
    law = power(c, np.log([m.params for m in used]), weights)
    draws = np.empty((0, 2))
    if times:
        # the replicas of a budget whose minimum is inside are fewer where it is near an end
        kept = [log_n for m, log_n in zip(minima, replicas) if not m.left_out]
        n = min(map(len, kept))
        y = np.array([log_n[:n] for log_n in kept]).T  # [n, budgets]
        middle, level = np.average(c, weights=weights), np.average(y, 1, weights)
        x = weights * (c - middle)
        slope = (y - level[:, None]) @ x / (x @ (c - middle))
        draws = np.stack([slope, level - slope * middle], 1)
    ends = np.percentile(draws[:, 0], (2.5, 97.5)) if times else (np.nan, np.nan)
    per = float(np.median(t.flops / (t.params * t.tokens)))
    interval = (float(ends[0]), float(ends[1]))
    stray = len(t.loss) - sum(len(g) for g in groups)
    return IsoFlop(method, minima, stray, law.exponent, law.intercept, per, noise, draws, interval)


def power(log_x: np.ndarray, log_y: np.ndarray, weights: np.ndarray | None = None) -> Power:
    """The weighted least-squares line of log y on log x, [n] each; weights None are all 1."""
    w = np.ones(len(log_x)) if weights is None else weights
    x0, y0 = w @ log_x / w.sum(), w @ log_y / w.sum()
    x, y = log_x - x0, log_y - y0
    slope = float((w * x) @ y / ((w * x) @ x))
    left, all_of_it = float(w @ (y - slope * x) ** 2), float(w @ y**2)
    return Power(slope, float(y0 - slope * x0), 1 - left / all_of_it if all_of_it else 1.0)


def budgets(t: Table, tolerance: float = TOLERANCE) -> list[np.ndarray]:
    """Indices of the points of each budget, by rising C.

    The window of C, its ends within a ratio of `tolerance`, that has most points; then the next of
    what is left that far from it and more, while it has at least three. The rest is in no budget.

    Raises: ValueError for a tolerance that is no ratio above 1.
    """
    if not tolerance > 1:
        raise ValueError(f"tolerance: {tolerance} given; a ratio above 1 is needed")
    left = np.argsort(t.flops, kind="stable")
    groups = []
    while len(left) >= SIZES:
        c = t.flops[left]
        ends = np.searchsorted(c, c * tolerance, "right")
        count = ends - np.arange(len(c))
        if count.max() < SIZES:
            break
        # of windows with as many points the narrowest
        most = np.flatnonzero(count == count.max())
        first = most[np.argmin(c[ends[most] - 1] / c[most])]
        groups.append(left[first : ends[first]])
        low, high = c[first] / tolerance, c[ends[first] - 1] * tolerance
        left = left[(c < low) | (c > high)]
    return sorted(groups, key=lambda group: t.flops[group[0]])


def scatter(t: Table, groups: Sequence[np.ndarray] | None = None) -> float:
    """The standard deviation of a run's loss, nats per token, pooled over budgets.

    Of runs of one N and one budget where there are any. Else about cubics in log N through seven
    points, which counts as noise what is no cubic; 0 where no budget has more than four sizes.
    """
    groups = budgets(t) if groups is None else groups
    same, freedom, squares, left = 0.0, 0, 0.0, 0
    for group in groups:
        n, loss = _sizes(t, group)
        residual = t.loss[group] - loss[np.searchsorted(n, t.params[group])]
        same, freedom = same + float(residual @ residual), freedom + len(group) - len(n)
        x, y = np.log(n)[_near(loss)], loss[_near(loss)]
        if len(x) > 4:
            x = (x - x.mean()) / np.ptp(x)
            residual = y - np.polyval(np.polyfit(x, y, 3), x)
            squares, left = squares + float(residual @ residual), left + len(x) - 4
    if freedom:
        return float(np.sqrt(same / freedom))
    return float(np.sqrt(squares / left)) if left else 0.0


def _sizes(t: Table, group: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(N rising, the mean loss of the budget's runs of that N)."""
    n, which = np.unique(t.params[group], return_inverse=True)
    return n, np.bincount(which, t.loss[group]) / np.bincount(which)


def _near(loss: np.ndarray) -> slice:
    """Points from three before the lowest one to three after it."""
    low = int(np.argmin(loss))
    return slice(max(low - SIDE, 0), low + SIDE + 1)


def _minimum(
    t: Table,
    group: np.ndarray,
    method: Method,
    noise: float,
    times: int,
    random: np.random.Generator,
) -> tuple[Minimum, np.ndarray]:
    """(the minimum of a budget, [R] log N* of the noise replicas whose minimum is inside)."""
    c = t.flops[group]
    flops = float(np.exp(np.mean(np.log(c))))
    per = float(np.median(c / (t.params[group] * t.tokens[group])))
    n, loss = _sizes(t, group)
    drawn = random.standard_normal((len(n), times)) * noise + loss[:, None]
    # a diverged run can make the noise as large as the loss, and a loss is above 0
    drawn = np.maximum(drawn, loss[:, None] / 100)

    def without(reason: str) -> tuple[Minimum, np.ndarray]:
        return Minimum(flops, np.nan, np.nan, np.nan, np.nan, len(n), reason), np.empty(0)

    if len(n) < SIZES:
        return without(f"{len(n)} sizes; {SIZES} are needed")
    at = _akima if method == "akima" else _parabola
    part = _near(loss) if method == "parabola7" else slice(None)
    if part != slice(None) and len(n[part]) < SIZES:
        return without("its lowest point is an end of its sizes")
    x, low, step = at(np.log(n[part]), loss[part, None])
    if np.isnan(x[0]):
        return without(f"no minimum between its sizes {n[0]:.4g} and {n[-1]:.4g}")
    centre, floor, sd, draws = x[0], low[0], np.nan, np.empty(0)
    if times:
        many, lows, _ = at(np.log(n[part]), drawn[part])
        inside = ~np.isnan(many)
        if 2 * inside.sum() < times:
            share = f"{inside.mean():.0%} of noise replicas"
            return without(f"{share} have a minimum between its sizes")
        draws = many[inside]
        if method == "akima":
            centre, floor = np.median(draws), np.median(lows[inside])
    if floor < OVERSHOOT * loss.min():
        return without(
            f"its curve runs to {floor:.3g} between sizes whose lowest loss is {loss.min():.4g}: "
            "two sizes nearly agree, and their losses do not"
        )
    if times:
        sd = max(float(np.std(draws)), LEAST_SD * step) / inside.mean()
    best = float(np.exp(centre))
    return Minimum(flops, best, flops / (per * best), float(floor), sd, len(n), ""), draws


def _akima(x: np.ndarray, loss: np.ndarray) -> tuple[np.ndarray, np.ndarray, float]:
    """(log N* [R], the loss there [R], spacing of the sizes) of curves loss [m, R] at x = log N;
    nan where the lowest node is an end."""
    nodes = np.linspace(x[0], x[-1], (len(x) - 1) * NODES)
    curve = akima(x, np.log(loss), nodes)
    low = np.argmin(curve, 0)
    inside = (low > 0) & (low < len(nodes) - 1)
    lowest = np.exp(np.take_along_axis(curve, low[None], 0)[0])
    spacing = NODES * float(nodes[1] - nodes[0])
    return np.where(inside, nodes[low], np.nan), lowest, spacing


def akima(x: np.ndarray, y: np.ndarray, at: np.ndarray) -> np.ndarray:
    """[q, ...] Akima's (1970) spline through y [m, ...] at rising x [m], evaluated at [q].

    Between points a cubic; its slope at a point is the mean of the chords before and after it,
    each weighted with how much the chords change on the other side.
    """
    wide = (-1, *(1,) * (y.ndim - 1))
    step = np.diff(x)
    chord = np.empty((len(x) + 3, *y.shape[1:]))
    chord[2:-2] = np.diff(y, axis=0) / step.reshape(wide)
    # two more on each side, as a parabola goes on
    for a, b, c, d in ((0, 1, 2, 3), (-1, -2, -3, -4)):
        chord[b] = 2 * chord[c] - chord[d]
        chord[a] = 2 * chord[b] - chord[c]
    change = np.abs(np.diff(chord, axis=0))
    before, behind = change[:-2], change[2:]
    both = before + behind
    slope = (chord[3:] + chord[:-3]) / 2
    bent = both > 1e-9 * both.max(initial=0.0)
    mean = behind * chord[1:-2] + before * chord[2:-1]
    slope[bent] = mean[bent] / both[bent]
    i = np.clip(np.searchsorted(x, at, "right") - 1, 0, len(x) - 2)
    h = step[i].reshape(wide)
    u = ((at - x[i]) / step[i]).reshape(wide)
    rise = y[i + 1] - y[i]
    first, last = slope[i] * h, slope[i + 1] * h
    return y[i] + u * (first + u * (3 * rise - 2 * first - last + u * (first + last - 2 * rise)))


def _parabola(x: np.ndarray, loss: np.ndarray) -> tuple[np.ndarray, np.ndarray, float]:
    """As `_akima`, of the least-squares parabola; nan where its vertex is no minimum or outside."""
    mean, half = (x[0] + x[-1]) / 2, (x[-1] - x[0]) / 2
    c2, c1, c0 = np.polyfit((x - mean) / half, loss, 2)
    bent = np.where(c2 > 0, c2, np.nan)
    vertex = -c1 / (2 * bent)
    vertex = np.where(np.abs(vertex) < 1, vertex, np.nan)
    # the vertex moves smoothly with the points, so that no spacing limits it
    return mean + half * vertex, c0 + vertex * (c1 + vertex * c2), 0.0


def bias(alpha: float, beta: float, width: float, offset: float = 1.0, points: int = 15) -> float:
    """Approach 2's relative error of D*, D_fit / D* - 1, of E + A N^-alpha + B D^-beta without
    noise: the vertex of the parabola of L in log D through `points` geometric D from
    offset D* / width to offset D* width, all of one budget.

    It depends on neither E, A, B nor C: at the optimum alpha A N^-alpha = beta B D^-beta. So N*(C)
    keeps its exponent and is wrong by a factor. 0 only where alpha = beta and offset = 1.

    Raises: ValueError for exponents or ratios that are none.
    """
    if not (alpha > 0 and beta > 0 and width > 1 and offset > 0 and points >= SIZES):
        raise ValueError(
            f"alpha, beta, width, offset, points: {(alpha, beta, width, offset, points)} given; "
            f"exponents and offset above 0, a width above 1 and at least {SIZES} points are needed"
        )
    u = np.linspace(-1, 1, points) * np.log(width)
    x = u + np.log(offset)
    loss = beta * np.expm1(alpha * x) + alpha * np.expm1(-beta * x)
    # least squares on a symmetric grid: u is orthogonal to 1 and to u^2 - mean(u^2)
    square = u * u - np.mean(u * u)
    c1, c2 = loss @ u / (u @ u), loss @ square / (square @ square)
    return float(np.expm1(np.log(offset) - c1 / (2 * c2)))
