"""The lock of a run directory in a store: an object that its owner renews.

A store drops no lock when a process dies. So the owner writes the object again every `RENEWAL`
seconds, and whoever finds one watches it: renewed, it is held; unchanged for `LEASE` seconds, its
owner is dead, or cannot reach the store. No clock is compared with another machine's. A process of
this machine that no longer runs is known at once.

An owner that was stopped for longer than that finds another's name when it next commits, and ends.
Between its last look and that commit lies a moment; no store that fsspec reaches closes it.
"""

import contextlib
import json
import os
import pathlib
import platform
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from typing import Any

from jaxlm.core import io
from jaxlm.core.remote import objects, staging

# Seconds from one sign of life to the next, and without any after which the owner counts as dead.
RENEWAL, LEASE = 20.0, 90.0
# Seconds from one look at another's lock to the next.
WATCH = 2.0


@contextlib.contextmanager
def held(folder: pathlib.Path) -> Iterator[Callable[[], None]]:
    """Hold the lock of the URL that a folder is the copy of, for the duration of a `with`. Yields a
    function that raises StoreError if another process has taken the lock meanwhile. Of any other
    folder there is no such lock: the function does nothing.

    Raises: BlockingIOError naming the process that has it, within RENEWAL seconds and a look.
    """
    address = staging.origin(folder)
    if address is None:
        yield lambda: None
        return
    lock, owner = f"{address}/{staging.LOCK}", uuid.uuid4().hex
    mine = {
        "owner": owner,
        "host": platform.node(),
        "processes": _processes(),
        "process": os.getpid(),
        "started": io.start_ticks(os.getpid()),
    }
    _acquire(address, lock, mine)

    def confirm() -> None:
        if (now := _read(lock)).get("owner") != owner:
            raise objects.StoreError(
                f"{address} was taken over by process {_who(now)} while this one gave no sign of "
                f"life for {LEASE:.0f} seconds; nothing more is written here"
            )

    stop = threading.Event()
    renewing = threading.Thread(target=_renew, args=(lock, mine, stop), daemon=True)
    renewing.start()
    try:
        yield confirm
    finally:
        stop.set()
        renewing.join()
        with contextlib.suppress(OSError):
            if _read(lock).get("owner") == owner:
                objects.remove(address, [staging.LOCK])


def _acquire(address: str, lock: str, mine: dict[str, Any]) -> None:
    """Raises: BlockingIOError if another process holds the lock; StoreError."""
    seen, since = None, time.monotonic()
    while not objects.create(lock, _text(mine)):
        now = _read(lock)
        if seen is not None and now and now != seen:
            raise BlockingIOError(
                f"{address} is in use by process {_who(now)} (its object `lock` was just "
                "renewed); wait for it, or give this run another name"
            )
        if _dead(now) or time.monotonic() - since > LEASE:
            objects.remove(address, [staging.LOCK])
            continue
        seen = now
        time.sleep(WATCH)


def _dead(record: dict[str, Any]) -> bool:
    """Whether the owner was a process of this machine that no longer runs."""
    if not record.get("processes") or record["processes"] != _processes():
        return False
    return not io.alive(record["process"], record["started"])


def _processes() -> str:
    """Names what process ids are of: this start of the machine and, among its containers, this one;
    "" where the system does not tell."""
    try:
        boot = pathlib.Path("/proc/sys/kernel/random/boot_id").read_text("utf-8").strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return ""


def _renew(lock: str, mine: dict[str, Any], stop: threading.Event) -> None:
    """Until stopped or taken over, write the lock again; what the store refuses is tried again."""
    count = 0
    while not stop.wait(RENEWAL):
        count += 1
        with contextlib.suppress(OSError):
            if _read(lock).get("owner") != mine["owner"]:
                return
            objects.write(lock, _text(mine | {"renewed": count}))


def _read(lock: str) -> dict[str, Any]:
    """The record in a lock; {} if there is none or it is no record."""
    with contextlib.suppress(ValueError):
        record = json.loads(objects.read(lock) or b"{}")
        if isinstance(record, dict):
            return record
    return {}


def _text(record: dict[str, Any]) -> bytes:
    return json.dumps(record).encode()


def _who(record: dict[str, Any]) -> str:
    return f"{record.get('process', '?')} on {record.get('host', '?')}"
