"""Records appended to a .jsonl file; they survive a kill, and what is written is not made again.

Every record has an "id", by which a later run knows what is done, and a "provenance": the settings
that produced it. Each append is on disk before the next begins; half a line, which a kill may
leave, is cut off when the file is opened again. A hidden .NAME.sum records what the file holds, so
that damage done meanwhile is noticed.
"""

import contextlib
import hashlib
import json
import os
import pathlib
from collections.abc import Iterator
from typing import Any

from jaxlm.core import config, io, json_file

Record = dict[str, Any]

FILES = "files"
"""The field of a provenance that may differ between the records of one file: where things were."""


class Journal:
    """An open file of records. `records` holds all of them, those there at the start first."""

    def __init__(self, path: pathlib.Path, provenance: Record, records: list[Record]):
        content = path.read_bytes() if path.exists() else b""
        self._size, self._content = len(content), hashlib.sha256(content)
        self.path = path
        self.provenance = provenance
        self.records = records
        self.found = len(records)
        self.ids = {record["id"] for record in records}

    def append(self, records: list[Record]) -> None:
        """Add records, each with the provenance of this run. Raises: io.WriteError."""
        complete = [record | {"provenance": self.provenance} for record in records]
        lines = "".join(json.dumps(r, ensure_ascii=False) + "\n" for r in complete)
        try:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(lines)
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise io.refused(self.path, error.strerror or error) from error
        self._content.update(lines.encode("utf-8"))
        self._size += len(lines.encode("utf-8"))
        _note(self.path, self._size, self._content.hexdigest())
        self.records += complete
        self.ids |= {record["id"] for record in complete}


@contextlib.contextmanager
def opened(path: str | os.PathLike[str], provenance: Record) -> Iterator[Journal]:
    """The Journal of a file, new or to go on with; no other process can open it meanwhile.

    Raises: BlockingIOError if one has; ValueError, and the file is as it was, if it holds a record
    that other settings made (naming the first that differs) or a line that is none.
    """
    path = pathlib.Path(path)
    io.make_folder(path.parent)
    with contextlib.ExitStack() as held:
        try:
            held.enter_context(io.lock(path.with_name(f".{path.name}.lock")))
        except BlockingIOError as error:
            raise BlockingIOError(
                f"{path} is being written by another process; wait for it, or name another file"
            ) from error
        if not path.exists() and _sums(path).exists():
            raise json_file.Damaged(
                f"{path} is missing, and {_sums(path)} says that it was written: restore it, or "
                "remove both to begin again"
            )
        records = _read(path, provenance) if path.exists() else []
        yield Journal(path, provenance, records)


def _sums(path: pathlib.Path) -> pathlib.Path:
    return path.with_name(f".{path.name}.sum")


def _note(path: pathlib.Path, size: int, digest: str) -> None:
    """Record what a file holds: its first `size` bytes, by their SHA-256."""
    io.write(_sums(path), json_file.sealed({"size": size, "content": digest}))


def _verify(path: pathlib.Path, data: bytes) -> None:
    """Raises: json_file.Damaged if a file no longer begins with what was written."""
    try:
        noted = json_file.read_object(_sums(path))
    except FileNotFoundError:
        return
    if hashlib.sha256(data[: noted["size"]]).hexdigest() != noted["content"]:
        raise json_file.Damaged(
            f"{path}: not what was written (its SHA-256 differs): restore it; or, to go on with it "
            f"as it is, remove {_sums(path)}"
        )


def _read(path: pathlib.Path, provenance: Record) -> list[Record]:
    data = path.read_bytes()
    _verify(path, data)
    end = data.rfind(b"\n") + 1  # of the last complete line
    records = []
    for number, line in enumerate(data[:end].splitlines(), 1):
        try:
            record = json.loads(line)
            theirs, _ = record["provenance"], record["id"]
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise ValueError(
                f"{path}:{number}: no record of `jaxlm feedback`: the line was damaged, or the "
                "file is another's; remove the line (it is made again), or name another file"
            ) from error
        before, now = (config.without(p, FILES) for p in (theirs, provenance))
        differences = config.differences(before, now)
        if differences:
            name, there, here = differences[0]
            raise ValueError(
                f"{path}:{number}: made with {name}={there!r}, and now {name}={here!r}; records of "
                "different settings do not go into one file: name another"
            )
        records.append(record)
    if end < len(data):
        with path.open("r+b") as file:
            file.truncate(end)
            os.fsync(file.fileno())
    return records
