"""One law's fit to a table, and how it was reached."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from jaxlm.scaling import table
from jaxlm.scaling.laws import loss_laws, solve

# Objectives closer than this share are one optimum; other optima are reported within NEAR.
SAME, NEAR = solve.SAME, 1e-2
# Next to the optima of a fit to nearly the same points, so many starts, and so many that end at the
# least objective are enough.
CLOSEST, AGREE = 16, 3
# The share of the loss below which a floor is none.
NO_FLOOR = 1e-9


class Fit(NamedTuple):
    """A law's least Huber loss on a table, float64."""

    law: str
    theta: dict[str, float]  # natural parameters in the law's order
    objective: float  # sum of w Huber_delta(residual)
    delta: float
    n: int  # points with weight
    reached: float  # share of the starts that end at the optimum
    gradient: float  # largest absolute derivative by a free internal parameter
    basins: list[tuple[float, dict[str, float]]]  # other optima within NEAR: (objective, theta)
    residual: np.ndarray  # [n of the table] log L - log of the fit
    failed: str | None  # why the optimum is not one, or None
    fixed: tuple[str, ...] = ()  # parameters that were held
    log: bool = True  # residuals of the logarithm; False: of the loss itself


def values(result: Fit) -> np.ndarray:
    """theta [k] in the law's order."""
    return np.array(list(result.theta.values()))


def inputs(law: loss_laws.Law, t: table.Table) -> tuple[np.ndarray, ...]:
    """The law's inputs, m arrays [n].

    Raises: ValueError where the table has no unique tokens and the law is of them.
    """
    columns = []
    for name in law.inputs:
        x = _field(t, name)
        if x is None:
            raise ValueError(f"{law.name} needs {name} tokens, which the table does not have")
        columns.append(np.asarray(x))
    return tuple(columns)


def _field(t: table.Table, name: str) -> np.ndarray | None:
    return {"params": t.params, "tokens": t.tokens, "flops": t.flops, "unique": t.unique}[name]


class Ready(NamedTuple):
    """A law's problem on a table as the solver takes it."""

    logs: np.ndarray  # [m,n]
    centre: np.ndarray  # [m]
    free: np.ndarray  # [k] bool
    weights: np.ndarray  # [n]
    y: np.ndarray  # [n] log loss or loss


def prepare(
    law: loss_laws.Law,
    t: table.Table,
    weights: np.ndarray | None,
    fixed: tuple[str, ...],
    delta: float,
    log: bool,
) -> Ready:
    """The arrays of a problem, checked; weights None are the table's own.

    Raises: ValueError naming what is wrong with the weights, delta, the fixed parameters or the
    number of points.
    """
    logs = np.log(np.stack(inputs(law, t)))
    n = logs.shape[1]
    own = np.ones(n) if t.weight is None else t.weight
    w = np.asarray(own if weights is None else weights, np.float64)
    if w.shape != (n,):
        raise ValueError(f"weights have shape {w.shape}, and the table {n} points")
    if not (np.isfinite(w) & (w >= 0)).all():
        i = int(np.flatnonzero(~(np.isfinite(w) & (w >= 0)))[0])
        raise ValueError(f"weights[{i}] is {w[i]}; a weight is finite and at least 0")
    if not delta > 0:
        raise ValueError(f"delta is {delta}; Huber's delta is positive, inf for least squares")
    for name in fixed:
        if name not in law.held:
            raise ValueError(f"{law.name} cannot hold {name!r}; it can hold {', '.join(law.held)}")
    free = np.array([name not in fixed for name in law.names])
    points = int((w > 0).sum())
    if points < free.sum():
        raise ValueError(
            f"{points} points for the {free.sum()} free parameters of {law.name}; "
            "at least as many points are needed"
        )
    centre = logs @ w / w.sum()
    for name in fixed:
        if law.held[name] is not None:
            centre[law.held[name]] = 0.0
    y = np.log(t.loss) if log else np.asarray(t.loss)
    return Ready(logs, centre, free, w, y)


def starts(law: loss_laws.Law, t: table.Table, r: Ready, fixed: Mapping[str, float]) -> np.ndarray:
    """[S,k] internal parameters of the law's seeds with the fixed ones put in."""
    used = r.weights > 0
    phi = law.seeds(r.logs[:, used], r.centre, t.loss[used], r.weights[used])
    theta = law.natural(phi, r.centre)
    for name, value in fixed.items():
        theta[:, law.names.index(name)] = value
    # seeds that differ in held parameters alone are one start
    return np.unique(np.where(r.free, phi, law.internal(theta, r.centre)), axis=0)


