"""Every family's step lowers for GPUs and TPUs, on a machine that has neither."""

import jax
import pytest

from jaxlm import models
from jaxlm.core import target
from jaxlm.parallel.plan import Plan
from jaxlm.train import step
from tests import programs

# jax.export's name of each platform.
EXPORT = {"gpu": "cuda", "tpu": "tpu"}


def lowered(family, platform, plan):
    """The text of a family's step, for a platform."""
    with target.compiling_for(platform):
        objective, tx = programs.parts(family, plan)
        state = step.abstract(objective, tx, plan)
        batch = programs.fit(family, programs.rows(0))
        make = step.make(objective, tx, plan)
        return jax.export.export(make, platforms=[EXPORT[platform]])(state, batch).mlir_module()


@pytest.mark.slow
@pytest.mark.parametrize("platform", EXPORT)
@pytest.mark.parametrize("family", sorted(programs.FIRST))
def test_every_family_lowers(family, platform):
    text = lowered(family, platform, Plan())
    # the activations of an accelerator, and none of the forms that are a CPU's
    assert "bf16" in text and "optimization_barrier" not in text


@pytest.mark.slow
@pytest.mark.parametrize("platform", EXPORT)
def test_the_stages_of_a_pipeline_lower(platform):
    """Kernels and the products of experts under the vmap over stages."""
    plan = Plan(pipe=2, pipe_parts=2, expert=2)
    assert "ragged_dot" in lowered("qwen-moe", platform, plan)


@pytest.mark.slow
def test_experts_lower_to_the_primitive_of_accelerators():
    assert "ragged_dot" in lowered("qwen-moe", "tpu", Plan())


def test_choices_follow_the_target():
    assert Plan().dtype == jax.numpy.float32
    with target.compiling_for("tpu"):
        assert Plan().dtype == jax.numpy.bfloat16
        models.build(programs.FAMILIES["llama"], Plan(attention="splash"))
    assert target.platform() == "cpu"
