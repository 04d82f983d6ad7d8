"""Arrays that an objective reads of every example, computed once and cached on disk.

In $XDG_CACHE_HOME/jaxlm, a folder KIND/KEY for equal facts (weights, data, arithmetic):

    facts.json                    the facts
    train-000001024/NAME.npy      an array of the rows from 1,024 on
    train-000001024/sums.json     the SHA-256 of each

A pass that was interrupted resumes after its last whole block, and runs with equal facts share one
pass. Rows are read from the files as they are needed; a start reads all of them once, and damaged
blocks are computed again.
"""

import itertools
import json
import pathlib
from collections.abc import Callable
from typing import Any, BinaryIO, NamedTuple

import jax
import numpy as np
from numpy.lib import format as npy

from jaxlm.core import atomic, cache, io, json_file, log
from jaxlm.data.records import examples, records
from jaxlm.train.run import directory

BLOCK = 1024  # rows of a block, at least
BLOCKS = 64  # blocks of a split, at most: their files are open while it is read
SUMS = "sums.json"

# (numbers of rows, int64[n]; their batch, filled up with rows of zeros) -> arrays [n or more, ...].
Compute = Callable[[np.ndarray, Any], dict[str, np.ndarray]]
# (batch, its rows' arrays) -> the batch with them.
Join = Callable[[Any, dict[str, np.ndarray]], Any]


class Source(NamedTuple):
    """Arrays to compute for every example: their identity, and the functions that make them."""

    kind: str
    """The folder of the cache."""
    facts: dict[str, Any]
    """JSON that decides the arrays."""
    field: str
    """The config's field that stores them, for errors."""
    reader: str
    """Description of the weights that read the examples."""
    batch: int
    """Rows that are read at a time."""
    prepare: Callable[[], Compute]
    """Loads and compiles; called once, where something is missing."""
    join: Join
    """Can be pickled."""

    @property
    def key(self) -> str:
        """The name of its folder, by the facts."""
        return records.digest([self.facts])[:16]


class Rows:
    """Examples along with their arrays, of which a folder holds `size` rows each."""

    def __init__(self, plain: examples.Rows, folders: list[pathlib.Path], size: int, join: Join):
        self._plain, self._folders, self._size, self._join = plain, folders, size, join
        self._opened: dict[int, dict[str, np.ndarray]] = {}

    def __getstate__(self) -> dict[str, Any]:
        """Travel to another process as names of files."""
        return self.__dict__ | {"_opened": {}}

    def __len__(self) -> int:
        return len(self._plain)

    def read(self, rows: np.ndarray) -> Any:
        """The batch of these rows, int64[n]."""
        blocks = rows // self._size
        arrays = {
            name: np.empty((len(rows), *x.shape[1:]), x.dtype) for name, x in self._block(0).items()
        }
        for block in np.unique(blocks).tolist():
            inside = blocks == block
            for name, x in self._block(block).items():
                arrays[name][inside] = x[rows[inside] - block * self._size]
        return self._join(self._plain.read(rows), arrays)

    def _block(self, block: int) -> dict[str, np.ndarray]:
        if block not in self._opened:
            files = sorted(self._folders[block].glob("*.npy"))
            self._opened[block] = {f.stem: np.load(f, mmap_mode="r") for f in files}
        return self._opened[block]


class _Block(NamedTuple):
    folder: pathlib.Path
    plain: examples.Rows
    rows: range


def attach(source: Source, splits: dict[str, examples.Rows]) -> dict[str, Rows]:
    """The rows of each split along with their arrays, computed now where they are not on the disk.

    Raises: ValueError with several processes where there is something to compute; what `prepare`
    and `Compute` raise; io.WriteError for a full disk, with what was kept before intact.
    """
    place = cache.folder() / source.kind / source.key
    io.make_folder(place)
    io.write(place / "facts.json", json.dumps(source.facts, indent=1) + "\n")
    blocks = {name: _blocks(place, name, plain) for name, plain in splits.items()}
    missing = [block for block in itertools.chain(*blocks.values()) if not _stored(block)]
    if missing:
        _compute(source, missing)
    rows = {}
    for name, plain in splits.items():
        folders = [block.folder for block in blocks[name]]
        rows[name] = Rows(plain, folders, _size(plain), source.join)
    return rows


def _size(plain: examples.Rows) -> int:
    return max(BLOCK, -(-len(plain) // BLOCKS))


def _blocks(place: pathlib.Path, name: str, plain: examples.Rows) -> list[_Block]:
    size, rows = _size(plain), range(len(plain))
    return [
        _Block(place / f"{name}-{first:09}", plain, rows[first : first + size])
        for first in rows[::size]
    ]


def _stored(block: _Block) -> bool:
    """Whether a block is on the disk; what is damaged is discarded, with a warning."""
    if not block.folder.is_dir():
        return False
    if (fault := _fault(block.folder, len(block.rows))) is None:
        return True
    directory.warn(f"{block.folder} is damaged ({fault}); it is computed again")
    atomic.discard(block.folder)
    return False


def _fault(folder: pathlib.Path, rows: int) -> str | None:
    """Describes damage to a block, all of which is read; None if there is none."""
    try:
        sums = json_file.read_object(folder / SUMS)["files"]
        for name, right in sums.items():
            if io.sha256(folder / name) != right:
                return f"{name} is not what was written"
            stored = len(np.load(folder / name, mmap_mode="r"))
            if stored != rows:
                return f"{name} holds {stored} rows of {rows}"
    except (OSError, ValueError, KeyError) as error:
        return str(error)
    return None


def _compute(source: Source, missing: list[_Block]) -> None:
    if jax.process_count() > 1:
        raise ValueError(
            f"{source.field}: 'stored' is computed by one process; run the same command with one "
            "first, and share its cache (XDG_CACHE_HOME)"
        )
    rows, place = sum(len(block.rows) for block in missing), missing[0].folder.parent
    log.Log(True, None).say(f"{source.reader} reads {rows:,} rows, once, into {place}")
    compute = source.prepare()
    for block in missing:
        try:
            with atomic.folder(block.folder) as temporary:
                _write(source, compute, block, temporary)
        except OSError as error:
            if not block.folder.is_dir():  # else another run was faster; its files hold the same
                raise io.refused(block.folder, error.strerror or str(error)) from error


def _write(source: Source, compute: Compute, block: _Block, folder: pathlib.Path) -> None:
    """The files of a block. They are appended to: a full disk kills who writes to mapped memory."""
    files: dict[str, BinaryIO] = {}
    try:
        for first in block.rows[:: source.batch]:
            numbers = np.arange(first, min(first + source.batch, block.rows.stop))
            batch = examples.filled(block.plain.read(numbers), source.batch)
            for name, x in compute(numbers, batch).items():
                x = np.ascontiguousarray(x[: len(numbers)])
                if name not in files:
                    files[name] = (folder / f"{name}.npy").open("wb")
                    npy.write_array_header_1_0(files[name], _header(x, len(block.rows)))
                files[name].write(x.data)
    finally:
        for file in files.values():
            file.close()
    sums = {f"{name}.npy": io.sha256(folder / f"{name}.npy") for name in files}
    io.write(folder / SUMS, json_file.sealed({"files": sums}))


def _header(x: np.ndarray, rows: int) -> dict[str, Any]:
    """Header of an array of so many rows like those of x."""
    descr = npy.dtype_to_descr(x.dtype)
    return {"descr": descr, "fortran_order": False, "shape": (rows, *x.shape[1:])}
