"""The choice of a study's planner, by rolling back-tests, and the plan's entry in its record."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from jaxlm.scaling import study_parts, table
from jaxlm.scaling.approaches import comparison, isoflop
from jaxlm.scaling.laws import bootstrap, fitting, loss_laws, optimum
from jaxlm.scaling.planning import allocation, backtest, discrepancy, model_selection
from jaxlm.scaling.planning.backtest import Errors
from jaxlm.scaling.planning.model_selection import ISOFLOP
from jaxlm.scaling.study import form_fits, tuning

AKIMA = "isoflop akima"
# Refits at each cut-off for the standard deviation of its errors.
REPLICATES = 60
# Fixed exponents do not plan against the form that has them free: to be near it is no merit.
NOT_RIVALS = tuple(form_fits.FIXED_EXPONENT)

# Minima without which their losses make no law of their own.
MINIMA = 5

Array = np.ndarray
IsoFlops = Mapping[str, "isoflop.IsoFlop | str"]


@dataclasses.dataclass(frozen=True)
class Tested:
    """Rolling back-tests of a study."""

    cutoffs: tuple[float, ...]
    """FLOPs from which runs were held out, rising."""
    tests: dict[str, list[backtest.Test]]
    """By form, those that could be fitted below a cut-off."""
    refused: dict[str, str]
    """{form: why it has none}."""
    sizes: dict[str, Errors]
    """Errors of N* by form, and of approach 2; empty where no minimum was measured."""
    losses: dict[str, Errors]
    """Errors of the loss by form."""


@dataclasses.dataclass(frozen=True)
class Chosen:
    """The chosen planners."""

    sizes: model_selection.Choice
    """The choice for N*."""
    loss: model_selection.Choice
    """The choice for the loss."""
    surface: str
    """The form of the loss."""
    default: str
    """The form that would plan without any back-test."""
    sentence: str
    """Explanation of the choice."""


def test(
    fitted: Mapping[str, form_fits.Fitted],
    t: table.Table,
    second: IsoFlops,
    holdout: float | None,
    how: form_fits.Settings,
    per: float,
) -> Tested:
    """The rolling back-tests of every form; holdout: the one cut-off, None for `cutoffs`.

    Raises: ValueError where a holdout was named and nothing can be tested on it.
    """
    cuts = backtest.cutoffs(t) if holdout is None else [holdout]
    first = form_fits.default(fitted)
    tests: dict[str, list[backtest.Test]] = {}
    refused: dict[str, str] = {}
    for name, form in fitted.items():
        # sampling's share is wanted of who may plan
        again = min(REPLICATES, how.replicates) if name in (first, "chinchilla", "kaplan") else 0
        held = how.fix.get(name, {})
        done, why = backtest.rolling(form.law, form.t, cuts, how.delta, held, again, form.fit)
        if done:
            tests[name] = done
        if why:
            refused[name] = why[-1]
    if not tests and holdout is not None:
        raise ValueError(next(iter(refused.values())))
    refused = {name: why for name, why in refused.items() if name not in tests}
    sizes: dict[str, Errors] = {}
    able = {n: tests[n] for n in tests if form_fits.plans(fitted[n].law)}
    akima = second[AKIMA]
    if not isinstance(akima, str):
        for name, own in able.items():
            sizes[name] = backtest.sizes(own, akima.minima, per)
        sizes[ISOFLOP] = backtest.lines(next(iter(able.values()), []), akima.minima)
        sizes = {name: e for name, e in sizes.items() if len(e.error)}
    losses = {name: backtest.losses(own) for name, own in able.items()}
    return Tested(tuple(cuts), tests, refused, sizes, losses)


def choose(
    fitted: Mapping[str, form_fits.Fitted],
    second: IsoFlops,
    tested: Tested,
    named: str | None,
    how: form_fits.Settings,
) -> Chosen:
    """Chooses the planners: those `named` by the user, or by the back-tests.

    Raises: ValueError for a name that has no plan.
    """
    able = [name for name, form in fitted.items() if form_fits.plans(form.law)]
    first = form_fits.default(fitted)
    rivals = [name for name in able if name not in NOT_RIVALS or name == first]
    loss = model_selection.choose(
        first, {n: e for n, e in tested.losses.items() if n in rivals}, how.replicates, how.seed
    )
    if named == ISOFLOP:
        if isinstance(second[AKIMA], str):
            raise ValueError(f"--law isoflop: {second[AKIMA]}")
    elif named is not None and named not in able:
        raise ValueError(f"--law {named!r}: was not fitted; it plans with one of {able}")
    if named is not None:
        drawn = np.full(how.replicates, named)
        surface = loss.name if named == ISOFLOP else named
        sizes = model_selection.Choice(named, {}, drawn)
        only = model_selection.Choice(surface, loss.scores, np.full(how.replicates, surface))
        return Chosen(
            sizes, only, surface, first, model_selection.sentence(named, sizes, only, True)
        )
    measured = {n: e for n, e in tested.sizes.items() if n in rivals or n == ISOFLOP}
    if measured:
        sizes = model_selection.choose(first, measured, how.replicates, how.seed)
    else:
        # no minimum to test on: N* is that of the form which predicts the loss
        sizes = model_selection.Choice(loss.name, {}, loss.drawn)
    surface, akima = loss.name, second[AKIMA]
    edge = sizes.name == ISOFLOP and not isinstance(akima, str)
    edge = edge and len(backtest.frontier(akima.minima).loss) >= MINIMA
    return Chosen(
        sizes, loss, surface, first, model_selection.sentence(first, sizes, loss, False, edge)
    )


def errors(tested: Tested, chosen: Chosen) -> study_parts.Backtest:
    """The back-test's entry in a study's record."""
    forms: dict[str, study_parts.LossTest] = {}
    for name, own in tested.tests.items():
        error = np.concatenate([t.error for t in own])
        forms[name] = study_parts.LossTest(
            fitted=own[-1].fitted,
            tested=len(error),
            mean=float(np.mean(error)),
            mae=float(np.mean(np.abs(error))),
            largest=float(np.max(np.abs(error))),
            theta=own[-1].theta,
            error=error,
            row=np.concatenate([t.row for t in own]),
            cutoffs={f"{t.threshold:.4g}": t.mae for t in own},
        )
    sizes: dict[str, study_parts.SizeTest] = {}
    for name, e in tested.sizes.items():
        finite = e.error[np.isfinite(e.error)]
        mean = float(np.mean(finite)) if len(finite) else math.nan
        median = float(np.median(np.abs(finite))) if len(finite) else math.nan
        sizes[name] = study_parts.SizeTest(len(e.error), mean, median, e.error, e.decades, e.case)
    return study_parts.Backtest(
        threshold=tested.cutoffs[-1] if tested.tests else None,
        cutoffs=tested.cutoffs,
        wins=chosen.loss.name if chosen.loss.name in tested.tests else None,
        unit="100 log(predicted / measured)",
        forms=forms,
        sizes=sizes,
        skipped=tested.refused,
    )


class Context(NamedTuple):
    """Parts of a study's record that its plan is of."""

    forms: Mapping[str, study_parts.Form]
    approaches: Mapping[str, study_parts.Approach]
    flops: tuple[float, float]
    """Least and largest C of the runs."""
    per: float
    """C / (N D)."""
    target: float
    """FLOPs."""


