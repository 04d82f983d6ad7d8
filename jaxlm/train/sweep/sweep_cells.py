"""A sweep: cells of (model, compute) and a held-out run, as a list of ordinary Runs.

    cells     sizes x budgets      one Run each, its length from C, its lr and batch from a rule
    trunk     of one model's cells the longest run; the others branch off it where they decay
    held out  a larger run, predicted before it is trained

Nothing is trained here: scheduler.py does that, on the engines of engines.py.
"""

import dataclasses
import math
import os
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Literal, NamedTuple

from jaxlm import models
from jaxlm.core import check, config
from jaxlm.core.remote import objects
from jaxlm.data import pretraining
from jaxlm.scaling.cost import conventions, flops, hyperparameter_rules
from jaxlm.scaling.study import analysis
from jaxlm.scaling.table import Counting
from jaxlm.train.run import branching
from jaxlm.train.run import run as runs
from jaxlm.train.run.run import Checkpoint, Run


@dataclasses.dataclass(frozen=True)
class Cell:
    """One point of a sweep."""

    model: models.AnyConfig
    """Its size."""
    flops: float
    """Its training FLOPs C, as the sweep counts them; they decide how long it trains."""
    seed: int = 0
    """Seed of the initial weights and of the order of the data; cells that differ in it alone are
    repeats, which show the noise."""


@dataclasses.dataclass(frozen=True)
class Speed:
    """Speed of one worker, for the estimate: a token of a model of F training FLOPs takes
    (F + flops_overhead) / flops_per_second."""

    flops_per_second: float
    """Speed on large models."""
    flops_overhead: float
    """Cost per token of all but matrix products, in FLOPs."""
    seconds_per_run: float
    """Time of the start, compilation and the last checkpoint."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sweep:
    """Runs to train, the counting of N and C, and the law that is fitted to them."""

    name: str
    """The sweep's directory is base.out/name."""
    base: Run
    """Fields that all runs share: data, optimiser, plan. The model, the length, the learning rate,
    its schedule, the warm-up, the batch, seeds and evaluations are set for each cell."""
    cells: tuple[Cell, ...]
    """The points that the law is fitted to."""
    speed: Speed
    """Speed of a worker, for the estimate of the time it takes."""
    held_out: Cell | None = None
    """A larger run, predicted from the law before it is trained; None trains none."""
    counting: Counting = Counting("matmul-only", "6ND")
    """The counting of N and C."""
    rule: Literal["step law", "deepseek"] = "step law"
    """Learning rate and batch by size: scaling/cost/hyperparameter_rules.py."""
    lr_factor: float = 1.0
    """Factor on the rule's learning rate; one number for all sizes, tuned on one of them."""
    batch_factor: float = 1.0
    """Factor on the rule's batch."""
    multiple: int = 1
    """Rows of a batch are a multiple of this: the devices of the plan."""
    warmup: float = 0.1
    """Warm-up as a fraction of the shortest run of a model."""
    decay: float = 0.2
    """Fraction of each run over which its learning rate falls."""
    tuning: str = "not tuned"
    """Description of the tuning of lr_factor and batch_factor, for the study's record."""
    options: analysis.Options = analysis.Options(bootstrap="cluster")
    """Options of the fit; by default runs are resampled with all branches of their trunk."""


class Trial(NamedTuple):
    """A cell as a Run."""

    run: Run
    digest: str  # identifies the run: runs.digest
    role: Literal["point", "held out"]
    params: float  # N
    tokens: int  # D
    flops: float  # C, of all D tokens
    seed: int
    trunk: str | None  # digest of the trial it branches off
    own: int  # steps it trains itself; the others are its trunk's
    cluster: str  # name of the run whose beginning and noise it shares, itself where it has none


class Hyper(NamedTuple):
    """Hyper-parameters that a rule decides for all runs of a model."""

    lr: float
    rows: int
    warmup: int


def isoflop(budgets: Mapping[float, Sequence[models.AnyConfig]], seed: int = 0) -> tuple[Cell, ...]:
    """The cells of {C: models trained for C}."""
    cells = []
    for budget, sizes in budgets.items():
        cells += [Cell(model, budget, seed) for model in sizes]
    return tuple(cells)


def load(target: str | os.PathLike[str]) -> Sweep:
    """The Sweep of a file with `def sweep()`, or of a folder that holds such a sweep.py;
    `target:variant` takes another of its functions.

    Raises: FileNotFoundError; ValueError for another thing than a Sweep.
    """
    place, _, variant = os.fspath(target).partition(":")
    path = pathlib.Path(place)
    file = path if path.suffix == ".py" else path / "sweep.py"
    sweep = config.load(f"{file}:{variant or 'sweep'}")
    if not isinstance(sweep, Sweep):
        raise ValueError(
            f"{target}: {type(sweep).__name__} returned; a train.sweep.Sweep is needed"
        )
    return sweep


