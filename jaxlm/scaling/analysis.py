"""A whole study of a table of runs: every form, three approaches, back-tests, cautions, record.

    t = table.read("runs.csv")
    record = analysis.run(t, analysis.Options(target=5.76e23))
    study.save(pathlib.Path("runs/fit"), record)

The record is all there is: `summary.text` and `figures.draw` read nothing else.
"""

import dataclasses
from collections.abc import Mapping
from typing import Literal, NamedTuple

import numpy as np

import jaxlm
from jaxlm.scaling import (
    approaches,
    backtest,
    bootstrap,
    choose,
    fixed,
    identify,
    isoflop,
    laws,
    optimum,
    profile,
    study,
    table,
    warn,
)
from jaxlm.scaling import fit as fits
from jaxlm.scaling.study import Record

# Points of a profile, over the bootstrap interval stretched by half on each side.
GRID = 21
# What of a table the record keeps.
POINTS = ("params", "tokens", "flops", "loss", "unique", "run", "row")
# The target when none is named: this many times the largest budget.
AHEAD = 10.0

Array = np.ndarray


@dataclasses.dataclass(frozen=True)
class Options:
    """How a study is made."""

    laws: tuple[str, ...] = ()
    """Forms to fit; none named: every form that the runs identify."""
    law: str | None = None
    """The form that plans; not named: the back-test's winner among those with an optimum."""
    fix: tuple[str, ...] = ()
    """NAME=VALUE, a parameter held in every form that has it (alpha=0.35), or LAW.NAME=VALUE."""
    drop_highest: int = 0
    """Points of highest loss left out of every fit."""
    delta: float = 1e-3
    """Huber's delta, of log loss. Hoffmann et al. 2022 take 1e-3."""
    replicates: int = 1000
    """Bootstrap refits of each form."""
    bootstrap: Literal["case", "cluster"] = "case"
    """Resample points, or whole runs where runs have several points."""
    seed: int = 0
    """Of all resampling."""
    holdout: float | None = None
    """Runs of this many FLOPs or more are the back-test's; not given: the largest budget, or the
    tenth of the runs with the most compute."""
    target: float | None = None
    """FLOPs that the report extrapolates to; not given: ten times the largest budget."""
    noise: float | None = None
    """Standard deviation of the loss between seeds, for the bootstrap of approach 2; not given: it
    is measured from the points."""
    level: float = 0.95
    """Of all intervals."""


class Fitted(NamedTuple):
    """One form on its points."""

    law: laws.Law
    t: table.Table
    fit: fits.Fit
    draws: Array
    """[R, k] refits that did not fail."""
    failed: int
    """Refits that did."""


def run(
    t: table.Table,
    options: Options = Options(),
    about: study.About = study.About(),
    name: str = "runs",
    candidates: tuple[Array, Array, Array | None] | None = None,
) -> Record:
    """The record of a study of a table of runs, as study.json keeps it.

    about: what the runs cannot tell. name: of the study, for titles. candidates: (params [m],
    tokens [m], cost [m] or None) of runs to choose the next one from, for the target.

    Raises: ValueError naming the option or the column that cannot be used.
    """
    used = _used(t, options)
    kept = table.take(t, used)
    per = float(np.median(kept.flops / (kept.params * kept.tokens)))
    target = options.target or AHEAD * float(kept.flops.max())
    first = approaches.front(kept, options.replicates, options.seed)
    fitted, skipped = _fits(kept, first.points(), options)
    tests, refused = _tests(fitted, options, backtest.threshold(kept))
    law = _planner(fitted, tests, options)
    planned = fitted[law]
    record: Record = {
        "format": study.FORMAT,
        "jaxlm": jaxlm.__version__,
        "source": _source(t, used, name),
        "counting": t.counting._asdict(),
        "per": per,
        "flops": [float(kept.flops.min()), float(kept.flops.max())],
        "options": dataclasses.asdict(options) | {"target": target},
        "law": law,
        "theta": planned.fit.theta,
        "forms": {f: _form(one, options, target, per) for f, one in fitted.items()},
        "skipped": skipped,
        "backtest": _backtest(tests, refused),
        "approaches": approaches.compare(
            kept,
            first,
            {f: _pair(fitted[f]) for f in dict.fromkeys(("chinchilla", law)) if f in fitted},
            target,
            per,
            options.level,
            options.replicates,
            options.seed,
            options.noise,
        ),
        "outliers": _outliers(t, planned, options, target, per),
        "profiles": _profiles(planned, options),
        "points": {f: t._asdict()[f] for f in POINTS} | {"used": used},
    }
    record["next"] = _next(planned, candidates, target, per)
    record["checklist"] = study.checklist(about, kept, record)
    record["cautions"] = [c._asdict() for c in warn.study(record)]
    return study.plain(record)


