"""A run directory: which run it holds, whether that is finished, and who may write to it.

config.json      the Run                       env.json   machine, versions, devices, kernels
metrics.jsonl    one record a logged step      events.*   the same for TensorBoard
checkpoints/     orbax                         samples/   continued prompts by step
result.json      written last: the run is finished

Every checkpoint repeats in its sealed manifest which run it belongs to, so that damage to or loss
of one of the first two files is noticed, and the file is read from there.
"""

import contextlib
import dataclasses
import json
import math
import os
import pathlib
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from jaxlm.core import config, io, json_file
from jaxlm.core.remote import lease, staging
from jaxlm.data import tokenizers
from jaxlm.data.tokenizers import tokenizer as interface
from jaxlm.train.run import integrity, metrics
from jaxlm.train.run import run as runs
from jaxlm.train.run.run import Run

# The exit code of a run whose loss is not finite.
DIVERGED = 3
# Fields that are paths: what they name may move, and has checks of its own.
PLACES = ("start", "data.source", "data.tokenizer")
# Numbers that judge an evaluation: the first that is present does.
MEASURES = ("nll", "loss", "reward")


@dataclasses.dataclass(frozen=True)
class Result:
    """Outcome of a run."""

    folder: str
    """The run directory."""
    step: int
    """Updates done."""
    steps: int
    """Updates wanted."""
    tokens: int
    """Positions trained on, padding included."""
    val: dict[str, Any] | None
    """The last evaluation over the whole held-out split: nll, bits_per_byte, perplexity, ..."""
    signal: int
    """The signal that ended it early, or 0."""
    diverged: str | None = None
    """The loss that is not finite, in words; None if the run did not diverge."""
    early_stop: str | None = None
    """The reason why it ended before its last step, by Run.patience; None if it did not."""

    @property
    def exit_code(self) -> int:
        """0, `DIVERGED`, or 128 + the signal's number, as a shell reports it."""
        if self.signal:
            return 128 + self.signal
        return 0 if self.diverged is None else DIVERGED


def divergence(seen: Sequence[metrics.Record], step: int) -> str | None:
    """The loss in this step's records that is not finite, in words; None if none. Where the step
    was evaluated, its evaluation alone decides."""
    for split, words in (("val", "held-out"), ("train", "training")):
        here = [r for r in seen if r["split"] == split and r["step"] == step]
        if here:
            return not_finite(here[-1], words)
    return None


def not_finite(record: metrics.Record, words: str) -> str | None:
    """The measure of a record that is not finite, such as "held-out nll is nan"; None if none."""
    for name in MEASURES:
        value = json_file.number(record, name)
        if value is not None:
            return None if math.isfinite(value) else f"{words} {name} is {value}"
    return None


def score_text(val: metrics.Record | None) -> str:
    """An evaluation for people, whatever of it is absent or not finite."""
    if val is None:
        return "not evaluated"
    nll, bits = json_file.number(val, "nll"), json_file.number(val, "bits_per_byte")
    if nll is None or "bits_per_byte" not in val:
        odd = val.get(json_file.NOT_FINITE, {})
        names = [n for n, x in val.items() if (isinstance(x, float) or n in odd) and n != "weight"]
        return "val " + ", ".join(f"{n} {json_file.number(val, n):.4f}" for n in names)
    if bits is not None:
        return f"val {bits:.4f} bits per byte{metrics.sources_text(val)}, {nll:.4f} nats per token"
    if not math.isfinite(nll):
        return f"val {nll} nats per token"
    return (
        f"val {nll:.4f} nats per hidden token (their frequencies alone: {val['unigram']:.4f}), "
        f"{val['accuracy']:.1%} right"
    )


