"""The plan of a study: N*, D* and loss at a compute, by the chosen planner, with their intervals.

    p = allocation.of(record)                 # of a study's record
    allocation.at(p, 5.76e23)                 # Draws: N*, D*, loss, the fit first, then R draws

An interval covers resampling of the runs, the choice of a form by every draw, the form's own error
(a `discrepancy` of the form from the runs; for approach 2 its error per decade beyond them, as the
rolling back-test measured it), and, where the largest sizes look under-tuned, the law without that
excess as the other half of the draws.
"""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from jaxlm.scaling import study_parts
from jaxlm.scaling.approaches import comparison
from jaxlm.scaling.laws import loss_laws, optimum
from jaxlm.scaling.planning import discrepancy, model_selection
from jaxlm.scaling.study_record import Record

# Step of log C, for the exponent that a discrepancy adds.
STEP = 0.1

Array = np.ndarray


class Sizes(NamedTuple):
    """One N*(C) and the draws that it plans."""

    name: str
    """A form, or `model_selection.ISOFLOP`."""
    theta: Array
    """[k] of the form, or (exponent, intercept) of log N* in log C."""
    draws: Array
    """[R, k]."""
    rows: Array
    """[R] bool, the draws that chose it."""


class Planned(NamedTuple):
    """All that a plan at any compute needs."""

    sizes: tuple[Sizes, ...]
    """Planners of N*: the one chosen, then others that some draws chose."""
    surface: str
    """The form of the loss."""
    theta: Array
    """[k] parameters of it."""
    draws: Array
    """[R, k]."""
    spread: tuple[float, float]
    """Standard deviation of log N* and of log loss for each decade beyond the runs."""
    flops: tuple[float, float]
    """Least and largest C of the runs."""
    per: float
    """C / (N D)."""
    seed: int
    """Seed of the draws of `spread`."""
    frontier: Sizes | None = None
    """Loss on approach 2's minima, the law `offset`, of the draws that approach 2 plans; None: the
    loss is the surface's everywhere."""
    own: study_parts.Curve | None = None
    """The surface's own error; None: `spread` alone."""


class Draws(NamedTuple):
    """[1 + R] each: at the fit, then of every draw."""

    params: Array
    tokens: Array
    loss: Array
    exponent: Array


def at(p: Planned, flops: float | Array) -> Draws:
    """N*, D* and loss of every draw at `flops`: a number, or [1 + R] one for each draw."""
    count = len(p.draws)
    c = np.broadcast_to(np.asarray(flops, float), (1 + count,))
    n, exponent = _params(p.sizes[0], c, p.per)
    for other in p.sizes[1:]:
        rows = np.append(False, other.rows)
        own, slope = _params(other, c, p.per)
        n[rows], exponent[rows] = own[rows], slope[rows]
    thetas = np.concatenate([p.theta[None], p.draws])
    loss = np.full(1 + count, np.nan)
    has = np.isfinite(n) & (n > 0)
    if has.any():
        d = c[has] / (p.per * n[has])
        loss[has] = optimum.loss(p.surface, thetas[has], n[has], d, paired=True)
    if p.frontier is not None:
        rows = np.append(True, p.frontier.rows)
        own = np.concatenate([p.frontier.theta[None], p.frontier.draws])
        loss[rows] = loss_laws.OFFSET.predict(own[rows].T, (c[rows],))
    decades = np.maximum(0.0, np.log10(c[1:] / p.flops[1]))
    noise = np.random.default_rng([p.seed, 1]).standard_normal((2, count)) * decades
    n[1:] *= np.exp(p.spread[0] * noise[0])
    loss[1:] *= np.exp(p.spread[1] * noise[1])
    if p.own is not None:
        size, level = discrepancy.draw(p.own, c[1:], p.seed)
        further, _ = discrepancy.draw(p.own, c[1:] * np.exp(STEP), p.seed)
        for s in p.sizes:
            if s.name == p.surface:
                n[1:][s.rows] *= np.exp(size[s.rows])
                exponent[1:][s.rows] += (further - size)[s.rows] / STEP
        rows = np.ones(count, bool) if p.frontier is None else ~p.frontier.rows
        loss[1:][rows] *= np.exp(level[rows])
    return Draws(n, c / (p.per * n), loss, exponent)


def least(p: Planned, loss: float) -> Array:
    """[1 + R] the least C at which every draw's plan reaches a loss; inf where it never does."""
    places = optimum.decades(2)
    reached = np.stack([at(p, np.exp(x)).loss <= loss for x in places], 1)
    first = np.argmax(reached, 1)
    low, high = places[np.maximum(first - 1, 0)], places[first]
    for _ in range(optimum.HALVINGS):
        middle = (low + high) / 2
        there = at(p, np.exp(middle)).loss <= loss
        low, high = np.where(there, low, middle), np.where(there, middle, high)
    return np.where(reached.any(1), np.exp(high), np.inf)


def _params(s: Sizes, flops: Array, per: float) -> tuple[Array, Array]:
    """(N* [1 + R], d log N* / d log C [1 + R]) at compute [1 + R]; nan of draws that are none."""
    thetas = np.concatenate([s.theta[None], s.draws])
    if s.name == model_selection.ISOFLOP:
        return np.exp(thetas[:, 1] + thetas[:, 0] * np.log(flops)), thetas[:, 0].copy()
    n, exponent = np.full((2, len(thetas)), np.nan)
    has = np.isfinite(thetas).all(1)
    best = optimum.at(s.name, thetas[has], flops[has], per, paired=True)
    n[has], exponent[has] = best.params, best.exponent
    return n, exponent


