"""`jaxlm sweep`: train a sweep's runs, fit the law, predict a larger run, then train it."""

import dataclasses
import datetime
import json
import os
import pathlib
import shutil
from collections.abc import Sequence
from typing import Annotated, Any

import tyro

from jaxlm.cli import field_overrides, launch
from jaxlm.core import check, config, io, json_file
from jaxlm.data import pretraining
from jaxlm.data.rows import mix_plan
from jaxlm.data.tokenized import texts
from jaxlm.parallel.plan import Plan
from jaxlm.scaling import figures, study_record
from jaxlm.scaling.planning import forecast
from jaxlm.scaling.reading import tables
from jaxlm.scaling.study import analysis, report, report_formats
from jaxlm.train import inputs
from jaxlm.train.run import environment
from jaxlm.train.run import run as runs
from jaxlm.train.sweep import (
    engines,
    scheduler,
    sweep_cells,  # the command bears the name
)
from jaxlm.train.sweep.sweep_cells import Sweep, Trial

PREDICTION, OUTCOME = "prediction.json", "outcome.json"

# A committed study.json keeps this many draws of the form that plans, and none of the others.
KEPT_DRAWS = 200


@dataclasses.dataclass(frozen=True)
class Options:
    """Execution of a sweep; the fields of its base Run may follow, as for jaxlm train."""

    execution: Annotated[engines.Execution, tyro.conf.arg(name="")] = engines.Execution()
    estimate: bool = False
    """Print the plan and what it will cost; train nothing."""
    record: bool = False
    """Keep the report, points, prediction and figures in results/ next to the sweep's file."""


def sweep(args: Sequence[str]) -> int:
    """jaxlm sweep TARGET [--workers N ...] [--data.source ...]"""
    if not args or args[0].startswith("-"):
        tyro.cli(Options, args=["--help"], prog="jaxlm sweep TARGET", description=__doc__)
    options, overrides = tyro.cli(
        Options,
        args=list(args[1:]),
        prog="jaxlm sweep TARGET",
        description=__doc__,
        return_unknown_args=True,
        config=(tyro.conf.FlagCreatePairsOff,),
    )
    return _run(args[0], options, overrides)


def _run(target: str, options: Options, overrides: Sequence[str]) -> int:
    engines.spare(options.execution.engine)
    sweep = sweep_cells.load(target)
    base = field_overrides.apply(sweep.base, overrides, f"jaxlm sweep {target}")
    sweep = dataclasses.replace(sweep, base=base)
    wanted = sweep_cells.trials(sweep)
    for trial in wanted:
        # all but the mesh, which the hosts of the trials have
        runs.validate(dataclasses.replace(trial.run, plan=Plan()))
    facts = _facts(sweep, wanted) | {"target": target}
    book = scheduler.opened(sweep_cells.folder(sweep), sweep.counting, wanted, facts)
    print(_plan(sweep, wanted, options.execution.workers, book), flush=True)
    if options.estimate:
        return 0
    points = [t for t in wanted if t.role == "point"]
    with scheduler.running(book, options.execution, _say) as train:
        train(points)
        record = _study(sweep, book)
        parts = [report.text(record)]
        for held in wanted[len(points) :]:
            _predict(book, held, record)
            train([_spread(held, options.execution)])
            parts.append(_outcome(book, held))
    parts.append(_account(book))
    _keep(book, record, "\n\n".join(parts), _results(target) if options.record else None)
    return 0


def _say(text: str) -> None:
    print(f"{datetime.datetime.now():%H:%M:%S} {text}", flush=True)


def _facts(sweep: Sweep, wanted: Sequence[Trial]) -> dict[str, Any]:
    """Facts of the text, which is tokenised now if it was not before.

    Raises: ValueError for a trial that would read a source of a mixture too often.
    """
    assert isinstance(sweep.base.data, pretraining.Data)
    environment.quiet()
    train, val = inputs.open_text(sweep.base.data, True, sweep.base.model.vocab)
    assert val is not None
    for trial in wanted:
        mixture = inputs.planned(trial.run, train)
        if mixture is not None:
            check.refuse(f"{trial.run.name} cannot start:", mix_plan.problems(mixture))
    corpus = texts.corpus(train)
    return {
        **{name: corpus[name] for name in ("source", "fingerprint", "train_tokens")},
        "held_out_tokens": sum(s.tokens - s.documents for s in texts.parts(val).values()),
    }


