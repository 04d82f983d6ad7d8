"""Machines that are elsewhere: their devices, to compile for, and what their chips can do.

    v4:2x2x1  v5e:4x4  v5p:4x4x8  v6e:8x16  tpu7x:2x2x1      as JAX names topologies, in chips
    h100:8                                                   GPUs, to estimate but not compile for

A chip is one JAX device, but for tpu7x, which has two a chip.
"""

import math
import os
from typing import Any, NamedTuple

import jax
import numpy as np


class Chip(NamedTuple):
    """The peaks of one JAX device of a kind, as their makers publish them.

    hbm: GiB of memory. flops: bfloat16 FLOP/s. bandwidth: bytes/s of memory. link: bytes/s of one
    link to a neighbour, one way. mxu: the side of its matrix unit. per_chip: JAX devices of a chip.
    options: what libtpu requires to describe a slice of it.
    """

    platform: str
    hbm: float
    flops: float
    bandwidth: float
    link: float
    mxu: int = 128
    per_chip: int = 1
    options: dict[str, Any] = {}


_MEGACORE = {"chip_config_name": "megacore"}
CHIPS: dict[str, Chip] = {
    "v4": Chip("tpu", 32, 275e12, 1228e9, 50e9, options=_MEGACORE),
    "v5e": Chip("tpu", 16, 197e12, 819e9, 50e9),
    "v5p": Chip("tpu", 95, 459e12, 2765e9, 100e9, options=_MEGACORE),
    "v6e": Chip("tpu", 32, 918e12, 1638e9, 100e9, mxu=256),
    "tpu7x": Chip("tpu", 96, 1153.5e12, 3690e9, 100e9, mxu=256, per_chip=2),
    "a100": Chip("gpu", 80, 312e12, 2039e9, 300e9, mxu=64),
    "h100": Chip("gpu", 80, 989e12, 3350e9, 450e9, mxu=64),
    "h200": Chip("gpu", 141, 989e12, 4800e9, 450e9, mxu=64),
}


class Topology(NamedTuple):
    """A slice: its name, its kind of chip, the shape of its torus in chips, and its devices in
    JAX's order, () where they cannot be compiled for."""

    name: str
    chip: Chip
    shape: tuple[int, ...]
    devices: tuple[Any, ...] = ()

    @property
    def chips(self) -> int:
        """The chips of the slice."""
        return math.prod(self.shape)

    @property
    def dimensions(self) -> int:
        """Dimensions of the torus that have more than one chip, at least 1."""
        return max(1, sum(n > 1 for n in self.shape))


def describe(name: str) -> Topology:
    """The Topology of a name such as "v5p:4x4x8", without devices. Raises: ValueError for a name
    that is none."""
    kind, _, shape = name.partition(":")
    sizes = shape.split("x")
    if kind not in CHIPS or not all(n.isdecimal() and int(n) for n in sizes):
        raise ValueError(
            f"--topology: {name!r} given; it must be a kind of {list(CHIPS)} and its chips, such "
            "as 'v5p:4x4x8'"
        )
    return Topology(name, CHIPS[kind], tuple(int(n) for n in sizes))


def load(name: str) -> Topology:
    """The Topology of a TPU slice with its devices, for which programs can be compiled.

    Raises: ValueError for a name that is none, and ImportError naming the extra where libtpu, which
    knows them, is not installed.
    """
    described = describe(name)
    if described.chip.platform != "tpu":
        raise ValueError(f"--topology: {name!r} given; only slices of TPUs can be compiled for")
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
        found = topologies.get_topology_desc(name, platform="tpu", **described.chip.options)
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


# libtpu asks a metadata server which TPU this is, and waits; takes a lock on the machine's chips,
# though it runs nothing; and logs that it found none.
QUIET = {
    "TPU_SKIP_MDS_QUERY": "1",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "TPU_MIN_LOG_LEVEL": "3",
    "TPU_STDERR_LOG_LEVEL": "3",
    "TPU_WORKER_HOSTNAMES": "localhost",
}