def of(record: Record) -> Planned:
    """The Planned of a study's record. Raises: ValueError where it holds no plan."""
    plan, form = record.planned, record.forms[record.planned.surface]
    names = loss_laws.LAWS[plan.surface].names
    draws = plan.draws.reshape(-1, len(names))
    sizes = tuple(
        # of the loss's own form the draws are kept once
        Sizes(s.name, s.theta, draws if s.draws is None else _rows(s.draws, s.theta), s.rows)
        for s in plan.sizes
    )
    edge = None
    if plan.frontier is not None:
        theta, many = plan.frontier.theta, plan.frontier.draws
        edge = Sizes(loss_laws.OFFSET.name, theta, _rows(many, theta), sizes[0].rows)
    return Planned(
        sizes=sizes,
        surface=plan.surface,
        theta=np.array([form.theta[name] for name in names]),
        draws=draws,
        spread=(plan.spread.params, plan.spread.loss),
        flops=record.flops,
        per=record.per,
        seed=record.options.seed,
        frontier=edge,
        own=plan.discrepancy,
    )


def _rows(draws: Array, theta: Array) -> Array:
    """[R, k] of draws that JSON holds as a list, which has no k where R is 0."""
    return draws.reshape(-1, len(theta))


def form(name: str, theta: Array, draws: Array, flops: tuple[float, float], per: float) -> Planned:
    """The Planned of one form by its draws [R, k] alone."""
    own = Sizes(name, theta, draws, np.ones(len(draws), bool))
    return Planned((own,), name, theta, draws, (0.0, 0.0), flops, per, 0)


def quality(p: Planned, params: float) -> float:
    """The loss of the compute-optimal model of N parameters, at the fit.

    Raises: ValueError where no compute makes N optimal.
    """
    first = p.sizes[0]
    edge = p.frontier
    fit = p._replace(
        draws=p.draws[:0],
        sizes=(first._replace(draws=first.draws[:0], rows=first.rows[:0]),),
        frontier=edge and edge._replace(draws=edge.draws[:0], rows=edge.rows[:0]),
    )
    places = optimum.decades(2)
    sizes = np.array([at(fit, np.exp(x)).params[0] for x in places])
    between = np.flatnonzero((sizes[:-1] < params) & (params <= sizes[1:]))
    if not between.size:
        raise ValueError(f"params: {params:g} given; this law has no compute where that is optimal")
    low, high = places[between[0]], places[between[0] + 1]
    for _ in range(optimum.HALVINGS):
        middle = (low + high) / 2
        low, high = (middle, high) if at(fit, np.exp(middle)).params[0] < params else (low, middle)
    return float(at(fit, np.exp(high)).loss[0])


def rivals(
    forms: Mapping[str, study_parts.Form],
    approaches: Mapping[str, study_parts.Approach],
    flops: float,
    per: float,
    level: float,
) -> dict[str, tuple[float, study_parts.Interval]]:
    """{form or approach: (its N* at `flops`, its own interval)}, of all that have one.

    An approach's interval is as wide as at the study's target.
    """
    out: dict[str, tuple[float, study_parts.Interval]] = {}
    for name, form in forms.items():
        if isinstance(form.optimum, study_parts.Skipped):
            continue
        theta = np.array([form.theta[k] for k in loss_laws.LAWS[name].names])
        draws = _rows(form.draws, theta)
        n = float(optimum.at(name, theta, flops, per).params)
        many = optimum.at(name, draws, flops, per).params if len(draws) else np.empty(0)
        out[name] = n, comparison.interval(many, level)
    for name, side in approaches.items():
        if isinstance(side, study_parts.Envelope | study_parts.IsoFlop):
            n = float(np.exp(side.intercept + side.exponent * np.log(flops)))
            wide = side.params_interval
            scale = n / side.params
            out[name] = n, None if wide is None else (scale * wide[0], scale * wide[1])
    return {name: pair for name, pair in out.items() if np.isfinite(pair[0])}


def disagreement(
    planned: Planned,
    every: Mapping[str, tuple[float, study_parts.Interval]],
    flops: float,
    value: float,
    interval: study_parts.Interval,
    level: float,
) -> str:
    """The forms and approaches (`rivals`) that contradict the plan's N* at `flops`, in a sentence;
    "" where none does. Those do whose N* is outside what resampling the runs gives the plan, and
    the plan's N* outside theirs; interval: the plan's, None where it has none."""
    ends = interval
    if interval is not None and planned.own is not None:
        ends = comparison.interval(at(planned._replace(own=None), flops).params[1:], level)
    if ends is None:
        return ""
    low, high = ends

    def against(n: float, own: study_parts.Interval) -> bool:
        inside = own is not None and own[0] <= value <= own[1]
        return not low <= n <= high and not inside

    apart = {k: n for k, (n, own) in every.items() if against(n, own)}
    if not apart:
        return ""
    listed = ", ".join(f"{n:.3g} by {k}" for k, n in sorted(apart.items(), key=lambda p: p[1]))
    return (
        f"{len(apart)} of {len(every)} forms and approaches put N* at {flops:.3g} FLOPs further "
        f"off than resampling the runs explains: {listed}"
    )