def folder(sweep: Sweep) -> pathlib.Path:
    """The sweep's directory: sweep.json, runs.csv, study.json, the runs in runs/."""
    return pathlib.Path(sweep.base.out).expanduser() / sweep.name


def trials(sweep: Sweep) -> list[Trial]:
    """Every run of the sweep once, trunks before their branches, the held-out run last.

    Raises: ValueError naming the cell or field that cannot be.
    """
    check.refuse(f"sweep {sweep.name} cannot start:", problems(sweep))
    groups: dict[str, list[Cell]] = {}
    for cell in sweep.cells:
        groups.setdefault(config.digest(config.to_dict(cell.model)), []).append(cell)
    every = []
    for cells in groups.values():
        every += _group(sweep, cells)
    if sweep.held_out is not None:
        every += [t._replace(role="held out") for t in _group(sweep, [sweep.held_out])]
    once = {t.digest: t for t in reversed(every)}
    return [t for t in every if once.pop(t.digest, None) is t]


def _group(sweep: Sweep, cells: list[Cell]) -> list[Trial]:
    """The trials of one model's cells: hyper-parameters are common, trunks one to a seed."""
    hyper = hyperparameters(sweep, cells)
    out = []
    for seed in dict.fromkeys(cell.seed for cell in cells):
        own = {c.flops: _trial(sweep, c, hyper) for c in cells if c.seed == seed}
        longest, *others = sorted(own.values(), key=lambda t: -t.run.steps)
        at = tuple(sorted({branching.length(t.run) for t in others}))
        kept = dataclasses.replace(longest.run.checkpoint, at=at)
        out.append(longest._replace(run=dataclasses.replace(longest.run, checkpoint=kept)))
        out += [_branch(t, longest) for t in others]
    return out


def _branch(trial: Trial, trunk: Trial) -> Trial:
    run = dataclasses.replace(trial.run, trunk=str(runs.folder(trunk.run)))
    own = run.steps - branching.length(run)
    return trial._replace(run=run, trunk=trunk.digest, own=own, cluster=trunk.cluster)


def hyperparameters(sweep: Sweep, cells: Sequence[Cell]) -> Hyper:
    """The learning rate, batch and warm-up of one model's cells: those of the rule at the geometric
    mean of its budgets' lengths, because branches of a trunk have them in common. Repeats do not
    count, so that more of them change no run that is there."""
    cfg = cells[0].model
    each = conventions.per_token(cfg, _seq(sweep), sweep.counting)
    tokens = [c / each for c in sorted({cell.flops for cell in cells})]
    mean = math.exp(sum(map(math.log, tokens)) / len(tokens))
    if sweep.rule == "step law":
        rule = hyperparameter_rules.step_law(conventions.params(cfg, "non-embedding"), mean)
    else:
        part = flops.per_token(cfg, _seq(sweep), causal=False)
        rule = hyperparameter_rules.deepseek(flops.TRAINING * (part.layers + part.attention) * mean)
    rows = hyperparameter_rules.rows(sweep.batch_factor * rule.batch, _seq(sweep), sweep.multiple)
    shortest = min(tokens) / rows / _seq(sweep)
    return Hyper(sweep.lr_factor * rule.lr, rows, max(round(sweep.warmup * shortest), 1))


def _trial(sweep: Sweep, cell: Cell, hyper: Hyper) -> Trial:
    base, n = sweep.base, conventions.params(cell.model, sweep.counting.params)
    each = conventions.per_token(cell.model, _seq(sweep), sweep.counting)
    steps = round(cell.flops / each / (hyper.rows * _seq(sweep)))
    if steps < 2 * hyper.warmup + 2:
        raise ValueError(
            f"cells: {n:,.0f} parameters for {cell.flops:.3g} FLOPs train {steps} steps of "
            f"{hyper.rows} x {_seq(sweep)} tokens, too few with {hyper.warmup} of warm-up; give "
            "this model a larger budget, or none"
        )
    optim = dataclasses.replace(
        base.optim,
        lr=float(f"{hyper.lr:.3g}"),
        warmup=hyper.warmup,
        schedule="wsd",
        decay=sweep.decay,
        final=0.0,
    )
    assert isinstance(base.data, pretraining.Data)
    run = dataclasses.replace(
        base,
        model=cell.model,
        data=dataclasses.replace(base.data, batch=hyper.rows, seed=cell.seed),
        optim=optim,
        steps=steps,
        seed=cell.seed,
        eval_every=steps,
        checkpoint=Checkpoint(every=base.checkpoint.every, keep_last=1, keep_best=False),
        out=str(folder(sweep) / "runs"),
    )
    digest = runs.digest(run)
    name = f"{n:.0f}-{steps}-s{cell.seed}-{digest}"
    run = dataclasses.replace(run, name=name)
    tokens = steps * hyper.rows * _seq(sweep)
    return Trial(
        run=run,
        digest=digest,
        role="point",
        params=n,
        tokens=tokens,
        flops=each * tokens,
        seed=cell.seed,
        trunk=None,
        own=steps,
        cluster=name,
    )


