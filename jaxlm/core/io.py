"""Files that are whole or absent: atomic writes, checksums, a lock, and errors of a full disk.

A file of a run directory in a store (`jaxlm.core.remote`) is written to its local copy and then to
the store.
"""

import contextlib
import hashlib
import os
import pathlib
import platform
import re
import shutil
import uuid
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO

from jaxlm.core.remote import objects, staging

Path = pathlib.Path


class WriteError(OSError):
    """A file could not be written. The message names the file, the reason and the free bytes."""


def refused(path: Path, reason: object) -> WriteError:
    """The error for a write that failed: names the path, the reason and the free bytes there."""
    if (address := staging.origin(path)) is not None and isinstance(reason, objects.StoreError):
        return WriteError(f"cannot write {address}: {reason}")
    folder = path
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    return WriteError(f"cannot write {path}: {reason}; {free:,} bytes are free on its file system")


def write(path: Path, text: str) -> None:
    """Write a text so that a crash at any moment leaves the old file or the new one, on disk.

    Raises: WriteError naming the path and the free bytes; the old file is then untouched.
    """
    write_bytes(path, text.encode("utf-8"))


def write_bytes(path: Path, content: bytes) -> None:
    """`write` of bytes. Raises: as `write`."""
    put(path, lambda file: file.write(content))


def put(path: Path, fill: Callable[[BinaryIO], Any]) -> None:
    """Write a file as `write` does, with what fill(file) writes. Raises: as `write`; ValueError for
    a URL, of which pathlib would make a folder `gs:` here."""
    objects.refuse(path)
    temporary = unfinished(path)
    try:
        sweep(path.parent)
        with temporary.open("wb") as file, held(temporary):
            fill(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        sync_folder(path.parent)
        staging.publish(path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise refused(path, error.strerror or error) from error


# --- Unfinished files and folders -------------------------------------------------------------


def unfinished(target: Path) -> Path:
    """A hidden name next to `target`, unique to this process, under which to prepare it."""
    owner = f"{platform.node()}.{os.getpid()}.{start_ticks(os.getpid())}"
    return target.with_name(f".{target.name}.{owner}.{uuid.uuid4().hex}.part")


@contextlib.contextmanager
def held(path: Path) -> Iterator[None]:
    """Lock a file or folder for the duration of a `with`, so that `sweep` lets it be. The system
    drops the lock if the process dies; a file system without locks does without.

    Raises: BlockingIOError where another process has it.
    """
    import fcntl

    handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise
        except OSError:
            pass  # NFS locks no folders: then the process id alone decides
        yield
    finally:
        os.close(handle)


def sweep(folder: Path) -> None:
    """Remove the unfinished files and folders in a folder whose processes were killed.

    One is left alone if it is of another machine, if its process runs (the same one: a process id
    may be given again), or if it is locked: process ids of another container mean nothing here.
    """
    name = re.compile(
        rf"\..+\.{re.escape(platform.node())}\.(\d+)\.(\d+)\.[0-9a-f]{{32}}\.part", re.DOTALL
    )
    with os.scandir(folder) as entries:
        partial = [(e, name.fullmatch(e.name)) for e in entries if e.name.endswith(".part")]
    for entry, parts in partial:
        if parts is None or alive(int(parts[1]), int(parts[2])):
            continue
        with contextlib.suppress(OSError), held(Path(entry.path)):
            if entry.is_dir(follow_symlinks=False):
                shutil.rmtree(entry.path, ignore_errors=True)
            else:
                os.unlink(entry.path)


def alive(process: int, began: int) -> bool:
    """Whether the process that began then still runs."""
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    now = start_ticks(process)
    return not (now and began) or now == began


def start_ticks(process: int) -> int:
    """Start time of a process in ticks of the system's clock; 0 where it is not available."""
    try:
        fields = Path(f"/proc/{process}/stat").read_text("utf-8", "replace")
        return int(fields.rpartition(")")[2].split()[19])
    except (OSError, IndexError, ValueError):
        return 0


def make_folder(path: Path) -> None:
    """Make a folder and its parents. Raises: WriteError naming the path and the reason; ValueError
    for a URL."""
    objects.refuse(path)
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise refused(path, error.strerror or error) from error


def sync_folder(folder: Path) -> None:
    """Make the folder's entries (renames, new files) survive a power cut."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def sha256(path: Path, sync: bool = False) -> str:
    """The SHA-256 of a file's bytes, in hex; with `sync` its bytes are on disk afterwards."""
    with path.open("rb") as file:
        if sync:
            os.fsync(file.fileno())
        return hashlib.file_digest(file, "sha256").hexdigest()


def files(folder: Path) -> Iterator[Path]:
    """Every file below a folder, in depth, sorted by path."""
    return iter(sorted(p for p in folder.rglob("*") if p.is_file()))


@contextlib.contextmanager
def lock(path: Path) -> Iterator[None]:
    """Hold a lock file for the duration of a `with`. The system drops it if the process dies.

    Raises: BlockingIOError naming the file and the process that holds it.
    """
    import fcntl

    with path.open("a+", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            file.seek(0)
            raise BlockingIOError(
                f"{path.parent} is in use by process {file.read().strip() or '?'} ({path} is "
                "locked); wait for it, or give this run another name"
            ) from error
        file.truncate(0)
        file.write(f"{os.getpid()}\n")
        file.flush()
        yield
