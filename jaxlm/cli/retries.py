"""`jaxlm train --retries N`: a process that starts the run again where it crashed or lost a peer.

It trains nothing itself, so that no crash of the run ends it. A mistake, a loss that is not finite
and a signal end it with the run's exit code; so do N failures in a row without a new checkpoint.

With JAXLM_DISTRIBUTED=HOST:PORT/COUNT/INDEX every host runs the same command. Their wrappers meet
at HOST:PORT+1, where that of index 0 listens, before every start: hosts that have not come `REJOIN`
seconds after the first one are left out, and the plan's `data` or `fsdp` shrinks with them.
"""

import dataclasses
import json
import pathlib
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from types import FrameType
from typing import NamedTuple

from jaxlm.data import kinds
from jaxlm.parallel import multihost
from jaxlm.parallel.plan import Plan
from jaxlm.train.run import checkpoint
from jaxlm.train.run import run as runs
from jaxlm.train.run.run import Run

HELP = (
    "--retries N: start again where it crashed or lost a process, at most N times in a row without "
    "a new checkpoint"
)
# Seconds that the wrappers of other hosts are waited for, once one has come.
REJOIN = 60.0
# Signals that end a run with everything saved: nobody wants another start.
CAUGHT = (signal.SIGTERM, signal.SIGINT)
# Seconds before the first new start; twice as many after each further failure, up to the last.
BACKOFF, LONGEST = 1.0, 60.0


class Part(NamedTuple):
    """The part of this host in a start: JAXLM_DISTRIBUTED (None: alone) and the plan's changes, as
    arguments."""

    distributed: str | None
    arguments: list[str]


def option(args: Sequence[str]) -> tuple[list[str], int | None]:
    """(the arguments without `--retries N`, N if it is given). Raises: ValueError for no number."""
    args = list(args)
    at = next((i for i, arg in enumerate(args) if arg.split("=")[0] == "--retries"), None)
    if at is None:
        return args, None
    _, given, value = args[at].partition("=")
    rest = args[at + 1 :] if given else args[at + 2 :]
    value = value if given else "".join(args[at + 1 : at + 2])
    if not value.isdecimal() or not int(value):
        raise ValueError(f"--retries: {value!r} given; it must be a whole number of at least 1")
    return args[:at] + rest, int(value)


def train(run: Run, args: Sequence[str], limit: int, environ: Mapping[str, str]) -> int:
    """The exit code of `jaxlm train ARGS`, which is started again after at most `limit` failures in
    a row without a new checkpoint. run: the Run of these arguments."""
    folder = runs.folder(run) / "checkpoints"
    failed, wait, last = 0, BACKOFF, _last(folder)
    with Meeting(run, environ) as meeting:
        while True:
            part = meeting.part()
            code, stopped = _run([*args, *part.arguments], environ, part.distributed)
            if stopped or not again(code):
                return code
            reached = _last(folder)
            if reached > last:
                failed, wait, last = 0, BACKOFF, reached
            failed += 1
            reason = f"{words(code)} after the checkpoint of step {reached}"
            if failed > limit:
                _say(f"{reason}; given up after {limit} retries without a new checkpoint")
                return code if code > 0 else 128 - code
            _say(f"{reason}; retry {failed} of {limit} in {wait:g} s")
            time.sleep(wait)
            wait = min(2 * wait, LONGEST)


def again(code: int) -> bool:
    """Whether a run that ended so may go on by itself: it crashed, was killed or lost a peer."""
    return code in (1, multihost.LOST) or (code < 0 and -code not in CAUGHT)


def words(code: int) -> str:
    """An exit code in words."""
    if code < 0:
        return f"the run was ended by {signal.Signals(-code).name}"
    return "the run lost a process" if code == multihost.LOST else f"the run crashed ({code})"


def _say(text: str) -> None:
    print(f"jaxlm: {text}", file=sys.stderr, flush=True)


def _last(folder: pathlib.Path) -> int:
    return max(checkpoint.steps(folder), default=0)


def _run(
    args: Sequence[str], environ: Mapping[str, str], distributed: str | None
) -> tuple[int, bool]:
    """(exit code of `jaxlm train ARGS`, whether a signal to this process ended it)."""
    peer = {} if distributed is None else {"JAXLM_DISTRIBUTED": distributed}
    command = [sys.executable, "-m", "jaxlm", "train", *args]
    # in a group of its own, so that a terminal's Ctrl-C reaches it once
    process = subprocess.Popen(command, env={**environ, **peer}, process_group=0)
    arrived: list[int] = []

    def pass_on(number: int, frame: FrameType | None) -> None:
        arrived.append(number)
        process.send_signal(number)

    before = {number: signal.signal(number, pass_on) for number in CAUGHT}
    try:
        return process.wait(), bool(arrived)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


