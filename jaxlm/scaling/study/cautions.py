"""Every caution of a study, the most important first."""

from collections.abc import Sequence

import numpy as np

from jaxlm.scaling import study_record
from jaxlm.scaling.planning.model_selection import ISOFLOP
from jaxlm.scaling.study import diagnostics, form_fits
from jaxlm.scaling.study.diagnostics import Caution

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


def study(record: study_record.Record, rows: Sequence[Caution] = ()) -> list[Caution]:
    """Every caution of a study's record, ranked: what voids the plan, moves it, widens it; then
    what concerns forms that do not plan, and what was not recorded.

    rows: the cautions of `heterogeneity` about the table's rows.
    """
    planners = {record["law"], record["plan"]["form"]}
    ranked = [(_rank(c, True), c) for c in (*rows, *_whole(record))]
    for name in record["forms"]:
        ranked += [(_rank(c, name in planners), c) for c in _form(record, name)]
    return [c for _, c in sorted(ranked, key=lambda pair: pair[0])]


def _rank(caution: Caution, plans: bool) -> int:
    """The place of a caution: by its kind, those of forms that do not plan after all others."""
    order = (*VOID, *MOVE, *WIDEN)
    if caution.kind in LAST:
        return 3 * len(order)
    place = order.index(caution.kind) if caution.kind in order else len(order)
    return place if plans else len(order) + 1 + place


def _form(record: study_record.Record, name: str) -> list[Caution]:
    """The cautions of one form's fit."""
    form = record["forms"][name]
    used = np.asarray(record["points"]["used"], bool)
    smallest = float(np.asarray(record["points"]["loss"])[used].min())
    others = [(b["objective"], b["theta"]) for b in form["basins"]]
    out = diagnostics.basins(name, form["objective"], others)
    if "E" in form["theta"]:
        high = form["intervals"]["E"]
        top = None if high is None else high[1]
        out += diagnostics.floor(name, form["theta"]["E"], smallest, form["residual_sd"], top)
    out += diagnostics.undetermined(name, form["intervals"])
    out += diagnostics.few(name, form["points"], len(form["theta"]))
    out += diagnostics.condition(name, form["condition"])
    return out + diagnostics.starts(
        name, form["reached"], form["failed"], record["options"]["replicates"]
    )


def _whole(record: study_record.Record) -> list[Caution]:
    """The cautions of the study and its plan."""
    points, plan = record["points"], record["plan"]
    used = np.asarray(points["used"], bool)
    ratio = (np.asarray(points["tokens"]) / np.asarray(points["params"]))[used]
    run = np.asarray(points["run"])[used]
    target = record["options"]["target"]
    values = {k: (plan[k]["value"], plan[k]["interval"]) for k in ("params", "loss")}
    out = diagnostics.undertuned(plan["undertuned"], values)
    out += diagnostics.disagreement(plan["disagreement"])
    out += diagnostics.shape(plan["form"], plan["form"] in form_fits.FIXED_EXPONENT)
    out += diagnostics.coverage(ratio, plan["tokens_per_parameter"]["value"], target)
    out += diagnostics.extrapolation(target, float(record["flops"][1]))
    sides = {
        k: (v["exponent"], v["interval"])
        for k, v in record["approaches"].items()
        if v.get("exponent") is not None and np.isfinite(v["exponent"])
    }
    if plan["form"] == ISOFLOP:
        # a form that does not plan N* is no evidence against the one that does
        sides = {k: v for k, v in sides.items() if not k.startswith("parametric")}
    out += diagnostics.approaches(sides)
    tested = record["backtest"]["forms"].get(record["law"])
    if tested is not None:
        out += diagnostics.curve(tested["mean"], record["law"])
    checklist = record["checklist"]
    out += diagnostics.checkpoints(
        run, checklist["extraction"]["checkpoints"], checklist["setup"]["schedule"]
    )
    return out + diagnostics.untold(study_record.untold(checklist))
