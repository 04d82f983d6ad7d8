"""Directories that appear under their name whole or not at all."""

import contextlib
import os
import pathlib
import shutil
from collections.abc import Generator

from jaxlm.core import io
from jaxlm.core.remote import objects


@contextlib.contextmanager
def folder(target: pathlib.Path) -> Generator[pathlib.Path, None, None]:
    """A temporary directory next to `target`, renamed to `target` when the block ends well.

    Its files are on the disk before it gets that name. An exception removes it; a kill
    leaves it, hidden, and the next one to be made in the same place removes it.

    Raises: FileExistsError, or another OSError from the rename, if the target appeared meanwhile;
    ValueError for a URL.
    """
    objects.refuse(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    io.sweep(target.parent)
    temporary = io.unfinished(target)
    temporary.mkdir()
    try:
        with io.held(temporary):
            yield temporary
            _flush(temporary)
            os.rename(temporary, target)
        io.sync_folder(target.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def discard(target: pathlib.Path) -> None:
    """Remove a directory that is damaged: first its name, so that nobody reads half of it. Another
    process may do the same at the same time."""
    gone = io.unfinished(target)
    with contextlib.suppress(FileNotFoundError):
        target.rename(gone)
    shutil.rmtree(gone, ignore_errors=True)


def _flush(where: pathlib.Path) -> None:
    for path in where.rglob("*"):
        if path.is_dir():
            io.sync_folder(path)
        else:
            with path.open("rb") as file:
                os.fsync(file.fileno())
    io.sync_folder(where)
