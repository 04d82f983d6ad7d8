"""Integrity of checkpoints: a manifest lists every file with size and SHA-256, and some facts.

Of several processes each reads, from a store, the files with the parts of arrays it holds.
"""

import functools
import itertools
import os
import pathlib
import re
import time
from collections.abc import Callable
from typing import Any

import jax

from jaxlm.core import io, json_file, param
from jaxlm.core.remote import objects, staging

FILE = "manifest.json"
# Seconds from one look for another process' manifest to the next.
WATCH = 0.2


def seal(folder: str | os.PathLike[str], facts: dict[str, Any]) -> None:
    """Put every file of a folder on the disk, then write the manifest that vouches for those in
    its subfolders; files next to these are the writer's own notes, rewritten when it renames.

    Raises: io.WriteError on a full disk.
    """
    folder = pathlib.Path(folder)
    listed = {
        path.relative_to(folder).as_posix(): [path.stat().st_size, io.sha256(path, sync=True)]
        for path in io.files(folder)
        if path.parent != folder
    }
    for path in folder.rglob("*"):
        if path.is_dir():
            io.sync_folder(path)
    io.write(folder / FILE, json_file.sealed({"facts": facts, "files": listed}))


def commit(
    prepared: str | os.PathLike[str], target: str | os.PathLike[str], index: int, count: int
) -> None:
    """Write a sealed folder to the store that `target`, its name once it is renamed, is the copy
    of; where it is none nothing changes. The manifest is written last: with it the folder is there.

    index, count: which of how many processes this is. Each has the arrays' parts of its own devices
    in its own folder. The first waits for the manifests of the others, and writes one of all files.

    Raises: StoreError.
    """
    prepared, address = pathlib.Path(prepared), staging.origin(pathlib.Path(target))
    if address is None:
        return
    names = [path.relative_to(prepared).as_posix() for path in io.files(prepared)]
    names.remove(FILE)
    if index:
        names = [n for n in names if not NOTES.match(n.rpartition("/")[2])]
    else:
        objects.remove(address, [FILE])  # of a damaged one that stands there
    objects.each(lambda name: objects.upload(prepared / name, f"{address}/{name}"), names)
    if index:
        manifest = json_file.read_object(prepared / FILE)
        own = {n: x for n, x in manifest["files"].items() if n in names}
        text = json_file.sealed(manifest | {"files": own})
        objects.write(f"{address}/{_part(index)}", text.encode())
        return
    parts = [_part(number) for number in range(1, count)]
    if parts:
        manifest = json_file.read_object(prepared / FILE)
        for part in parts:
            manifest["files"] |= _arrived(f"{address}/{part}")["files"]
        io.write(prepared / FILE, json_file.sealed(manifest))
    objects.upload(prepared / FILE, f"{address}/{FILE}")
    objects.remove(address, parts)


# Files about arrays, which every process writes; the first's are the store's.
NOTES = re.compile(r"[_.].*|commit_success\.txt")


def _part(index: int) -> str:
    return f"manifest.{index}.json"


def _arrived(address: str) -> dict[str, Any]:
    """The manifest of another process, waited for: where that one is lost, this one is ended."""
    while (content := objects.read(address)) is None:
        time.sleep(WATCH)
    return json_file.parse(content, address)


def fetch(
    folder: str | os.PathLike[str], parts: tuple[str, ...], reads: Callable[[str], bool]
) -> None:
    """Fetch the files of some subfolders of a sealed folder in a store that are not here: those
    that `reads` names. Raises: StoreError; json_file.Damaged."""
    folder = pathlib.Path(folder)
    if staging.origin(folder) is not None:
        listed = json_file.read_object(folder / FILE)["files"]
        wanted = {n: size for n, (size, _) in listed.items() if n.partition("/")[0] in parts}
        staging.complete(folder, {n: size for n, size in wanted.items() if reads(n)})


