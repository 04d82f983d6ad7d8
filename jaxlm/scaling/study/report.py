"""A study's report as text, from its record.

print(report.text(study_record.load("runs/fit").record))
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

from jaxlm.scaling import study_parts
from jaxlm.scaling.study import report_formats
from jaxlm.scaling.study_record import Record


class Section(NamedTuple):
    """A part of the report."""

    title: str
    header: Sequence[str] = ()
    """Header of the table; no table where empty."""
    rows: Sequence[Sequence[str]] = ()
    before: Sequence[str] = ()
    """Lines between the title and the table."""
    after: Sequence[str] = ()
    """Lines after the table."""


def text(record: Record, format: report_formats.Format = "text") -> str:
    """The whole report: the plan first, then forms, optima, approaches, back-tests, outliers, the
    next run and cautions; as text, Markdown or LaTeX."""
    sections = (
        _head(record),
        _plan(record),
        _forms(record),
        _optimum(record),
        _approaches(record),
        _backtest(record),
        _outliers(record),
        _next(record),
        _cautions(record),
    )
    return report_formats.join([_rendered(s, format) for s in sections if s is not None], format)


def _rendered(s: Section, format: report_formats.Format) -> str:
    parts = [report_formats.heading(s.title, format), report_formats.bullets(s.before, format)]
    if s.header and s.rows:
        parts.append(report_formats.table(s.header, s.rows, format))
    parts.append(report_formats.bullets(s.after, format))
    return ("\n" if format == "text" else "\n\n").join(part for part in parts if part)


def number(value: float) -> str:
    """A number in at most six digits; "-" for none."""
    return f"{value:.6g}" if math.isfinite(value) else "-"


def _short(value: float) -> str:
    return f"{value:.4g}" if math.isfinite(value) else "-"


def _interval(ends: Sequence[float] | None) -> str:
    return "-" if ends is None else f"[{_short(ends[0])}, {_short(ends[1])}]"


def _head(record: Record) -> Section:
    source, counting, options = record.source, record.counting, record.options
    low, high = record.flops
    used = source.points - len(source.dropped)
    title = f"study of {source.name}: {used} points, {_short(low)} to {_short(high)} FLOPs"
    lines = [
        f"N counts {counting.params} parameters, C is {counting.flops} (C = {record.per:.4g} N D)",
        f"{_objective(options.delta)}; {options.replicates} {options.bootstrap} bootstraps, seed "
        f"{options.seed}; intervals hold {options.level:.0%}",
    ]
    if source.dropped:
        lines.append(
            f"dropped, of highest loss: {', '.join(_short(d.loss) for d in source.dropped)}"
        )
    lines += source.notes
    lines += [f"left out: {reason}" for reason in source.left_out]
    return Section(title, before=lines)


def _plan(record: Record) -> Section:
    """The answer: how it was chosen, its numbers, what speaks against it most."""
    plan = record.planned
    estimates = {
        "parameters N*": plan.params,
        "tokens D*": plan.tokens,
        "tokens per parameter": plan.tokens_per_parameter,
        "loss": plan.loss,
        "exponent of N*(C)": plan.exponent,
    }
    rows = [[label, _short(e.value), _interval(e.interval)] for label, e in estimates.items()]
    title = f"plan for {_target(record)} FLOPs"
    header = ["", "value", f"{record.options.level:.0%} interval"]
    lines = [f"disagreement: {plan.disagreement}"] if plan.disagreement else []
    first = [c for c in record.cautions if c.kind not in ("forms disagree", "not recorded")]
    lines += [f"caution: {c.kind}: {c.text}" for c in first[:1]]
    if plan.params.interval is None:
        lines.append(
            f"no interval of N*: {plan.form} fixes its exponent or has no second draw, and no "
            "form that estimates it was fitted; more runs, of three sizes and lengths, give one"
        )
    else:
        lines.append(f"intervals hold {_held(plan)}")
    return Section(title, header, rows, [plan.chosen_by], lines)


def _held(plan: study_parts.StudyPlan) -> str:
    """Components of a plan's intervals, in words."""
    parts = ["resampled runs"]
    if len(plan.sizes) > 1:
        parts.append("the choice of planner")
    if plan.undertuned is not None:
        parts.append("the largest sizes with and without their excess")
    if plan.discrepancy is not None:
        parts.append(f"a smooth error of {plan.surface}'s form, as large as its residuals allow")
    spreads = ((plan.spread.params, "N*"), (plan.spread.loss, "the loss"))
    errors = [f"{100 * spread:.2g} % of {name}" for spread, name in spreads if spread]
    if errors:
        parts.append(f"the form's own error of {' and '.join(errors)} per decade beyond the runs")
    return ", ".join(parts)


def _objective(delta: float) -> str:
    if math.isinf(delta):
        return "least squares of log L"
    return f"Huber loss of log L, delta {delta:g}"


def _target(record: Record) -> str:
    assert record.options.target is not None  # analysis.run puts it in
    return _short(record.options.target)


