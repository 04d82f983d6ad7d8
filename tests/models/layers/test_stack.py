"""Outputs kept by name: the gradient is the same, less is computed again, and what is offloaded
goes to the host."""

import re

import jax
import jax.export
import pytest

from jaxlm import models
from jaxlm.core import target
from jaxlm.models.layers import stack
from jaxlm.parallel.plan import Plan
from tests import programs

FULL = Plan(remat="full")
NAMED = Plan(
    remat="full", keep=("q", "gate", "attention", "latent"), offload=("layer", "k", "down")
)


def plan_of(case, plan):
    """The plan with the names that the case's model has."""
    known = stack.names(models.spec(programs.FAMILIES[case]))
    given = {f: tuple(n for n in getattr(plan, f) if n in known) for f in ("keep", "offload")}
    return Plan(remat="full", **given)


def loss(case, plan):
    """(function of the weights, weights)."""
    batch = programs.fit(case, programs.rows(0))
    objective = programs.pretraining(models.build(programs.FAMILIES[case], plan), plan)
    return lambda w: objective.loss(w, {}, batch, None)[0], programs.weights(case)


def products(case, plan):
    """Products in the program of the gradient; a scan's body counts once."""
    f, w = loss(case, plan)
    return len(re.findall(r"= dot_general\[", str(jax.make_jaxpr(jax.grad(f))(w))))


@pytest.mark.parametrize(
    "case", ["llama-all", *(pytest.param(c, marks=pytest.mark.slow) for c in ("deepseek-v2", "t5"))]
)
def test_outputs_kept_by_name_change_no_gradient(case):
    (f, w), (g, _) = (loss(case, plan) for plan in (FULL, plan_of(case, NAMED)))
    programs.close(jax.jit(jax.grad(g))(w), jax.jit(jax.grad(f))(w))


def test_what_is_kept_is_not_computed_again():
    """Of a layer's seven products full recomputes all but down's, which no gradient reads; keeping
    q, k and v saves three, gate one more; attention's own two are saved along with its output only
    by a kernel that keeps it, which `xla` does not."""
    full = products("llama-all", FULL)
    for count, keep in (
        (0, ("down",)),
        (1, ("q",)),
        (3, ("q", "k", "v")),
        (4, ("q", "k", "v", "up")),
    ):
        assert full - products("llama-all", Plan(remat="full", keep=keep)) == count, keep
        assert full - products("llama-all", Plan(remat="full", offload=keep)) == count, keep


def test_what_is_offloaded_is_on_the_host_of_a_tpu():
    with target.compiling_for("tpu"):
        f, w = loss("llama-all", Plan(remat="full", compute="float32", offload=("layer", "q")))
        text = jax.export.export(jax.jit(jax.grad(f)), platforms=["tpu"])(w).mlir_module()
    assert len(re.findall(r"annotate_device_placement.*pinned_host", text)) >= 2


def test_names_that_a_model_does_not_have_are_refused():
    spec = models.spec(programs.FAMILIES["llama-all"])
    with pytest.raises(ValueError, match=r"plan.keep: \('latent',\) given; it must be names of \["):
        stack.check(spec, Plan(remat="full", keep=("latent",)))
    stack.check(spec, Plan(remat="full", keep=("q", "attention"), offload=("layer",)))
    with pytest.raises(
        ValueError, match="plan.keep: .* with plan.remat='none'; 'full' has a choice"
    ):
        Plan(keep=("q",))
    with pytest.raises(ValueError, match=r"without \['q'\], of plan.offload"):
        Plan(remat="full", keep=("q", "v"), offload=("q",))
