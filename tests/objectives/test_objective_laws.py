"""The laws of every objective, over a tiny LLaMA: tests/objectives/cases holds their configs.

A file there has CONFIGS {case: Config} and batch(seed) -> 8 rows of numpy arrays; it may have
TEACHER (a model's Config), WHOLE (cases with a statistic of the batch, which a cut changes) and
VOID {case: endings of weights that get no gradient}.
"""

import dataclasses
import functools
import importlib
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlm import models, objectives
from jaxlm.core import param
from jaxlm.models import llama
from jaxlm.parallel.plan import Plan
from jaxlm.train import step
from jaxlm.train.optim import optimizer
from tests import programs
from tests.families.sizes import T, V

MODEL = llama.Config(vocab=V, embed=16, layers=2, heads=4, kv=2, head=4, ffn=24, context=T)
FILES = {
    file.stem: importlib.import_module(f"tests.objectives.cases.{file.stem}")
    for file in sorted((pathlib.Path(__file__).parent / "cases").glob("*.py"))
    if file.stem != "__init__"
}
CASES = {case: name for name, file in FILES.items() for case in file.CONFIGS}
FIRST = {next(iter(file.CONFIGS)) for file in FILES.values()}
EVERYTHING = Plan(data=2, fsdp=2, tensor=2, microbatches=2, remat="full", loss_chunk=16)


# Objectives that add up over rows, as `test_rows_of_zeros_are_nothing_and_rows_add_up` says of
# each, meet a cut and a mesh in the same way: one of a file, and those with a statistic of the
# batch, with a critic of their own, or with sums over a response in front of the ratio.
SUMMED = FIRST | {"aot", "kto-pair", "ppo-own", "gspo"}


def cases(fast, over=tuple(CASES)):
    """A parameter over cases; those not in `fast` are slow."""
    marks = {
        case: [pytest.mark.xdist_group(f"objective-{case}")]
        + [pytest.mark.slow] * (case not in fast)
        for case in over
    }
    return pytest.mark.parametrize("case", [pytest.param(c, marks=m) for c, m in marks.items()])


each = cases(FIRST)


def extra(case, name, default):
    return vars(FILES[CASES[case]]).get(name, default)


def build(case, plan):
    file = FILES[CASES[case]]
    teacher = extra(case, "TEACHER", None)
    return objectives.build(
        file.CONFIGS[case],
        models.build(MODEL, plan),
        plan,
        None if teacher is None else models.build(teacher, plan),
    )


def drawn(spec, seed):
    """Weights away from their start, where heads are 0 and scales 1."""
    params = programs.drawn(spec, seed)
    r = np.random.default_rng(seed)
    return jax.tree.map(
        lambda x: np.asarray(x) + 0.1 * r.standard_normal(x.shape, np.float32), params
    )


@functools.cache
def weights(case):
    """(params, frozen) as NumPy arrays."""
    objective = build(case, Plan())
    frozen = {name: drawn(part.spec, 7) for name, part in objective.frozen.items()}
    return drawn(objective.spec, 5), frozen


@functools.cache
def gradient(case, plan):
    """Compiled (params, frozen, batch) -> (sum, weight, sums, gradient)."""
    objective = build(case, plan)
    where = plan.shard_params(objective.spec)
    frozen_where = {name: plan.shard_params(part.spec) for name, part in objective.frozen.items()}

    def run(params, frozen, batch):
        state = step.State(jnp.zeros((), jnp.int32), params, None, frozen, jnp.zeros(2, jnp.uint32))
        return step.accumulate(objective, plan, jnp.float32(1), state, batch, jax.random.key(1))

    compiled = jax.jit(run)

    def call(batch):
        params, frozen = weights(case)
        given = (jax.device_put(params, where), jax.device_put(frozen, frozen_where))
        return jax.tree.map(np.asarray, compiled(*given, programs.placed(batch, plan)))

    return call


def rows_of(case, seed=0):
    return FILES[CASES[case]].batch(seed)


def only(batch, keep):
    """The batch with rows of zeros where `keep` is false."""
    return jax.tree.map(lambda x: x * keep.reshape(-1, *[1] * (x.ndim - 1)).astype(x.dtype), batch)