def _used(t: table.Table, options: Options) -> Array:
    """[n] bool, the points that are fitted. Raises: ValueError for options that cannot be."""
    for name in (*options.laws, *([options.law] if options.law else [])):
        if name not in laws.LAWS:
            raise ValueError(f"laws: {name!r} is none of {', '.join(laws.LAWS)}")
    held = fixed.parse(options.fix)
    if held and options.laws and not set(held) & set(options.laws):
        raise ValueError(f"--fix {options.fix}: no law of {options.laws} has what is held")
    if options.law and options.laws and options.law not in options.laws:
        raise ValueError(f"law: {options.law!r} is to plan, and laws {options.laws} leave it out")
    if options.replicates < 20:
        raise ValueError(f"replicates: {options.replicates}; an interval needs 20 or more")
    if not 0 < options.level < 1:
        raise ValueError(f"level: {options.level}; a share between 0 and 1 is needed")
    for name, value in (("target", options.target), ("delta", options.delta)):
        if value is not None and not value > 0:
            raise ValueError(f"{name}: {value}; a number above 0 is needed")
    n = len(t.loss)
    if not 0 <= options.drop_highest < n:
        raise ValueError(f"drop_highest: {options.drop_highest} of {n} points")
    used = np.ones(n, bool)
    used[np.argsort(-t.loss, kind="stable")[: options.drop_highest]] = False
    flops = t.flops[used]
    if flops.max() <= flops.min() * isoflop.TOLERANCE:
        raise ValueError(
            f"column flops: one budget, {flops.min():.4g} to {flops.max():.4g} in rows "
            f"{t.row[used].min()} to {t.row[used].max()}; a law of scale needs two or more"
        )
    return used


def _source(t: table.Table, used: Array, name: str) -> Record:
    return {
        "name": name,
        "points": len(t.loss),
        "dropped": [
            {"row": int(t.row[i]), "run": str(t.run[i]), "loss": float(t.loss[i])}
            for i in np.flatnonzero(~used)
        ],
        "left_out": list(t.left_out),
    }


# --- Forms -----------------------------------------------------------------------------------


def _fits(
    t: table.Table, front: table.Table | None, options: Options
) -> tuple[dict[str, Fitted], dict[str, str]]:
    """(the forms fitted, {form: why it was not}).

    Raises: ValueError with all reasons if there is no form with an optimum.
    """
    fitted: dict[str, Fitted] = {}
    skipped: dict[str, str] = {}
    for name, law in laws.LAWS.items():
        if options.laws and name not in options.laws:
            continue
        points = front if law.inputs == ("flops",) else t
        if points is None:
            skipped[name] = "there is no frontier (approach 1) to fit it on"
            continue
        why = identify.reason(law, points)
        if not why:
            held = fixed.parse(options.fix).get(name, {})
            found = fits.fit(law, points, delta=options.delta, fixed=held)
            why = found.failed or ""
        if why:
            skipped[name] = why
            continue
        again = bootstrap.clusters if options.bootstrap == "cluster" else bootstrap.cases
        many = again(law, points, found, options.replicates, options.seed)
        draws = many.theta[~many.failed]
        fitted[name] = Fitted(law, points, found, draws, int(np.sum(many.failed)))
    if not any(_plans(f.law) for f in fitted.values()):
        told = "; ".join(f"{k}: {v}" for k, v in skipped.items())
        raise ValueError(f"these {len(t.loss)} points hold no law of parameters and tokens: {told}")
    return fitted, skipped


def _plans(law: laws.Law) -> bool:
    """Whether a law has an optimum between parameters and tokens."""
    return {"params", "tokens"} <= set(law.inputs)


def _pair(one: Fitted) -> tuple[Array, Array]:
    return fits.values(one.fit), one.draws


def _form(one: Fitted, options: Options, target: float, per: float) -> Record:
    """What the record keeps of a form."""
    law, found = one.law, one.fit
    ends = {
        # what is held has no interval
        name: approaches.interval(one.draws[:, i], options.level)
        if name not in found.fixed
        else None
        for i, name in enumerate(law.names)
    }
    return {
        "source": law.source,
        "inputs": law.inputs,
        "theta": found.theta,
        "fixed": list(found.fixed),
        "intervals": ends,
        "objective": found.objective,
        "points": found.n,
        "reached": found.reached,
        "gradient": found.gradient,
        "basins": [{"objective": value, "theta": theta} for value, theta in found.basins],
        "condition": warn.number(_jacobian(one)),
        "residual": found.residual,
        "residual_sd": float(np.std(found.residual)),
        "optimum": _optimum(one, options.level, target, per),
        "failed": one.failed,
        "draws": one.draws,
    }