# --- Before ----------------------------------------------------------------------------------


def _plan(sweep: Sweep, wanted: list[Trial], workers: int, book: scheduler.Book) -> str:
    """The table of trials, and what they are going to cost."""
    rows = []
    for t in wanted:
        data, optim = t.run.data, t.run.optim
        batch = f"{data.batch} x {data.seq}"
        shared = "" if t.own == t.run.steps else f"last {t.own}"
        state = book.entries[t.digest].state
        rows.append(
            (
                f"{t.params:,.0f}",
                f"{t.tokens:,}",
                f"{t.tokens / t.params:.1f}",
                f"{t.flops:.3g}",
                f"{optim.lr:.3g}",
                batch,
                f"{t.run.steps}",
                shared,
                f"{t.seed}",
                "held out" if t.role == "held out" else "",
                state,
            )
        )
    header = ("N", "D", "D/N", "C", "lr", "batch", "steps", "own", "seed", "role", "state")
    done, val = scheduler.done(book), book.facts["held_out_tokens"]
    cost = sweep_cells.estimate(sweep, wanted, workers, done, val)
    lines = [
        f"{sweep.name}: {len(wanted)} runs in {book.folder}",
        report_formats.table(header, rows),
        f"{cost.alone:.3g} FLOPs, {cost.spent:.3g} with shared beginnings; about "
        f"{cost.seconds / 60:.0f} minutes left, {workers} at once, at "
        f"{sweep.speed.flops_per_second / 1e9:.3g} GFLOP/s each",
    ]
    epochs = cost.tokens / book.facts["train_tokens"]
    if epochs > 1:
        lines.append(f"warning: the longest run reads its text {epochs:.2f} times")
    return "\n".join(lines)


def _about(sweep: Sweep, book: scheduler.Book) -> study_record.About:
    """Answers to the study's checklist."""
    base, optim = sweep.base, sweep.base.optim
    shapes = sorted({config.kind(type(c.model)) for c in sweep.cells})
    return study_record.About(
        architecture=f"{', '.join(shapes)}, {base.data.seq} tokens of context",
        corpus=f"{book.facts['source']} ({book.facts['fingerprint'][:12]})",
        tokenizer=base.data.tokenizer,
        optimiser=f"{optim.name}, weight decay {optim.weight_decay}, clip {optim.clip}",
        schedule=f"warm-up of {sweep.warmup:.0%} of a model's shortest run, constant, decay to 0 "
        f"over the last {sweep.decay:.0%} of each run (wsd), branches of one trunk per model",
        batch=f"{sweep.rule}, {sweep.batch_factor:g} times, the same for all runs of a model",
        tuning=f"learning rate {sweep.lr_factor:g} times {sweep.rule}'s; {sweep.tuning}",
        checkpoints="final",
        smoothing="none",
        loss_set=f"{book.facts['held_out_tokens']:,} held-out tokens",
    )


# --- After -----------------------------------------------------------------------------------


def _study(sweep: Sweep, book: scheduler.Book) -> study_record.Record:
    """The study of the finished points, saved."""
    lost = [e for e in book.entries.values() if e.role == "point" and e.excluded]
    for entry in lost:
        _say(f"left out: {entry.name}: {entry.reason}")
    if len(lost) > len([e for e in book.entries.values() if e.role == "point"]) - 2:
        raise ValueError(
            f"{sweep.name}: fewer than two of its runs have a loss, and a law needs several: "
            f"{'; '.join(f'{e.name}: {e.reason or e.state}' for e in lost[:3])}"
        )
    points = tables.read(
        book.folder / scheduler.POINTS,
        counting=sweep.counting,
        # its own units, of runs however small
        units={"params": "1", "tokens": "1", "flops": "1", "loss": "nats"},
        where={"role": "point"},
    )
    points = points._replace(left_out=tuple(f"{e.name}: {e.reason}" for e in lost))
    noise, options = scheduler.seed_noise(book), sweep.options
    if noise is not None and options.noise is None:
        options = dataclasses.replace(options, noise=noise[0])
    record = analysis.run(points, options, _about(sweep, book), sweep.name)
    study_record.save(book.folder, record)
    return record