def fit(
    law: loss_laws.Law,
    t: table.Table,
    *,
    delta: float = 1e-3,
    weights: np.ndarray | None = None,
    fixed: Mapping[str, float] = {},
    log: bool = True,
    near: Fit | None = None,
) -> Fit:
    """The law's parameters that minimise sum of w Huber_delta(log L - log law), from every seed.

    delta 1e-3 is Hoffmann et al.'s (2022, equation 3); inf is least squares. fixed holds
    parameters at values. log=False takes residuals of the loss itself, as Gadre et al. 2024 do
    with delta=inf. weights [n]: of the points, None the table's own (all 1 where it has none).
    near: a fit of the law to nearly the same points, whose optima are starts: then only the closest
    seeds are, until AGREE of all have the same optimum.

    Raises: ValueError for fewer points than free parameters, a parameter that the law lacks or
    cannot hold, a bad weight or delta.
    """
    return fit_all(law, [problem(law, t, delta, weights, fixed, log, near)])[0]


class Problem(NamedTuple):
    """A fit to be made, see `fit`."""

    t: table.Table
    ready: Ready
    start: np.ndarray  # [S,k]
    delta: float
    fixed: tuple[str, ...]
    log: bool
    near: bool  # whether the starts are those next to a known fit


def problem(
    law: loss_laws.Law,
    t: table.Table,
    delta: float = 1e-3,
    weights: np.ndarray | None = None,
    fixed: Mapping[str, float] = {},
    log: bool = True,
    near: Fit | None = None,
) -> Problem:
    """The Problem of `fit`, for `fit_all`. Raises: ValueError as `fit`."""
    r = prepare(law, t, weights, tuple(fixed), delta, log)
    for name, value in fixed.items():
        with np.errstate(invalid="ignore", divide="ignore"):
            possible = np.isfinite(law.internal(_with(law, name, value), r.centre)).all()
        if not possible:
            raise ValueError(f"{name} is fixed at {value}, which {law.name} has no value for")
    start = starts(law, t, r, fixed)
    if near is not None:
        start = _closest(law, t, r, start, near, fixed)
    return Problem(t, r, start, delta, tuple(fixed), log, near is not None)


def fit_all(law: loss_laws.Law, problems: Sequence[Problem]) -> list[Fit]:
    """The fits of one law to several tables, solved together.

    Raises: ValueError where delta, log or near differ among them.
    """
    settings = {(p.delta, p.log, p.near) for p in problems}
    if len(settings) > 1:
        raise ValueError(
            f"(delta, log, near): {sorted(settings)} given; all problems need the same"
        )
    first, tasks = problems[0], []
    for p in problems:
        r = p.ready
        tasks.append(solve.Task(p.start, r.y, r.weights, r.logs, r.centre, r.free))
    agree = AGREE if first.near else 0
    solved = solve.minimise_all(law.model, law.closed, tasks, first.delta, first.log, agree)
    return [_fitted(law, p, s) for p, s in zip(problems, solved)]


def _fitted(law: loss_laws.Law, p: Problem, s: solve.Solved) -> Fit:
    """The Fit of a problem's solved starts."""
    t, r = p.t, p.ready
    s = _floorless(law, r, s, p.delta, p.log)
    objective = np.where(np.isfinite(s.objective), s.objective, np.inf)
    best = int(np.argmin(objective))
    least = objective[best]
    x = inputs(law, t)
    with np.errstate(over="ignore", invalid="ignore"):
        theta = law.natural(s.phi, r.centre)
        residual = np.log(t.loss) - np.log(law.predict(theta[best], x))
    same = objective <= least * (1 + SAME) + 1e-24
    # what is as low as a start that has arrived has arrived
    known = bool(s.arrived[same].any())
    others = _others(np.where(s.arrived, objective, np.inf), float(least))
    return Fit(
        law.name,
        _named(law, theta[best]),
        float(least),
        float(p.delta),
        int((r.weights > 0).sum()),
        float(same.mean()) if known else 0.0,
        float(s.gradient[best]),
        [(float(objective[i]), _named(law, theta[i])) for i in others],
        residual,
        _failure(law, s, best, known, theta[best], r.centre),
        p.fixed,
        p.log,
    )


