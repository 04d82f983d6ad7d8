"""Execution of trials, a sweep's or an ablation's: their order, their outcomes, their record.

    sweep.json     every trial, its state, attempts, seconds, loss, and why it is no point
    runs.csv       the points: run (cluster), params, tokens, flops, loss and what they were set to
    runs/NAME      a sweep's run directories; failed.json in those that failed for good
    specs/, logs/  the Run of each as JSON, and what it printed

What is started again resumes where it stopped: finished trials are not run again, the
others resume from their checkpoints.
"""

import contextlib
import csv
import dataclasses
import io as text
import json
import math
import os
import pathlib
import signal
import statistics
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal, NamedTuple

from jaxlm.core import config, io, json_file
from jaxlm.scaling.table import Counting
from jaxlm.train.run import directory
from jaxlm.train.run import run as runs
from jaxlm.train.run.directory import Result
from jaxlm.train.sweep import engines, population, sweep_cells
from jaxlm.train.sweep.sweep_cells import Trial

FILE, POINTS, FAILED = "sweep.json", "runs.csv", "failed.json"
# Seconds between looks at the trials that run.
POLL = 0.25

State = Literal["waiting", "running", "finished", "failed", "diverged"]
# Nothing more is done about these while a sweep runs; failed ones are tried anew by the next.
SETTLED = ("finished", "failed", "diverged")


@dataclasses.dataclass
class Entry:
    """State and outcome of a trial; sweep.json has one of each."""

    name: str
    digest: str
    role: str
    params: float
    tokens: int
    flops: float
    seed: int
    cluster: str
    trunk: str | None
    state: State = "waiting"
    attempts: int = 0
    seconds: float = 0.0
    spent: float = 0.0  # FLOPs it computed itself, its trunk's not among them
    loss: float | None = None  # nats per token, held out
    reason: str = ""  # why it is no point of the law

    @property
    def excluded(self) -> bool:
        """Whether the law is fitted without it."""
        return self.state != "finished" or bool(self.reason)


class Book(NamedTuple):
    """Entries by digest, the counting of their N and C, and where they are kept."""

    folder: pathlib.Path
    counting: Counting
    entries: dict[str, Entry]
    facts: dict[str, Any]


def opened(
    place: str | os.PathLike[str],
    counting: Counting,
    wanted: Sequence[Trial],
    facts: dict[str, Any],
) -> Book:
    """The book of trials in a directory, with what is known of them from before. facts: JSON, kept
    in sweep.json as it is.

    A sweep.json that cannot be read is set aside, with a warning.
    """
    place = pathlib.Path(place)
    for name in ("specs", "logs"):
        io.make_folder(place / name)
    before = {}
    if (place / FILE).is_file():
        try:
            listed = json_file.read_object(place / FILE)["trials"]
            before = {entry["digest"]: Entry(**entry) for entry in listed}
        except (ValueError, KeyError, TypeError) as error:
            # the run directories record the outcome of each trial; only the seconds are lost
            (place / FILE).replace(place / f"{FILE}.damaged")
            directory.warn(f"{place / FILE} is no record of a sweep ({error}); it is written again")
    entries = {}
    for t in wanted:
        entry = Entry(
            name=t.run.name,
            digest=t.digest,
            role=t.role,
            params=t.params,
            tokens=t.tokens,
            flops=t.flops,
            seed=t.seed,
            cluster=t.cluster,
            trunk=t.trunk,
        )
        if t.digest in before:
            old = before[t.digest]
            entry.seconds, entry.state, entry.reason = old.seconds, old.state, old.reason
            entry.spent, entry.loss, entry.attempts = old.spent, old.loss, old.attempts
        if entry.state in ("running", "failed"):
            entry.state, entry.reason, entry.attempts = "waiting", "", 0
        entries[t.digest] = entry
    book = Book(place, counting, entries, facts)
    for t in wanted:
        _look(book, t)
    return book


def done(book: Book) -> frozenset[str]:
    """The digests of trials that need no more work."""
    return frozenset(d for d, e in book.entries.items() if e.state in ("finished", "diverged"))


def _look(book: Book, trial: Trial) -> Result | None:
    """Take a finished run's result into the book; None if there is none."""
    entry = book.entries[trial.digest]
    result = directory.finished(trial.run)
    if result is None:
        if entry.state in ("finished", "diverged"):  # its directory was removed
            entry.state, entry.loss, entry.reason = "waiting", None, ""
        return None
    loss = None if result.val is None else json_file.number(result.val, "nll")
    if result.diverged is not None or loss is None or not math.isfinite(loss):
        entry.state, entry.loss = "diverged", None
        entry.reason = f"diverged at step {result.step}: {result.diverged or 'it has no loss'}"
    else:
        entry.state, entry.loss, entry.reason = "finished", float(loss), ""
    own = trial.own if _branched(trial) else trial.run.steps
    entry.spent = trial.flops * own / trial.run.steps
    return result


