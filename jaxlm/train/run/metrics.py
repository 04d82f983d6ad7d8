"""metrics.jsonl, the authoritative record of a run, and the same numbers as TensorBoard events.

    {"step": 20, "split": "train", "loss": 3.1, "lr": 0.001, "timing": {"tokens_per_second": 9e4}}
    {"step": 20, "split": "val", "bits_per_byte": 2.4, "timing": {"seconds": 1.2}}

All but "timing" is a function of the Run: an interrupted run's file equals an uninterrupted one's.
A number that is not finite is null, and "not_finite" records which it was (core/json_file.py).
"""

import hashlib
import json
import os
import pathlib
import time
from collections.abc import Callable, Iterator, Mapping, Set
from typing import Any, NamedTuple

from jaxlm.core import io, json_file
from jaxlm.core.remote import staging
from jaxlm.train.run.trackers import tensorboard

FILE = "metrics.jsonl"
# Seconds from one writing of a run's records to a store to the next: an object cannot be appended
# to, so each writes the whole file. A commit writes it in any case.
PUBLISHED = 30.0
Record = dict[str, Any]


class Mark(NamedTuple):
    """The part of the file that a checkpoint vouches for: its first `size` bytes, by SHA-256."""

    size: int
    sha256: str


def mark_of(content: bytes) -> Mark:
    """The Mark of a file that holds this."""
    return Mark(len(content), hashlib.sha256(content).hexdigest())


class Writer:
    """Appends records; on process 0 only, elsewhere every method does nothing."""

    def __init__(
        self,
        folder: pathlib.Path,
        step: int,
        primary: bool,
        warn: Callable[[str], None],
        mark: Mark | None = None,
        due: Set[tuple[str, int]] = frozenset(),
        send: Callable[[int, Mapping[str, float]], None] = lambda step, scalars: None,
    ) -> None:
        """Continue after a step: later records, and a torn last line, are cut off.

        mark: what the checkpoint of this step records of the file; None if nothing. due:
        (split, step) of the records that belong there. Where the file is not what was written,
        a warning lists what is missing, and the damaged file is kept as metrics.jsonl.damaged.
        send: called with the step and the numbers of each record; where it raises, a warning is
        given and it is called no more.

        Raises: io.WriteError.
        """
        self._primary, self._warn = primary, warn
        self._path = folder / FILE
        self._waiting: list[str] = []
        self._events: tensorboard.Events | None = None
        self._send = send
        self._published = time.monotonic()
        if primary:
            kept = _kept(self._path, step, mark, due, warn)
            io.write_bytes(self._path, kept)
            self._good, self._sum = len(kept), hashlib.sha256(kept)
            self._start_events(folder, step)

    def mark(self) -> Mark | None:
        """Mark of the whole file, once `commit` has written it; None on other processes."""
        return Mark(self._good, self._sum.hexdigest()) if self._primary else None

    def write(self, record: Record) -> None:
        """Append a record. What a full disk refuses is kept in memory and tried again next time."""
        if not self._primary:
            return
        self._waiting.append(json.dumps(json_file.plain(record), allow_nan=False) + "\n")
        self._write_events(record)
        try:
            self._append()
            if time.monotonic() - self._published > PUBLISHED:
                self._publish()
        except OSError as error:
            self._warn(f"{io.refused(self._path, error.strerror or error)}; will try again")

    def commit(self) -> None:
        """Put everything written so far on the disk.

        Raises: io.WriteError if a record could still not be written.
        """
        if not self._primary:
            return
        try:
            self._append()
            with self._path.open("rb") as file:
                os.fsync(file.fileno())
            self._publish()
        except OSError as error:
            raise io.refused(self._path, error.strerror or error) from error

    def _publish(self) -> None:
        """Write a store's copies of the files, whole."""
        staging.publish(self._path)
        if self._events is not None:
            staging.publish(self._events.path)
        self._published = time.monotonic()

    def _append(self) -> None:
        if not self._waiting:
            return
        # A write that failed half-way left a torn line: begin at the last whole one.
        text = "".join(self._waiting).encode()
        with self._path.open("r+b") as file:
            file.truncate(self._good)
            file.seek(self._good)
            file.write(text)
        self._good += len(text)
        self._sum.update(text)
        self._waiting.clear()

    def _start_events(self, folder: pathlib.Path, step: int) -> None:
        try:
            self._events = tensorboard.open(folder)
            if step:
                self._events.restart(step + 1)
        except OSError as error:
            self._drop_events(error)

    def _write_events(self, record: Record) -> None:
        flat = record | record.get("timing", {})
        scalars = {
            f"{record['split']}/{name}": value
            for name, value in flat.items()
            if isinstance(value, float | int) and name != "step"
        }
        try:
            if self._events is not None:
                self._events.write(record["step"], scalars)
        except OSError as error:
            self._drop_events(error)
        try:
            self._send(record["step"], scalars)
        except Exception as error:  # a library's own; the run is worth more than its pictures
            self._send = lambda step, scalars: None
            reason = f"{type(error).__name__}: {error}"
            self._warn(f"nothing more goes to wandb ({reason}); {FILE} goes on and has it all")

    def _drop_events(self, error: OSError) -> None:
        self._events = None
        self._warn(f"no more TensorBoard events ({error}); {FILE} goes on and has every number")


