"""Objects of a store by URL, through fsspec: `gs://bucket/name`, `s3://bucket/name`, ...

A store has no folders, no rename and no append. One object is written whole or not at all, and an
object may be created only if there is none: the rest is built on these two.
"""

import concurrent.futures
import contextlib
import os
import pathlib
import re
import uuid
from collections.abc import Callable, Iterable, Iterator
from typing import Any

# The library that speaks to each kind of store, and the extra of this package that brings it.
EXTRAS = {
    "gs": ("gcsfs", "gcs"),
    "gcs": ("gcsfs", "gcs"),
    "s3": ("s3fs", "s3"),
    "s3a": ("s3fs", "s3"),
}
# Transfers at the same time: one stream does not fill a data centre's network.
STREAMS = 8


class StoreError(OSError):
    """A store refused an operation. The message names the URL and the store's reason."""


def url(place: str | os.PathLike[str]) -> str | None:
    """The URL that a name is, None for a local path. `gs:/bucket/name` is one too, for that is what
    pathlib makes of it."""
    match = re.fullmatch(r"([a-z][a-z0-9+.-]+):/{1,2}([^/].*)", os.fspath(place), re.DOTALL)
    return None if match is None else f"{match[1]}://{match[2].rstrip('/')}"


def refuse(place: str | os.PathLike[str]) -> None:
    """Raises: ValueError for a URL, where only a local path will do."""
    if (address := url(place)) is not None:
        raise ValueError(
            f"{address} given, and a local path is needed here: of all that is written only a run "
            "can be in a store (`jaxlm train --out`)"
        )


def check(address: str) -> None:
    """Raises: ImportError naming the extra that a URL needs; ValueError for a scheme that fsspec
    does not have, or that cannot be written."""
    _opened(address)


def listing(address: str) -> dict[str, int]:
    """The bytes of every object below a URL, by its name from there."""
    system, path = _opened(address)
    with _explained(address):
        try:
            items = system.find(path, detail=True)
        except FileNotFoundError:
            return {}
    start = len(path.strip("/")) + 1
    return {name.strip("/")[start:]: int(item["size"]) for name, item in items.items()}


def read(address: str) -> bytes | None:
    """The content of an object; None if there is none."""
    system, path = _opened(address)
    with _explained(address):
        try:
            return system.cat_file(path)
        except FileNotFoundError:
            return None


def write(address: str, content: bytes) -> None:
    """Write a small object whole, in place of the one that is there."""
    system, path = _opened(address)
    with _explained(address):
        system.pipe_file(path, content)


def create(address: str, content: bytes) -> bool:
    """Write an object if there is none, in one operation of the store; whether it was written."""
    system, path = _opened(address)
    with _explained(address):
        try:
            system.pipe_file(path, content, mode="create")
        except FileExistsError:
            return False
    return True


def upload(file: pathlib.Path, address: str) -> None:
    """Write an object with the content of a file."""
    system, path = _opened(address)
    with _explained(address):
        system.put_file(str(file), path)


def download(address: str, file: pathlib.Path) -> None:
    """Write a file with the content of an object: whole or not at all."""
    system, path = _opened(address)
    file.parent.mkdir(parents=True, exist_ok=True)
    part = file.with_name(f".{file.name}.{uuid.uuid4().hex}.download")
    try:
        with _explained(address):
            system.get_file(path, str(part))
        os.replace(part, file)
    finally:
        part.unlink(missing_ok=True)


def remove(address: str, names: Iterable[str]) -> None:
    """Remove objects below a URL, by their names from there, those that are gone already too."""

    def one(name: str) -> None:
        system, path = _opened(f"{address}/{name}")
        with _explained(f"{address}/{name}"), contextlib.suppress(FileNotFoundError):
            system.rm_file(path)

    each(one, names)


def copy(source: str, target: str, names: Iterable[str]) -> None:
    """Copy objects below one URL to another, within the store."""

    def one(name: str) -> None:
        system, path = _opened(f"{source}/{name}")
        with _explained(f"{source}/{name}"):
            system.cp_file(path, _opened(f"{target}/{name}")[1])

    each(one, names)


def each(act: Callable[[str], Any], names: Iterable[str]) -> None:
    """Do something to every name, several at a time. Raises: the first error, once all that began
    has ended."""
    with concurrent.futures.ThreadPoolExecutor(STREAMS) as pool:
        list(pool.map(act, names))


def _opened(address: str) -> tuple[Any, str]:
    """(fsspec's file system, the path in it) of a URL."""
    import fsspec

    scheme = address.partition("://")[0]
    if scheme in ("http", "https", "hf"):
        raise ValueError(f"{address}: {scheme}:// cannot be written; gs:// or s3:// can")
    try:
        with _explained(address):
            # a listing that is kept would not show what other machines have written
            return fsspec.core.url_to_fs(address, use_listings_cache=False)
    except ImportError as error:
        library, extra = EXTRAS.get(scheme, (None, None))
        if library is None:
            raise
        raise ImportError(
            f"{address}: {scheme}:// needs {library}: pip install 'jaxlm[{extra}]'"
        ) from error


@contextlib.contextmanager
def _explained(address: str) -> Iterator[None]:
    """Turns what a store's library raises (each has errors of its own) into a StoreError that names
    the URL. Raises: as they are, FileExistsError and FileNotFoundError of one object, ImportError;
    ValueError for an unknown scheme."""
    try:
        yield
    except (StoreError, FileExistsError, ImportError):
        raise
    except FileNotFoundError as error:
        raise StoreError(f"{address}: {_reason(error)}") from error
    except ValueError as error:
        if "Protocol not known" in str(error):
            raise ValueError(f"{address}: fsspec knows no such scheme ({error})") from error
        raise StoreError(f"{address}: {_reason(error)}") from error
    except Exception as error:
        raise StoreError(f"{address}: {_reason(error)}") from error


def _reason(error: Exception) -> str:
    line = (str(error).splitlines() or [""])[0]
    return f"{type(error).__name__}: {line}" if line else type(error).__name__
