"""A study's report as text, from its record.

print(summary.text(study.load("runs/fit").record))
"""

from collections.abc import Sequence
from typing import Any

from jaxlm.scaling.study import Record


def text(record: Record) -> str:
    """The whole report: the plan first, then forms, optima, approaches, back-tests, outliers, the
    next run and cautions."""
    parts = [
        _head(record),
        _plan(record),
        _forms(record),
        _optimum(record),
        _approaches(record),
        _backtest(record),
        _outliers(record),
        _next(record),
        _cautions(record),
    ]
    return "\n\n".join(part for part in parts if part)


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Aligned columns: the first to the left, the others to the right."""
    every = [list(header), *map(list, rows)]
    widths = [max(len(row[i]) for row in every) for i in range(len(header))]
    lines = []
    for row in every:
        cells = [c.ljust(w) if i == 0 else c.rjust(w) for i, (c, w) in enumerate(zip(row, widths))]
        lines.append("  " + "  ".join(cells).rstrip())
    return "\n".join(lines)


def number(value: Any) -> str:
    """A number in at most six digits; "-" for none."""
    return "-" if value is None else f"{value:.6g}"


def _short(value: Any) -> str:
    return "-" if value is None else f"{value:.4g}"


def _interval(ends: Sequence[float] | None) -> str:
    return "-" if ends is None else f"[{_short(ends[0])}, {_short(ends[1])}]"


def _head(record: Record) -> str:
    source, counting, options = record["source"], record["counting"], record["options"]
    low, high = record["flops"]
    dropped = len(source["dropped"])
    used = source["points"] - dropped
    lines = [
        f"study of {source['name']}: {used} points, {_short(low)} to {_short(high)} FLOPs",
        f"  N counts {counting['params']} parameters, C is {counting['flops']} "
        f"(C = {record['per']:.4g} N D)",
        f"  {_objective(options['delta'])}; {options['replicates']} "
        f"{options['bootstrap']} bootstraps, seed {options['seed']}; intervals hold "
        f"{options['level']:.0%}",
    ]
    if dropped:
        lines.append(
            f"  dropped, of highest loss: {', '.join(_short(d['loss']) for d in source['dropped'])}"
        )
    lines += [f"  {note}" for note in source.get("notes", ())]
    lines += [f"  left out: {reason}" for reason in source["left_out"]]
    return "\n".join(lines)


def _plan(record: Record) -> str:
    """The answer: how it was chosen, its numbers, what speaks against it most."""
    plan, level = record["plan"], record["options"]["level"]
    names = {
        "params": "parameters N*",
        "tokens": "tokens D*",
        "tokens_per_parameter": "tokens per parameter",
        "loss": "loss",
        "exponent": "exponent of N*(C)",
    }
    rows = [
        [label, _short(plan[key]["value"]), _interval(plan[key]["interval"])]
        for key, label in names.items()
    ]
    title = f"plan for {_short(record['options']['target'])} FLOPs: {plan['chosen_by']}"
    lines = [title, table(["", "value", f"{level:.0%} interval"], rows)]
    if plan["disagreement"]:
        lines.append(f"  disagreement: {plan['disagreement']}")
    first = [c for c in record["cautions"] if c["kind"] not in ("forms disagree", "not recorded")]
    lines += [f"  caution: {c['kind']}: {c['text']}" for c in first[:1]]
    return "\n".join([*lines, f"  intervals hold {_held(plan)}"])


def _held(plan: Record) -> str:
    """What a plan's intervals are made of."""
    parts = ["resampled runs"]
    if len(plan["sizes"]) > 1:
        parts.append("the choice of planner")
    if plan["undertuned"] is not None:
        parts.append("the largest sizes with and without their excess")
    spread = plan["spread"]
    errors = [
        f"{100 * spread[k]:.2g} % of {n}"
        for k, n in (("params", "N*"), ("loss", "the loss"))
        if spread[k]
    ]
    if errors:
        parts.append(f"the form's own error of {' and '.join(errors)} per decade beyond the runs")
    return ", ".join(parts)


def _objective(delta: float | None) -> str:
    """JSON has no infinity: null is a delta beyond every residual."""
    return "least squares of log L" if delta is None else f"Huber loss of log L, delta {delta:g}"


def _forms(record: Record) -> str:
    rows = []
    for name, form in record["forms"].items():
        for i, (key, value) in enumerate(form["theta"].items()):
            rows.append(
                [
                    name if i == 0 else "",
                    key,
                    number(value),
                    _interval(form["intervals"][key]),
                    number(form["objective"]) if i == 0 else "",
                    f"{form['reached']:.0%}" if i == 0 else "",
                ]
            )
    header = ["form", "parameter", "value", "interval", "objective", "starts there"]
    lines = ["parameters", table(header, rows)]
    lines += [f"  {name}: {form['source']}" for name, form in record["forms"].items()]
    lines += [f"  {name} not fitted: {why}" for name, why in record["skipped"].items()]
    return "\n".join(lines)


