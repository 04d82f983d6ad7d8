"""The extended analyses that a study's options request, as a record and as text.

pipeline.check(t, options)                       # before the study is run
record["extended"] = pipeline.run(t, options, record)
print(pipeline.text(record["extended"]))
"""

import json
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from jaxlm.core import io
from jaxlm.scaling import table
from jaxlm.scaling.extended import (
    accuracy,
    architectures,
    countings,
    free_columns,
    groups,
    losses,
    observations,
    recipes,
    schedules,
    surfaces,
)
from jaxlm.scaling.extended.context import Setting
from jaxlm.scaling.extended.options import Options
from jaxlm.scaling.laws import loss_laws
from jaxlm.scaling.planning import backtest
from jaxlm.scaling.study.analysis import Options as StudyOptions
from jaxlm.scaling.study_record import Record, plain


def check(t: table.Table, options: Options) -> None:
    """Raises: ValueError naming the option, column or row of the table that cannot be used."""
    if options.accuracy is not None and options.error is not None:
        raise ValueError("--accuracy and --error: one of the two names the column")
    if options.accuracy is None and options.error is None:
        _unused(options, ("chance", "anchor", "accuracy_law"), "--accuracy")
        if options.hyperparameters is None:
            _unused(options, ("at",), "--accuracy or --hyperparameters")
    else:
        _law(options.accuracy_law, "chinchilla", "--accuracy-law")
        accuracy.errors(t, _accuracy(t, options, "chinchilla", ((1.0, 1.0),)))
    if options.multiplier is None:
        _unused(options, ("baseline",), "--multiplier")
    else:
        recipes.recipes(t, options.multiplier, options.baseline)
    if options.losses is not None:
        losses.columns(t, options.losses)
    if options.pool is not None:
        groups.members(t, options.pool)
    if options.countings:
        countings.columns(t, options.countings)
    if options.hyperparameters is not None:
        surfaces.columns(t, *options.hyperparameters)
    for n, d in options.at:
        if not (n > 0 and d > 0):
            raise ValueError(f"--at {n:g} {d:g}: N and D above 0 are needed")


def studied(t: table.Table, options: Options) -> table.Table:
    """The rows that the study fits: of a sweep of hyper-parameters the lowest loss at each (N, D),
    else all."""
    if options.hyperparameters is None:
        return t
    order = np.argsort(t.loss, kind="stable")
    _, first = np.unique(np.stack([t.params, t.tokens])[:, order], axis=1, return_index=True)
    kept = table.take(t, np.sort(order[first]))
    note = (
        f"the study fits the lowest loss at each of {len(kept.loss)} (N, D), of {len(t.loss)} rows "
        "(--hyperparameters)"
    )
    return kept._replace(notes=(*kept.notes, note))


def run(t: table.Table, options: Options, record: Record) -> dict[str, Any]:
    """{analysis: its record} of the analyses requested, from the study's table and record.

    Raises: ValueError as `check`, and where the rows are too few for an analysis.
    """
    check(t, options)
    used = table.take(studied(t, options), record.points.used)
    setting = _setting(used, record)
    out: dict[str, Any] = {}
    if options.accuracy is not None or options.error is not None:
        law = _law(options.accuracy_law, record.law, "--accuracy-law")
        request = _accuracy(used, options, law, _plan(record))
        out["accuracy"] = accuracy.run(used, request, setting)
    if options.multiplier is not None:
        out["multiplier"] = recipes.run(used, options.multiplier, options.baseline, setting)
    if options.losses is not None:
        law = _law(None, record.law, "--law")
        out["losses"] = losses.run(used, options.losses, law, setting)
    if options.pool is not None:
        out["pool"] = groups.run(used, options.pool, setting)
    if options.countings:
        out["countings"] = countings.run(used, options.countings, setting)
    if options.hyperparameters is not None:
        at = options.at or _plan(record)
        out["hyperparameters"] = surfaces.run(t, *options.hyperparameters, setting, at)
    return plain(out)


