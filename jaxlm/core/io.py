"""Files that are whole or absent: atomic writes, checksums, a lock, and what a full disk says."""

import contextlib
import hashlib
import os
import pathlib
import shutil
from collections.abc import Iterator

Path = pathlib.Path


class WriteError(OSError):
    """A file could not be written. The message names the file, the reason and the free bytes."""


def refused(path: Path, reason: object) -> WriteError:
    """The error for a write that failed: names the path, the reason and the free bytes there."""
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
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        sync_folder(path.parent)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise refused(path, error.strerror or error) from error


def make_folder(path: Path) -> None:
    """Make a folder and its parents. Raises: WriteError naming the path and the reason."""
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
