"""Machines that are elsewhere: their devices, to compile for, and what their chips can do.

    v4:2x2x1  v5e:4x4  v5p:4x4x8  v6e:8x16  tpu7x:2x2x1      as JAX names topologies, in chips
    2xv5e:16x16                                              two such slices
    h100:8                                                   GPUs, to estimate but not compile for
    cpu:8                                                    CPU devices, threads of one machine

A chip is one JAX device, but for tpu7x, which has two a chip.
"""

import itertools
import math
import os
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np


class Chip(NamedTuple):
    """The peaks of one JAX device of a kind, as their makers publish them.

    hbm: GiB of memory. flops: bfloat16 FLOP/s. bandwidth: bytes/s of memory. link: bytes/s of one
    link to a neighbour, one way. network: bytes/s that it reaches between slices. mxu: the side of
    its matrix unit. per_chip: JAX devices of a chip. options: what libtpu requires to describe a
    slice of it.
    """

    platform: str
    hbm: float
    flops: float
    bandwidth: float
    link: float
    network: float = 1.3e9
    mxu: int = 128
    per_chip: int = 1
    options: dict[str, Any] = {}


# network, of TPUs: the median over 9 published runs of 2 to 32 slices (MaxText's README: 16B and
# 128B on v5e, 32B and 256B on v5p) of what a float32 all-reduce of the gradients would send, over
# the time that slices add to a step. Of GPUs half of a 400 Gbit/s adapter each, not measured.
_MEGACORE = {"chip_config_name": "megacore"}
CHIPS: dict[str, Chip] = {
    "v4": Chip("tpu", 32, 275e12, 1228e9, 50e9, options=_MEGACORE),
    "v5e": Chip("tpu", 16, 197e12, 819e9, 50e9),
    "v5p": Chip("tpu", 95, 459e12, 2765e9, 100e9, options=_MEGACORE),
    "v6e": Chip("tpu", 32, 918e12, 1638e9, 100e9, mxu=256),
    "tpu7x": Chip("tpu", 96, 1153.5e12, 3690e9, 100e9, 0.65e9, mxu=256, per_chip=2),
    "a100": Chip("gpu", 80, 312e12, 2039e9, 300e9, 25e9, mxu=64),
    "h100": Chip("gpu", 80, 989e12, 3350e9, 450e9, 25e9, mxu=64),
    "h200": Chip("gpu", 141, 989e12, 4800e9, 450e9, 25e9, mxu=64),
    # its devices share a machine that is not known: no peak is assumed, and no time predicted
    "cpu": Chip("cpu", 0, 0, 0, 0),
}


class Topology(NamedTuple):
    """A slice, or several: the name, the kind of chip, the shape of one's torus in chips, the
    devices in JAX's order, () where they cannot be compiled for, and the number of slices."""

    name: str
    chip: Chip
    shape: tuple[int, ...]
    devices: tuple[Any, ...] = ()
    slices: int = 1

    @property
    def chips(self) -> int:
        """The chips of all slices."""
        return self.slices * math.prod(self.shape)

    @property
    def dimensions(self) -> int:
        """Dimensions of the torus that have more than one chip, at least 1."""
        return max(1, sum(n > 1 for n in self.shape))


def describe(name: str) -> Topology:
    """The Topology of a name such as "v5p:4x4x8", without devices. Raises: ValueError for a name
    that is none."""
    match = re.fullmatch(r"(?:([1-9]\d*)x)?(\w+):([1-9]\d*(?:x[1-9]\d*)*)", name)
    if match is None or match[2] not in CHIPS:
        raise ValueError(
            f"--topology: {name!r} given; it must be a kind of {list(CHIPS)} and its chips, such "
            "as 'v5p:4x4x8', or '2xv5p:4x4x8' for two slices"
        )
    shape = tuple(int(n) for n in match[3].split("x"))
    if match[2] == "cpu" and (match[1] or len(shape) > 1):
        raise ValueError(
            f"--topology: {name!r} given; CPU devices are of one machine: 'cpu:{math.prod(shape)}'"
        )
    return Topology(name, CHIPS[match[2]], shape, slices=int(match[1] or 1))


