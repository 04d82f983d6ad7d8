"""safetensors files, one or many: what is in them is known from their headers alone, and tensors
are read and written one at a time.

    8 bytes: length n of the header, little endian
    n bytes: JSON {"name": {"dtype": "BF16", "shape": [2, 3], "data_offsets": [0, 12]}, ...}
    the tensors, one after the other
"""

import json
import math
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
# Bytes of what no weight is stored in, to check a header with; such a tensor cannot be read.
OTHERS = {"I64": 8, "I32": 4, "I16": 2, "I8": 1, "U8": 1, "BOOL": 1, "U16": 2, "U32": 4, "U64": 8}
OTHERS |= {"F8_E4M3": 1, "F8_E5M2": 1}


class Tensor(NamedTuple):
    """Where a tensor lies: its file, its name there, its first byte in it."""

    file: pathlib.Path
    stored: str
    dtype: str
    shape: tuple[int, ...]
    offset: int


def find(folder: pathlib.Path) -> dict[str, Tensor]:
    """Every tensor of a checkpoint by name, from the headers of its files.

    Raises: FileNotFoundError for a folder without safetensors, or without a file its index names;
    ValueError naming a file that is cut off or no safetensors, or a tensor that is there twice.
    """
    index, whole = folder / INDEX, folder / "model.safetensors"
    if index.is_file():
        listed = _json(index)["weight_map"]
        names = sorted(set(listed.values()))
    elif whole.is_file():
        listed, names = None, [whole.name]
    else:
        names, listed = sorted(p.name for p in folder.glob("*.safetensors")), None
    if not names:
        raise FileNotFoundError(_nothing(folder))
    found: dict[str, Tensor] = {}
    for name in names:
        if not (folder / name).is_file():
            raise FileNotFoundError(f"{folder / name} is missing; {INDEX} names it")
        for tensor in _header(folder / name):
            if tensor.stored in found:
                raise ValueError(
                    f"{folder}: tensor {tensor.stored} is in {found[tensor.stored].file.name} and "
                    f"in {name}; it must be there once"
                )
            found[tensor.stored] = tensor
    if listed is not None and listed.keys() != found.keys():
        odd = sorted(listed.keys() ^ found.keys())
        raise ValueError(f"{index}: it and the files disagree about {odd[:5]}")
    return found


def _nothing(folder: pathlib.Path) -> str:
    torch = sorted(p.name for p in folder.glob("*.bin"))
    if torch:
        return (
            f"{folder} holds {torch[0]}, a pickle, which may run any code when it is read; save "
            "it as safetensors first (transformers: model.save_pretrained)"
        )
    return f"{folder} holds no .safetensors file"


def _json(path: pathlib.Path) -> dict[str, Any]:
    return json_file.read_object(path)


def _header(path: pathlib.Path) -> Iterator[Tensor]:
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or length > size - 8:
            raise ValueError(f"{path} is cut off or no safetensors file: {size} bytes")
        try:
            record = json.loads(file.read(length))
            entries = {k: v for k, v in record.items() if k != "__metadata__"}
            parsed = [
                (k, v["dtype"], tuple(v["shape"]), *v["data_offsets"]) for k, v in entries.items()
            ]
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{path} is no safetensors file: its header is not one") from error
    end = 8 + length + max((entry[4] for entry in parsed), default=0)
    if end != size:
        raise ValueError(f"{path} is cut off or damaged: {size} bytes, its header says {end}")
    for name, dtype, shape, start, stop in parsed:
        width = np.dtype(DTYPES[dtype]).itemsize if dtype in DTYPES else OTHERS.get(dtype)
        if width is not None and stop - start != width * math.prod(shape):
            raise ValueError(f"{path}: {name} has {stop - start} bytes for {dtype} {list(shape)}")
        yield Tensor(path, name, dtype, shape, 8 + length + start)


def read(tensor: Tensor) -> np.ndarray:
    """A tensor, in its own dtype: the one read from the disk."""
    count = math.prod(tensor.shape)
    found = np.fromfile(tensor.file, np.dtype(DTYPES[tensor.dtype]), count, offset=tensor.offset)
    if found.size != count:
        raise ValueError(f"{tensor.file} is cut off in {tensor.stored}")
    return found.reshape(tensor.shape)


class Item(NamedTuple):
    """A tensor that will be written."""

    name: str
    shape: tuple[int, ...]


def write(
    folder: pathlib.Path,
    groups: Sequence[tuple[list[Item], Any]],
    arrays: Any,
    dtype: np.dtype,
    limit: int,
) -> list[str]:
    """Write tensors to files of at most `limit` bytes (more for one group that is larger), with an
    index if it takes several; the names of the files.

    groups: (tensors that are made together, what `arrays` makes them of). arrays(that) -> their
    arrays, called once a group, in order, so that no more than one group is held.
    """
    shards: list[list[tuple[list[Item], Any]]] = [[]]
    filled = 0
    for group in groups:
        size = sum(math.prod(i.shape) for i in group[0]) * dtype.itemsize
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
    """Write one file; the bytes of its tensors."""
    called = next(name for name, known in DTYPES.items() if np.dtype(known) == dtype)
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for items, _ in shard:
        for item in items:
            start, end = end, end + math.prod(item.shape) * dtype.itemsize
            if item.name in header:
                raise ValueError(f"{path}: {item.name} would be written twice")
            header[item.name] = {
                "dtype": called, "shape": list(item.shape), "data_offsets": [start, end],
            }  # fmt: skip
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for items, source in shard:
            made = arrays(source)
            for item, array in zip(items, made, strict=True):
                if array.shape != item.shape:
                    raise ValueError(f"{item.name}: {array.shape} made, {item.shape} was said")
                file.write(np.ascontiguousarray(array.astype(dtype)).tobytes())
    return end