def _seq(sweep: Sweep) -> int:
    return sweep.base.data.seq


def problems(sweep: Sweep) -> Iterator[str]:
    """Problems of a sweep's settings, a line for each field that does not fit."""
    base, data = sweep.base, sweep.base.data
    if isinstance(data, pretraining.Data):
        why = "since a run has one batch and one length"
        yield from check.changed("base.data", data, "ramp", "curriculum", why=why)
        if any(part.changes for part in data.mix):
            yield "base.data.mix: changes of weights given; runs differ in length, leave them out"
        sources = [part.source for part in pretraining.parts(data).values()]
        ok = data.holdout != 0 or all(pathlib.Path(source).is_dir() for source in sources)
        fits = "above 0: the law is of a held-out loss"
        yield from check.problem("base.data.holdout", data.holdout, ok, fits)
    else:
        yield f"base.data: {config.kind(type(data))} given; it must be text (data.pretraining.Data)"
    fits = "a local directory: a sweep keeps its book there"
    yield from check.problem("base.out", base.out, objects.url(base.out) is None, fits)
    why = "since every run begins from random weights"
    yield from check.changed("base", base, "start", "trunk", "adapter", "rollout", why=why)
    why = "since the law is of the tokens that were wanted"
    yield from check.changed("base", base, "patience", why=why)
    ok, fits = "given" not in dataclasses.astuple(sweep.counting), "rules that count a Config"
    yield from check.problem("counting", sweep.counting, ok, fits)
    yield from check.choices("", sweep)
    count = len(sweep.cells)
    yield from check.problem("cells", count, count >= 2, "at least 2, which a law needs")
    for number, cell in enumerate(sweep.cells):
        yield from check.outside(f"cells[{number}]", cell, "flops", above=0)
    if sweep.held_out is not None:
        yield from check.outside("", sweep, "held_out.flops", above=0)
    yield from check.outside("", sweep, "lr_factor", "batch_factor", above=0)
    yield from check.outside("", sweep, "multiple", least=1)
    yield from check.outside("", sweep, "warmup", "decay", above=0, below=0.5)
    yield from check.outside("", sweep, "speed.flops_per_second", above=0)
    yield from check.outside("", sweep, "speed.flops_overhead", "speed.seconds_per_run", least=0)


class Estimate(NamedTuple):
    """Estimated cost of a sweep."""

    alone: float  # FLOPs of all runs if each trained all its steps: what the law is charged
    spent: float  # FLOPs with branches sharing their trunks: what is computed
    seconds: float  # wall time of what is left to do, `workers` at once
    tokens: int  # of the longest run


def estimate(
    sweep: Sweep, wanted: Sequence[Trial], workers: int, done: frozenset[str], held_out_tokens: int
) -> Estimate:
    """The Estimate of trials of a sweep. done: digests of those that are finished. held_out_tokens:
    what every run is evaluated on at its end."""
    alone = sum(t.flops for t in wanted)
    spent = sum(t.flops * t.own / t.run.steps for t in wanted)
    ready: dict[str, float] = {}
    free = [0.0] * workers
    for trial in in_order(wanted):
        begin = max(min(free), ready.get(trial.trunk or "", 0.0))
        end = begin + (0.0 if trial.digest in done else _seconds(sweep, trial, held_out_tokens))
        if trial.role == "held out":  # after all others, on all workers' cores
            end = max(free) + (end - begin) / workers
            free = [end] * workers
        free[free.index(min(free))] = ready[trial.digest] = end
    return Estimate(alone, spent, max(free), max(t.tokens for t in wanted))


def _seconds(sweep: Sweep, trial: Trial, held_out_tokens: int) -> float:
    each = flops.per_token(trial.run.model, _seq(sweep)).training
    tokens = trial.tokens * trial.own / trial.run.steps + held_out_tokens / flops.TRAINING
    speed = sweep.speed
    took = tokens * (each + speed.flops_overhead) / speed.flops_per_second
    return speed.seconds_per_run + took


def in_order(wanted: Sequence[Trial]) -> list[Trial]:
    """Trials in the order in which they are started: trunks first, the most costly first, so that
    the workers end together; held-out runs last."""
    return sorted(
        wanted,
        key=lambda t: (
            t.role == "held out",
            t.trunk is not None,
            -t.flops * t.own / t.run.steps,
        ),
    )
