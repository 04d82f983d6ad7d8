"""A whole study of a table of runs: every form, three approaches, back-tests, cautions, record.

    t = tables.read("runs.csv")
    record = analysis.run(t, analysis.Options(target=5.76e23))
    study_record.save(pathlib.Path("runs/fit"), record)

The record is complete: `report.text` and `figures.draw` read nothing else.
"""

import dataclasses
from collections.abc import Mapping

import numpy as np

import jaxlm
from jaxlm.scaling import study_parts, study_record, table
from jaxlm.scaling.approaches import comparison, isoflop
from jaxlm.scaling.laws import bootstrap, fixed_parameters, loss_laws
from jaxlm.scaling.planning import experiment_design, model_selection, selected_plan
from jaxlm.scaling.reading import plausibility
from jaxlm.scaling.study import cautions, checklist, form_fits, heterogeneity
from jaxlm.scaling.study_record import Options, Record

# The target when none is named: this many times the largest budget.
AHEAD = 10.0

Array = np.ndarray


def run(
    t: table.Table,
    options: Options = Options(),
    about: study_record.About = study_record.About(),
    name: str = "runs",
    candidates: tuple[Array, Array, Array | None] | None = None,
) -> Record:
    """The record of a study of a table of runs, as study.json keeps it.

    about: what the runs do not record. name: of the study, for titles. candidates: (params [m],
    tokens [m], cost [m] or None) of runs to choose the next one from, for the target.

    Raises: ValueError naming the option or the column that cannot be used.
    """
    options = dataclasses.replace(options, bootstrap=bootstrap.method(options.bootstrap, t))
    used = _used(t, options)
    kept = table.take(t, used)
    per = float(np.median(kept.flops / (kept.params * kept.tokens)))
    target = options.target or AHEAD * float(kept.flops.max())
    first = comparison.front(kept, options.replicates, options.seed)
    second = comparison.isoflops(kept, options.replicates, options.seed, options.noise)
    how, level = _settings(options), options.level
    fitted, skipped = form_fits.every(kept, first.points(), how)
    tested = selected_plan.test(fitted, kept, second, options.holdout, how, per)
    chosen = selected_plan.choose(fitted, second, tested, options.law, how)
    law, planned = chosen.surface, fitted[chosen.surface]
    flops = float(kept.flops.min()), float(kept.flops.max())
    forms = {f: form_fits.record(x, fitted, level, target, per) for f, x in fitted.items()}
    parametric = {f: _pair(fitted[f]) for f in dict.fromkeys(("chinchilla", law)) if f in fitted}
    approaches = comparison.compare(kept, first, second, parametric, target, per, level)
    context = selected_plan.Context(forms, approaches, flops, per, target)
    source, tests = _source(t, used, name), selected_plan.errors(tested, chosen)
    record = Record(
        format=study_record.FORMAT,
        jaxlm=jaxlm.__version__,
        source=source,
        counting=t.counting,
        per=per,
        flops=flops,
        options=dataclasses.replace(options, target=target),
        law=law,
        theta=planned.fit.theta,
        forms=forms,
        skipped=skipped,
        backtest=tests,
        approaches=approaches,
        outliers=tuple(_outliers(t, planned, fitted, options, target, per)),
        profiles=form_fits.profiles(planned, level),
        points=study_parts.Points(
            t.params, t.tokens, t.flops, t.loss, t.unique, t.run, t.row, used
        ),
        plan=selected_plan.entry(context, chosen, fitted, second, tested, how),
        next=tuple(_next(planned, candidates, target, per)),
        checklist=checklist.make(about, kept, options, source, forms, tests),
        cautions=(),
    )
    rows = heterogeneity.notices(kept, planned.fit.residual)
    rows += heterogeneity.cost(kept, per, record.planned.params.value)
    return dataclasses.replace(record, cautions=tuple(cautions.study(record, rows)))


def _settings(options: Options) -> form_fits.Settings:
    return form_fits.Settings(
        options.laws,
        fixed_parameters.parse(options.fix),
        options.delta,
        options.replicates,
        options.bootstrap,
        options.seed,
        options.level,
    )


