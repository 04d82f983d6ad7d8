"""Integrity of checkpoints: a manifest lists every file with size and SHA-256, and some facts."""

import os
import pathlib
from typing import Any

from jaxlm.core import io, json_file

FILE = "manifest.json"


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


def fault(folder: str | os.PathLike[str], parts: tuple[str, ...] = ()) -> str | None:
    """Describes damage to a sealed folder, naming the first bad file; None if all is well.

    parts: names of subfolders; if any are given, only their files are checked.
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
    for name, (size, digest) in listed.items():
        if parts and name.partition("/")[0] not in parts:
            continue
        path = folder / name
        if not path.is_file():
            return f"{name} is missing"
        if path.stat().st_size != size:
            return f"{name} has {path.stat().st_size} bytes, {FILE} says {size}"
        if io.sha256(path) != digest:
            return f"{name} is not what was written (its SHA-256 differs)"
    return None