def diverged_text(run: Run, result: Result) -> str:
    """Message on a run that diverged: what happened, and how to go on."""
    folder = runs.folder(run)
    kept = sorted(int(p.name) for p in (folder / "checkpoints").glob("*") if p.name.isdecimal())
    sampled = f"its checkpoints ({', '.join(map(str, kept))}) can be sampled; " if kept else ""
    return (
        f"{folder} diverged at step {result.step} of {result.steps}: {result.diverged}; "
        f"{sampled}train it under another --name with an --optim.lr below {run.optim.lr:g} or an "
        f"--optim.warmup above {run.optim.warmup}, or remove the directory"
    )


@contextlib.contextmanager
def held(folder: str | os.PathLike[str], primary: bool) -> Iterator[Callable[[], None]]:
    """Hold a run directory that this run is to write, for the duration of a `with`: on the primary
    process, elsewhere without a lock. Of one in a store the local copy is then what the store has.
    Yields a function that raises StoreError where another run has taken a store's lock meanwhile.

    Raises: BlockingIOError while another process has it; io.WriteError.
    """
    folder = pathlib.Path(folder)
    if not primary:
        staging.refresh(folder)
        yield lambda: None
        return
    io.make_folder(folder / "checkpoints")
    with io.lock(folder / "lock"), lease.held(folder) as confirm:
        staging.refresh(folder)
        yield confirm


def finished(run: Run) -> Result | None:
    """The Result of a finished run, None if there is more to do.

    A result.json that is damaged is set aside: the run goes on from its last checkpoint and writes
    it anew.

    Raises: ValueError if the directory holds another run, naming the first field that differs.
    """
    folder = runs.folder(run)
    if staging.origin(folder) is not None:
        io.make_folder(folder)
        with io.lock(folder / "lock"):
            staging.refresh(folder)
    fault = check(folder, run)
    try:
        result = read_result(folder)
    except json_file.Damaged as error:
        (folder / "result.json").replace(folder / "result.json.damaged")
        warn(f"{error}; the run's last checkpoint is taken up instead")
        return None
    if result is not None and fault is not None:
        warn(f"{fault}; it is written again")
        record(folder, run)
    return result


def read_result(folder: str | os.PathLike[str]) -> Result | None:
    """Outcome of the run in a directory; None if it has not ended. Raises: json_file.Damaged."""
    file = staging.local(folder) / "result.json"
    try:
        result = Result(**json_file.read_object(file))
    except FileNotFoundError:
        return None
    except TypeError as error:
        raise json_file.Damaged(f"{file}: not the result of a run ({error})") from error
    if result.diverged is None and result.val is not None:
        return dataclasses.replace(result, diverged=not_finite(result.val, "held-out"))
    return result


def ended(folder: str | os.PathLike[str]) -> Result | None:
    """`read_result` for those who read the weights alone: of a damaged one a warning and None."""
    try:
        return read_result(folder)
    except json_file.Damaged as error:
        warn(str(error))
        return None


def lost_records(folder: str | os.PathLike[str], result: Result) -> str | None:
    """A description of what is missing from metrics.jsonl; None where nothing is known to be."""
    sealed = proof(folder)
    folder = staging.local(folder)
    try:
        run = _parsed(pathlib.Path(folder, "config.json")) if sealed is None else _trained(sealed)
    except (FileNotFoundError, ValueError):
        return None
    if run is None:
        return None
    mark = None if sealed is None else sealed.get("metrics")
    due = runs.records_due(run, result.step)
    file = pathlib.Path(folder, metrics.FILE)
    return metrics.fault(file, None if mark is None else metrics.Mark(*mark), due)


def warn_of_lost_records(folder: str | os.PathLike[str]) -> None:
    """Prints a warning where `lost_records` reports a loss."""
    try:
        result = read_result(folder)
    except json_file.Damaged:
        return  # named by `ended`, and not finished as far as is known
    if result is not None and (fault := lost_records(folder, result)) is not None:
        warn(fault)


