"""Texts on their way to a file: each is kept as it ends, and the file is written in order.

Next to OUT there is a hidden .OUT.journal:

    {"identity": {...}}                         all that decides the texts
    {"key": "...", "number": 7, "lines": [...]} a prompt's lines of OUT, in the order of ending
    {"finished": "..."}                         in place of those once OUT is there: its SHA-256

The key of a line is a hash of the identity. A process may be killed at any moment: half a line is
cut off when the journal is opened again.
"""

import array
import contextlib
import hashlib
import json
import os
import pathlib
import time
from collections.abc import Iterator
from typing import Any, BinaryIO

from jaxlm.core import config, io, json_file

_SYNC_SECONDS = 2.0


class Finished:
    """The texts that are there. count: of prompts; have: with texts. complete: OUT is written."""

    def __init__(self, out: pathlib.Path, identity: dict[str, Any], count: int, file: BinaryIO):
        """file: the journal, open for reading and appending, after its first line.

        Raises: json_file.Damaged naming the line for one that is not of this journal.
        """
        self.out = out
        self.count = count
        self.have = 0
        self.complete = False
        self._key = config.digest(identity)
        self._file = file
        self._head = file.tell()
        self._places = array.array("q", [-1]) * count  # where each prompt's line begins
        self._synced = time.monotonic()
        self._read()

    def __contains__(self, number: int) -> bool:
        """Whether a prompt has its texts."""
        return self.complete or self._places[number] >= 0

    def add(self, number: int, lines: list[dict[str, Any]]) -> None:
        """Keep the lines of OUT of one prompt. Raises: io.WriteError."""
        place = self._file.seek(0, os.SEEK_END)
        try:
            self._file.write(encoded({"key": self._key, "number": number, "lines": lines}))
            self._file.flush()
            if time.monotonic() > self._synced + _SYNC_SECONDS:
                os.fsync(self._file.fileno())
                self._synced = time.monotonic()
        except OSError as error:
            raise io.refused(self.out, error.strerror or error) from error
        self._places[number] = place
        self.have += 1

    def finish(self) -> None:
        """Write OUT, whole and in the order of the prompts, unless it is there. Raises:
        io.WriteError."""
        if self.complete:
            return
        assert self.have == self.count
        content = hashlib.sha256()

        def fill(file: BinaryIO) -> None:
            for place in self._places:
                self._file.seek(place)
                for line in json.loads(self._file.readline())["lines"]:
                    content.update(text := encoded(line))
                    file.write(text)

        io.put(self.out, fill)
        self._file.seek(0)
        head = self._file.read(self._head)
        io.write_bytes(_journal(self.out), head + encoded({"finished": content.hexdigest()}))
        self.complete = True

    def _read(self) -> None:
        place = self._head
        for number, line in enumerate(self._file, 2):
            if not line.endswith(b"\n"):
                break
            self._take(number, line, place)
            place += len(line)
        self._file.truncate(place)

    def _take(self, number: int, line: bytes, place: int) -> None:
        where = f"{_journal(self.out)}:{number}"
        record = json_file.parse(line, where)
        if isinstance(record, dict) and "finished" in record:
            if not self.out.is_file() or io.sha256(self.out) != record["finished"]:
                raise json_file.Damaged(
                    f"{self.out} is not what was written; restore it, or remove it and "
                    f"{_journal(self.out)} to begin again"
                )
            self.complete, self.have = True, self.count
            return
        if not isinstance(record, dict) or record.get("key") != self._key:
            raise json_file.Damaged(f"{where}: not a line of this journal; remove the line")
        if self._places[record["number"]] >= 0:
            raise json_file.Damaged(f"{where}: prompt {record['number']} is there twice")
        self._places[record["number"]] = place
        self.have += 1


@contextlib.contextmanager
def opened(out: str | os.PathLike[str], identity: dict[str, Any], count: int) -> Iterator[Finished]:
    """The Finished of a file, new or to go on with, of `count` prompts; no other process can open
    it meanwhile. identity: all that decides the texts, as JSON has it.

    Raises: BlockingIOError if one has; ValueError if the texts that are there were made otherwise,
    naming the first difference, or if nothing says how; json_file.Damaged for a damaged journal.
    """
    out = pathlib.Path(out).expanduser()
    journal = _journal(out)
    io.make_folder(out.parent)
    with contextlib.ExitStack() as held:
        try:
            held.enter_context(io.lock(out.with_name(f".{out.name}.lock")))
        except BlockingIOError as error:
            raise BlockingIOError(
                f"{out} is being written by another process; wait for it, or name another file"
            ) from error
        if not journal.exists():
            if out.exists():
                raise ValueError(
                    f"{out} is there, and no {journal.name} says how it was made; name another file"
                )
            io.write_bytes(journal, encoded({"identity": identity}))
        file = held.enter_context(journal.open("r+b"))
        _refuse_others(out, identity, file.readline())
        yield Finished(out, identity, count, file)


def _refuse_others(out: pathlib.Path, identity: dict[str, Any], head: bytes) -> None:
    record = json_file.parse(head, f"{_journal(out)}:1")
    if not isinstance(record, dict) or not isinstance(record.get("identity"), dict):
        raise json_file.Damaged(f"{_journal(out)}:1: no identity of texts; name another file")
    now = json.loads(encoded(identity))
    if differences := config.differences(record["identity"], now):
        name, there, here = differences[0]
        raise ValueError(
            f"{out} was begun with {name}={there!r}, and now {name}={here!r}: texts of different "
            "settings do not go into one file; name another"
        )


def encoded(value: Any) -> bytes:
    """A line of JSON: letters as they are, but for halves of characters, which only JSON can
    hold."""
    try:
        return (json.dumps(value, ensure_ascii=False) + "\n").encode()
    except UnicodeEncodeError:
        return (json.dumps(value) + "\n").encode()


def _journal(out: pathlib.Path) -> pathlib.Path:
    return out.with_name(f".{out.name}.journal")