def _kept(
    path: pathlib.Path,
    step: int,
    mark: Mark | None,
    due: Set[tuple[str, int]],
    warn: Callable[[str], None],
) -> bytes:
    """The lines up to a step, as they were written; of a damaged file those that are records."""
    data = path.read_bytes() if path.is_file() else b""
    if mark is not None and mark_of(data[: mark.size]) == mark:
        return data[: mark.size]
    damage = fault(path, mark, due)
    if damage is not None:
        warn(damage + (f"; a copy is in {FILE}.damaged" if data else ""))
        if data:
            io.write_bytes(path.with_name(f"{FILE}.damaged"), data)
    read = ((line, _record(line)) for line in data.split(b"\n")[:-1])
    return b"".join(line + b"\n" for line, record in read if record and record["step"] <= step)


def fault(path: str | os.PathLike[str], mark: Mark | None, due: Set[tuple[str, int]]) -> str | None:
    """Describes damage to a metrics file that should begin with the bytes of `mark` and have the
    records of `due`; None if there is none."""
    path = pathlib.Path(path)
    data = path.read_bytes() if path.is_file() else b""
    marked = mark is not None and mark_of(data[: mark.size]) == mark
    read = [_record(line) for line in data.split(b"\n")[:-1]]
    bad = [number for number, record in enumerate(read, start=1) if record is None]
    missing = due - {(record["split"], record["step"]) for record in read if record is not None}
    if (mark is None or marked) and not (missing or bad):
        return None
    return _damage(path, bad, sorted(missing, key=lambda at: at[::-1]), bool(data))


def _damage(path: pathlib.Path, bad: list[int], missing: list[tuple[str, int]], there: bool) -> str:
    """Describes the damage to a metrics file."""
    text = f"{path} is not what was written" if there else f"{path} is missing or empty"
    if bad:
        text += f"; line {', '.join(map(str, bad[:5]))}{', ...' * (len(bad) > 5)} is no record"
    if missing:
        shown = ", ".join(f"{split} {step}" for split, step in missing[:8])
        more = f", ... ({len(missing)} in all)" if len(missing) > 8 else ""
        text += f"; records missing of steps: {shown}{more}"
    return text


def _record(line: bytes) -> Record | None:
    """The record in a line; None if it holds none."""
    try:
        record = json.loads(line)
        return record if type(record["step"]) is int and record["split"] else None
    except (ValueError, TypeError, KeyError, RecursionError):
        return None


def records(path: str | os.PathLike[str]) -> Iterator[Record]:
    """The records of a metrics file, in order; a torn last line is left out, no file has none.

    Raises: ValueError naming file and line of any other line that is not a record.
    """
    path = pathlib.Path(path).expanduser()
    if not path.is_file():
        return
    *lines, torn = path.read_bytes().split(b"\n")
    for number, line in enumerate(lines, start=1):
        record = _record(line)
        if record is not None:
            yield record
        elif line:
            raise json_file.Damaged(f"{path}:{number}: not a JSON record: {line[:80]!r}")
    if (record := _record(torn)) is not None:
        yield record


def deterministic(path: str | os.PathLike[str]) -> list[Record]:
    """The records without what the clock decided: equal for equal runs."""
    return [{k: v for k, v in r.items() if k != "timing"} for r in records(path)]


# Before the name of a source of a mixture.
BY_SOURCE = "bits_per_byte/"


def by_source(record: Record) -> dict[str, float]:
    """Bits per byte of every source in an evaluation of a mixture, {} of all else."""
    names = [name for name in record if name.startswith(BY_SOURCE)]
    values = {n.removeprefix(BY_SOURCE): json_file.number(record, n) for n in names}
    return {name: value for name, value in values.items() if value is not None}


def sources_text(record: Record) -> str:
    """`by_source` for people, in brackets; "" of all else."""
    texts = [f"{name} {value:.4f}" for name, value in by_source(record).items()]
    return f" ({', '.join(texts)})" if texts else ""
