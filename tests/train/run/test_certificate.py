"""Every layout computes what one device computes: float64, all gradients, leaf by leaf."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlm import models
from jaxlm.models.layers import moe
from jaxlm.objectives import clm
from jaxlm.parallel import plan as plans
from jaxlm.parallel import rules
from jaxlm.parallel.plan import Plan
from jaxlm.train.run import certificate
from jaxlm.train.run.run import Run
from tests import programs

# A plain decoder, windows in a pattern, experts, latent attention, an encoder-decoder.
CASES = ("llama-all", "gemma-all", "qwen-moe", "deepseek", "t5")
# Every axis is in some of them, on packed rows; where one fails, `alone` says by which axis.
LAYOUTS = {
    "fsdp x tensor x data, ZeRO 2, in parts": Plan(
        fsdp=2, tensor=2, data=2, zero=2, microbatches=2, remat="full", poison=True
    ),
    "context x fsdp x tensor, the sequence split": Plan(
        context=2, fsdp=2, tensor=2, sequence=True, loss_chunk=8, poison=True
    ),
    "expert x context": Plan(expert=2, context=4, poison=True),
    "gathered keys x expert x fsdp": Plan(
        context=2, expert=2, fsdp=2, context_keys="gathered", poison=True
    ),
}
# On more layers: runs of them in stages, in turns of two rounds, and others outside.
PIPELINES = {
    "2 stages in rounds x fsdp x tensor, the sequence split": Plan(
        pipe=2, pipe_rounds=2, fsdp=2, tensor=2, sequence=True, remat="full", poison=True
    ),
    "4 stages x context": Plan(pipe=4, pipe_parts=2, context=2, poison=True),
}
EXPERTS = {"2 stages x expert x data": Plan(pipe=2, expert=2, data=2, zero=2, poison=True)}
# Stored on so many devices that they are gathered along one axis after the other, `fsdp` as two.
MANY = {
    "fsdp 2 x 2 x tensor": Plan(fsdp=4, tensor=2, remat="full"),
    "fsdp x expert x context": Plan(fsdp=2, expert=2, context=2, remat="full"),
    "2 stages x fsdp 2 x 2": Plan(pipe=2, fsdp=4, remat="dots", poison=True),
}
DEEP = {"gemma-all": {"layers": 9}, "t5": {"encoder": 5, "layers": 4}}
BATCH = Plan(data=8, context=4, microbatches=2)  # its rows divide under all


@functools.cache
def case(family, deep=False):
    """(Config, weights, batch, gradients on one device) of a case, the smallest with its layers, or
    deep enough for stages that have several and leave one."""
    with jax.enable_x64(True):
        cfg = certificate.smaller(programs.FAMILIES[family], BATCH)
        if deep:
            cfg = dataclasses.replace(cfg, **DEEP.get(family, {"layers": 5}))
        weights = certificate.random_weights(models.spec(cfg))
        batch = certificate.rows(models.build(cfg), BATCH)
        one = certificate.gradients(None, cfg, Plan(compute="float64"), weights, batch)
    return cfg, weights, batch, one


def largest(family, plan):
    """The leaf that differs the most under a plan."""
    cfg, weights, batch, one = case(family, plan.pipe > 1)
    with jax.enable_x64(True):
        plan = dataclasses.replace(plan, compute="float64")
        ours = certificate.gradients(None, cfg, plan, weights, batch)
    return max(certificate.differences(ours, one), key=lambda leaf: leaf.relative)


def alone(family, plan):
    """The differences under each axis of a plan by itself."""
    for name in rules.AXES:
        if (n := getattr(plan, name)) > 1:
            yield f"{name}={n}: {largest(family, Plan(**{name: n}))}"


@pytest.mark.slow
@pytest.mark.parametrize(
    "family", [pytest.param(c, marks=pytest.mark.xdist_group(f"layouts-{c}")) for c in CASES]
)
def test_every_layout_is_exact(family):
    for name, plan in LAYOUTS.items():
        worst = largest(family, plan)
        assert worst.relative <= certificate.TOLERANCE, (name, worst, *alone(family, plan))


@pytest.mark.slow
@pytest.mark.parametrize(
    "family", [pytest.param(c, marks=pytest.mark.xdist_group(f"layouts-{c}")) for c in CASES]
)
def test_every_pipeline_is_exact(family):
    """And nothing reads a bubble or the rows of no expert, which are NaN."""
    routed = moe.has(models.spec(case(family, True)[0]))
    for name, plan in (PIPELINES | (EXPERTS if routed else {})).items():
        worst = largest(family, plan)
        assert worst.relative <= certificate.TOLERANCE, (name, worst, *alone(family, plan))


@pytest.fixture
def many(monkeypatch):
    """Four devices are as many as 64."""
    monkeypatch.setattr(rules, "WIDE", 4)
    plans._mesh.cache_clear()
    yield
    plans._mesh.cache_clear()


def test_weights_of_many_devices_are_exact(many):
    plan = Plan(fsdp=4, context=2, remat="full")
    assert plan.mesh.shape["fsdp"] == plan.mesh.shape[rules.INNER] == 2
    run = Run(name="x", model=programs.FAMILIES["llama"], objective=clm.Config(), plan=plan)
    result = certificate.certify(run)
    assert result.different is None, result.different


@pytest.mark.slow
@pytest.mark.parametrize(
    "family", [pytest.param(c, marks=pytest.mark.xdist_group(f"layouts-{c}")) for c in CASES]
)
def test_weights_of_many_devices_are_exact_in_every_layout(family, many):
    for name, plan in MANY.items():
        worst = largest(family, plan)
        assert worst.relative <= certificate.TOLERANCE, (name, worst)


@pytest.mark.slow
@pytest.mark.parametrize("plan", [Plan(context=3), Plan(context=6), Plan(context=8)], ids=str)
def test_rings_of_any_size_are_exact(plan):
    cfg = dataclasses.replace(programs.FAMILIES["llama"], embed=24)
    result = certificate.certify(Run(name="x", model=cfg, objective=clm.Config(), plan=plan))
    assert result.different is None, result.different


def test_a_small_copy_is_exact_and_a_fault_is_named(monkeypatch):
    plan = Plan(pipe=2, fsdp=2, tensor=2)
    run = Run(name="x", model=models.presets()["llama3-8b"], objective=clm.Config(), plan=plan)
    result = certificate.certify(run)
    assert result.different is None and result.largest.ulps < 100
    assert result.model.heads == 32 and result.model.kv == 8 and result.model.layers == 2
    assert result.objective == "clm"
    assert f"exact: loss and every gradient agree within {1e-12:g}" in [*certificate.lines(result)]
    gathered = Plan.constrain

    def wrong(self, x, axes):
        x = gathered(self, x, axes)
        return x * 1.0001 if self.devices > 1 and axes == "rows seq heads head" else x

    monkeypatch.setattr(Plan, "constrain", wrong)
    result = certificate.certify(run)
    assert result.different is not None and result.different.path == "loss"
    *_, last = certificate.lines(result)
    assert last.startswith("different: loss by ")


def test_a_number_that_is_not_finite_is_a_difference():
    here = {"loss": np.float64(1.0), "w": np.array([1.0, np.nan])}
    there = {"loss": np.float64(1.0), "w": np.array([1.0, 2.0])}
    loss, w = certificate.differences(here, there)
    assert loss.relative == 0 and w.relative == np.inf


def test_what_does_not_divide_is_refused_by_name():
    model = models.presets()["llama3-8b"]
    run = Run(name="x", model=model, objective=clm.Config(), plan=Plan(tensor=16))
    with pytest.raises(ValueError, match="dimension 'kv' of size 8 does not divide over tensor=16"):
        certificate.certify(run)


def test_float64_requires_64_bit_types():
    with pytest.raises(ValueError, match="plan.compute: 'float64' given; it requires JAX_ENABLE"):
        _ = Plan(compute="float64").dtype
    with jax.enable_x64(True):
        assert Plan(compute="float64").dtype == jnp.float64