def check(folder: str | os.PathLike[str], run: Run) -> str | None:
    """Describes damage to a directory's config.json, where its checkpoints prove that it holds this
    run all the same; None if there is none.

    Raises: ValueError if the directory's config is not this run's, naming the first field that
    differs and both values; fields in `run.EXECUTION` may differ.
    """
    folder = pathlib.Path(folder)
    file = folder / "config.json"
    ours = config.without(config.to_dict(run), *runs.EXECUTION)
    sealed = proof(folder)
    proven = sealed is not None and sealed["run"] == runs.digest(run)
    if not file.is_file():
        if proven:
            return f"{file} is missing"
        # an empty folder is what a start leaves that was killed before it had begun
        if any((folder / "checkpoints").glob("*")):
            raise ValueError(
                f"{folder} has checkpoints but no config.json, and they are not this run's; give "
                "this run another name, or remove the directory"
            )
        return None
    try:
        # by way of a Run: fields that came after the run was recorded have their defaults
        theirs = config.without(config.to_dict(_parsed(file)), *runs.EXECUTION)
    except ValueError as error:
        if proven or not any((folder / "checkpoints").glob("*")):
            return str(error)  # this run's, or one that had saved nothing yet
        raise ValueError(
            f"{error}; no checkpoint says that it is this run's: give this run another name, or "
            "remove the directory"
        ) from error
    changes = config.differences(theirs, ours)
    if not changes:
        return None
    if proven:
        return f"{file} is not what was written: {changes[0][0]} is {changes[0][1]!r} there"
    raise ValueError(_other(folder, run, changes))


def _other(folder: pathlib.Path, run: Run, changes: list[tuple[str, Any, Any]]) -> str:
    """Reason why this run cannot have a directory that holds another, and how to go on."""
    path, there, here = changes[0]
    more = f" (and {len(changes) - 1} more)" if len(changes) > 1 else ""
    text = f"{folder} holds a run with {path}={there!r}, this one has {path}={here!r}{more}"
    if [name for name, _, _ in changes] != ["steps"] or here < there:
        return f"{text}; give this run another name, or remove the directory"
    text += (
        f"; to go on with its weights give a new run --name {run.name}-{here} --start {folder} "
        "(a fresh optimiser and schedule)"
    )
    if run.optim.schedule == "wsd" and run.start is None:
        text += f", or --trunk {folder}, which takes over all steps before its learning rate falls"
    return f"{text}; or remove the directory to train it anew"


def proof(folder: str | os.PathLike[str]) -> dict[str, Any] | None:
    """The facts of the newest checkpoint that has a whole manifest and records which run it is of:
    "run" (its digest), "config", "start", "tokenizer"; None if there is none."""
    places = [p for p in (staging.local(folder) / "checkpoints").glob("*") if p.name.isdecimal()]
    for place in sorted(places, key=lambda p: -int(p.name)):
        facts = integrity.facts(place)
        if facts is not None and "config" in facts:
            return facts
    return None


def identity(run: Run, tokenizer: str, start: dict[str, Any]) -> dict[str, Any]:
    """The facts by which a checkpoint records which run it is of. tokenizer: its hash; start: what
    `initial_weights.weights` noted, {} for random weights."""
    return {
        "run": runs.digest(run),
        "config": config.to_dict(run),
        "tokenizer": tokenizer,
        "start": start,
    }


def warn(text: str) -> None:
    """Print a warning on stderr."""
    print(f"warning: {staging.named(text)}", file=sys.stderr, flush=True)


# Fields of env.json that may change a run's last bits.
ROUNDING = ("revision", "packages", "backend", "devices", "cpus", "dtype")


