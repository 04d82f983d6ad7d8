"""Collectives of a compiled program, read from its HLO text.

    ledger(text, mesh) -> (Collective(kind, axes, count, sent), ...)

An operation in a loop counts as often as the loop runs. What is compared between programs is the
bytes that a device sends: XLA spells one and the same gather as an all-gather, as a chain of
collective-permutes, or as an all-reduce of zero-padded parts.
"""

import itertools
import math
import re
from collections.abc import Iterator
from typing import NamedTuple

import jax
import numpy as np

from jaxlm.parallel import hlo

# Share of the payload that a device sends, of a group of n, by the ring algorithms.
SENT = {
    "all-gather": lambda n: (n - 1) / n,
    "reduce-scatter": lambda n: (n - 1) / n,
    "all-reduce": lambda n: 2 * (n - 1) / n,
    "all-to-all": lambda n: (n - 1) / n,
    "ragged-all-to-all": lambda n: (n - 1) / n,
    "collective-permute": lambda n: 1.0,
}


class Collective(NamedTuple):
    """Equal operations of one step, on one device.

    kind: a key of `SENT`. axes: the mesh axes that a group extends over, () of devices that are no
    mesh axes' product. size: devices of a group. count: executions. sent: bytes sent by a device in
    all of them together, by a ring. between: whether it is between slices, whose numbers the group
    has, and not in one.
    """

    kind: str
    axes: tuple[str, ...]
    size: int
    count: int
    sent: int
    between: bool = False


def ledger(text: str, mesh: jax.sharding.Mesh | jax.sharding.AbstractMesh) -> list[Collective]:
    """The collectives of a compiled program on a mesh, equal kinds over equal axes added up, the
    most bytes first. Groups of one device send nothing, and are left out."""
    total: dict[tuple[str, tuple[str, ...], int], tuple[int, int]] = {}
    for kind, groups, payload, times in operations(text, mesh.size):
        size = 2 if kind == "collective-permute" else groups.shape[1]
        if size > 1 and (groups[:, :1] != groups).any():
            key = kind, spanned(groups, mesh), _extent(kind, groups, mesh)
            count, sent = total.get(key, (0, 0))
            each = round(payload * SENT[kind](size))
            total[key] = count + times, sent + each * times
    rows = [Collective(*key, *value) for key, value in total.items()]
    rows += _between(text, mesh)
    return sorted(rows, key=lambda row: -row.sent)


def operations(text: str, devices: int) -> Iterator[tuple[str, np.ndarray, int, int]]:
    """(kind, groups int[G, n], payload in bytes, executions) of every collective of a program.

    The payload is the whole array that a group gathers, reduces or exchanges; of a
    collective-permute, whose groups are (source, target) pairs, that of one device.
    """
    program = hlo.parse(text)
    for computation, times in hlo.executions(program).items():
        for op in program.computations[computation]:
            kind = op.opcode.removesuffix("-start")
            if kind not in SENT or _continued(program, computation, op):
                continue
            if times is None:
                raise ValueError(
                    f"{op.name}: it is in a loop whose length the program does not show"
                )
            groups = _groups(op.text, devices)
            payload = _payload(op)
            if kind == "reduce-scatter":
                payload *= groups.shape[1]
            if kind == "all-reduce" and _scattered(program, computation):
                kind = "reduce-scatter"
            yield kind, groups, payload, times


# A program of several slices hands what one sends to another to the host.
_TRANSFER = re.compile(r'_xla_megascale_transfer_type="(\w+)"')
TRANSFERS = {
    "ALL_GATHER": "all-gather",
    "REDUCE_SCATTER": "reduce-scatter",
    "ALL_REDUCE": "all-reduce",
    "ALL_TO_ALL": "all-to-all",
    "ONE_TO_ONE": "collective-permute",
}


def _between(text: str, mesh: jax.sharding.Mesh | jax.sharding.AbstractMesh) -> list[Collective]:
    """The collectives between the slices of a mesh."""
    if "_xla_megascale_transfer_type" not in text or isinstance(mesh, jax.sharding.AbstractMesh):
        return []
    numbers = np.array([device.slice_index for device in mesh.devices.flat])
    slices = len({*numbers.tolist()})
    numbers = numbers.reshape(mesh.devices.shape)
    axes = tuple(
        name for i, name in enumerate(mesh.axis_names) if (np.diff(numbers, axis=i) != 0).any()
    )
    total: dict[str, tuple[int, int]] = {}
    program = hlo.parse(text)
    for computation, times in hlo.executions(program).items():
        for op in program.computations[computation]:
            match = _TRANSFER.search(op.text) if op.opcode == "send" else None
            if match is None:
                continue
            if times is None:
                raise ValueError(
                    f"{op.name}: it is in a loop whose length the program does not show"
                )
            kind = TRANSFERS[match[1]]
            payload = hlo.nbytes(hlo.elements(op.type)[0]) * (slices if "gather" in kind else 1)
            count, sent = total.get(kind, (0, 0))
            total[kind] = count + times, sent + round(payload * SENT[kind](slices)) * times
    return [Collective(kind, axes, slices, *value, True) for kind, value in total.items()]


