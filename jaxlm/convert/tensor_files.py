"""safetensors files, one or many: their contents are known from the headers alone, and tensors are
read and written one at a time.

    8 bytes: length n of the header, little endian
    n bytes: JSON {"name": {"dtype": "BF16", "shape": [2, 3], "data_offsets": [0, 12]}, ...}
    the tensors, one after the other
"""

import collections
import json
import math
import os
import pathlib
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from jaxlm.core import json_file

INDEX = "model.safetensors.index.json"
DTYPES: dict[str, Any] = {
    "F64": np.float64,
    "F32": np.float32,
    "F16": np.float16,
    "BF16": jnp.bfloat16,
}
# Those of which weights in few bits consist.
CODES: dict[str, Any] = {
    "I64": np.int64,
    "I32": np.int32,
    "I8": np.int8,
    "U8": np.uint8,
    "F8_E4M3": jnp.float8_e4m3fn,
}
READ = DTYPES | CODES
# Bytes of other dtypes, to check a header with; such a tensor cannot be read.
OTHERS = {"I16": 2, "BOOL": 1, "U16": 2, "U32": 4, "U64": 8, "F8_E5M2": 1, "F8_E8M0": 1}


class Tensor(NamedTuple):
    """Location of a tensor: its file, its name there, the offset of its first byte."""

    file: pathlib.Path
    stored: str
    dtype: str
    shape: tuple[int, ...]
    offset: int


def find(folder: str | os.PathLike[str]) -> dict[str, Tensor]:
    """Every tensor of a checkpoint by name, from the headers of its files.

    Raises: FileNotFoundError for a folder without safetensors, or without a file its index names;
    ValueError naming a file that is cut off, no safetensors or outside the folder, or a tensor that
    is there twice.
    """
    folder = pathlib.Path(folder)
    index, single = folder / INDEX, folder / "model.safetensors"
    if index.is_file():
        listed = _listed(inside(folder, index.name))
        names = sorted({inside(folder, name).name for name in listed.values()})
    elif single.is_file():
        listed, names = None, [single.name]
    else:
        names, listed = sorted(p.name for p in folder.glob("*.safetensors")), None
    if not names:
        raise FileNotFoundError(_nothing(folder))
    tensors: dict[str, Tensor] = {}
    for name in names:
        if not (folder / name).is_file():
            raise FileNotFoundError(f"{folder / name} is missing; {INDEX} names it")
        for tensor in _header(inside(folder, name)):
            if tensor.stored in tensors:
                first = tensors[tensor.stored].file.name
                raise ValueError(
                    f"{folder}: tensor {tensor.stored} is in {first} and in {name}; it must be "
                    "there once"
                )
            tensors[tensor.stored] = tensor
    if listed is not None and listed.keys() != tensors.keys():
        odd = sorted(listed.keys() ^ tensors.keys())
        raise ValueError(f"{index}: it and the files disagree about {odd[:5]}")
    return tensors


def _nothing(folder: pathlib.Path) -> str:
    torch = sorted(p.name for p in folder.glob("*.bin"))
    if torch:
        return (
            f"{folder} holds {torch[0]}, a pickle, which may run any code when it is read; save "
            "it as safetensors first (transformers: model.save_pretrained)"
        )
    return f"{folder} holds no .safetensors file"


def inside(folder: str | os.PathLike[str], name: Any) -> pathlib.Path:
    """The path of a checkpoint's file by its name.

    Raises: ValueError for a name with a directory in it, and for a link to a file outside the
    checkpoint; links into the same repository of a download cache (`blobs`) are followed.
    """
    folder = pathlib.Path(folder)
    plain = isinstance(name, str) and name not in ("", ".", "..") and "\\" not in name
    if not plain or pathlib.PurePath(name).name != name:
        raise ValueError(f"{folder}: {name!r} given; the name of a file in it is needed")
    path, root = folder / name, folder.resolve()
    places = [root, root.parent.parent / "blobs"] if root.parent.name == "snapshots" else [root]
    target = path.resolve()
    if not any(target.is_relative_to(place) for place in places):
        raise ValueError(
            f"{path} is a link to {target}, outside its directory; put a copy in its place"
        )
    return path


def _listed(index: pathlib.Path) -> dict[str, Any]:
    """{tensor: name of its file} of an index."""
    listed = json_file.read_object(index).get("weight_map")
    if not isinstance(listed, dict):
        raise ValueError(f"{index}: weight_map={listed!r:.60}; {{tensor: file}} is needed")
    return listed


# The header's bound in the library of the format.
HEADER_BYTES = 100_000_000


def _header(path: pathlib.Path) -> Iterator[Tensor]:
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or length > size - 8:
            raise ValueError(f"{path} is cut off or no safetensors file: {size} bytes")
        if length > HEADER_BYTES:
            raise ValueError(
                f"{path} is no safetensors file: a header of {length} bytes, where at most "
                f"{HEADER_BYTES} are allowed"
            )
        parsed = _entries(path, file.read(length))
    end = 0
    for name, dtype, shape, (start, stop) in sorted(parsed, key=lambda entry: entry[3]):
        width = np.dtype(READ[dtype]).itemsize if dtype in READ else OTHERS.get(dtype)
        if width is not None and stop - start != width * math.prod(shape):
            raise ValueError(f"{path}: {name} has {stop - start} bytes for {dtype} {list(shape)}")
        if start != end:
            raise ValueError(f"{path}: {name} begins at byte {start}, where {end} is right")
        end = stop
        yield Tensor(path, name, dtype, shape, 8 + length + start)
    if 8 + length + end != size:
        sizes = f"{size} bytes, its header says {8 + length + end}"
        raise ValueError(f"{path} is cut off or damaged: {sizes}")