def _forms(record: Record) -> Section:
    rows = []
    for name, form in record.forms.items():
        for i, (key, value) in enumerate(form.theta.items()):
            rows.append(
                [
                    name if i == 0 else "",
                    key,
                    number(value),
                    _interval(form.intervals[key]),
                    number(form.objective) if i == 0 else "",
                    f"{form.reached:.0%}" if i == 0 else "",
                ]
            )
    header = ["form", "parameter", "value", "interval", "objective", "starts there"]
    lines = [f"{name}: {form.source}" for name, form in record.forms.items()]
    lines += [f"{name} not fitted: {why}" for name, why in record.skipped.items()]
    return Section("parameters", header, rows, after=lines)


def _optimum(record: Record) -> Section:
    rows = []
    for name, form in record.forms.items():
        best = form.optimum
        if isinstance(best, study_parts.Skipped):
            continue
        marked = f"{name} *" if name == record.planned.form else name
        columns = (best.params, best.tokens, best.tokens_per_parameter, best.loss)
        cells = [f"{_short(value)} {_interval(ends)}" for value, ends in columns]
        rows.append([marked, *cells])
    header = ["form", "N*", "D*", "D*/N*", "loss"]
    title = f"optimum at {_target(record)} FLOPs (* plans)"
    return Section(title, header, rows)


def _approaches(record: Record) -> Section:
    numbers = {"envelope": "1", "isoflop parabola": "2", "isoflop akima": "2"}
    rows, notes = [], []
    for name, side in record.approaches.items():
        label = f"{numbers.get(name, '3')} {name}"
        if isinstance(side, study_parts.Skipped):
            notes.append(f"{label}: skipped: {side.skipped}")
            continue
        if not math.isfinite(side.exponent):
            notes.append(f"{label}: skipped: it has no optimum at the target")
            continue
        rows.append(
            [
                label,
                f"{side.exponent:.4f}",
                _interval(side.interval),
                f"{_short(side.params)} {_interval(side.params_interval)}",
            ]
        )
    header = ["approach", "exponent of N*(C)", "interval", "N* at the target"]
    title = "exponent of the optimum, three approaches"
    return Section(title, header, rows, after=notes)


def _backtest(record: Record) -> Section:
    backtest, law, form = record.backtest, record.law, record.planned.form
    loss, sizes = backtest.forms, backtest.sizes
    cuts = list(dict.fromkeys(c for test in loss.values() for c in test.cutoffs))
    planners = {law: "plans"} if law == form else {law: "loss", form: "N*"}
    rows = []
    for name in sorted({**loss, **sizes}, key=lambda n: loss[n].mae if n in loss else 1e9):
        test, size = loss.get(name), sizes.get(name)
        cells = ["-"] * (3 + len(cuts))
        if test is not None:
            cells = [str(test.tested), f"{test.mean:+.3f}", f"{test.mae:.3f}"]
            cells += [f"{test.cutoffs[c]:.3f}" if c in test.cutoffs else "-" for c in cuts]
        measured = size is not None and math.isfinite(size.median)
        median = f"{100 * size.median:.1f}" if measured else "-"
        label = f"{name} ({planners[name]})" if name in planners else name
        rows.append([label, *cells, median])
    skipped = [f"{name}: no back-test: {why}" for name, why in backtest.skipped.items()]
    if not rows:
        return Section("back-test", after=skipped)
    title = (
        f"back-test on the largest budgets, held out from each of {len(cuts)} cut-offs on: loss, "
    )
    title += f"{backtest.unit}; N* against measured minima"
    header = ["form", "tested", "mean", "mean abs", *(f"{c} on" for c in cuts), "N* median"]
    return Section(title, header, rows, after=skipped)


def _outliers(record: Record) -> Section | None:
    rows = [
        [
            str(row.dropped),
            str(row.points),
            *(_short(v) for k, v in row.theta.items() if k not in ("A", "B")),
            _short(row.exponent),
            _short(row.tokens_per_parameter),
            "" if row.failed is None else "not converged",
        ]
        for row in record.outliers
    ]
    if not rows:
        return None
    first = record.outliers[0]
    names = [k for k in first.theta if k not in ("A", "B")]
    header = ["highest dropped", "points", *names, "exponent", "D*/N* at the target", ""]
    title = f"outliers ({first.law}): what leaving out the highest losses does"
    return Section(title, header, rows)


def _next(record: Record) -> Section | None:
    if not record.next:
        return None
    rows = [
        [
            str(i + 1),
            _short(row.params),
            _short(row.tokens),
            _short(row.cost),
            f"{row.width_before:.4f}",
            f"{row.width_after:.4f}",
            _short(row.gain_per_flop),
        ]
        for i, row in enumerate(record.next)
    ]
    header = ["rank", "N", "D", "FLOPs", "width now", "width then", "narrowing per FLOP"]
    title = f"next run: 95 % width of log N* at {_target(record)} FLOPs"
    return Section(title, header, rows)


def _cautions(record: Record) -> Section:
    if not record.cautions:
        return Section("cautions: none")
    return Section("cautions", after=[f"{c.kind}: {c.text}" for c in record.cautions])