def spanned(groups: np.ndarray, mesh: jax.sharding.Mesh | jax.sharding.AbstractMesh) -> tuple:
    """The mesh axes along which the devices of a group differ, numbered in the mesh's order."""
    shape = tuple(mesh.shape.values())
    places = np.stack(np.unravel_index(groups, shape), -1)  # [G, n, axes]
    varied = (places != places[:, :1]).any((0, 1))
    return tuple(name for name, differs in zip(mesh.axis_names, varied) if differs)


def _extent(kind: str, groups: np.ndarray, mesh) -> int:
    """Devices of a group; of a permutation, those that its axes hold."""
    if kind != "collective-permute":
        return groups.shape[1]
    return math.prod(mesh.shape[name] for name in spanned(groups, mesh))


def _payload(op: hlo.Operation) -> int:
    """Bytes of the result; of a started operation, whose result holds operands too, of its part."""
    if op.opcode in ("all-gather-start", "collective-permute-start"):
        return hlo.nbytes(hlo.elements(op.type)[1])
    return hlo.nbytes(op.type)


def _continued(program: hlo.Program, computation: str, op: hlo.Operation) -> bool:
    """Whether this is a later part of a collective that a TPU runs through several fusions, each of
    which shows it in full: the first ends in a call of AsyncCollectiveStart."""
    if computation not in program.fused or "chain_id=" not in op.text:
        return False
    return not any("AsyncCollectiveStart" in o.text for o in program.computations[computation])


def _scattered(program: hlo.Program, computation: str) -> bool:
    """Whether what a fusion keeps of its all-reduce is each device's own slice."""
    if computation not in program.fused:
        return False
    return any(op.opcode == "dynamic-slice" for op in program.computations[computation])


# {{0,1},{2,3}}   [4,2]<=[2,2,2]T(1,0,2)   mesh['a'=2,'b'=4] {'b'}, of devices in that order or
# mesh['a'=2,'b'=4], device_ids=([4,2]T(1,0)) {'b'}, or of a part of an axis, {'b':(2)2}: 2 of its 4
# devices, the inner of b as 2 x 2
_EXPLICIT = re.compile(r"(?:replica_groups|source_target_pairs)=\{(\{[\d,{}\s]*\})?\}")
_IOTA = re.compile(r"replica_groups=\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?")
_MESH = re.compile(
    r"replica_groups=mesh\[([^\]]*)\]"
    r"(?:, device_ids=\(\[([\d,]+)\](?:T\(([\d,]+)\))?\))? \{([^}]*)\}"
)


def _groups(text: str, devices: int) -> np.ndarray:
    """The groups of an operation, int[G, n]. Raises: ValueError for a form that is not known."""
    if iota := _IOTA.search(text):
        shape, sizes, order = (_integers(part) for part in iota.groups())
        ids = np.arange(math.prod(sizes)).reshape(sizes)
        return ids.transpose(order or None).reshape(shape)
    if named := _MESH.search(text):
        sizes = {name: int(n) for name, n in re.findall(r"'(\w+)'=(\d+)", named[1])}
        # (axis, devices before the part, of the part)
        inside = [
            (name, int(before or 1), int(n or sizes[name]))
            for name, before, n in re.findall(r"'(\w+)'(?::\((\d+)\)(\d+))?", named[4])
        ]
        dims = [
            (name, a, b // a)
            for name, size in sizes.items()
            for a, b in itertools.pairwise(
                sorted({1, size, *(e for i, a, n in inside if i == name for e in (a, a * n))})
            )
        ]
        order = [i for i, dim in enumerate(dims) if dim not in inside]
        order += [dims.index(part) for part in inside if part[2] > 1]
        ids = np.arange(math.prod(sizes.values()))
        if named[2]:
            ids = ids.reshape(_integers(named[2])).transpose(_integers(named[3]) or None)
        ids = ids.reshape([n for _, _, n in dims])
        return ids.transpose(order).reshape(-1, math.prod(n for _, _, n in inside))
    elif explicit := _EXPLICIT.search(text):
        rows = re.findall(r"\{([\d,\s]+)\}", explicit[1] or "")
        return np.array([_integers(row) for row in rows]) if rows else np.arange(devices)[None]
    raise ValueError(f"replica groups of an unknown form: {text[:200]}")


def _integers(text: str | None) -> list[int]:
    return [int(n) for n in (text or "").split(",") if n]