def _jacobian(one: Fitted) -> Array:
    x = fits.inputs(one.law, one.t)
    return choose.gradients(one.law, fits.values(one.fit), x)


def _optimum(one: Fitted, level: float, target: float, per: float) -> Record:
    """{exponent, params, tokens, loss, tokens_per_parameter: [value, interval]} at the target."""
    if not _plans(one.law):
        return {"skipped": f"a law of {', '.join(one.law.inputs)} has no optimum"}
    best = optimum.at(one.law.name, fits.values(one.fit), target, per=per)
    many = optimum.at(one.law.name, one.draws, target, per=per)
    rows = {k: (best._asdict()[k], many._asdict()[k]) for k in best._fields}
    rows["tokens_per_parameter"] = (best.tokens / best.params, many.tokens / many.params)
    return {k: [float(v), approaches.interval(d, level)] for k, (v, d) in rows.items()}


# --- Back-test, profiles, the next run ---------------------------------------------------------


def _tests(
    fitted: Mapping[str, Fitted], options: Options, usual: float
) -> tuple[dict[str, backtest.Test], dict[str, str]]:
    """({form: its back-test}, {form: why it has none})."""
    least = usual if options.holdout is None else options.holdout
    tests, refused = {}, {}
    for name, one in fitted.items():
        try:
            tests[name] = backtest.run(
                one.law, one.t, least, options.delta, fixed.parse(options.fix).get(name, {})
            )
        except ValueError as error:
            refused[name] = str(error)
    if not tests and options.holdout is not None:
        raise ValueError(next(iter(refused.values())))
    return tests, refused


def _backtest(tests: Mapping[str, backtest.Test], refused: Mapping[str, str]) -> Record:
    return {
        "threshold": next((t.threshold for t in tests.values()), None),
        "wins": backtest.winner(tests),
        "unit": "100 log(predicted / measured)",
        "forms": {
            name: {
                "fitted": t.fitted,
                "tested": len(t.error),
                "mean": t.mean,
                "mae": t.mae,
                "largest": t.largest,
                "theta": t.theta,
                "error": t.error,
                "row": t.row,
            }
            for name, t in tests.items()
        },
        "skipped": dict(refused),
    }


def _planner(
    fitted: Mapping[str, Fitted], tests: Mapping[str, backtest.Test], options: Options
) -> str:
    """The form that plans."""
    able = [name for name, one in fitted.items() if _plans(one.law)]
    if options.law is not None:
        if options.law not in able:
            raise ValueError(f"law: {options.law!r} was not fitted; it plans with one of {able}")
        return options.law
    wins = backtest.winner({k: v for k, v in tests.items() if k in able})
    if wins is not None:
        return wins
    # too few runs for any back-test: the fewest parameters, and of those the closest fit
    return min(able, key=lambda f: (len(fitted[f].law.names), fitted[f].fit.objective))


def _outliers(
    t: table.Table, planned: Fitted, options: Options, target: float, per: float
) -> list[Record]:
    law = _outlier_law(planned)
    held = fixed.parse(options.fix).get(law.name, {})
    return approaches.outliers(t, law, target, options.delta, per, held)


def _outlier_law(planned: Fitted) -> laws.Law:
    """Chinchilla's form, in which outliers are usually told, unless repeated tokens matter."""
    return planned.law if "unique" in planned.law.inputs else laws.LAWS["chinchilla"]


def _profiles(one: Fitted, options: Options) -> Record:
    """{parameter: {grid, relative}}: the objective over its least value minus 1, percent."""
    out: Record = {}
    for i, name in enumerate(one.law.names):
        ends = approaches.interval(one.draws[:, i], options.level)
        if name not in one.law.held or name in one.fit.fixed or ends is None:
            continue
        low, high = ends[0] - (ends[1] - ends[0]) / 4, ends[1] + (ends[1] - ends[0]) / 4
        low = low if low > 0 or ends[0] <= 0 else ends[0] / 2
        grid = np.linspace(low, high, GRID)
        values = profile.profile(one.law, one.t, one.fit, name, grid)
        out[name] = {"grid": grid, "relative": 100 * (values / one.fit.objective - 1)}
    return out


def _next(
    one: Fitted,
    candidates: tuple[Array, Array, Array | None] | None,
    target: float,
    per: float,
) -> list[Record]:
    """The candidates, the best first."""
    if candidates is None:
        return []
    params, tokens, cost = candidates
    found = choose.choose(one.fit, one.t, params, tokens, target, cost, per, one.draws)
    return [
        {
            "params": found.params[i],
            "tokens": found.tokens[i],
            "cost": found.cost[i],
            "width_before": found.before,
            "width_after": found.after[i],
            "gain_per_flop": found.gain[i],
        }
        for i in found.order
    ]
