"""Stages of a pipeline compute what the layers compute in order, and nothing reads a bubble."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlm import models
from jaxlm.core import param
from jaxlm.models.layers import stack
from jaxlm.objectives import clm
from jaxlm.parallel import pipeline_parallel
from jaxlm.parallel.plan import Plan
from tests import programs
from tests.families import gpt


def layers(weights, x, rows):
    """A layer that reads its row's own number and sums over rows, in a form that needs x > 0."""

    def layer(x, w):
        y = x + jnp.log(1 + x * x) @ w * rows["scale"][:, None, None]
        return y, {"squares": jnp.sum(y**2, axis=(0, 1))}

    return jax.lax.scan(layer, x, weights)


def result(how, weights, x, scale):
    """(x, sums) and the gradients of a number made of both."""

    def number(weights, x, scale):
        y, sums = how(weights, x, {"scale": scale})
        return jnp.sum(jnp.sin(y)) + jnp.sum(jnp.sqrt(sums["squares"])), (y, sums)

    run = jax.jit(jax.grad(number, argnums=(0, 1, 2), has_aux=True))
    with jax.enable_x64(True):
        return jax.tree.map(np.asarray, run(weights, x, scale))


PLANS = (
    Plan(pipe=2, fsdp=2, pipe_parts=3, poison=True),
    Plan(pipe=4, data=2, pipe_parts=2, poison=True),
    Plan(pipe=2, data=2, pipe_rounds=2, pipe_parts=3, poison=True),
)


def test_stages_are_the_layers_in_order():
    r = np.random.default_rng(0)
    weights, x = 0.1 * r.normal(size=(12, 4, 4)), r.normal(size=(24, 3, 4))
    scale = r.uniform(0.5, 1.5, 24)
    want = result(layers, weights, x, scale)
    for plan in PLANS:
        for how in (pipeline_parallel.apply, pipeline_parallel.spread)[: plan.data]:
            got = result(lambda *a, h=how, p=plan: h(layers, p, *a), weights, x, scale)
            for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
                np.testing.assert_allclose(a, b, rtol=1e-11, atol=1e-11, err_msg=str(plan))


def test_a_turn_hands_on_once_and_gathers_nothing():
    """One permutation of the stages' rows a turn: a write or a read of what waits at the first
    stage would be a collective of its own, if it were not on every stage's devices."""
    plan = Plan(pipe=4)
    w, x = np.zeros((4, 4, 4), np.float32), np.zeros((16, 3, 4), np.float32)

    def forward(w, x):
        return pipeline_parallel.apply(layers, plan, w, x, {"scale": x[:, 0, 0]})[0]

    place = jax.sharding.NamedSharding(plan.mesh, jax.sharding.PartitionSpec("pipe"))
    text = jax.jit(forward, in_shardings=(place, plan.replicated)).lower(w, x).compile().as_text()
    inside = [part for part in text.split("\n\n") if "collective-permute(" in part]
    assert len(inside) == 1 and inside[0].count(" collective-permute(") == 1
    assert not any(f" {name}(" in inside[0] for name in ("all-gather", "all-reduce", "all-to-all"))


def test_dropout_draws_the_same_for_a_row_in_any_part():
    """Every row draws by its own key: masks of a whole batch would be others in each part."""
    cfg = dataclasses.replace(gpt.GPT, dropout=0.3, layers=3)
    w = programs.drawn(models.spec(cfg), 1)
    batch = programs.rows(4)

    def loss(plan):
        objective = clm.build(clm.Config(), models.build(cfg, plan), plan)
        run = jax.jit(lambda w, b: objective.loss(w, {}, b, jax.random.key(5))[0])
        placed = jax.device_put(w, plan.shard_params(models.spec(cfg)))
        return float(run(placed, programs.placed(batch, plan)))

    one = loss(Plan())
    assert loss(Plan(pipe=2)) == pytest.approx(one, rel=1e-6)
    plain = clm.build(clm.Config(), models.build(cfg))
    assert abs(float(plain.loss(w, {}, batch, None)[0]) / one - 1) > 1e-4


def test_the_longest_run_of_layers_is_in_the_stages():
    """A tree of specs is enough: nothing is computed."""
    layer = {"w": param.shaper(embed=4)("embed", init=param.ones)}
    kinds = ["dense"] + 6 * ["moe"] + ["last"]
    of = {kind: stack.Layer(kind, 1, lambda rows, slots: {}) for kind in {*kinds}}
    tree = stack.spec([of[kind] for kind in kinds], lambda kind: layer)
    assert stack.staged(tree, Plan()) is None
    assert stack.staged(tree, Plan(pipe=2)) == ("1", 6)
    assert stack.staged(tree, Plan(pipe=4)) == ("1", 4)
    assert stack.staged(tree, Plan(pipe=2, pipe_rounds=2)) == ("1", 4)
    with pytest.raises(
        ValueError, match="plan.pipe: 8 given; the longest run .* 6 times, which is "
    ):
        stack.check({"stack": tree}, Plan(pipe=8))
    with pytest.raises(ValueError, match="pipe: 4 given with plan.pipe_rounds=2; .* at most 3 sta"):
        stack.check({"stack": tree}, Plan(pipe=4, pipe_rounds=2))
    with pytest.raises(ValueError, match="plan.pipe: 2 given; it must be 1 with a module"):
        stack.check({"module": {}}, Plan(pipe=2))


def test_rows_that_do_not_divide_into_parts_are_named():
    x = np.zeros((12, 3, 4), np.float32)
    with pytest.raises(ValueError, match="data.batch: 12 rows of a micro-batch do not divide into"):
        pipeline_parallel.apply(layers, Plan(pipe=2, pipe_parts=5), np.zeros((2, 4, 4)), x, {})
