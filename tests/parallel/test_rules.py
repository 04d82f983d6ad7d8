"""Where arrays lie on a mesh."""

import jax
import pytest
from jax.sharding import PartitionSpec

from jaxlm.parallel import rules
from jaxlm.parallel.plan import Plan

MESH = jax.sharding.AbstractMesh((2, 4, 2), ("data", "fsdp", "tensor"))


@pytest.mark.parametrize(
    "axes, shape, want",
    [
        ("embed heads head", (8, 4, 3), (("fsdp",), ("tensor",), None)),
        ("layer embed ffn", (3, 8, 6), (None, ("fsdp",), ("tensor",))),
        ("vocab embed", (10, 8), (("tensor",), ("fsdp",))),
        # an activation's rows take fsdp, so its width goes without
        ("batch seq embed", (16, 5, 8), (("data", "fsdp"), None, None)),
        ("batch seq heads head", (16, 5, 4, 3), (("data", "fsdp"), None, ("tensor",), None)),
        # the leftmost dimension that asks has it
        ("heads ffn", (4, 6), (("tensor",), None)),
    ],
)
def test_a_mesh_axis_goes_to_the_leftmost_dimension_that_asks(axes, shape, want):
    got = rules.partition(tuple(axes.split()), shape, MESH, "x")
    assert got == PartitionSpec(*want)


def test_an_axis_can_be_kept_whole():
    got = rules.partition(("vocab", "embed"), (10, 8), MESH, "x", whole=("fsdp",))
    assert got == PartitionSpec(("tensor",), None)


def test_a_dimension_that_does_not_divide_is_named():
    with pytest.raises(ValueError) as error:
        rules.partition(("batch", "seq"), (12, 5), MESH, "data.batch")
    assert str(error.value) == (
        "data.batch: dimension 'batch' of size 12 does not divide over data=2 x fsdp=4; "
        "the nearest products that fit are 6 and 12"
    )


def test_an_axis_without_a_rule_is_named():
    with pytest.raises(ValueError, match="w: axis 'width' has no rule; there are"):
        rules.partition(("width",), (4,), MESH, "w")


def test_one_device_splits_nothing():
    mesh = Plan().mesh
    for axis in rules.RULES:
        assert rules.partition((axis,), (7,), mesh, "x") == PartitionSpec(None)


@pytest.mark.parametrize(
    "devices, outer",
    [(8, 8), (63, 63), (64, 16), (96, 16), (100, 20), (128, 16), (256, 16), (1024, 32)],
)
def test_fsdp_over_many_devices_is_two_axes(devices, outer):
    """Neither of so many devices that XLA gathers by an all-reduce of the whole."""
    plan = Plan(fsdp=devices)
    assert rules.outer(devices) == outer and plan.devices == devices == plan.row_parts
    assert plan.wide == (outer < devices) == (rules.INNER in plan.axes)
    assert str(plan) == f"fsdp={devices}"
    mesh = jax.sharding.AbstractMesh(plan.shape, tuple(plan.axes))
    name = ("fsdp",) if outer == devices else ("fsdp", rules.INNER)
    got = rules.partition(("layer", "embed", "ffn"), (3, devices, 6), mesh, "w")
    assert got == PartitionSpec(None, name, None)
    with pytest.raises(ValueError, match=f"size 5 does not divide over fsdp={devices};"):
        rules.partition(("embed",), (5,), mesh, "w")


def test_a_number_that_is_no_product_is_one_axis():
    assert rules.outer(67) == 67 and rules.outer(4096) == 4096
    assert Plan(fsdp=67).wide and Plan(fsdp=32, expert=2).wide and not Plan(fsdp=32, data=2).wide
