"""Processes that train one run together: joining them, and one line where one of them is lost.

JAX ends the survivors of a lost process by abort(), after a page from C++ that names no file and no
way on. Here what C++ prints goes to a file, and abort() reports in one line who is lost, that
everything up to the last checkpoint is saved, and ends with exit code `LOST`.

A process that is killed closes its connections: a collective of the others fails at once. One that
hangs, or whose machine is gone, is noticed after `HEARTBEAT` seconds without a sign of life.
"""

import contextlib
import ctypes
import os
import re
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from typing import IO

from jaxlm.core import log as logs

# Seconds without a sign of life after which a process counts as lost.
HEARTBEAT = 30
# Seconds after which the coordinator's verdict on who is lost is no longer waited for.
VERDICT = HEARTBEAT + 10
# The exit code of a process whose run lost another one.
LOST = 4

# Beginnings of the errors of a collective: a status of XLA's, and none of our own.
_BROKEN = re.compile(
    r"(UNKNOWN|UNAVAILABLE|INTERNAL|ABORTED|CANCELLED|DEADLINE_EXCEEDED|FAILED_PRECONDITION)\b"
)


def join(environ: dict[str, str]) -> int | None:
    """Joins the other processes of this run by JAXLM_DISTRIBUTED; returns their number.

        unset               this process is alone: 1
        cluster             JAX reads it from the TPU pod, SLURM or MPI: None, not known yet
        HOST:PORT/4/0       4 processes, this is number 0; number 0 listens at HOST:PORT

    Call it before JAX's first device call. Raises: ValueError for any other value.
    """
    value = environ.get("JAXLM_DISTRIBUTED")
    if value is None:
        return 1
    import jax

    if value == "cluster":
        jax.distributed.initialize(heartbeat_timeout_seconds=HEARTBEAT)
        return None
    address, *numbers = value.split("/")
    if len(numbers) != 2 or ":" not in address or not all(n.isdecimal() for n in numbers):
        raise ValueError(
            f"JAXLM_DISTRIBUTED: {value!r} given; `cluster` or HOST:PORT/COUNT/INDEX is needed"
        )
    count, index = map(int, numbers)
    if index >= count:
        raise ValueError(f"JAXLM_DISTRIBUTED: process {index} of {count} given; they count from 0")
    jax.distributed.initialize(address, count, index, heartbeat_timeout_seconds=HEARTBEAT)
    return count


@contextlib.contextmanager
def watched(environ: dict[str, str]) -> Iterator[None]:
    """Within a `with`, a lost process ends this one with one line and exit code `LOST`. Where
    JAXLM_DISTRIBUTED is not set nothing changes."""
    if "JAXLM_DISTRIBUTED" not in environ:
        yield
        return
    python, log = _apart()
    with python, log, _on_abort(lambda: _end(python, log)):
        try:
            yield
        except Exception as error:
            if not _BROKEN.match(str(error)):
                raise
            # the coordinator's verdict says who it is; it comes as an abort
            time.sleep(VERDICT)
            _end(python, log)


def _apart() -> tuple[IO[str], IO[str]]:
    """(what Python prints errors on: the process' stderr; a file that gets what C++ prints)."""
    sys.stderr.flush()
    python = os.fdopen(os.dup(2), "w", buffering=1, encoding="utf-8", errors="backslashreplace")
    log = tempfile.NamedTemporaryFile(  # noqa: SIM115  closed by `watched`
        "w+", prefix=f"jaxlm-{os.getpid()}-", suffix=".log", encoding="utf-8", delete=False
    )
    os.dup2(log.fileno(), 2)
    sys.stderr = python
    return python, log


@contextlib.contextmanager
def _on_abort(act: Callable[[], None]) -> Iterator[None]:
    """Call a function instead of dying from abort(), in whatever thread it came."""
    libc = ctypes.CDLL(None)
    handler = ctypes.CFUNCTYPE(None, ctypes.c_int)
    libc.signal.restype = ctypes.c_void_p
    # signal.signal would only note it, and abort() goes on to kill the process
    call = handler(lambda number: act())
    before = libc.signal(signal.SIGABRT, call)
    try:
        yield
    finally:
        libc.signal(signal.SIGABRT, ctypes.c_void_p(before))


def _end(python: IO[str], log: IO[str]) -> None:
    """Say who is lost, and end this process."""
    with open(log.name, encoding="utf-8", errors="replace") as file:
        report = file.read()
    print(
        f"jaxlm: {_who(report)} of this run is lost, so this one ends too; all up to the last "
        "checkpoint is saved, and the same command on every process resumes: "
        f"{logs.command()} (details: {log.name})",
        file=python,
        flush=True,
    )
    sys.stdout.flush()
    os._exit(LOST)


def _who(report: str) -> str:
    """The lost processes, by the coordinator's report."""
    named = re.findall(r"stopped sending heartbeats\):\n([\d, \n]*\d)", report)
    named += re.findall(r"task:(\d+)[^\n]*(?:heartbeat|unhealthy|disconnect)", report)
    numbers = sorted({int(n) for text in named for n in re.findall(r"\d+", text)})
    if numbers:
        return f"process {', '.join(map(str, numbers))}"
    # only the coordinator's own end closes the connection to it
    return "process 0, the coordinator," if "PollForError" in report else "another process"
