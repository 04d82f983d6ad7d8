"""Layouts by name, and what is refused."""

import pytest

from jaxlm.parallel import mesh_layouts
from jaxlm.parallel.plan import Plan


@pytest.mark.parametrize(
    "name, devices, slices, plan",
    [
        ("fsdp", 8, 1, Plan(fsdp=8)),
        ("fsdp", 8, 2, Plan(data=2, fsdp=4, slices=2)),
        ("fsdp_tensor", 16, 1, Plan(fsdp=4, tensor=4)),
        ("fsdp_tensor", 256, 2, Plan(data=2, fsdp=16, tensor=8, slices=2)),
        ("hybrid", 32, 1, Plan(data=4, fsdp=8)),
        ("hybrid", 8, 1, Plan(data=2, fsdp=4)),
        ("hybrid", 64, 2, Plan(data=2, fsdp=32, slices=2)),
        ("expert", 8, 1, Plan(expert=8)),
        ("context", 8, 1, Plan(context=8)),
        ("pipeline", 8, 1, Plan(pipe=2, fsdp=4)),
        ("pipeline", 24, 3, Plan(pipe=3, fsdp=8, slices=3)),
    ],
)
def test_a_name_is_a_plan(name, devices, slices, plan):
    assert mesh_layouts.named(name, devices, slices) == plan
    base = Plan(remat="full", tensor=2, sequence=True)
    assert mesh_layouts.named(name, devices, slices, base).remat == "full"


def test_the_first_that_suits_is_taken():
    def few(plan):
        if plan.expert > 2 or plan.pipe > 1 or plan.context > 4:
            raise ValueError(f"{plan} is too wide")

    assert mesh_layouts.named("expert", 8, suits=few) == Plan(expert=2, fsdp=4)
    assert mesh_layouts.named("context", 8, suits=few) == Plan(context=4, fsdp=2)


def test_what_does_not_fit_is_refused_with_the_nearest_that_does():
    with pytest.raises(
        ValueError, match="layout: 'zero' given; it must be one of .*'context', 'ex"
    ):
        mesh_layouts.named("zero", 8)
    with pytest.raises(
        ValueError, match="devices: 9 given; it must be at least 1, and a multiple o"
    ):
        mesh_layouts.named("fsdp", 9, 2)
    with pytest.raises(ValueError) as error:
        mesh_layouts.named("fsdp_tensor", 7)
    assert str(error.value) == (
        "layout: fsdp_tensor of 7 devices given; there is no such layout of so many devices; what "
        "fits: fsdp:7, fsdp=7"
    )

    def narrow(plan):
        if plan.fsdp > 4 or plan.data * plan.expert * plan.context * plan.tensor * plan.pipe > 1:
            raise ValueError("the model divides over fsdp=4 at most")

    with pytest.raises(ValueError) as error:
        mesh_layouts.named("fsdp", 6, suits=narrow)
    assert str(error.value) == (
        "layout: fsdp of 6 devices given; the model divides over fsdp=4 at most; what fits: "
        "fsdp:4, fsdp=4"
    )
