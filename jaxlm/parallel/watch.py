"""A watch over the processes of a run: which of them the others wait for, and for how long.

Every process notes where it is (`Watch.arrive`), which costs no more than an assignment, and waits
for all others where they may come far apart (`Watch.meet`). A thread of each sends that note to the
coordinator once a second. The thread of process 0 compares them: a line names a process that
others have waited for, and where one has not moved on for `TIMEOUT` seconds, or has failed, or is
gone, it publishes a verdict, by which the threads end all processes, also those whose main threads
are inside a collective and cannot raise.
"""

import contextlib
import json
import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import Any, NamedTuple, Self

import jax

from jaxlm.parallel import multihost

# Seconds from one note to the next.
BEAT = 1.0
# Seconds without a note after which a process is gone, where a collective of others broke.
SILENT = 5 * BEAT
# Seconds that others wait for a process before a line names it, then twice as many, and so on.
STALL = 10.0

_FOLDER, _VERDICT = "jaxlm/position/", "jaxlm/verdict"


class Note(NamedTuple):
    """The state of a process: points passed (0 while it reads its data, which may take hours), the
    latest by name, why it failed (None while it has not), and the number of this note."""

    passed: int
    where: str
    fault: str | None
    number: int


class Judge:
    """The notes of all processes over time, by one clock, and what follows from them."""

    def __init__(self, count: int, timeout: float, now: float) -> None:
        self._count, self._timeout = count, timeout
        first = Note(-1, "its beginning", None, 0)
        self._notes = dict.fromkeys(range(count), first)
        self._moved, self._heard = (dict.fromkeys(range(count), now) for _ in range(2))
        self._due = STALL

    def hear(self, index: int, note: Note, now: float) -> None:
        """Take in the note of a process."""
        before = self._notes[index]
        if note.number != before.number:
            self._heard[index] = now
        if (note.passed, note.fault) != (before.passed, before.fault):
            self._moved[index] = now
        self._notes[index] = note

    def line(self, now: float) -> str | None:
        """A line on the processes that others wait for, if it is time for one."""
        last, waited = self._last(now)
        if len(last) == self._count or waited < STALL:
            self._due = STALL
            return None
        if waited < self._due:
            return None
        self._due *= 2
        silent = now - min(self._heard[i] for i in last)
        signs = f", the last sign of life {silent:.0f} s ago" if silent > SILENT else ""
        return (
            f"waiting for {named(last)}, for {waited:.0f} s at {self._notes[last[0]].where}{signs}"
        )

    def verdict(self, now: float) -> str | None:
        """The reason to end this run, which names a process; None while there is none."""
        faults = {i: note.fault for i, note in self._notes.items() if note.fault is not None}
        for i, fault in faults.items():
            if not multihost.BROKEN.match(fault):
                return f"process {i} of this run failed ({fault})"
        if faults:
            gone = [i for i, heard in self._heard.items() if now - heard > SILENT]
            if gone:
                return f"{named(gone)} of this run is lost"
            first = min(faults, key=self._moved.__getitem__)
            if now - self._moved[first] > 2 * SILENT:
                return f"a collective of process {first} of this run broke ({faults[first]})"
        last, waited = self._last(now)
        if waited <= self._timeout or self._notes[last[0]].passed < 1:
            return None
        where = self._notes[last[0]].where
        if len(last) == self._count:
            return f"no process of this run has moved on from {where} for {waited:.0f} s"
        return f"{named(last)} of this run has not moved on from {where} for {waited:.0f} s"

    def _last(self, now: float) -> tuple[list[int], float]:
        """(the processes that have passed the fewest points, seconds since one of them moved)."""
        least = min(note.passed for note in self._notes.values())
        last = [i for i, note in self._notes.items() if note.passed == least]
        return last, now - max(self._moved[i] for i in last)


def named(indices: list[int]) -> str:
    """The processes in words: "process 1, 3"."""
    return f"process {', '.join(map(str, indices))}"


class Watch:
    """This process' part of the watch, a context; without effect where it is the only process.

    An error that leaves the context is published, and ends the other processes. One of a collective
    that broke ends this one, too, by the verdict on who is lost.
    """

    def __init__(self, timeout: float, warn: Callable[[str], None]) -> None:
        self._timeout, self._warn = timeout, warn
        self._note = Note(0, "its data", None, 0)
        self._closed = threading.Event()
        self._thread: threading.Thread | None = None
        self._client: Any = None

    def __enter__(self) -> Self:
        if jax.process_count() > 1:
            # The only name of the client in JAX 0.10 to 0.12
            from jax._src import distributed

            self._client = distributed.global_state.client
            self._thread = threading.Thread(target=self._run, name="watch", daemon=True)
            self._thread.start()
        return self

    def arrive(self, where: str) -> None:
        """Note that this process has come to a point that all come to."""
        self._note = self._note._replace(passed=self._note.passed + 1, where=where)

    def meet(self, where: str) -> None:
        """`arrive`, and wait until all processes have: before a collective that would break by
        itself where one of them is late (on CPUs, a program's first one, after 30 s)."""
        self.arrive(where)
        if self._client is not None:
            # who is late is the thread's to say
            self._client.wait_at_barrier(f"jaxlm/{self._note.passed}", _FOREVER)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        if self._thread is None:
            return
        if isinstance(error, Exception):
            text = " ".join(str(error).split())[:500] or repr(error)
            broken = multihost.BROKEN.match(text)
            self._note = self._note._replace(fault=text if broken else f"{_kind(error)}{text}")
            # of a lost process the verdict ends this one; of its own error it ends the others
            self._closed.wait(3 * SILENT if broken else 4 * BEAT)
        self._closed.set()
        self._thread.join()

    def _run(self) -> None:
        """The thread: notes once a second, and on process 0 the judgement."""
        judge = Judge(jax.process_count(), self._timeout, time.monotonic())
        index, number = jax.process_index(), 0
        while not self._closed.wait(BEAT):
            number += 1
            note = self._note._replace(number=number)
            # A coordinator that does not answer is noticed by JAX: `multihost.watched`.
            with contextlib.suppress(jax.errors.JaxRuntimeError):
                text = json.dumps(note)
                self._client.key_value_set(f"{_FOLDER}{index}", text, allow_overwrite=True)
                if index == 0:
                    self._judge(judge)
                for _, verdict in self._client.key_value_dir_get(_VERDICT):
                    self._end(verdict, index)

    def _judge(self, judge: Judge) -> None:
        now = time.monotonic()
        for key, text in self._client.key_value_dir_get(_FOLDER):
            judge.hear(int(key.rpartition("/")[2]), Note(*json.loads(text)), now)
        if (verdict := judge.verdict(now)) is not None:
            self._client.key_value_set(f"{_VERDICT}/0", verdict, allow_overwrite=True)
        elif (line := judge.line(now)) is not None:
            self._warn(line)

    def _end(self, verdict: str, index: int) -> None:
        """End this process by a verdict, but for one that ends by an error of its own."""
        if index == 0:
            time.sleep(3 * BEAT)  # the others read the verdict from this process
        fault = self._note.fault
        if fault is None or multihost.BROKEN.match(fault):
            multihost.end(verdict)


_FOREVER = 2**31 - 1  # milliseconds


def _kind(error: Exception) -> str:
    return "" if isinstance(error, ValueError | OSError) else f"{type(error).__name__}: "