def load(name: str) -> Topology:
    """The Topology of a TPU slice, or of this process's CPU devices, with its devices, for which
    programs can be compiled.

    Raises: ValueError for a name that is none, or of more CPU devices than there are, and
    ImportError naming the extra where libtpu, which knows a slice's, is not installed.
    """
    described = describe(name)
    if described.chip.platform == "cpu":
        have = jax.devices("cpu")
        if len(have) < described.chips:
            raise ValueError(
                f"--topology: {name!r} given; this process has {len(have)} CPU devices"
            )
        return described._replace(devices=tuple(have[: described.chips]))
    if described.chip.platform != "tpu":
        raise ValueError(f"--topology: {name!r} given; only TPUs and CPUs can be compiled for")
    try:
        import libtpu  # noqa: F401
    except ImportError as error:
        raise ImportError(
            f"--topology: {name!r} requires libtpu, which compiles for TPUs without one: "
            "pip install 'jaxlm[tpu]'"
        ) from error
    from jax.experimental import topologies

    for variable, value in QUIET.items():
        os.environ.setdefault(variable, value)
    try:
        options = described.chip.options
        if described.slices > 1:
            options = options | {"num_slices": described.slices}
        one = name[name.index("x") + 1 :] if described.slices > 1 else name
        found = topologies.get_topology_desc(one, platform="tpu", **options)
    except jax.errors.JaxRuntimeError as error:
        raise ValueError(f"--topology: {name!r} given; libtpu refuses it: {error}") from error
    return described._replace(devices=tuple(found.devices))


def worst_hop(mesh: jax.sharding.Mesh, axis: str) -> int | None:
    """The most links between devices that follow one another along a mesh axis, from the last back
    to the first too, as keys go round a ring; None for devices without coordinates. Links that
    close a torus, which only whole cubes and pods have, are not counted on."""
    if not all(hasattr(device, "coords") for device in mesh.devices.flat):
        return None
    places = np.array([device.coords for device in mesh.devices.flat])
    places = places.reshape(*mesh.devices.shape, -1)
    at = mesh.axis_names.index(axis)
    return int(np.abs(places - np.roll(places, -1, at)).sum(-1).max())


def rings(devices: Sequence[Any], size: int) -> np.ndarray | None:
    """The devices of a slice as rows of `size` neighbours, the last a neighbour of the first:
    closed paths through boxes that tile the slice. None where no box has such a path or tiles it,
    and for devices without coordinates, or two of the same."""
    places = {tuple(d.coords): d for d in devices if hasattr(d, "coords")}
    if len(places) != len(devices):
        return None
    extent = [max(axis) + 1 for axis in zip(*places, strict=True)]
    if math.prod(extent) != len(devices) or not (boxes := _boxes(extent, size)):
        return None
    # the most cubic, and within the first axes, as the chips of a host are
    order, box = min(boxes, key=lambda each: (max(each[1]), sorted(zip(*each), reverse=True), each))
    rows = []
    for corner in sorted(places):
        if all(corner[axis] % n == 0 for axis, n in zip(order, box, strict=True)):
            path = [list(corner) for _ in range(size)]
            for place, step in zip(path, _through(box), strict=True):
                for axis, n in zip(order, step, strict=True):
                    place[axis] += n
            rows.append([places[tuple(place)] for place in path])
    out = np.empty((len(rows), size), object)
    for i, row in enumerate(rows):
        out[i] = row
    return out


def _boxes(extent: Sequence[int], size: int) -> list[tuple[tuple[int, ...], tuple[int, int, int]]]:
    """(order of the three axes, sides) of boxes of a size that tile a slice, with a closed path."""
    return [
        (order, (a, b, size // (a * b)))
        for order in itertools.permutations(range(3))
        for a in range(1, size + 1)
        for b in range(1, size // a + 1)
        if size % (a * b) == 0
        if all(extent[i] % n == 0 for i, n in zip(order, (a, b, size // (a * b)), strict=True))
        if size == 2 or (size % 2 == 0 and 1 not in (a * b, size // (a * b)))
    ]


def _through(box: tuple[int, int, int]) -> list[tuple[int, int, int]]:
    """A closed path of neighbours through a box: of the rectangle whose one side is a snake through
    the box's first two, and whose other is its third."""
    a, b, c = box
    snake = [(i, j) for i in range(a) for j in (range(b) if i % 2 == 0 else range(b - 1, -1, -1))]
    return [(*snake[i], k) for i, k in _closed(a * b, c)]


def _closed(a: int, b: int) -> list[tuple[int, int]]:
    """A closed path of neighbours through all places of a rectangle a x b, of which one is even:
    a snake through all columns but the first, and home along that."""
    if a * b == 2:
        return [(0, 0), (a - 1, b - 1)]
    if a % 2:
        return [(i, j) for j, i in _closed(b, a)]
    snake = [(i, j) for i in range(a) for j in (range(1, b) if i % 2 == 0 else range(b - 1, 0, -1))]
    return [(0, 0), *snake, *((i, 0) for i in range(a - 1, 0, -1))]


# libtpu asks a metadata server which TPU this is, and waits; takes a lock on the machine's chips,
# though it runs nothing; and logs that it found none.
QUIET = {
    "TPU_SKIP_MDS_QUERY": "1",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "TPU_MIN_LOG_LEVEL": "3",
    "TPU_STDERR_LOG_LEVEL": "3",
    "TPU_WORKER_HOSTNAMES": "localhost",
}
