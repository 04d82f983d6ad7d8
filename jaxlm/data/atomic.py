"""Directories that appear under their name whole or not at all."""

import contextlib
import os
import pathlib
import platform
import shutil
import uuid
from collections.abc import Generator

from jaxlm.core import io


@contextlib.contextmanager
def folder(target: pathlib.Path) -> Generator[pathlib.Path, None, None]:
    """A temporary directory beside `target` that becomes `target` when the block ends well.

    Its files are on the disk before the name says that they are there. An exception removes it; a
    kill leaves it, hidden, for `sweep`.

    Raises: FileExistsError, or another OSError from the rename, if the target came to be meanwhile.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f"{_start(target)}{os.getpid()}.{uuid.uuid4().hex}")
    temporary.mkdir()
    try:
        yield temporary
        _flush(temporary)
        os.rename(temporary, target)
        io.sync_folder(target.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def discard(target: pathlib.Path) -> None:
    """Remove a directory that is damaged: first its name, so that nobody reads half of it. Another
    process may do the same at the same time."""
    gone = target.with_name(f"{_start(target)}{os.getpid()}.{uuid.uuid4().hex}")
    with contextlib.suppress(FileNotFoundError):
        target.rename(gone)
    shutil.rmtree(gone, ignore_errors=True)


def sweep(target: pathlib.Path) -> None:
    """Remove what killed processes of this machine left of `target`; live ones are let be."""
    start = _start(target)
    for path in target.parent.glob(f".{target.name}.*"):
        owner = path.name.removeprefix(start).split(".")[0]
        if path.name.startswith(start) and owner.isdecimal() and not _alive(int(owner)):
            shutil.rmtree(path, ignore_errors=True)


def _start(target: pathlib.Path) -> str:
    # The machine's name: on a shared disk another machine's process ids mean nothing here.
    return f".{target.name}.{platform.node()}."


def _alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _flush(where: pathlib.Path) -> None:
    for path in where.rglob("*"):
        if path.is_dir():
            io.sync_folder(path)
        else:
            with path.open("rb") as file:
                os.fsync(file.fileno())
    io.sync_folder(where)
