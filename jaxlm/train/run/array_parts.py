"""Files that hold the parts of a checkpoint's arrays, and those of them that a process reads."""

import functools
import itertools
import pathlib
import re
from collections.abc import Callable
from typing import Any

import jax

from jaxlm.core import json_file, param

# A part of an array as a file: of item params, array embed.table, the one at row 0, column 1 of its
# grid. Several processes write such; of one process a file holds what parts there are.
CHUNK = re.compile(r"([^/]+)/([^/]+)/(\d+(?:\.\d+)*)")


def is_part(name: str) -> bool:
    """Whether a file of a checkpoint is a part of an array, by its name."""
    return CHUNK.fullmatch(name) is not None


def reads(place: pathlib.Path, parts: dict[str, Any]) -> Callable[[str], bool]:
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
        sizes = json_file.read_object(place / item / name / ".zarray")["chunks"]
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
