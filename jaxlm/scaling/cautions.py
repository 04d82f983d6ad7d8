"""Every caution of a study, the one that matters most first."""

from collections.abc import Sequence

import numpy as np

from jaxlm.scaling import forms, warn
from jaxlm.scaling import study as studies
from jaxlm.scaling.planner import ISOFLOP
from jaxlm.scaling.warn import Caution

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


def study(record: studies.Record, rows: Sequence[Caution] = ()) -> list[Caution]:
    """Every caution of a study's record, ranked: what voids the plan, moves it, widens it; then
    what concerns forms that do not plan, and what was not recorded.

    rows: what `experiments` says of the table's rows.
    """
    planners = {record["law"], record["plan"]["form"]}
    ranked = [(_rank(c, True), c) for c in (*rows, *_whole(record))]
    for name in record["forms"]:
        ranked += [(_rank(c, name in planners), c) for c in _form(record, name)]
    return [c for _, c in sorted(ranked, key=lambda pair: pair[0])]


def _rank(caution: Caution, plans: bool) -> int:
    """The place of a caution: by its kind, those of forms that do not plan behind all others."""
    order = (*VOID, *MOVE, *WIDEN)
    if caution.kind in LAST:
        return 3 * len(order)
    place = order.index(caution.kind) if caution.kind in order else len(order)
    return place if plans else len(order) + 1 + place


def _form(record: studies.Record, name: str) -> list[Caution]:
    """The cautions of one form's fit."""
    form = record["forms"][name]
    used = np.asarray(record["points"]["used"], bool)
    smallest = float(np.asarray(record["points"]["loss"])[used].min())
    others = [(b["objective"], b["theta"]) for b in form["basins"]]
    out = warn.basins(name, form["objective"], others)
    if "E" in form["theta"]:
        high = form["intervals"]["E"]
        top = None if high is None else high[1]
        out += warn.floor(name, form["theta"]["E"], smallest, form["residual_sd"], top)
    out += warn.undetermined(name, form["intervals"])
    out += warn.few(name, form["points"], len(form["theta"]))
    out += warn.condition(name, form["condition"])
    return out + warn.starts(name, form["reached"], form["failed"], record["options"]["replicates"])


def _whole(record: studies.Record) -> list[Caution]:
    """The cautions of the study and its plan."""
    points, plan = record["points"], record["plan"]
    used = np.asarray(points["used"], bool)
    ratio = (np.asarray(points["tokens"]) / np.asarray(points["params"]))[used]
    run = np.asarray(points["run"])[used]
    target = record["options"]["target"]
    values = {k: (plan[k]["value"], plan[k]["interval"]) for k in ("params", "loss")}
    out = warn.undertuned(plan["undertuned"], values)
    out += warn.disagreement(plan["disagreement"])
    out += warn.shape(plan["form"], plan["form"] in forms.FIXED_EXPONENT)
    out += warn.coverage(ratio, plan["tokens_per_parameter"]["value"], target)
    out += warn.extrapolation(target, float(record["flops"][1]))
    sides = {
        k: (v["exponent"], v["interval"])
        for k, v in record["approaches"].items()
        if v.get("exponent") is not None and np.isfinite(v["exponent"])
    }
    if plan["form"] == ISOFLOP:
        # a form that does not plan N* says nothing against the one that does
        sides = {k: v for k, v in sides.items() if not k.startswith("parametric")}
    out += warn.approaches(sides)
    tested = record["backtest"]["forms"].get(record["law"])
    if tested is not None:
        out += warn.curve(tested["mean"], record["law"])
    checklist = record["checklist"]
    out += warn.checkpoints(
        run, checklist["extraction"]["checkpoints"], checklist["setup"]["schedule"]
    )
    return out + warn.untold(studies.untold(checklist))