def _closest(
    law: loss_laws.Law,
    t: table.Table,
    r: Ready,
    start: np.ndarray,
    near: Fit,
    fixed: Mapping[str, float],
) -> np.ndarray:
    """[S,k] the optima of a fit nearby and the CLOSEST of the starts [., k]."""
    theta = np.array(
        [list(optimum.values()) for optimum in (near.theta, *(b for _, b in near.basins))]
    )
    for name, value in fixed.items():
        theta[:, law.names.index(name)] = value
    with np.errstate(all="ignore"):
        loss = law.predict(law.natural(start, r.centre).T[:, :, None], inputs(law, t))
        misfit = np.abs(np.log(t.loss / loss)) @ r.weights
        first = np.argsort(np.where(np.isfinite(misfit), misfit, np.inf), kind="stable")[:CLOSEST]
        known = law.internal(theta, r.centre)
    return np.concatenate([known[np.isfinite(known).all(1)], start[first]])


def _floorless(
    law: loss_laws.Law, r: Ready, s: solve.Solved, delta: float, log: bool
) -> solve.Solved:
    """The solution, with the lowest starts once more from where a floor E no longer counts.

    Where the runs show no floor its logarithm falls for ever, and hundreds of steps do not take it
    to where the objective no longer changes.
    """
    order = np.argsort(np.where(np.isfinite(s.objective), s.objective, np.inf))[:4]
    if law.names[0] != "E" or not r.free[0] or s.arrived[order[0]]:
        return s
    phi = s.phi[order].copy()
    phi[:, 0] = np.log(NO_FLOOR) + np.median(r.y if log else np.log(r.y))
    again = solve.minimise(
        law.model, law.closed, phi, r.y, r.weights, r.logs, r.centre, r.free, delta, log
    )
    return solve.Solved(*(np.concatenate(pair) for pair in zip(s, again)))


def _others(objective: np.ndarray, least: float) -> list[int]:
    """Indices of optima [S] within NEAR of the least, one of each, by rising objective."""
    others: list[int] = []
    for i in np.argsort(objective):
        known = objective[others[-1]] if others else least
        if known * (1 + 10 * SAME) < objective[i] <= least * (1 + NEAR):
            others.append(int(i))
    return others


def _failure(
    law: loss_laws.Law,
    s: solve.Solved,
    best: int,
    known: bool,
    theta: np.ndarray,
    centre: np.ndarray,
) -> str | None:
    """Reason why the lowest start, theta [k], is no optimum; None where it is one.

    known: whether a start that is as low has arrived.
    """
    if not known:
        return (
            f"the lowest of {len(s.steps)} starts had not converged after {s.steps[best]} steps: "
            f"objective {s.objective[best]:.6g}, gradient {s.gradient[best]:.2g}"
        )
    with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
        internal = law.internal(theta, centre)
    if np.isfinite(internal).all() and np.isfinite(theta).all():
        return None
    # a coefficient beyond the largest or below the least number: a term that is none
    names = ", ".join(
        f"{n} = {v:.3g}" for n, v in zip(law.names, theta) if abs(v) > 1e300 or v == 0
    )
    return f"a term without bound, {names}: the runs do not tell the terms of the form apart"


def likelihood(residual: np.ndarray, delta: float = 1e-3) -> tuple[float, float]:
    """(log-likelihood, scale) of residuals [n] under Huber's density, at its most likely scale.

    The density is exp(-Huber_delta(r / scale)) / (scale Z): a normal one within delta scales and
    exponential tails, as Besiroglu et al. 2024 (section 3.3) compare fits. Twice the difference of
    two fits is the likelihood ratio.

    Raises: ValueError for residuals that are all 0, whose likelihood has no bound.
    """
    from scipy import optimize, special

    r = np.abs(np.asarray(residual, np.float64))
    if not r.any():
        raise ValueError("all residuals are 0: the likelihood has no bound")
    inside = np.sqrt(2 * np.pi) * special.erf(delta / np.sqrt(2))
    normaliser = np.log(inside + 2 * np.exp(-(delta**2) / 2) / delta)

    def minus(log_scale: float) -> float:
        z = r * np.exp(-log_scale)
        clipped = np.minimum(z, delta)
        return float((clipped * (z - clipped / 2)).sum() + len(r) * (normaliser + log_scale))

    middle = np.log(r.mean())
    bounds = (middle + np.log(min(delta, 1.0)) - 10, middle + 10)
    best = optimize.minimize_scalar(
        minus, bounds=bounds, method="bounded", options={"xatol": 1e-10}
    )
    return -float(best.fun), float(np.exp(best.x))


def _named(law: loss_laws.Law, theta: np.ndarray) -> dict[str, float]:
    return dict(zip(law.names, (float(v) for v in theta), strict=True))


def _with(law: loss_laws.Law, name: str, value: float) -> np.ndarray:
    """Natural parameters of 1 with one at a value, to see whether the law can take it."""
    theta = np.ones(len(law.names))
    theta[law.names.index(name)] = value
    return theta
