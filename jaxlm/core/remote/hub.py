"""Checkpoints on the Hugging Face hub: fetched when one is named, and never otherwise.

hf://org/name            the newest revision
hf://org/name@revision   a branch, a tag or a commit
org/name                 the same as hf://org/name where there is no such file or folder here
"""

import os
import pathlib
import re
from typing import NamedTuple

from jaxlm.core.remote import objects

SCHEME = "hf://"
# What an import reads; other folders of a repository hold other formats of the same weights.
FILES = ["*.json", "*.safetensors", "*.model", "*.txt", "*.jinja", "*.tiktoken"]
ELSEWHERE = ["*/*"]
NAME = re.compile(r"[\w.-]+/[\w.-]+")


class Source(NamedTuple):
    """A checkpoint: the folder that has its files, and where it came from, to record: "imported",
    and of one from the hub "revision", the commit."""

    folder: pathlib.Path
    facts: dict[str, str]


def name(place: str | os.PathLike[str]) -> str | None:
    """The URL of the hub that a name is; None for a path, whether or not there is anything."""
    address = objects.url(place)
    if address is not None:
        return address if address.startswith(SCHEME) else None
    path = pathlib.Path(place).expanduser()
    if NAME.fullmatch(os.fspath(place)) and not path.exists() and not path.parent.exists():
        return f"{SCHEME}{place}"
    return None


def fetched(place: str | os.PathLike[str]) -> Source:
    """A checkpoint by path, or by a name on the hub, whose files are then fetched into the cache of
    huggingface_hub, if they are not there.

    Raises: ValueError for a name that the hub does not have; ConnectionError where it cannot be
    reached.
    """
    address = name(place)
    if address is None:
        return Source(pathlib.Path(place).expanduser(), {"imported": str(place)})
    import huggingface_hub
    from huggingface_hub import errors

    repository, _, revision = address.removeprefix(SCHEME).partition("@")
    try:
        folder = pathlib.Path(
            huggingface_hub.snapshot_download(
                repository,
                revision=revision or None,
                allow_patterns=FILES,
                ignore_patterns=ELSEWHERE,
            )
        )
    except (errors.RepositoryNotFoundError, errors.HFValidationError) as error:
        raise ValueError(
            f"{address}: no such repository on the hub that can be read, and no folder "
            f"{repository!r} here; a private or gated one requires a login (`hf auth login`) that "
            f"has access"
        ) from error
    except errors.RevisionNotFoundError as error:
        raise ValueError(f"{address}: the repository has no revision {revision!r}") from error
    except Exception as error:
        line = (str(error).splitlines() or [""])[0]
        raise ConnectionError(
            f"{address} cannot be fetched: {type(error).__name__}: {line}"
        ) from error
    return Source(folder, {"imported": f"{SCHEME}{repository}", "revision": folder.name})