def alone(
    path: pathlib.Path, options: Options, columns: Mapping[str, str], study: StudyOptions
) -> dict[str, Any] | None:
    """{analysis: its record} of an analysis that reads a file without N, D and a loss, in place of
    a study; None where none is requested.

    Raises: ValueError naming the option, the file, the column or the row.
    """
    if options.form is None:
        _unused(options, ("form_test",), "--form")
    if options.observe is None:
        _unused(options, ("benchmarks", "families"), "--observe")
    if (options.form, options.observe, options.schedule).count(None) < 2:
        raise ValueError("--form, --observe, --schedule: each replaces the study; one of them")
    again = (study.replicates, study.level, study.seed)
    if options.form is not None:
        test = None if options.form_test is None else free_columns.read(options.form_test)
        result = architectures.run(options.form, free_columns.read(path), test, *again, columns)
        return plain({"form": result | {"path": str(path)}})
    if options.observe is not None:
        request = observations.Request(
            options.observe,
            options.benchmarks,
            options.families,
            columns.get("flops", observations.Request.flops),
            study.holdout,
            study.target,
        )
        result = observations.run(free_columns.read(path), request, *again)
        return plain({"observations": result | {"path": str(path)}})
    if options.schedule is not None:
        if not 0 < options.momentum < 1:
            raise ValueError(f"--momentum {options.momentum}: a share between 0 and 1 is needed")
        curves = schedules.read(free_columns.read(path), options.schedule)
        result = schedules.run(curves, options.momentum, *again)
        return plain({"schedule": result | {"path": str(path)}})
    _unused(options, ("momentum",), "--schedule")
    return None


def save(folder: pathlib.Path, record: dict[str, Any]) -> pathlib.Path:
    """Write extended.json, of an analysis without a study; its path. Raises: io.WriteError."""
    io.make_folder(folder)
    path = folder / "extended.json"
    io.write(path, json.dumps(record, indent=1, allow_nan=False) + "\n")
    return path


def text(record: dict[str, Any]) -> str:
    """The report of all analyses in a record of `run`."""
    parts = [TEXTS[name](value) for name, value in record.items()]
    return "\n\n".join(parts)


TEXTS: dict[str, Any] = {
    "accuracy": accuracy.text,
    "multiplier": recipes.text,
    "losses": losses.text,
    "pool": groups.text,
    "countings": countings.text,
    "hyperparameters": surfaces.text,
    "form": architectures.text,
    "observations": observations.text,
    "schedule": schedules.text,
}


def _setting(t: table.Table, record: Record) -> Setting:
    options = record.options
    assert options.target is not None  # analysis.run puts it in
    return Setting(
        target=options.target,
        per=record.per,
        holdout=backtest.threshold(t) if options.holdout is None else options.holdout,
        delta=options.delta,
        replicates=options.replicates,
        level=options.level,
        seed=options.seed,
        clusters=options.bootstrap == "cluster",
    )


def _unused(options: Options, names: tuple[str, ...], needs: str) -> None:
    """Raises: ValueError for an option that is set and that nothing reads."""
    for name in names:
        if getattr(options, name) != getattr(Options(), name):
            raise ValueError(f"--{name.replace('_', '-')}: it is read with {needs} alone")


def _law(name: str | None, planner: str, flag: str) -> str:
    """The law of loss in N and D that an analysis uses: the one named, or the one that plans."""
    if name is not None and name not in loss_laws.LAWS:
        raise ValueError(f"{flag} {name!r} is none of {', '.join(loss_laws.LAWS)}")
    law = name or planner
    known = law in loss_laws.LAWS and loss_laws.LAWS[law].inputs == ("params", "tokens")
    if name is not None and not known:
        raise ValueError(f"{flag} {name!r} is no law of parameters and tokens")
    return law if known else "chinchilla"


def _plan(record: Record) -> tuple[tuple[float, float], ...]:
    """(N*, D*) at the target, as the study plans."""
    plan = record.planned
    return ((plan.params.value, plan.tokens.value),)


def rows(t: table.Table, flag: str, condition: str) -> np.ndarray:
    """[n] bool: rows where COLUMN=TEXT holds. Raises: ValueError where none does."""
    column, sign, value = condition.partition("=")
    if not (column and sign and value):
        raise ValueError(f"{flag} {condition!r}: COLUMN=TEXT is needed, such as model=open_lm_1b")
    if column not in t.columns and column != "run":
        raise ValueError(f"{flag}: no column {column!r}; the file has {', '.join(t.columns)}")
    values = t.run if column == "run" else t.columns[column]
    if values.dtype.kind == "f":
        try:
            there = values == float(value)
        except ValueError:
            raise ValueError(f"{flag} {condition!r}: column {column!r} has numbers") from None
    else:
        there = values == value
    if not there.any():
        raise ValueError(f"{flag}: no row has {column} = {value!r}")
    return there


def _accuracy(
    t: table.Table, options: Options, law: str, plan: tuple[tuple[float, float], ...]
) -> accuracy.Request:
    at = options.at or plan
    none = np.zeros(len(t.loss), bool)
    column = options.error if options.accuracy is None else options.accuracy
    assert column is not None
    return accuracy.Request(
        column=column,
        errors=options.accuracy is None,
        chance=options.chance,
        anchor=none if options.anchor is None else rows(t, "--anchor", options.anchor),
        at=tuple((float(n), float(d)) for n, d in at),
        law=law,
        log=options.residuals == "log",
    )