@cases({"dpo", "ppo"}, sorted(SUMMED))
def test_a_cut_a_mesh_and_recomputing_do_not_change_the_gradient(case):
    plan = EVERYTHING
    if case in extra(case, "WHOLE", ()):
        plan = dataclasses.replace(EVERYTHING, microbatches=1)
    one, other = (gradient(case, p)(rows_of(case)) for p in (Plan(), plan))
    assert one[1] > 0
    np.testing.assert_allclose(other[0], one[0], rtol=2e-5, atol=2e-5)
    np.testing.assert_allclose(other[1], one[1], rtol=1e-6)
    programs.close(other[2], one[2], rtol=1e-4, scale=1e-4)
    programs.close(other[3], one[3], rtol=1e-4, scale=2e-5)


@each
def test_every_weight_gets_a_gradient(case):
    grads = param.flatten(gradient(case, Plan())(rows_of(case))[3])
    void = extra(case, "VOID", {}).get(case, ())
    for path, g in grads.items():
        assert np.all(np.isfinite(g)), path
        assert np.any(g) != path.endswith(tuple(void) or ("-",)), path


@each
def test_rows_of_zeros_are_nothing_and_rows_add_up(case):
    """An empty row has no loss, no weight, no gradient and makes nothing NaN; and what rows bring
    together is what they bring apart, unless there is a statistic of the batch."""
    run, batch = gradient(case, Plan()), rows_of(case)
    empty = run(only(batch, np.zeros(8, bool)))
    assert empty[0] == 0 and empty[1] == 0
    assert all(np.all(np.isfinite(x)) and not np.any(x) for x in jax.tree.leaves(empty[3]))
    if case in extra(case, "WHOLE", ()):
        return
    half = np.arange(8) < 3
    parts = [run(only(batch, keep)) for keep in (half, ~half)]
    whole = run(batch)
    np.testing.assert_allclose(parts[0][1] + parts[1][1], whole[1], rtol=1e-6)
    np.testing.assert_allclose(parts[0][0] + parts[1][0], whole[0], rtol=2e-5, atol=2e-5)
    both = jax.tree.map(np.add, parts[0][3], parts[1][3])
    programs.close(both, whole[3], rtol=1e-4, scale=2e-5)


@cases(FIRST, sorted(FIRST))
def test_frozen_weights_stay_and_the_step_compiles_once(case):
    """Once a file: what a step makes of sums and a gradient knows no variant of an objective."""
    plan = Plan()
    objective = build(case, plan)
    tx = optimizer.build(optimizer.Optim(lr=0.02, warmup=1), objective.spec, 10, False)
    params, frozen = weights(case)
    state = step.begin(objective, tx, plan, 3, jax.tree.map(jnp.array, params))
    where = step.shard(objective, tx, plan).frozen
    state = state._replace(frozen=jax.device_put(jax.tree.map(jnp.array, frozen), where))
    run = step.make(objective, tx, plan)
    for seed in range(2):
        state, metrics = run(state, programs.placed(rows_of(case, seed), plan))
        assert all(np.isfinite(v) for v in metrics.values()), metrics
    # a batch of nothing moves nothing: no weight, no moment, no count, by momentum or decay either
    kept = jax.tree.map(np.asarray, state)
    nothing = only(rows_of(case), np.zeros(8, bool))
    state, metrics = run(state, programs.placed(nothing, plan))
    assert run._cache_size() == 1
    assert metrics["weight"] == 0 and metrics["loss"] == 0 and metrics["skipped"] == 1
    assert all(np.isfinite(v) for v in metrics.values()), metrics
    programs.same(state.params, kept.params)
    programs.same(state.opt.inner, kept.opt.inner)
    assert state.opt.count == 2 and state.step == 3
    programs.same(state.frozen, frozen)
    void = extra(case, "VOID", {}).get(case, ())
    for path, w in param.flatten(state.params).items():
        moved = np.any(np.asarray(w) != param.flatten(params)[path])
        assert moved or path.endswith(tuple(void) or ("-",)), path
