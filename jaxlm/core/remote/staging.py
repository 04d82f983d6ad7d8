"""Run directories in a store, by way of a local copy in which all work is done.

    gs://bucket/runs/first  is worked on in  ~/.cache/jaxlm/remote/write/gs/bucket/runs/first
                            and read in      ~/.cache/jaxlm/remote/read/gs/bucket/runs/first

The store is the truth: `refresh` makes the copy hold what the store has, apart from the large files
of checkpoints, which `complete` brings when they are wanted. Who trains writes each file to both,
first to the copy. A checkpoint is in the store once its manifest is: it is written last, and
removed first.
"""

import os
import pathlib
import re

from jaxlm.core import cache
from jaxlm.core.remote import objects

MANIFEST = "manifest.json"
LOCK = "lock"
# Files that no command reads: they are written to the store, and stay there.
UNREAD = re.compile(r"samples/|profile/|events\.|loss\.png|lock$")
# Files that are the copy's alone: its lock, and what wandb has not sent yet.
OWN = re.compile(r"lock$|wandb/")


def root() -> pathlib.Path:
    """The folder of all copies."""
    return (cache.folder() / "remote").absolute()


def local(place: str | os.PathLike[str]) -> pathlib.Path:
    """The path of a run directory that is read: of a URL its copy, brought up to date.

    Raises: ValueError for a checkpoint on the hub, which is no run; StoreError.
    """
    address = objects.url(place)
    if address is None:
        return pathlib.Path(place).expanduser()
    if address.startswith("hf://"):
        name = address.rpartition("/")[2].partition("@")[0]
        raise ValueError(
            f"{address} is a checkpoint on the Hugging Face hub, and a run directory is needed: "
            f"`jaxlm import {address} runs/{name}` makes one"
        )
    folder = copy_of(address, "read")
    refresh(folder)
    return folder


def copy_of(address: str, role: str) -> pathlib.Path:
    """The folder that is the copy of a URL: a role's own, as the copy that a run writes to is no
    other process' to change."""
    scheme, _, path = address.partition("://")
    return root() / role / scheme / path


def origin(path: pathlib.Path) -> str | None:
    """The URL that a path is the copy of, None for any other path."""
    try:
        _, scheme, *parts = path.relative_to(root()).parts
    except ValueError:
        return None
    return f"{scheme}://{'/'.join(parts)}"


def named(text: str) -> str:
    """A text for people: with URLs in place of the paths of copies."""
    return re.sub(rf"{re.escape(str(root()))}/[^/\s]+/([a-z0-9+.-]+)/", r"\1://", text)


def refresh(folder: pathlib.Path) -> None:
    """Make a copy hold what the store has: small files are fetched, those of checkpoints that are
    no longer there are removed. Of any other folder nothing changes. Raises: StoreError."""
    address = origin(folder)
    if address is None:
        return
    there = objects.listing(address)
    steps = _committed(there)
    wanted = [name for name in there if _small(name, steps)]
    objects.each(lambda name: objects.download(f"{address}/{name}", folder / name), wanted)
    for path in sorted(folder.rglob("*"), reverse=True):
        name = path.relative_to(folder).as_posix()
        if path.is_dir():
            if name.startswith("checkpoints/") and not any(path.iterdir()):
                path.rmdir()
        elif not (OWN.match(name) or name in wanted or _payload(name, steps)):
            path.unlink(missing_ok=True)


def _committed(there: dict[str, int]) -> set[str]:
    """The checkpoints of a listing that are whole, by the names of their folders."""
    found = (re.fullmatch(rf"checkpoints/(\d+)/{MANIFEST}", name) for name in there)
    return {match[1] for match in found if match}


def _small(name: str, steps: set[str]) -> bool:
    """Whether `refresh` fetches a file."""
    parts = name.split("/")
    if parts[0] == "checkpoints":
        return len(parts) == 3 and parts[1] in steps
    return UNREAD.match(name) is None


def _payload(name: str, steps: set[str]) -> bool:
    """Whether a file is of the arrays of a checkpoint that the store has."""
    parts = name.split("/")
    return parts[0] == "checkpoints" and len(parts) > 3 and parts[1] in steps


def complete(folder: pathlib.Path, sizes: dict[str, int]) -> None:
    """Fetch those of a checkpoint's files that are not here, or not with their size. Of a folder
    that is no copy nothing changes. Raises: StoreError."""
    if origin(folder) is not None:
        absent = [name for name, size in sizes.items() if _size(folder / name) != size]
        objects.each(lambda name: fetch(folder / name), absent)


def fetch(path: pathlib.Path) -> bool:
    """Fetch one file of a copy once more; whether it is the copy of anything that is there."""
    address = origin(path)
    if address is None:
        return False
    try:
        objects.download(address, path)
    except objects.StoreError as error:
        if not isinstance(error.__cause__, FileNotFoundError):
            raise
        path.unlink(missing_ok=True)
    return True


def _size(path: pathlib.Path) -> int | None:
    return path.stat().st_size if path.is_file() else None


def publish(path: pathlib.Path) -> None:
    """Write a file of a copy to the store too. Of any other file, and of a checkpoint's, which
    its own module writes, nothing changes. Raises: StoreError."""
    address = origin(path)
    if address is not None and "/checkpoints/" not in address:
        objects.upload(path, address)


def withdraw(folder: pathlib.Path) -> None:
    """Remove a checkpoint from the store, its manifest first; the copy stays. Of any other folder
    nothing changes. Raises: StoreError."""
    address = origin(folder)
    if address is not None:
        objects.remove(address, [MANIFEST])
        objects.remove(address, objects.listing(address))


def set_aside(folder: pathlib.Path, target: pathlib.Path) -> None:
    """Give a checkpoint in the store another name, as a local folder is renamed. Of any other
    folder nothing changes. Raises: StoreError."""
    address, there = origin(folder), origin(target)
    if address is not None and there is not None:
        objects.copy(address, there, objects.listing(address))
        withdraw(folder)


def sweep(folder: pathlib.Path) -> None:
    """Remove from the store what a killed process left of checkpoints that were never complete, or
    half-removed. folder: the copy's `checkpoints`. Raises: StoreError."""
    address = origin(folder)
    if address is None:
        return
    there = objects.listing(address)
    whole = {name.split("/")[0] for name in there if name.endswith(f"/{MANIFEST}")}
    objects.remove(address, [n for n in there if n.split("/")[0] not in whole])
