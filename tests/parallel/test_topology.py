"""Names of slices, and the devices that programs are compiled for."""

import sys
from types import SimpleNamespace
from typing import NamedTuple

import jax
import numpy as np
import pytest

from jaxlm.core import target
from jaxlm.parallel import topology
from jaxlm.parallel.plan import Plan


def test_names_count_chips():
    slice_ = topology.describe("tpu7x:4x4x8")
    assert (slice_.chips, slice_.dimensions, slice_.chip.per_chip) == (128, 3, 2)
    assert topology.describe("v5e:4x1").dimensions == topology.describe("h100:8").dimensions == 1


@pytest.mark.parametrize("name", ["v5p", "v7x:2x2x1", "v5e:4x", "v5e:0x4", "v5e:4*4"])
def test_a_wrong_name_is_refused(name):
    with pytest.raises(ValueError, match=r"such as 'v5p:4x4x8'"):
        topology.describe(name)


def test_without_libtpu_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "libtpu", None)
    with pytest.raises(ImportError, match=r"pip install 'jaxlm\[tpu\]'"):
        topology.load("v5e:2x2")
    with pytest.raises(ValueError, match="only TPUs and CPUs"):
        topology.load("h100:8")


def test_cpu_devices_are_those_of_this_process():
    assert topology.load("cpu:4").devices == tuple(jax.devices("cpu")[:4])
    with pytest.raises(ValueError, match="'cpu:9' given; this process has 8 CPU devices"):
        topology.load("cpu:9")
    for name in ("2xcpu:4", "cpu:2x4"):
        with pytest.raises(ValueError, match=r"of one machine: 'cpu:[48]'"):
            topology.describe(name)


def test_a_mesh_holds_the_devices_that_are_compiled_for():
    """Meshes of jax.devices() alone are compiled for the machine that plans."""
    last = jax.devices()[-1:]
    with target.compiling_for("tpu", last):
        assert Plan().mesh.devices.ravel().tolist() == last
        with pytest.raises(ValueError, match=r"fsdp=2 needs 2 devices; 1 cpu"):
            _ = Plan(fsdp=2).mesh
    assert Plan().mesh.devices.ravel().tolist() == jax.devices()[:1]


class Placed(NamedTuple):
    """A device with a place on a torus."""

    coords: tuple[int, ...]


def placed(*shape):
    return [Placed(place) for place in np.ndindex(*shape)]


@pytest.mark.parametrize(
    "shape, size",
    [((2, 4, 1), 4), ((2, 4, 1), 8), ((4, 4, 1), 16), ((3, 4, 1), 12), ((4, 4, 4), 8)]
    + [((4, 4, 2), 2), ((6, 2, 1), 6), ((16, 16, 1), 256), ((2, 2, 2), 8), ((4, 4, 4), 64)],
)
def test_rings_are_of_neighbours(shape, size):
    """JAX's own order has a worst hop of 14 for the 64 devices of v5e:8x8 and of 30 for 256."""
    devices = placed(*shape)
    rows = topology.rings(devices, size)
    assert rows.shape == (len(devices) // size, size)
    assert {d.coords for d in rows.flat} == {d.coords for d in devices}
    grid = SimpleNamespace(devices=rows, axis_names=("fsdp", "context"))
    assert topology.worst_hop(grid, "context") == 1


def test_rings_that_do_not_exist():
    assert topology.rings(placed(3, 3, 1), 3) is None  # the ends of a line are two links apart
    assert topology.rings(placed(3, 3, 1), 9) is None  # no closed path through an odd number
    assert topology.rings(placed(2, 2, 1) * 2, 4) is None  # two devices of each chip
    assert topology.rings(jax.devices()[:2], 2) is None


def test_the_worst_hop_closes_the_ring():
    """Rows of a 2x4 slice as rings: one link to each neighbour, three from the last to the first;
    columns are pairs of neighbours."""
    devices = np.empty((2, 4), object)
    for x, y in np.ndindex(2, 4):
        devices[x, y] = Placed((x, y, 0))
    grid = SimpleNamespace(devices=devices, axis_names=("fsdp", "context"))
    assert [topology.worst_hop(grid, name) for name in grid.axis_names] == [1, 3]
    grid.devices = devices.reshape(8, 1)
    assert topology.worst_hop(grid, "fsdp") == 4  # (0, 3) to (1, 0), and (1, 3) to (0, 0)
    assert topology.worst_hop(Plan(fsdp=2).mesh, "fsdp") is None


def test_several_slices_of_a_kind():
    two = topology.describe("2xtpu7x:4x4x8")
    assert (two.slices, two.shape, two.chips, two.dimensions) == (2, (4, 4, 8), 256, 3)
    assert topology.describe("v5e:4x4").slices == 1
    with pytest.raises(ValueError, match="'2xv5p:4x4x8' for two slices"):
        topology.describe("0xv5e:4x4")