def _optimum(record: Record) -> str:
    target = record["options"]["target"]
    rows = []
    for name, form in record["forms"].items():
        best = form["optimum"]
        if "skipped" in best:
            continue
        marked = f"{name} *" if name == record["plan"]["form"] else name
        cells = [
            f"{_short(best[k][0])} {_interval(best[k][1])}"
            for k in ("params", "tokens", "tokens_per_parameter", "loss")
        ]
        rows.append([marked, *cells])
    header = ["form", "N*", "D*", "D*/N*", "loss"]
    title = f"optimum at {_short(target)} FLOPs (* plans)"
    return "\n".join([title, table(header, rows)])


def _approaches(record: Record) -> str:
    numbers = {"envelope": "1", "isoflop parabola": "2", "isoflop akima": "2"}
    rows, told = [], []
    for name, side in record["approaches"].items():
        label = f"{numbers.get(name, '3')} {name}"
        if "skipped" in side:
            told.append(f"  {label}: skipped: {side['skipped']}")
            continue
        rows.append(
            [
                label,
                f"{side['exponent']:.4f}",
                _interval(side["interval"]),
                f"{_short(side['params'])} {_interval(side['params_interval'])}",
            ]
        )
    header = ["approach", "exponent of N*(C)", "interval", "N* at the target"]
    title = "exponent of the optimum, three approaches"
    return "\n".join([title, table(header, rows), *told])


def _backtest(record: Record) -> str:
    found = record["backtest"]
    loss, sizes = found["forms"], found["sizes"]
    cuts = list(dict.fromkeys(c for test in loss.values() for c in test["cutoffs"]))
    planners = {record["law"]: "loss", record["plan"]["form"]: "N*"}
    if record["law"] == record["plan"]["form"]:
        planners = {record["law"]: "plans"}
    rows = []
    for name in sorted({**loss, **sizes}, key=lambda n: loss[n]["mae"] if n in loss else 1e9):
        test, size = loss.get(name), sizes.get(name)
        cells = ["-"] * (3 + len(cuts))
        if test is not None:
            cells = [str(test["tested"]), f"{test['mean']:+.3f}", f"{test['mae']:.3f}"]
            cells += [f"{test['cutoffs'][c]:.3f}" if c in test["cutoffs"] else "-" for c in cuts]
        median = "-" if size is None or size["median"] is None else f"{100 * size['median']:.1f}"
        label = f"{name} ({planners[name]})" if name in planners else name
        rows.append([label, *cells, median])
    skipped = [f"  {name}: no back-test: {why}" for name, why in found["skipped"].items()]
    if not rows:
        return "\n".join(["back-test", *skipped])
    title = (
        f"back-test on the largest budgets, held out from each of {len(cuts)} cut-offs on: loss, "
    )
    title += f"{found['unit']}; N* against measured minima"
    header = ["form", "tested", "mean", "mean abs", *(f"{c} on" for c in cuts), "N* median"]
    return "\n".join([title, table(header, rows), *skipped])


def _outliers(record: Record) -> str:
    rows = [
        [
            str(row["dropped"]),
            str(row["points"]),
            *(_short(v) for k, v in row["theta"].items() if k not in ("A", "B")),
            _short(row["exponent"]),
            _short(row["tokens_per_parameter"]),
            "" if row["failed"] is None else "not converged",
        ]
        for row in record["outliers"]
    ]
    if not rows:
        return ""
    first = record["outliers"][0]
    names = [k for k in first["theta"] if k not in ("A", "B")]
    header = ["highest dropped", "points", *names, "exponent", "D*/N* at the target", ""]
    title = f"outliers ({first['law']}): what leaving out the highest losses does"
    return "\n".join([title, table(header, rows)])


def _next(record: Record) -> str:
    if not record["next"]:
        return ""
    rows = [
        [
            str(i + 1),
            _short(row["params"]),
            _short(row["tokens"]),
            _short(row["cost"]),
            f"{row['width_before']:.4f}",
            f"{row['width_after']:.4f}",
            _short(row["gain_per_flop"]),
        ]
        for i, row in enumerate(record["next"])
    ]
    header = ["rank", "N", "D", "FLOPs", "width now", "width then", "narrowing per FLOP"]
    title = f"next run: 95 % width of log N* at {_short(record['options']['target'])} FLOPs"
    return "\n".join([title, table(header, rows)])


def _cautions(record: Record) -> str:
    if not record["cautions"]:
        return "cautions: none"
    return "\n".join(["cautions", *(f"  {c['kind']}: {c['text']}" for c in record["cautions"])])
