"""Every caution of a study, the most important first."""

from collections.abc import Sequence

import numpy as np

from jaxlm.scaling.planning.model_selection import ISOFLOP
from jaxlm.scaling.study import checklist, diagnostics, form_fits
from jaxlm.scaling.study_parts import Caution, Skipped
from jaxlm.scaling.study_record import Record

# Kinds by what they do to the plan: void it, move it, widen it, or concern what else is reported.
VOID = ("floor above the data", "several experiments", "few points")
MOVE = (
    "largest sizes above the law",
    "outliers",
    "hyper-parameters vary",
    "forms disagree",
    "fixed exponent",
    "cost depends on size",
    "intermediate checkpoints",
    "several basins",
)
WIDEN = (
    "approaches disagree",
    "biased back-test",
    "narrow coverage",
    "ratio not covered",
    "far extrapolation",
    "no floor",
    "floor near the data",
)
LAST = ("not recorded",)


def study(record: Record, rows: Sequence[Caution] = ()) -> list[Caution]:
    """Every caution of a study's record, ranked: what voids the plan, moves it, widens it; then
    what concerns forms that do not plan, and what was not recorded.

    rows: the cautions of `heterogeneity` about the table's rows.
    """
    planners = {record.law, record.planned.form}
    ranked = [(_rank(c, True), c) for c in (*rows, *_of_plan(record))]
    for name in record.forms:
        ranked += [(_rank(c, name in planners), c) for c in _form(record, name)]
    return [c for _, c in sorted(ranked, key=lambda pair: pair[0])]


def _rank(caution: Caution, plans: bool) -> int:
    """The place of a caution: by its kind, those of forms that do not plan after all others."""
    order = (*VOID, *MOVE, *WIDEN)
    if caution.kind in LAST:
        return 3 * len(order)
    place = order.index(caution.kind) if caution.kind in order else len(order)
    return place if plans else len(order) + 1 + place


def _form(record: Record, name: str) -> list[Caution]:
    """The cautions of one form's fit."""
    form, points = record.forms[name], record.points
    smallest = float(points.loss[points.used].min())
    others = [(b.objective, b.theta) for b in form.basins]
    out = diagnostics.basins(name, form.objective, others)
    if "E" in form.theta:
        ends = form.intervals["E"]
        high = None if ends is None else ends[1]
        out += diagnostics.floor(name, form.theta["E"], smallest, form.residual_sd, high)
    out += diagnostics.undetermined(name, form.intervals)
    out += diagnostics.few(name, form.points, len(form.theta))
    out += diagnostics.condition(name, form.condition)
    return out + diagnostics.starts(name, form.reached, form.failed, record.options.replicates)


def _of_plan(record: Record) -> list[Caution]:
    """The cautions of the study and its plan."""
    points, plan, target = record.points, record.planned, record.options.target
    ratio = (points.tokens / points.params)[points.used]
    out = diagnostics.undertuned(plan.undertuned, plan.params.value, plan.loss.value)
    out += diagnostics.disagreement(plan.disagreement)
    out += diagnostics.shape(plan.form, plan.form in form_fits.FIXED_EXPONENT)
    out += diagnostics.coverage(ratio, plan.tokens_per_parameter.value, target)
    out += diagnostics.extrapolation(target, record.flops[1])
    sides = {
        name: (side.exponent, side.interval)
        for name, side in record.approaches.items()
        if not isinstance(side, Skipped) and np.isfinite(side.exponent)
    }
    if plan.form == ISOFLOP:
        # a form that does not plan N* is no evidence against the one that does
        sides = {k: v for k, v in sides.items() if not k.startswith("parametric")}
    out += diagnostics.approaches(sides)
    tested = record.backtest.forms.get(record.law)
    if tested is not None:
        out += diagnostics.curve(tested.mean, record.law)
    stated = record.checklist
    out += diagnostics.checkpoints(
        points.run[points.used], stated.extraction.checkpoints, stated.setup.schedule
    )
    return out + diagnostics.not_recorded(checklist.not_stated(stated))