def _entries(
    path: pathlib.Path, header: bytes
) -> list[tuple[str, str, tuple[int, ...], tuple[int, int]]]:
    """(name, dtype, shape, first and last byte) of every tensor that a header lists."""

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        if len(dict(pairs)) != len(pairs):
            counts = collections.Counter(name for name, _ in pairs)
            twice = sorted(name for name, count in counts.items() if count > 1)
            raise ValueError(f"{twice[:3]} is there twice")
        return dict(pairs)

    try:
        record = json.loads(header, object_pairs_hook=once)
        parsed = []
        for name, entry in record.items():
            if name == "__metadata__":
                continue
            shape, (start, stop) = tuple(entry["shape"]), entry["data_offsets"]
            sizes = (*shape, start, stop, stop - start)
            if not isinstance(entry["dtype"], str) or not all(type(n) is int for n in sizes):
                raise ValueError(f"{name}: {entry}"[:200])
            if min(sizes) < 0:
                raise ValueError(f"{name} has a negative size: {entry}"[:200])
            parsed.append((name, entry["dtype"], shape, (start, stop)))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(
            f"{path} is no safetensors file: its header is not one ({error!r:.200})"
        ) from error
    return parsed


def read(tensor: Tensor) -> np.ndarray:
    """A tensor, in its own dtype: the one read from the disk."""
    count = math.prod(tensor.shape)
    array = np.fromfile(tensor.file, np.dtype(READ[tensor.dtype]), count, offset=tensor.offset)
    if array.size != count:
        raise ValueError(f"{tensor.file} is cut off in {tensor.stored}")
    return array.reshape(tensor.shape)


def cast(array: np.ndarray, dtype: Any, name: str) -> np.ndarray:
    """A tensor in a dtype, the same array where it has that already.

    Raises: ValueError for a finite number that the dtype has only infinity for, naming the tensor,
    its largest number and the dtypes that hold it.
    """
    to = jnp.finfo(dtype)
    with np.errstate(over="ignore"):
        converted = array.astype(to.dtype, copy=False)
    if float(jnp.finfo(array.dtype).max) <= float(to.max):
        return converted
    lost = np.isinf(converted.astype(np.float32, copy=False)) & np.isfinite(array)
    if lost.any():
        size = np.where(np.isfinite(array), np.abs(array), 0).astype(np.float64)
        worst = float(array.flat[np.argmax(size)])
        wider = [n for n in ("bfloat16", "float32") if float(jnp.finfo(n).max) > abs(worst)]
        raise ValueError(
            f"{name} has {worst:.6g}, and the largest number of {to.dtype} is {float(to.max):.6g}: "
            f"it would become infinite; dtype {' or '.join(wider or ['float64'])} holds it"
        )
    return converted


class Item(NamedTuple):
    """A tensor that will be written; dtype: one of `READ`, None for that of the weights."""

    name: str
    shape: tuple[int, ...]
    dtype: str | None = None

    def bytes(self, dtype: np.dtype) -> int:
        """Its bytes, where weights are of `dtype`."""
        width = dtype.itemsize if self.dtype is None else np.dtype(READ[self.dtype]).itemsize
        return math.prod(self.shape) * width


def write(
    folder: str | os.PathLike[str],
    groups: Sequence[tuple[list[Item], Any]],
    arrays: Any,
    dtype: np.dtype,
    limit: int,
) -> list[str]:
    """Write tensors to files of at most `limit` bytes (more for one group that is larger), with an
    index if it takes several; returns the names of the files.

    groups: (tensors that are computed together, their source). arrays(source) -> their arrays,
    called once a group, in order, so that no more than one group is held.
    """
    folder = pathlib.Path(folder)
    shards: list[list[tuple[list[Item], Any]]] = [[]]
    filled = 0
    for group in groups:
        size = sum(item.bytes(dtype) for item in group[0])
        if shards[-1] and filled + size > limit:
            shards.append([])
            filled = 0
        shards[-1].append(group)
        filled += size
    n = len(shards)
    names = [f"model-{i + 1:05}-of-{n:05}.safetensors" for i in range(n)]
    names = ["model.safetensors"] if n == 1 else names
    total, placed = 0, {}
    for name, shard in zip(names, shards, strict=True):
        total += _write_file(folder / name, shard, arrays, dtype)
        placed |= {item.name: name for items, _ in shard for item in items}
    if n > 1:
        index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(placed.items()))}
        (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n", "utf-8")
    return names


def _write_file(
    path: pathlib.Path, shard: Iterable[tuple[list[Item], Any]], arrays: Any, dtype: np.dtype
) -> int:
    """Write one file; returns the bytes of its tensors."""
    stored_as = next(name for name, known in DTYPES.items() if np.dtype(known) == dtype)
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for items, _ in shard:
        for item in items:
            start, end = end, end + item.bytes(dtype)
            if item.name in header:
                raise ValueError(f"{path}: {item.name} would be written twice")
            header[item.name] = {
                "dtype": item.dtype or stored_as, "shape": list(item.shape),
                "data_offsets": [start, end],
            }  # fmt: skip
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for items, source in shard:
            parts = arrays(source)
            for item, array in zip(items, parts, strict=True):
                if array.shape != item.shape:
                    raise ValueError(
                        f"{item.name}: {array.shape} given; {item.shape} was announced"
                    )
                if item.dtype is None:
                    array = cast(array, dtype, item.name)
                elif array.dtype != READ[item.dtype]:
                    raise ValueError(f"{item.name}: {array.dtype} given; {item.dtype} is announced")
                file.write(np.ascontiguousarray(array).tobytes())
    return end
