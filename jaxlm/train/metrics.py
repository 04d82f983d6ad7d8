"""metrics.jsonl, the truth about a run, and the same numbers as TensorBoard events.

    {"step": 20, "split": "train", "loss": 3.1, "lr": 0.001, "timing": {"tokens_per_second": 9e4}}
    {"step": 20, "split": "val", "bits_per_byte": 2.4, "timing": {"seconds": 1.2}}

All but "timing" is a function of the Run: an interrupted run's file equals an uninterrupted one's.
Numbers that are not finite are null.
"""

import json
import math
import os
import pathlib
from collections.abc import Callable, Iterator
from typing import Any

from jaxlm.core import io
from jaxlm.train import events

FILE = "metrics.jsonl"
Record = dict[str, Any]


class Writer:
    """Appends records; on process 0 only, elsewhere every method does nothing."""

    def __init__(
        self, folder: pathlib.Path, step: int, primary: bool, warn: Callable[[str], None]
    ) -> None:
        """Continue after a step: later records, and a torn last line, are cut off.

        Raises: io.WriteError.
        """
        self._primary, self._warn = primary, warn
        self._path = folder / FILE
        self._waiting: list[str] = []
        self._events: events.Events | None = None
        if primary:
            kept = [json.dumps(r) + "\n" for r in records(self._path) if r["step"] <= step]
            io.write(self._path, "".join(kept))
            self._good = self._path.stat().st_size
            self._start_events(folder, step)

    def write(self, record: Record) -> None:
        """Append a record. What a full disk refuses is kept in memory and tried again next time."""
        if not self._primary:
            return
        record = {k: _plain(v) for k, v in record.items()}
        self._waiting.append(json.dumps(record) + "\n")
        try:
            self._append()
        except OSError as error:
            self._warn(f"{io.refused(self._path, error.strerror)}; will try again")
        self._write_events(record)

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
        except OSError as error:
            raise io.refused(self._path, error.strerror) from error

    def _append(self) -> None:
        if not self._waiting:
            return
        # A write that failed half-way left a torn line behind: begin at the last whole one.
        text = "".join(self._waiting).encode()
        with self._path.open("r+b") as file:
            file.truncate(self._good)
            file.seek(self._good)
            file.write(text)
        self._good += len(text)
        self._waiting.clear()

    def _start_events(self, folder: pathlib.Path, step: int) -> None:
        try:
            self._events = events.open(folder)
            if step:
                self._events.restart(step + 1)
        except OSError as error:
            self._drop_events(error)

    def _write_events(self, record: Record) -> None:
        if self._events is None:
            return
        flat = record | record.get("timing", {})
        scalars = {
            f"{record['split']}/{name}": value
            for name, value in flat.items()
            if isinstance(value, float | int) and name != "step"
        }
        try:
            self._events.write(record["step"], scalars)
        except OSError as error:
            self._drop_events(error)

    def _drop_events(self, error: OSError) -> None:
        self._events = None
        self._warn(f"no more TensorBoard events ({error}); {FILE} goes on and has every number")


def _plain(value: Any) -> Any:
    """Numbers as JSON knows them."""
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items()}
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def records(path: pathlib.Path) -> Iterator[Record]:
    """The records of a metrics file, in order; a torn last line is left out, no file has none.

    Raises: ValueError naming file and line of any other line that is not a record.
    """
    if not path.is_file():
        return
    lines = path.read_bytes().split(b"\n")
    for number, line in enumerate(lines, start=1):
        try:
            record = json.loads(line) if line else None
        except ValueError as error:
            if number == len(lines):
                return
            raise ValueError(f"{path}:{number}: not a JSON record: {line[:80]!r}") from error
        if record is not None:
            yield record


def deterministic(path: pathlib.Path) -> list[Record]:
    """The records without what the clock decided: equal for equal runs."""
    return [{k: v for k, v in r.items() if k != "timing"} for r in records(path)]