def changed(folder: str | os.PathLike[str], run: Run, described: dict[str, Any]) -> list[str]:
    """Differences from the last start, as "field: old -> new": in fields that a run may change, and
    in the machine and the code, as `environment.describe` describes them now. A damaged file is
    named, for it is about to be written again."""
    changes, faults = [], []
    for name, now in (("config.json", config.to_dict(run)), ("env.json", described)):
        file = pathlib.Path(folder, name)
        try:
            before = json_file.read_object(file)
        except FileNotFoundError:
            continue
        except json_file.Damaged as error:
            faults.append(f"{error}, and is written again")
            continue
        if name == "env.json":
            before, now = ({k: d.get(k) for k in ROUNDING} for d in (before, now))
        changes += config.differences(before, now)
    return [*faults, *(f"{path}: {a} -> {b}" for path, a, b in changes)]


def record(folder: str | os.PathLike[str], run: Run) -> None:
    """Write config.json. Raises: io.WriteError."""
    io.write(pathlib.Path(folder, "config.json"), json.dumps(config.to_dict(run), indent=1) + "\n")


def load(folder: str | os.PathLike[str]) -> Run:
    """The Run of a run directory. Where config.json cannot be read, a warning is given and the Run
    is the one that the newest checkpoint repeats.

    Raises: FileNotFoundError if it is none; ValueError naming a field this version cannot read, or
    in which config.json is not what the checkpoints were trained with.
    """
    folder = staging.local(folder)
    file, sealed = folder / "config.json", proof(folder)
    if sealed is None:
        config.run_file(folder)
    trained = None if sealed is None else _trained(sealed)
    try:
        run = _parsed(file)
    except (FileNotFoundError, ValueError) as error:
        if trained is None:
            raise
        fault = f"{file} is missing" if isinstance(error, FileNotFoundError) else str(error)
        warn(f"{fault}; the checkpoints' own record of the run is read")
        return trained
    if trained is not None:
        known = (*runs.EXECUTION, *PLACES)
        stated, sealed_ = (config.without(config.to_dict(r), *known) for r in (run, trained))
        changes = config.differences(stated, sealed_)
        if changes:
            path, there, here = changes[0]
            raise ValueError(
                f"{file} has {path}={there!r}, its checkpoints were trained with {path}={here!r}: "
                "the file was damaged or edited; put that value back, or remove the file to have "
                "the checkpoints' record read"
            )
    return run


def trained(folder: str | os.PathLike[str]) -> Run:
    """`load` of a run whose weights another one builds on. Raises: as `load`; ValueError for one
    that diverged."""
    run, result = load(folder), ended(folder)
    if result is not None and result.diverged is not None:
        raise ValueError(
            f"{folder} diverged at step {result.step} ({result.diverged}): its weights are of no "
            "use to another run; train it again, under another name, at a lower optim.lr"
        )
    return run


def _trained(sealed: dict[str, Any]) -> Run | None:
    """The Run that a checkpoint repeats; None for one of a version that had other fields."""
    try:
        return config.from_dict(Run, sealed["config"])
    except ValueError:
        return None


def _parsed(file: pathlib.Path) -> Run:
    """Raises: json_file.Damaged naming the file; ValueError naming it and a field."""
    record = json_file.read_object(file)
    try:
        return config.from_dict(Run, record)
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from error


def tokenizer(folder: str | os.PathLike[str], run: Run) -> interface.Tokenizer:
    """The tokenizer of a run directory. Raises: as `tokenizers.load`; ValueError if it is not the
    one that the weights were trained with."""
    loaded, sealed = tokenizers.load(run.data.tokenizer), proof(staging.local(folder))
    if sealed is not None and sealed["tokenizer"] != loaded.hash:
        raise ValueError(
            f"data.tokenizer: {run.data.tokenizer!r} has hash {loaded.hash[:12]}, and {folder} was "
            f"trained with {sealed['tokenizer'][:12]}: its files were changed since; restore them"
        )
    return loaded


def finish(folder: str | os.PathLike[str], result: Result) -> None:
    """Mark the run as finished. Raises: io.WriteError."""
    io.write(pathlib.Path(folder, "result.json"), json_file.sealed(dataclasses.asdict(result)))