def _branched(trial: Trial) -> bool:
    """Whether a finished run was started from its trunk."""
    return trial.trunk is not None and directory.load(runs.folder(trial.run)).trunk is not None


@contextlib.contextmanager
def running(
    book: Book, execution: engines.Execution, say: Callable[[str], None]
) -> Iterator[Callable[[Sequence[Trial]], None]]:
    """A context with a function that runs trials to their ends; no other process may run those of
    the same directory meanwhile. SIGTERM ends it as SIGINT does: trials save what they have.

    Raises: BlockingIOError; ImportError as `engines.opened`; KeyboardInterrupt after a signal.
    """
    with (
        _stopping(),
        io.lock(book.folder / "lock"),
        engines.opened(
            execution.engine, execution.workers, book.folder, execution.cluster
        ) as engine,
    ):

        def train(wanted: Sequence[Trial]) -> None:
            if execution.engine == "population":
                populate(book, wanted, say)
            conduct(book, wanted, engine, execution.workers, execution.retries, say)

        yield train


@contextlib.contextmanager
def _stopping() -> Iterator[None]:
    def end(number: int, frame: Any) -> None:
        raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread receives signals
        return
    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def conduct(
    book: Book,
    wanted: Sequence[Trial],
    engine: engines.Engine,
    workers: int,
    retries: int,
    say: Callable[[str], None],
) -> None:
    """Run trials until each is finished, diverged, or failed more than `retries` times; `workers`
    at once, a branch after its trunk. All of it is in the book, and on the disk, as it happens.
    """
    waiting = [t for t in sweep_cells.in_order(wanted) if book.entries[t.digest].state == "waiting"]
    running: dict[int, tuple[Trial, engines.Job, float]] = {}
    write(book)
    while waiting or running:
        for trial in [t for t in waiting if _ready(book, t, wanted)]:
            slot = next((s for s in range(workers) if s not in running), None)
            if slot is None:
                break
            waiting.remove(trial)
            clock = time.monotonic()  # an engine may run the trial before it answers
            running[slot] = (trial, _start(book, trial, engine, slot), clock)
        ended = {s: job.poll() for s, (_, job, _) in running.items()}
        for slot, code in ended.items():
            if code is None:
                continue
            trial, _, clock = running.pop(slot)
            book.entries[trial.digest].seconds += time.monotonic() - clock
            if not _settle(book, trial, code, retries):
                waiting.insert(0, trial)
            say(_line(book, book.entries[trial.digest]))
            write(book)
        if running and all(code is None for code in ended.values()):
            time.sleep(POLL)


def populate(book: Book, wanted: Sequence[Trial], say: Callable[[str], None]) -> None:
    """Train the trials that may share a program (seeds, learning rates) as populations, in this
    process. Those that share with none, and those of a population that failed, are left waiting
    for `conduct`.

    Raises: KeyboardInterrupt after a signal, with everything saved.
    """
    for branches in (False, True):
        waiting = {}
        for t in wanted:
            trunk = None if t.trunk is None else book.entries[t.trunk].state
            if book.entries[t.digest].state == "waiting" and trunk == (
                "finished" if branches else None
            ):
                waiting[str(runs.folder(t.run))] = t
        for group in population.groups([t.run for t in waiting.values()]):
            if len(group) > 1:
                _together(book, [waiting[str(runs.folder(r))] for r in group], say)


def _together(book: Book, members: list[Trial], say: Callable[[str], None]) -> None:
    """One population, to its end."""
    entries = [book.entries[t.digest] for t in members]
    for entry in entries:
        entry.state, entry.attempts = "running", entry.attempts + 1
    write(book)
    clock, log = time.monotonic(), book.folder / "logs" / f"population-{members[0].run.name}.log"
    ended: list[Result] = []
    with (
        open(log, "a", encoding="utf-8") as out,
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(out),
    ):
        try:
            ended = population.run([t.run for t in members])
        except Exception:
            traceback.print_exc()
    if not ended:
        say(f"a population of {len(members)} failed: {_last(log)}; its runs are trained singly")
    for trial, entry in zip(members, entries, strict=True):
        entry.seconds += (time.monotonic() - clock) / len(members)
        if _look(book, trial) is None:
            entry.state = "waiting"
        elif ended:
            say(_line(book, entry))
    write(book)
    if any(result.signal for result in ended):
        raise KeyboardInterrupt