def entry(
    context: Context,
    chosen: Chosen,
    fitted: Mapping[str, form_fits.Fitted],
    second: IsoFlops,
    tested: Tested,
    how: form_fits.Settings,
) -> study_parts.StudyPlan:
    """The plan's entry in a study's record."""
    count = how.replicates
    effect = form_fits.undertuned(fitted, how)

    def drawn(name: str) -> Array:
        many = _rows(_planner(name, fitted, second)[1], count)
        if effect is not None and name == form_fits.TUNED:
            # every second draw takes the largest sizes for under-tuned
            many[1::2] = _rows(effect[1].draws, count // 2)
        return many

    names = [chosen.sizes.name, *sorted({*chosen.sizes.drawn.tolist()} - {chosen.sizes.name})]
    sizes, entries = [], []
    for name in names:
        theta, many = _planner(name, fitted, second)[0], drawn(name)
        # of the loss's own form the draws are kept once
        kept = None if name == chosen.surface else many
        if form_fits.FIXED_EXPONENT.get(name, name) not in {*fitted, ISOFLOP}:
            # the error of its exponent is unknown: no interval, rather than one without width
            many = kept = np.full_like(many, np.nan)
        rows = chosen.sizes.drawn == name
        sizes.append(allocation.Sizes(name, theta, many, rows))
        entries.append(study_parts.Planner(name, theta, kept, rows))
    edge = _frontier(chosen, second, tested, how)
    curve = _discrepancy(fitted[chosen.surface], effect, context)
    size, surface = _spreads(chosen, tested, curve)
    size = max(size, form_fits.exponent_spread(chosen.sizes.name, fitted))
    p = allocation.Planned(
        sizes=tuple(sizes),
        surface=chosen.surface,
        theta=fitted[chosen.surface].theta,
        draws=drawn(chosen.surface),
        spread=(size, surface if edge is None else edge[1]),
        flops=context.flops,
        per=context.per,
        seed=how.seed,
        frontier=edge and allocation.Sizes(loss_laws.OFFSET.name, *edge[0], sizes[0].rows),
        own=curve,
    )
    return study_parts.StudyPlan(
        chosen_by=chosen.sentence,
        default=chosen.default,
        surface=p.surface,
        form=chosen.sizes.name,
        sizes=tuple(entries),
        draws=p.draws,
        spread=study_parts.Spread(*p.spread, surface),
        frontier=edge and study_parts.Frontier(*edge[0]),
        discrepancy=curve,
        undertuned=effect and _undertuned(*effect, context),
        **_values(p, chosen.sizes.name, context, how.level),
    )


def _undertuned(
    excess: tuning.Excess, corrected: tuning.Corrected, context: Context
) -> study_parts.Undertuned:
    best = optimum.at(form_fits.TUNED, corrected.theta, context.target, context.per)
    return study_parts.Undertuned(*excess, float(best.params), float(best.loss))


def _spreads(
    chosen: Chosen, tested: Tested, curve: study_parts.Curve | None
) -> tuple[float, float]:
    """(of log N*, of the surface's log loss) per decade; 0 where the form has a discrepancy, which
    is its own error measured on more than the budgets held out."""
    size = _spread(tested.sizes.get(chosen.sizes.name), half=True)
    if curve is None:
        return size, _spread(tested.losses.get(chosen.surface))
    return 0.0 if chosen.sizes.name == chosen.surface else size, 0.0


def _discrepancy(
    fitted: form_fits.Fitted,
    effect: tuple[tuning.Excess, tuning.Corrected] | None,
    context: Context,
) -> study_parts.Curve | None:
    knot = effect[0].knot if effect is not None and fitted.law.name == form_fits.TUNED else None
    form = discrepancy.fit(
        fitted.law,
        fitted.theta,
        fitted.fit.residual,
        fitted.t.params,
        fitted.t.tokens,
        knot,
        fitted.fit.fixed,
    )
    return form and discrepancy.along(form, discrepancy.grid(context.flops), context.per)


def _frontier(
    chosen: Chosen, second: IsoFlops, tested: Tested, how: form_fits.Settings
) -> tuple[tuple[Array, Array], float] | None:
    """((theta, draws) of the law `offset` through approach 2's minima, its spread per decade),
    where approach 2 plans and has minima enough: that a form's N* is refuted speaks against its
    loss too."""
    akima = second[AKIMA]
    if chosen.sizes.name != ISOFLOP or isinstance(akima, str):
        return None
    t = backtest.frontier(akima.minima)
    if len(t.loss) < MINIMA:
        return None
    fit = fitting.fit(loss_laws.OFFSET, t, delta=how.delta)
    if fit.failed:
        return None
    many = bootstrap.noise(loss_laws.OFFSET, t, fit, how.replicates, how.seed)
    draws = _rows(many.theta[~many.failed], how.replicates)
    errors = backtest.edges(tested.cutoffs, t, how.delta)
    return (fitting.values(fit), draws), model_selection.spread(errors)


def _values(p: allocation.Planned, form: str, context: Context, level: float) -> dict[str, Any]:
    """The StudyPlan's numbers at the target; form: the planner of N*."""
    many = allocation.at(p, context.target)
    rows = many._asdict() | {"tokens_per_parameter": many.tokens / many.params}
    out: dict[str, Any] = {
        name: study_parts.Estimate(float(v[0]), comparison.interval(v[1:], level))
        for name, v in rows.items()
    }
    if form in form_fits.FIXED_EXPONENT:
        best = dataclasses.asdict(context.forms[form].optimum)
        for name in ("params", "tokens", "tokens_per_parameter", "exponent"):
            out[name] = dataclasses.replace(out[name], interval=best[name][1])
    others = allocation.rivals(
        context.forms, context.approaches, context.target, context.per, level
    )
    value, ends = dataclasses.astuple(out["params"])
    return out | {
        "disagreement": allocation.disagreement(p, others, context.target, value, ends, level)
    }


def _planner(
    name: str, fitted: Mapping[str, form_fits.Fitted], second: IsoFlops
) -> tuple[Array, Array]:
    """(theta, draws) of a planner of N*."""
    if name != ISOFLOP:
        return fitted[name].theta, fitted[name].draws
    akima = second[AKIMA]
    assert not isinstance(akima, str)
    return np.array([akima.exponent, akima.intercept]), akima.draws


def _rows(draws: Array, count: int) -> Array:
    """[count, k] draws, again from the first where there are fewer; nan where there are none."""
    if not len(draws):
        return np.full((count, draws.shape[1]), np.nan)
    return draws[np.arange(count) % len(draws)]


def _spread(errors: Errors | None, half: bool = False) -> float:
    return 0.0 if errors is None else model_selection.spread(errors, half)
