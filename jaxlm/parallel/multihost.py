"""Processes that train one run together: joining them, and one line where one of them is lost.

JAX ends the survivors of a lost process by abort(), after a page from C++ that names no file and no
way on. Here what C++ prints goes to a file, and abort() reports in one line who is lost, that
everything up to the last checkpoint is saved, and ends with exit code `LOST`.

A process that is killed closes its connections: a collective of the others fails at once. One that
is stopped, or whose machine is gone, is noticed after `HEARTBEAT` seconds without a sign of life,
and one that is alive and does not move on by `watch.Watch`.
"""

import contextlib
import ctypes
import math
import os
import re
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from typing import NamedTuple

from jaxlm.core import log as logs

# Seconds without a sign of life after which a process counts as lost.
HEARTBEAT = 30
# Seconds after which the coordinator's verdict on who is lost is no longer waited for.
VERDICT = HEARTBEAT + 10
# The exit code of a process whose run lost another one.
LOST = 4
# A lost process that nobody named.
UNKNOWN = "another process"
# The environment variable of `timeout`.
TIMEOUT = "JAXLM_TIMEOUT"

# Beginnings of the errors of a collective: a status of XLA's, and none of our own.
BROKEN = re.compile(
    r"(UNKNOWN|UNAVAILABLE|INTERNAL|ABORTED|CANCELLED|DEADLINE_EXCEEDED|FAILED_PRECONDITION)\b"
)

_ENDING = threading.Lock()


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
    limit = timeout(environ)
    seconds = math.ceil(min(HEARTBEAT, limit))
    import jax

    if value == "cluster":
        jax.distributed.initialize(
            initialization_timeout=math.ceil(limit), heartbeat_timeout_seconds=seconds
        )
        return None
    one = peer(value)
    jax.distributed.initialize(
        f"{one.host}:{one.port}",
        one.count,
        one.index,
        initialization_timeout=math.ceil(limit),
        heartbeat_timeout_seconds=seconds,
    )
    return one.count


class Peer(NamedTuple):
    """A process of a run: where number 0 listens, their number, and which this is."""

    host: str
    port: int
    count: int
    index: int


def peer(value: str) -> Peer:
    """The Peer of HOST:PORT/COUNT/INDEX. Raises: ValueError for any other value."""
    address, *numbers = value.split("/")
    host, _, port = address.rpartition(":")
    if len(numbers) != 2 or not host or not all(n.isdecimal() for n in (port, *numbers)):
        raise ValueError(
            f"JAXLM_DISTRIBUTED: {value!r} given; `cluster` or HOST:PORT/COUNT/INDEX is needed"
        )
    count, index = map(int, numbers)
    if index >= count:
        raise ValueError(f"JAXLM_DISTRIBUTED: process {index} of {count} given; they count from 0")
    return Peer(host, int(port), count, index)


def timeout(environ: dict[str, str]) -> float:
    """Seconds that a process may take to join the others, or from one step to the next, by
    JAXLM_TIMEOUT; 600 where it is not set. Raises: ValueError for less than 3, or no number."""
    value = environ.get(TIMEOUT, "600")
    try:
        seconds = float(value)
    except ValueError:
        seconds = math.nan
    if not 3 <= seconds <= 10**6:
        raise ValueError(f"{TIMEOUT}: {value!r} given; it must be seconds, at least 3")
    return seconds


@contextlib.contextmanager
def watched(environ: dict[str, str]) -> Iterator[None]:
    """Within a `with`, a lost process ends this one with one line and exit code `LOST`. Where
    JAXLM_DISTRIBUTED is not set nothing changes."""
    if "JAXLM_DISTRIBUTED" not in environ:
        yield
        return
    log, together = _apart()
    plain = _on_abort(lambda: _end(log))
    try:
        yield
    except Exception as error:
        if BROKEN.match(str(error)):
            # tensorstore prints a traceback for each write of a checkpoint that the error cut off
            sys.excepthook = lambda *_: None
            # the coordinator's verdict says who it is; it comes as an abort
            time.sleep(VERDICT)
            _end(log)
        # as this process exits JAX waits for the others, and aborts when they end
        code = 2 if isinstance(error, ValueError | OSError | ImportError) else 1
        _on_abort(lambda: os._exit(code))
        raise
    plain()
    together()


def _apart() -> tuple[str, Callable[[], None]]:
    """Leaves the process' stderr to Python alone: (the file that gets what C++ prints there from
    then on, a function that brings both together again)."""
    before = sys.stderr
    before.flush()
    own = os.fdopen(os.dup(2), "w", buffering=1, encoding="utf-8", errors="backslashreplace")
    number, log = tempfile.mkstemp(prefix=f"jaxlm-{os.getpid()}-", suffix=".log")
    os.dup2(number, 2)
    os.close(number)
    sys.stderr = own

    def together() -> None:
        sys.stderr = before
        own.flush()
        os.dup2(own.fileno(), 2)
        with contextlib.suppress(OSError):
            if not os.path.getsize(log):
                os.unlink(log)

    return log, together


def _on_abort(act: Callable[[], None]) -> Callable[[], None]:
    """Has a function called instead of dying from abort(), in whatever thread it comes; returns one
    that undoes it."""
    libc = ctypes.CDLL(None)
    libc.signal.restype = ctypes.c_void_p
    # signal.signal would only note it, and abort() goes on to kill the process
    call = ctypes.CFUNCTYPE(None, ctypes.c_int)(lambda number: act())
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(call))  # C keeps it
    before = libc.signal(signal.SIGABRT, call)
    return lambda: libc.signal(signal.SIGABRT, ctypes.c_void_p(before))


def end(reason: str) -> None:
    """End this process, which has lost others, with a line that begins with the reason."""
    if not _ENDING.acquire(blocking=False):
        return  # another thread does it
    print(
        f"jaxlm: {reason}, so this one ends too; all up to the last checkpoint is saved, and the "
        f"same command on every process resumes: {logs.command()}",
        file=sys.stderr,
        flush=True,
    )
    sys.stdout.flush()
    os._exit(LOST)


def _end(log: str) -> None:
    """`end`, by what C++ printed."""
    with open(log, encoding="utf-8", errors="replace") as file:
        report = file.read()
    if "CoordinationService/RegisterTask" in report:
        limit = timeout(dict(os.environ))
        end(f"not all processes of this run joined within {limit:g} s ({TIMEOUT}; details: {log})")
    if _who(report) == UNKNOWN and "gloo::" in report:
        # gloo ends a process whose peer was cut off within a collective: another thread learns who
        time.sleep(VERDICT)
        with open(log, encoding="utf-8", errors="replace") as file:
            report = file.read()
    end(f"{_who(report)} of this run is lost (details: {log})")


def _who(report: str) -> str:
    """The lost processes, by the coordinator's report."""
    named = re.findall(r"stopped sending heartbeats\):\n([\d, \n]*\d)", report)
    named += re.findall(r"task:(\d+)[^\n]*(?:heartbeat|unhealthy|disconnect)", report)
    numbers = sorted({int(n) for text in named for n in re.findall(r"\d+", text)})
    if numbers:
        return f"process {', '.join(map(str, numbers))}"
    # only the coordinator's own end closes the connection to it, or leaves its questions open
    gone = re.search("PollForError|CoordinationService/Heartbeat", report)
    return "process 0, the coordinator," if gone else UNKNOWN