def restate(folder: str | os.PathLike[str], facts: dict[str, Any]) -> None:
    """Replace facts of a sealed folder, by name; its files stay as they are. Raises:
    json_file.Damaged for a manifest that is not whole; io.WriteError."""
    file = pathlib.Path(folder, FILE)
    manifest = json_file.read_object(file)
    io.write(file, json_file.sealed(manifest | {"facts": manifest["facts"] | facts}))


def facts(folder: str | os.PathLike[str]) -> dict[str, Any] | None:
    """Facts recorded when a folder was sealed; None if its manifest cannot be read."""
    try:
        return json_file.read_object(pathlib.Path(folder, FILE))["facts"]
    except (OSError, ValueError, TypeError, KeyError):
        return None


def fault(
    folder: str | os.PathLike[str],
    parts: tuple[str, ...] = (),
    reads: Callable[[str], bool] = lambda name: True,
) -> str | None:
    """Describes damage to a sealed folder, naming the first bad file; None if all is well.

    parts: names of subfolders; if any are given, only their files are checked. reads: whether a
    file is checked, by its name. Those of a folder in a store are fetched first, and once more
    where the local copy of one is damaged.
    """
    folder = pathlib.Path(folder)
    try:
        listed = json_file.read_object(folder / FILE)["files"]
    except FileNotFoundError:
        return f"{FILE} is missing: it was never completed"
    except json_file.Damaged as error:
        return f"{FILE} is damaged: {error}"
    except (OSError, KeyError) as error:
        return f"{FILE} is not a manifest ({error!r})"
    listed = {
        name: written
        for name, written in listed.items()
        if (not parts or name.partition("/")[0] in parts) and reads(name)
    }
    staging.complete(folder, {name: size for name, (size, _) in listed.items()})
    for name, written in listed.items():
        damage = _damage(folder, name, *written)
        if damage is not None and staging.fetch(folder / name):
            damage = _damage(folder, name, *written)
        if damage is not None:
            return damage
    return None


def _damage(folder: pathlib.Path, name: str, size: int, digest: str) -> str | None:
    """Describes damage to a file of a sealed folder; None if it is what was written."""
    path = folder / name
    if not path.is_file():
        return f"{name} is missing"
    if path.stat().st_size != size:
        return f"{name} has {path.stat().st_size} bytes, {FILE} says {size}"
    if io.sha256(path) != digest:
        return f"{name} is not what was written (its SHA-256 differs)"
    return None


# A part of an array as a file: of item params, array embed.table, the one at row 0, column 1 of its
# grid. Several processes write such; of one process a file holds what parts there are.
CHUNK = re.compile(r"([^/]+)/([^/]+)/(\d+(?:\.\d+)*)")


def is_part(name: str) -> bool:
    """Whether a file of a checkpoint is a part of an array, by its name."""
    return CHUNK.fullmatch(name) is not None


def read_by_this_process(
    place: str | os.PathLike[str], parts: dict[str, Any]
) -> Callable[[str], bool]:
    """Whether a file of a checkpoint has elements of these abstract items that are on this process'
    devices. Files that are no known array's count as such."""
    arrays = {
        (item, param.path_of(keys).replace("/", ".")): leaf
        for item, tree in parts.items()
        for keys, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]
    }

    @functools.cache
    def grid(item: str, name: str) -> set[str] | None:
        sharding = getattr(arrays.get((item, name)), "sharding", None)
        if sharding is None:
            return None
        sizes = json_file.read_object(pathlib.Path(place, item, name, ".zarray"))["chunks"]
        shape, held = arrays[item, name].shape, set()
        for index in sharding.addressable_devices_indices_map(shape).values():
            ends = [part.indices(n)[:2] for part, n in zip(index, shape, strict=True)]
            ranges = [range(a // c, -(-b // c)) for (a, b), c in zip(ends, sizes, strict=True)]
            held |= {".".join(map(str, at)) or "0" for at in itertools.product(*ranges)}
        return held

    def read(name: str) -> bool:
        match = CHUNK.fullmatch(name)
        held = grid(match[1], match[2]) if match else None
        return match is None or held is None or match[3] in held

    return read