def _ready(book: Book, trial: Trial, wanted: Sequence[Trial]) -> bool:
    trunk = trial.trunk
    if trunk is None or all(t.digest != trunk for t in wanted):
        return True
    return book.entries[trunk].state in SETTLED


def _start(book: Book, trial: Trial, engine: engines.Engine, slot: int) -> engines.Job:
    entry, run = book.entries[trial.digest], trial.run
    if trial.trunk is not None and book.entries[trial.trunk].state != "finished":
        run = dataclasses.replace(run, trunk=None)  # a failed trunk costs its branches time alone
    entry.state, entry.attempts = "running", entry.attempts + 1
    spec = book.folder / "specs" / f"{run.name}.json"
    io.write(spec, json.dumps(config.to_dict(run), indent=1) + "\n")
    write(book)
    log = book.folder / "logs" / f"{run.name}.log"
    every_slot = trial.role == "held out"
    return engine.submit(engines.Task(run.name, str(spec), str(log), None if every_slot else slot))


def _settle(book: Book, trial: Trial, code: int, retries: int) -> bool:
    """Whether a trial that ended with this exit code needs no other attempt."""
    entry = book.entries[trial.digest]
    if _look(book, trial) is not None:
        return True
    log = book.folder / "logs" / f"{entry.name}.log"
    entry.reason = f"exit code {code}: {_last(log)}"
    if entry.attempts <= retries:
        entry.state = "waiting"
        return False
    entry.state = "failed"
    place = runs.folder(trial.run)
    io.make_folder(place)
    kept = {"reason": entry.reason, "attempts": entry.attempts, "log": str(log)}
    io.write(place / FAILED, json.dumps(kept, indent=1) + "\n")
    return True


def _last(log: pathlib.Path) -> str:
    """The end of what a trial printed, on one line."""
    lines = log.read_text("utf-8", "replace").splitlines() if log.is_file() else []
    printed = [line.strip() for line in lines if line.strip()]
    return " | ".join(printed[-3:])[-400:] or "no output"


def seed_noise(book: Book) -> tuple[float, int] | None:
    """(standard deviation of the loss between seeds in nats per token, degrees of freedom), pooled
    over the cells that were repeated; None if none was."""
    cells: dict[tuple[float, int], list[float]] = {}
    for entry in book.entries.values():
        if not entry.excluded and entry.loss is not None:
            cells.setdefault((entry.params, entry.tokens), []).append(entry.loss)
    repeated = [losses for losses in cells.values() if len(losses) > 1]
    freedom = sum(len(losses) - 1 for losses in repeated)
    if not freedom:
        return None
    squares = sum(statistics.variance(losses) * (len(losses) - 1) for losses in repeated)
    return math.sqrt(squares / freedom), freedom


def _line(book: Book, entry: Entry) -> str:
    ended = sum(e.state in SETTLED for e in book.entries.values())
    outcome = f"{entry.loss:.4f} nats" if entry.loss is not None else entry.reason
    return (
        f"[{ended}/{len(book.entries)}] {entry.name}: {entry.state}, {outcome} "
        f"({entry.params:,.0f} parameters, {entry.tokens:,} tokens, {entry.seconds:.0f} s)"
    )


def write(book: Book) -> None:
    """Write sweep.json and runs.csv. Raises: io.WriteError."""
    every = list(book.entries.values())
    record = book.facts | {
        "counting": dataclasses.asdict(book.counting),
        "cost": {
            "flops_alone": sum(e.flops for e in every if e.state == "finished"),
            "flops_spent": sum(e.spent for e in every),
            "seconds": sum(e.seconds for e in every),
        },
        "excluded": [
            {"name": e.name, "reason": e.reason or f"it is {e.state}"} for e in every if e.excluded
        ],
        "trials": [dataclasses.asdict(e) for e in every],
    }
    io.write(book.folder / FILE, json.dumps(record, indent=1) + "\n")
    io.write(book.folder / POINTS, points(book))


COLUMNS = ("run", "params", "tokens", "flops", "loss", "counting", "role", "seed", "name", "digest")


def points(book: Book) -> str:
    """runs.csv: the finished trials, the held-out one among them, by size and compute."""
    out = text.StringIO()
    table = csv.writer(out, lineterminator="\n")
    table.writerow(COLUMNS)
    kept = [e for e in book.entries.values() if not e.excluded]
    for e in sorted(kept, key=lambda e: (e.role == "held out", e.params, e.flops, e.seed)):
        counts = (f"{e.params:.0f}", e.tokens, repr(e.flops), repr(e.loss))
        how = book.counting.params
        table.writerow((e.cluster, *counts, how, e.role, e.seed, e.name, e.digest))
    return out.getvalue()
