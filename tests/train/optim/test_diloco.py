"""Replicas that train apart: identities, the outer optimiser by hand, meshes, and bytes sent."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxlm.core import param
from jaxlm.objectives.objective import Objective
from jaxlm.parallel.plan import Plan
from jaxlm.train import step
from jaxlm.train.optim import diloco, optimizer
from jaxlm.train.optim.diloco import Replicas
from tests import programs

P = param.shaper(embed=8, ffn=6)
SPEC = {"a": P("embed -> ffn"), "b": P("ffn", init=param.zeros)}


def loss(params, frozen, batch, key):
    out = batch["x"] @ params["a"] + params["b"]
    each = jnp.square(jnp.tanh(out) - batch["y"]).sum(-1)
    return jnp.sum(batch["weight"] * each), jnp.sum(batch["weight"]), {}


OBJECTIVE = Objective(SPEC, loss)
SCALARS = 16  # of the metrics, and of the shares they are weighted with
ADAM = optimizer.build(optimizer.Optim(lr=0.02, warmup=2), SPEC, 12, fp16=False)


def batches(count, rows=16):
    random = np.random.default_rng(0)
    shapes = {"x": (count, rows, 8), "y": (count, rows, 6)}
    all = {n: random.normal(size=s).astype(np.float32) for n, s in shapes.items()}
    all["weight"] = np.ones((count, rows), np.float32)
    return [jax.tree.map(lambda x, i=i: x[i], all) for i in range(count)]


def trained(cfg, plan=Plan(), tx=ADAM, count=6):
    """The State after every step, the first one first, and the metrics."""
    tx = diloco.transform(tx, cfg)
    run, state = diloco.make(OBJECTIVE, tx, plan, cfg), step.init(OBJECTIVE, tx, plan, 3)
    states, metrics = [jax.tree.map(np.asarray, state)], []
    for batch in batches(count):
        state, measured = run(state, batch)
        states.append(jax.tree.map(np.asarray, state))
        metrics.append({n: float(x) for n, x in measured.items()})
    return states, metrics


def synchronous(tx, count, rows=slice(None)):
    run, state = step.make(OBJECTIVE, tx, Plan()), step.init(OBJECTIVE, tx, Plan(), 3)
    states = []
    for batch in batches(count):
        state, _ = run(state, jax.tree.map(lambda x: x[rows], batch))
        states.append(jax.tree.map(np.asarray, state.params))
    return states


def close(a, b, rtol):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol, 1e-7), a, b)


def sgd(rate):
    """Gradient descent as an `optimizer.Transform`."""

    def update(grads, state, params, learnt):
        moves = jax.tree.map(lambda g: -rate * g, grads)
        return moves, state._replace(count=state.count + 1)

    return optimizer.Transform(ADAM.init, update)


def test_averaging_the_steps_of_gradient_descent_is_a_step_on_all_rows():
    """H = 1, rate 1, no momentum."""
    cfg = Replicas(replicas=4, every=1, outer_lr=1.0, outer_momentum=0.0)
    states, _ = trained(cfg, tx=sgd(0.1))
    for ours, theirs in zip(states[1:], synchronous(sgd(0.1), 6)):
        close(ours.params, theirs, 1e-5)


def test_one_replica_that_agrees_with_itself_is_the_plain_run():
    states, metrics = trained(Replicas(replicas=1, every=1, outer_lr=1.0, outer_momentum=0.0))
    for ours, theirs in zip(states[1:], synchronous(ADAM, 6)):
        close(ours.params, theirs, 1e-6)
    assert metrics[0]["weight"] == 16


def test_replicas_train_apart_and_the_outer_step_is_nesterovs():
    """Each replica between agreements is a run of its own on its rows, in its own state; what is
    agreed on follows Sutskever et al. 2013 as PyTorch writes it, in float64."""
    cfg = Replicas(replicas=2, every=3, outer_lr=0.7, outer_momentum=0.9)
    states, metrics = trained(cfg)
    agreed = jax.tree.map(np.float64, states[0].params)
    momentum = jax.tree.map(np.zeros_like, agreed)
    for number, state in enumerate(states[1:], 1):
        copies = state.opt.params
        if number % 3:
            programs.same(state.params, states[number - 1].params)
            assert not np.array_equal(copies["a"][0], copies["a"][1])
            continue
        programs.same(*(jax.tree.map(lambda x, k=k: x[k], copies) for k in (0, 1)))
        programs.same(state.params, jax.tree.map(lambda x: x[0], copies))
        # replicas' weights before they agreed: one more plain step from those of the step before
        before = states[number - 1]
        moved = []
        for k in (0, 1):
            own = jax.tree.map(
                lambda x, k=k: jnp.array(x[k]), (before.opt.params, before.opt.inner)
            )
            rows = jax.tree.map(lambda x, k=k: x[8 * k : 8 * k + 8], batches(6)[number - 1])
            plain = step.State(jnp.int32(number - 1), *own, {}, jnp.array(before.key))
            moved.append(step.make(OBJECTIVE, ADAM, Plan())(plain, rows)[0].params)
        delta = jax.tree.map(lambda w, *p: w - np.mean(np.float64(p), 0), agreed, *moved)
        momentum = jax.tree.map(lambda m, d: 0.9 * m + d, momentum, delta)
        agreed = jax.tree.map(lambda w, m, d: w - 0.7 * (d + 0.9 * m), agreed, momentum, delta)
        close(state.params, agreed, 1e-5)
    assert [m["weight"] for m in metrics] == [16] * 6


@pytest.mark.parametrize("plan", [Plan(replica=2, fsdp=2), Plan(replica=4), Plan(fsdp=2, tensor=2)])
def test_where_replicas_are_changes_nothing(plan):
    cfg = Replicas(replicas=4, every=2)
    here, there = trained(cfg), trained(cfg, plan)
    close(here[0][-1], there[0][-1], 1e-5)
    for a, b in zip(here[1], there[1]):
        assert a == pytest.approx(b, rel=1e-5)


def test_replicas_send_each_other_the_mean_of_their_weights_once_in_h_steps():
    """4 N / H bytes a step: in the compiled program every collective of weights is in the branch
    that agrees, and they are those of N float32 numbers; metrics are some scalars."""
    cfg, plan = Replicas(replicas=4, every=5), Plan(replica=4)
    tx = diloco.transform(ADAM, cfg)
    state = step.abstract(OBJECTIVE, tx, plan)
    text = diloco.make(OBJECTIVE, tx, plan, cfg).lower(state, batches(1)[0]).compile().as_text()
    sent = {True: 0, False: 0}
    inside = False
    taken = set(re.findall(r"(?:true|false)_computation=%?([\w.-]+)", text))
    for names in re.findall(r"branch_computations={([^}]*)}", text):
        taken |= {name.strip().lstrip("%") for name in names.split(",")}
    for line in text.splitlines():
        if (head := re.match(r"(?:ENTRY )?%?([\w.-]+) \(", line)) is not None:
            inside = head[1] in taken
        collective = re.search(r"= (.*?) (?:all-reduce|all-gather|reduce-scatter)\(", line)
        if collective is not None:
            sizes = re.findall(r"f32\[([\d,]*)\]", collective[1])
            sent[inside] += sum(
                4 * int(np.prod([int(n) for n in s.split(",") if n])) for s in sizes
            )
    assert sent[True] == 4 * param.count(SPEC)
    assert 0 < sent[False] <= 4 * SCALARS


def test_the_outer_optimiser_is_optax_s():
    w, d = {"x": jnp.arange(3.0)}, {"x": jnp.array([0.1, -0.2, 0.3])}
    cfg = Replicas(replicas=2, outer_lr=0.5, outer_momentum=0.8)
    state = diloco._outer(cfg).init(w)
    apart = jax.tree.map(lambda a, b: jnp.stack([a - b, a - b]), w, d)
    new, copies, _ = diloco._agreed(cfg, w, apart, state)
    tx = optax.sgd(0.5, momentum=0.8, nesterov=True)
    updates, _ = tx.update(d, tx.init(w), w)
    close(new, optax.apply_updates(w, updates), 1e-6)
    assert copies["x"].shape == (2, 3)


def test_all_that_does_not_fit_is_named_at_once():
    """Between agreements the weights that are scored and saved are old ones."""
    wrong = Replicas(replicas=4, every=30, outer_lr=0.0, outer_momentum=1.0)
    plan, optim = Plan(replica=3, compute="float16"), optimizer.Optim(ema=0.9)
    assert [*diloco.problems(wrong, plan, 1000, 500, optim)] == [
        "diloco.outer_lr: 0.0 given; it must be above 0",
        "diloco.outer_momentum: 1.0 given; it must be in [0, 1)",
        "plan.replica: 3 given; it must be a divisor of diloco.replicas=4",
        "steps: 1000 given; it must be a multiple of diloco.every=30, after which the replicas "
        "agree",
        "eval_every: 500 given; it must be a multiple of diloco.every=30, after which the replicas "
        "agree",
        "optim.ema: 0.9 given; it must be None with diloco, whose weights are an average already",
        "plan.compute: 'float16' given; it must be bfloat16 or float32 with diloco",
    ]
    assert [*diloco.problems(None, Plan(replica=3), 1, 1, optimizer.Optim())] == [
        "plan.replica: 3 given; it must be 1 with diloco=None"
    ]
    assert not [*diloco.problems(Replicas(), Plan(replica=4), 300, None, optimizer.Optim())]
