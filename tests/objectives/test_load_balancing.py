"""Losses of experts inside a scanned model, metrics of a step, and biases that it moves."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlm import models
from jaxlm.core import param
from jaxlm.objectives import clm, load_balancing
from jaxlm.objectives.objective import Objective
from jaxlm.parallel.plan import Plan
from jaxlm.train import step
from jaxlm.train.optim import optimizer
from tests import programs
from tests.families import deepseek, llama, mistral


def test_the_losses_are_added_and_reach_every_router():
    # in a scanned model, where a loss left inside the loop would be lost
    model, batch = models.build(mistral.MISTRAL), programs.rows(0, programs.UNEVEN)
    objective = clm.build(clm.Config(balance=0.5, router_z=0.25), model)

    @jax.jit
    def run(params):
        def loss(params):
            total, weight, sums = objective.loss(params, {}, batch, None)
            return total, (weight, sums)

        return jax.value_and_grad(loss, has_aux=True)(params)

    # experts that give 0: of the likelihood no gradient comes to a router
    params = param.flatten(programs.weights("mistral"))
    params["stack/0/0_local/moe/down"] *= 0
    structure = jax.tree.structure(model.spec, is_leaf=param.is_param)
    params = jax.tree.unflatten(structure, params.values())
    (total, (weight, sums)), grads = jax.tree.map(np.asarray, run(params))
    load, shares = np.float64(sums["load"]), np.float64(sums["shares"])
    tokens, count = np.sum(batch.segments > 0), load.shape[1]
    assert load.shape == (3, count) and sums["routed"].tolist() == [tokens] * 3
    balance = np.mean([count * f @ p for f, p in zip(load / (2 * tokens), shares / tokens)])
    added = 0.5 * balance + 0.25 * np.mean(sums["router_z"]) / tokens
    assert total - sums["nll"] == pytest.approx(added * batch.weight.sum(), rel=1e-4)
    router = param.flatten(grads)["stack/0/0_local/moe/router"]
    assert (np.abs(router).max(axis=(1, 2)) > 1e-4).all()


def test_report_is_the_definition():
    # the largest load of all is not of the layer that is worst by its own mean
    load = np.array([[12, 0, 6, 6], [8, 0, 0, 0]], np.float32)
    sums = {
        "routed": np.float32([12, 4]),
        "load": load,
        "shares": np.full((2, 4), 1.0, np.float32),
        "router_z": np.float32([12, 8]),
        "router_entropy": np.float32([6, 0]),
        "dropped": np.float32([6, 0]),
    }
    report = {
        k: float(v) for k, v in load_balancing.report(jax.tree.map(jnp.asarray, sums)).items()
    }
    assert report == pytest.approx(
        {
            "balance": 1.0,
            "router_z": 1.5,
            "router_entropy": 0.25,
            "dropped": 0.125,
            "load_peak": 4.0,
            "dead_experts": 0.5,
        }
    )


@pytest.mark.parametrize(
    ("cfg", "message"),
    [
        (
            clm.Config(balance=0.1),
            "objective.balance: 0.1 given; it must be 0 for a model without experts",
        ),
        (clm.Config(router_z=0.1), "objective.router_z: 0.1 given"),
        (clm.Config(bias_speed=0.1), "objective.bias_speed: 0.1 given"),
    ],
)
def test_a_model_without_experts_refuses(cfg, message):
    with pytest.raises(ValueError, match=message):
        clm.build(cfg, models.build(llama.LLAMA))


def test_a_router_without_the_bias_refuses():
    with pytest.raises(ValueError, match="0 for a model without select_bias"):
        clm.build(clm.Config(bias_speed=0.1), models.build(mistral.MISTRAL))
    with pytest.raises(ValueError, match="objective.balance: -1"):
        clm.Config(balance=-1.0)


def test_a_step_adjusts_from_all_micro_batches_and_not_when_it_is_skipped():
    p = param.shaper(embed=2)
    spec = {"w": p("embed", init=param.ones), "b": p("embed", init=param.zeros)}

    def loss(params, frozen, batch, key):
        total = jnp.sum(batch @ params["w"])
        return total, jnp.float32(len(batch)), {"seen": jnp.sum(batch, axis=0), "x": total}

    objective = Objective(
        spec,
        loss,
        report=lambda sums: {"most": jnp.max(sums["seen"])},
        adjust=lambda params, sums: params | {"b": params["b"] + sums["seen"]},
    )
    rows = np.arange(8, dtype=np.float32).reshape(4, 2)
    for plan in (Plan(), Plan(microbatches=2)):
        tx = optimizer.build(optimizer.Optim(warmup=0), spec, 10, False)
        run = step.make(objective, tx, plan)
        state, metrics = run(step.init(objective, tx, plan, 0), rows)
        assert state.params["b"].tolist() == rows.sum(axis=0).tolist()
        assert metrics["most"] == rows.sum(axis=0).max() and metrics["x"] == metrics["loss"]
        assert "seen" not in metrics
        state, metrics = run(state, np.full_like(rows, np.inf))
        assert metrics["skipped"] == 1 and state.params["b"].tolist() == rows.sum(axis=0).tolist()


@pytest.mark.slow
def test_the_bias_moves_alike_in_parts_on_a_mesh():
    cfg = dataclasses.replace(deepseek.DEEPSEEK, ahead=0, dense=0, layers=2, q_rank=None)
    batch, states, start = programs.rows(0, programs.UNEVEN), [], None
    for plan in (Plan(), dataclasses.replace(programs.MESH, microbatches=2)):
        model = models.build(cfg, plan)
        objective = clm.build(clm.Config(bias_speed=0.125), model, plan)
        tx = optimizer.build(optimizer.Optim(warmup=0), objective.spec, 10, False)
        run = step.make(objective, tx, plan)
        if start is None:
            start = jax.tree.map(np.asarray, step.init(objective, tx, plan, 3))
        state = jax.device_put(start, step.shard(objective, tx, plan))
        state, metrics = run(state, programs.placed(batch, plan))
        params = param.flatten(jax.tree.map(np.asarray, state.params))
        (bias,) = (x for path, x in params.items() if path.endswith("select_bias"))
        states.append((bias, {k: float(v) for k, v in metrics.items()}))
    assert set(np.abs(states[0][0]).ravel().tolist()) <= {0.0, 0.125} and states[0][0].any()
    (one, metrics), (other, also) = states
    np.testing.assert_array_equal(other, one)
    assert also == pytest.approx(metrics, rel=2e-5)