def _pair(form: form_fits.Fitted) -> tuple[Array, Array]:
    return form.theta, form.draws


def _outliers(
    t: table.Table,
    planned: form_fits.Fitted,
    fitted: Mapping[str, form_fits.Fitted],
    options: Options,
    target: float,
    per: float,
) -> list[study_parts.Outlier]:
    law = _outlier_law(planned)
    held = fixed_parameters.parse(options.fix).get(law.name, {})
    near = fitted[law.name].fit if law.name in fitted else None
    return comparison.outliers(t, law, target, options.delta, per, held, near)


def _outlier_law(planned: form_fits.Fitted) -> loss_laws.Law:
    """Chinchilla's form, in which outliers are usually reported, unless repeated tokens matter."""
    return planned.law if "unique" in planned.law.inputs else loss_laws.LAWS["chinchilla"]


def _used(t: table.Table, options: Options) -> Array:
    """[n] bool, the points that are fitted. Raises: ValueError for options that cannot be."""
    for name in (*options.laws, *([options.law] if options.law else [])):
        if name not in loss_laws.LAWS and not (name == options.law == model_selection.ISOFLOP):
            raise ValueError(f"--laws: {name!r} is none of {', '.join(loss_laws.LAWS)}")
    held = fixed_parameters.parse(options.fix)
    if held and options.laws and not set(held) & set(options.laws):
        raise ValueError(f"--fix {options.fix}: no law of {options.laws} has what is held")
    named = options.law not in (None, model_selection.ISOFLOP)
    if named and options.laws and options.law not in options.laws:
        raise ValueError(f"--law: {options.law!r} is to plan, and laws {options.laws} leave it out")
    if options.replicates < 20:
        raise ValueError(f"--replicates: {options.replicates}; an interval needs 20 or more")
    if not 0 < options.level < 1:
        raise ValueError(f"--level: {options.level}; a share between 0 and 1 is needed")
    for name, value in (("target", options.target), ("delta", options.delta)):
        if value is not None and not value > 0:
            raise ValueError(f"--{name}: {value}; a number above 0 is needed")
    n = len(t.loss)
    places = [f"row {row}" for row in t.row]
    plausibility.losses(t.loss, t.params, t.tokens, "loss", places, stated=True)
    if not 0 <= options.drop_highest < n:
        raise ValueError(f"--drop-highest: {options.drop_highest} of {n} points")
    used = np.ones(n, bool)
    used[np.argsort(-t.loss, kind="stable")[: options.drop_highest]] = False
    flops = t.flops[used]
    if flops.max() <= flops.min() * isoflop.TOLERANCE:
        raise ValueError(
            f"column flops: one budget, {flops.min():.4g} to {flops.max():.4g} in rows "
            f"{t.row[used].min()} to {t.row[used].max()}; a law of scale needs two or more"
        )
    return used


def _source(t: table.Table, used: Array, name: str) -> study_parts.Source:
    dropped = tuple(
        study_parts.Dropped(int(t.row[i]), str(t.run[i]), float(t.loss[i]))
        for i in np.flatnonzero(~used)
    )
    return study_parts.Source(
        name=name, points=len(t.loss), dropped=dropped, left_out=t.left_out, notes=t.notes
    )


def _next(
    planned: form_fits.Fitted,
    candidates: tuple[Array, Array, Array | None] | None,
    target: float,
    per: float,
) -> list[study_parts.Candidate]:
    """The candidates, the best first."""
    if candidates is None:
        return []
    params, tokens, cost = candidates
    ranked = experiment_design.choose(
        planned.fit, planned.t, params, tokens, target, cost, per, planned.draws
    )
    return [
        study_parts.Candidate(
            params=ranked.params[i],
            tokens=ranked.tokens[i],
            cost=ranked.cost[i],
            width_before=ranked.before,
            width_after=ranked.after[i],
            gain_per_flop=ranked.gain[i],
        )
        for i in ranked.order
    ]
