"""The step: float32 weights under low-precision compute, overflow, and what it refuses."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlm.core import param
from jaxlm.objectives.objective import Objective
from jaxlm.parallel import devices
from jaxlm.parallel.plan import Plan
from jaxlm.train import step
from jaxlm.train.optim import optimizer
from tests import programs


@pytest.mark.parametrize("family", ["gpt", "llama-all"])
def test_bfloat16_is_close_to_float32(family):
    """bfloat16 keeps 8 bits, 0.4 % each rounding. How far they add up depends on the weights, so a
    gradient's error is the root mean square over six draws of them."""
    batch, errors = programs.rows(7, programs.UNEVEN), {}
    for seed in range(6):
        w = programs.weights(family, seed)
        want, got = (
            programs.prober(family, plan)(w, batch) for plan in (Plan(), Plan(compute="bfloat16"))
        )
        np.testing.assert_allclose(got.loss, want.loss, rtol=0.01)
        rounded = param.flatten(got.grads)
        for path, a in param.flatten(want.grads).items():
            assert rounded[path].dtype == jnp.float32, path
            if not path.endswith(programs.VOID.get(family, ())):
                error = np.linalg.norm(a - rounded[path]) / np.linalg.norm(a)
                errors.setdefault(path, []).append(error)
    typical = {path: np.sqrt(np.mean(np.square(e))) for path, e in errors.items()}
    assert max(typical.values()) < 0.06, max(typical.items(), key=lambda item: item[1])


@pytest.mark.parametrize("compute", ["bfloat16", "float16"])
def test_low_precision_trains(compute):
    batches = [programs.rows(0)] * 30
    _, want = programs.run("llama-all", Plan(), batches)
    state, told = programs.run("llama-all", Plan(compute=compute), batches)
    assert want[-1]["loss"] < 0.5 * want[0]["loss"]
    assert told[-1]["loss"] == pytest.approx(want[-1]["loss"], rel=0.05)
    assert all(x.dtype == jnp.float32 for x in jax.tree.leaves(state.params))
    if compute == "float16":
        assert told[-1]["loss_scale"] == 1024 and told[-1]["skipped"] == 0


def test_float16_recovers_from_overflow():
    made = programs.trainer("llama-all", Plan(compute="float16"))
    state = made.start()
    huge = state.opt.scale._replace(value=jnp.float32(2.0**22))
    before = jax.tree.map(np.asarray, state.params)
    state = jax.device_put(state._replace(opt=state.opt._replace(scale=huge)), made.shardings)
    seen = []
    for _ in range(16):
        state, told = made.step(state, programs.rows(0))
        if int(told["skipped"]) == 1:
            programs.same(state.params, before)
        seen.append({k: float(v) for k, v in told.items()})
    assert 1 <= seen[-1]["skipped"] < 12 and np.isfinite(seen[-1]["loss"])
    assert seen[-1]["loss_scale"] == 2.0 ** (22 - seen[-1]["skipped"])
    assert seen[-1]["loss"] < seen[0]["loss"]


@pytest.mark.parametrize("name", ["adamw", "adafactor", "lion", "muon"])
def test_a_step_without_weight_moves_nothing(name):
    """Between two steps that learn, one whose batch holds nothing to learn: momentum moved weights
    by 5.8e-3 at a rate of 1e-2, and decay by 1.2e-3. The run is now the one without that step."""
    p = param.shaper(embed=4, ffn=6)
    spec = {"a": p("embed -> ffn"), "b": p("embed", init=param.zeros)}

    def loss(params, frozen, batch, key):
        each = jnp.square(batch["x"] @ params["a"]).sum(-1) + batch["x"] @ params["b"]
        return jnp.sum(batch["weight"] * each), jnp.sum(batch["weight"]), {}

    cfg = optimizer.Optim(
        name=name, lr=1e-2, schedule="linear", warmup=2, weight_decay=0.1, ema=0.9, skip=3.0
    )
    tx = optimizer.build(cfg, spec, 10, fp16=True)
    objective, plan = Objective(spec, loss), Plan(microbatches=2)
    run, state = step.make(objective, tx, plan), step.init(objective, tx, plan, 0)
    x = np.random.default_rng(0).normal(size=(3, 4, 4)).astype(np.float32)
    # in the first batch one micro-batch alone is empty: that is a step like any other
    weight = np.float32([[1, 0, 1, 0], [0, 0, 0, 0], [1, 1, 1, 1]])

    def after(state, order):
        seen = []
        for i in order:
            state, told = run(state, {"x": x[i], "weight": weight[i]})
            seen.append((jax.tree.map(np.asarray, state), told))
        return seen

    first, empty, last = after(jax.tree.map(jnp.array, state), [0, 1, 2])
    _, told = empty
    assert (told["weight"], told["loss"], told["skipped"]) == (0, 0, 1)
    assert told["grad_norm"] == 0 and told["loss_scale"] == first[1]["loss_scale"]
    programs.same(empty[0].params, first[0].params)
    quiet = {"skipped": None, "grad_norm": None, "lr": None}
    programs.same(
        empty[0].opt._replace(**quiet)._asdict(), first[0].opt._replace(**quiet)._asdict()
    )
    assert int(empty[0].step) == 2 and int(last[0].opt.count) == 2
    without = after(jax.tree.map(jnp.array, state), [0, 2])[-1]
    programs.same(last[0].params, without[0].params)
    assert last[1]["lr"] == without[1]["lr"]


@pytest.mark.parametrize("flags, level", [("", 1), ("--xla_backend_optimization_level=0", None)])
def test_an_init_compiles_at_the_first_level_unless_the_flags_name_one(flags, level, monkeypatch):
    """The tests ask for level 0, and every init was compiled at level 1 all the same."""
    monkeypatch.setenv("XLA_FLAGS", flags)
    options = devices.compile_once()
    assert (options and options["xla_backend_optimization_level"]) == level


def test_micro_batches_take_every_nth_row_and_have_to_divide():
    p = param.shaper(embed=2)
    spec, plan = {"w": p("embed", init=param.ones)}, Plan(data=2, fsdp=2, microbatches=2)

    def loss(params, frozen, batch, key):
        return jnp.sum(batch @ params["w"]), jnp.float32(len(batch)), {}

    objective = Objective(spec, loss)
    tx = optimizer.build(optimizer.Optim(warmup=0), spec, 10, fp16=False)
    body, state = step.body(objective, tx, plan), step.abstract(objective, tx, plan)
    for rows in (4, 12):
        message = f"data.batch: {rows} rows do not divide into plan.microbatches=2 x 4 parts"
        with pytest.raises(ValueError, match=message):
            jax.eval_shape(body, state, np.zeros((rows, 2), np.float32))
    jax.eval_shape(body, state, np.zeros((8, 2), np.float32))
    cut = step._cut(jnp.arange(6.0)[:, None], Plan(microbatches=2))
    np.testing.assert_array_equal(cut[..., 0], [[0, 2, 4], [1, 3, 5]])