def _predict(book: scheduler.Book, held: Trial, record: study_record.Record) -> None:
    """Write prediction.json, unless the run it is about has started: then it stays as it is."""
    place = book.folder / PREDICTION
    begun = (runs.folder(held.run) / "config.json").is_file()
    if begun and place.is_file():
        _say(f"{place} was written before {held.run.name} began, and stays as it is")
        return
    if begun:
        raise ValueError(
            f"{place} is missing, and {held.run.name} has begun: remove its directory, so that "
            "the prediction comes first"
        )
    prediction = forecast.predict(record, held.params, held.tokens)
    prediction = dataclasses.replace(prediction, run=held.digest, name=held.run.name)
    io.write(place, json.dumps(study_record.plain(prediction), indent=1) + "\n")
    _say(forecast.text(prediction, None))


def _spread(held: Trial, execution: engines.Execution) -> Trial:
    """The held-out trial over the cores of all workers: a device each, where it can be cut so."""
    run = held.run
    alone = execution.engine == "local" and run.plan.devices == 1
    if not alone or launch.accelerated(dict(os.environ)) or run.data.batch % execution.workers:
        return held
    plan = dataclasses.replace(run.plan, data=execution.workers)
    return held._replace(run=dataclasses.replace(run, plan=plan))


def _outcome(book: scheduler.Book, held: Trial) -> str:
    """The outcome of the prediction in words; with a loss, written to outcome.json too."""
    path = book.folder / PREDICTION
    prediction = config.from_dict(forecast.Forecast, json_file.read_object(path), f"{path}: ")
    entry = book.entries[held.digest]
    if prediction.run != held.digest:
        raise ValueError(f"{path} is of run {prediction.run}, not {held.digest}")
    if entry.loss is None:
        return forecast.text(prediction, None) + f": {entry.state}, {entry.reason}"
    outcome = forecast.compare(prediction, entry.loss)
    io.write(book.folder / OUTCOME, json.dumps(dataclasses.asdict(outcome), indent=1) + "\n")
    return forecast.text(prediction, outcome)


def _account(book: scheduler.Book) -> str:
    """The cost of the sweep, and the runs left out."""
    every = list(book.entries.values())
    alone, spent = sum(e.flops for e in every), sum(e.spent for e in every)
    lines = [
        f"{len(every)} runs: {alone:.3g} FLOPs charged to them, {spent:.3g} computed (branches "
        f"share their trunks), {sum(e.seconds for e in every) / 60:.1f} minutes of workers' time"
    ]
    noise = scheduler.seed_noise(book)
    if noise is not None:
        lines.append(
            f"between seeds the loss has a standard deviation of {noise[0]:.4f} nats per token "
            f"({noise[1]} degrees of freedom)"
        )
    lost = [f"left out: {e.name}: {e.state}, {e.reason}" for e in every if e.excluded]
    return "\n".join([*lines, *lost])


def _results(target: str) -> pathlib.Path:
    place, _, variant = target.partition(":")
    path = pathlib.Path(place)
    home = path.parent if path.suffix == ".py" else path
    return home / "results" / variant if variant else home / "results"


def _keep(
    book: scheduler.Book, record: study_record.Record, report: str, results: pathlib.Path | None
) -> None:
    """Write the report and the figures; copy what is to be kept into `results`."""
    io.write(book.folder / "report.txt", report + "\n")
    drawn = figures.draw(record, book.folder / "figures")
    print("\n" + report)
    if results is None:
        return
    io.make_folder(results)
    for name in ("report.txt", scheduler.POINTS, scheduler.FILE, PREDICTION, OUTCOME):
        if (book.folder / name).is_file():
            shutil.copy(book.folder / name, results / name)
    study_record.save(results, _short(record))
    for path in drawn:
        if path.suffix == ".png":
            shutil.copy(path, results / path.name)
    print(f"kept in {results}")


def _short(record: study_record.Record) -> study_record.Record:
    """The record with few draws of the form that plans, and none of the others."""
    forms = {}
    for name, form in record.forms.items():
        kept = KEPT_DRAWS if name == record.law else 0
        forms[name] = dataclasses.replace(form, draws=form.draws[:kept])
    return dataclasses.replace(record, forms=forms)