# --- Which hosts take part -------------------------------------------------------------------


class Meeting:
    """The agreement of the wrappers of all hosts on who takes part in the next start, a context."""

    def __init__(self, run: Run, environ: Mapping[str, str]) -> None:
        self._run, self._value = run, environ.get("JAXLM_DISTRIBUTED")
        self._listener: socket.socket | None = None
        if self._value is None or self._value == "cluster":
            return  # alone, or JAX finds the others by itself
        self._peer = multihost.peer(self._value)
        if self._peer.index == 0:
            address = ("", self._peer.port + 1)
            self._listener = socket.create_server(address, backlog=self._peer.count)

    def __enter__(self) -> "Meeting":
        return self

    def __exit__(self, *_: object) -> None:
        if self._listener is not None:
            self._listener.close()

    def part(self) -> Part:
        """The part of this host in the next start; returns once all know theirs."""
        if self._value is None or self._value == "cluster":
            return Part(None, [])
        return self._ask() if self._listener is None else self._answer(self._listener)

    def _ask(self) -> Part:
        """The answer of index 0; where this host was left out, that to the next start. Raises:
        OSError if nobody has listened for `REJOIN` seconds."""
        peer, heard = self._peer, time.monotonic()
        while True:
            try:
                with socket.create_connection((peer.host, peer.port + 1), REJOIN) as line:
                    line.settimeout(None)
                    line.sendall(f"{peer.index}\n".encode())
                    with line.makefile(encoding="utf-8") as file:
                        if answer := file.readline():
                            return Part(*json.loads(answer))
                heard = time.monotonic()
            except OSError as error:
                if time.monotonic() - heard > REJOIN:
                    raise OSError(
                        f"{peer.host}:{peer.port + 1}: the host of process 0 does not answer "
                        f"({error}); the run has ended there, or it is lost"
                    ) from error
            time.sleep(BACKOFF)

    def _answer(self, listener: socket.socket) -> Part:
        """Wait for the others, tell each its part, and return that of index 0."""
        peer, lines = self._peer, dict[int, socket.socket]()
        end = time.monotonic() + REJOIN
        while len(lines) < peer.count - 1 and (left := end - time.monotonic()) > 0:
            listener.settimeout(left)
            try:
                line, _ = listener.accept()
                line.settimeout(BACKOFF)
                lines[int(line.makefile().readline())] = line
            except (OSError, ValueError):
                continue
        count, plan = fewer(self._run, peer.count, 1 + len(lines))
        if count < peer.count:
            _say(f"going on with {count} of {peer.count} processes, as {plan}")
        sizes = ("data", "fsdp", "zero")
        arguments = [x for name in sizes for x in (f"--plan.{name}", str(getattr(plan, name)))]
        for rank, index in enumerate(sorted(lines), start=1):
            if rank < count:
                part = Part(f"{peer.host}:{peer.port}/{count}/{rank}", arguments)
                lines[index].sendall((json.dumps(part) + "\n").encode())
            lines[index].close()  # one that is left out asks again
        return Part(f"{peer.host}:{peer.port}/{count}/0", arguments)


def fewer(run: Run, count: int, here: int) -> tuple[int, Plan]:
    """(the most of `here` processes that can go on with a run of `count`, its plan then).

    Raises: ValueError if not even one can.
    """
    for processes in range(here, 0, -1):
        for plan in _smaller(run.plan, count, processes):
            parts = plan.microbatches * plan.row_parts
            rows = [stage.batch for stage in kinds.stages(run.data)]
            even = plan.row_parts % processes == 0 or processes % plan.row_parts == 0
            if even and all(n % parts == 0 for n in rows):
                return processes, plan
    raise ValueError(
        f"plan: {run.plan} given, for {count} processes, of which {here} are left; neither "
        "plan.data nor plan.fsdp shrinks with them"
    )


def _smaller(plan: Plan, count: int, processes: int) -> Iterator[Plan]:
    """The plan on so many of `count` processes, by `data` or else by `fsdp`."""
    if processes == count:
        yield plan
        return
    for name in ("data", "fsdp"):
        size = getattr(plan, name) * processes
        if size % count == 0 and size >= count:
            smaller = {name: size // count}
            zero = {"zero": 0} if name == "data" and size == count else {}
            yield dataclasses.replace(plan, **smaller, **zero)
