"""The laws every family obeys, in logits and gradients. Numbered as in the design: 2-10, 14, 15.

Programs are compiled once per family and plan; `--dist loadgroup` keeps a family on one worker. In
the fast suite most families try the laws of one forward and backward pass; the product is slow.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlm import models
from jaxlm.core import param
from jaxlm.models.model import Cache, logits
from jaxlm.objectives import clm
from jaxlm.ops.attention import At
from jaxlm.parallel.plan import Plan
from tests import programs
from tests.families import gpt, llama

B, T, V = programs.B, programs.T, programs.V


def cases(full=programs.FULL):
    """A parameter over all cases; those that are not among the full ones are slow."""
    marks = {
        name: [pytest.mark.xdist_group(name)] + [pytest.mark.slow] * (name not in full)
        for name in programs.FAMILIES
    }
    return [pytest.param(name, marks=m) for name, m in marks.items()]


families = pytest.mark.parametrize("family", cases(full=programs.FIRST))
full = pytest.mark.parametrize("family", [p for p in cases() if p.values[0] in programs.FULL])
rest = pytest.mark.parametrize("family", [p for p in cases() if p.values[0] not in programs.FULL])
# In blocks, one case of each kind of attention: windows, sinks, distances, a bias, latents, both
# ways; where norms stand, and experts, are beside it.
IN_BLOCKS = (
    *programs.FULL, "gpt-alibi", "gemma-all", "mistral", "mistral-oss", "deepseek", "t5", "bert"
)  # fmt: skip
kernels = pytest.mark.parametrize(
    "family, kernel",
    [
        pytest.param(*p.values, kernel, marks=p.marks)
        for kernel, full in (("xla", programs.FIRST), ("blockwise", programs.FULL))
        for p in cases(full)
        if kernel == "xla" or p.values[0] in IN_BLOCKS
    ],
)


def probing(family, kernel):
    """The prober of a case with a kernel, if the kernel can do what the model needs."""
    probe = programs.prober(family, Plan(attention=kernel))
    if kernel != "xla":
        try:
            jax.eval_shape(probe, programs.weights(family), programs.rows(0))
        except ValueError as refused:
            assert kernel in str(refused)
            pytest.skip(str(refused))
    return probe


@kernels
def test_2_the_future_does_not_reach_the_past(family, kernel):
    probe, w = probing(family, kernel), programs.weights(family)
    batch = programs.rows(1)
    batch = batch._replace(tokens=np.tile(batch.tokens[:1], (B, 1)))
    changed = batch.tokens.copy()
    for t in range(T):  # row t differs from all others at time t
        changed[t, t] = (changed[t, t] + 1 + t) % V
    a, b = (np.asarray(probe(w, x).logits) for x in (batch, batch._replace(tokens=changed)))
    if programs.shape(family).kind == "encoder":  # an encoder sees both ways
        assert all((a[t] != b[t]).any(-1).sum() > T // 2 for t in range(T))
        return
    for t in range(T):
        assert (a[t, :t] == b[t, :t]).all() and (a[t, t] != b[t, t]).any(), t
    # the loss before time 4 has no gradient in the tokens from there on
    reach = np.asarray(probe(w, programs.only(batch, np.s_[:, :4])).reach)
    assert not reach[batch.tokens[0, 4:]].any() and reach[batch.tokens[0, :4]].all()


@kernels
def test_3_packed_documents_do_not_meet(family, kernel):
    probe, w = probing(family, kernel), programs.weights(family)
    cuts = (5, 3, 1, 7, 4, 2, 6, 5)
    packed = programs.rows(2, [(n, T - n) for n in cuts])
    first, second = (
        programs.rows(9, [(n,) for n in cuts]),
        programs.rows(9, [(T - n,) for n in cuts]),
    )
    for i, n in enumerate(cuts):
        for name in ("tokens", "targets", "weight"):
            row = getattr(packed, name)[i]
            getattr(first, name)[i, :n], getattr(second, name)[i, : T - n] = row[:n], row[n:]
    # as NumPy arrays: each slice of JAX's compiles a program
    whole, a, b = (jax.tree.map(np.asarray, probe(w, x)) for x in (packed, first, second))
    for i, n in enumerate(cuts):
        np.testing.assert_allclose(whole.logits[i, :n], a.logits[i, :n], atol=2e-5)
        np.testing.assert_allclose(whole.logits[i, n:], b.logits[i, : T - n], atol=2e-5)
    np.testing.assert_allclose(whole.loss, a.loss + b.loss, rtol=1e-5)
    programs.close(whole.grads, jax.tree.map(np.add, a.grads, b.grads))
    # one row's loss on one document has no gradient in the other's tokens
    own, other = packed.tokens[0, :5], packed.tokens[0, 5:]
    reach = np.asarray(probe(w, programs.only(packed, np.s_[0, :5])).reach)
    assert reach[own].all() and not reach[other].any()
    reach = np.asarray(probe(w, programs.only(packed, np.s_[0, 5:])).reach)
    assert reach[other].all() and not reach[own].any()


@families
def test_4_prefill_and_decoding_are_the_forward_pass(family):
    model, w = programs.shape(family), programs.weights(family)
    if model.kind == "encoder":
        pytest.skip("an encoder writes nothing")
    lengths = (3, 1, 2, 3, 3, 2, 1, 3)  # of the prompts; shorter ones are padded to 3
    full = programs.rows(3)
    want = np.asarray(programs.prober(family, Plan())(w, full).logits)

    @jax.jit
    def forward(params, tokens, at, cache):
        source = programs.sourced(model, params, programs.fit(family, full))
        hidden = model.hidden(params, tokens, at, cache, **source)
        return model.unembed(model.head(params), hidden.x), hidden.cache

    layers = param.init(model.cache(B, 3 + T), jax.random.key(0))
    none = jnp.zeros((B, 3 + T), jnp.int32)
    cache = Cache(layers, At(none, none), jnp.zeros((), jnp.int32))
    prompt = np.array([[t < n for t in range(3)] for n in lengths])
    at = At(np.int32(prompt), np.where(prompt, np.arange(3, dtype=np.int32), 0))
    z, cache = forward(w, full.tokens[:, :3], at, cache)
    z = np.asarray(z)
    for i, n in enumerate(lengths):
        np.testing.assert_allclose(z[i, :n], want[i, :n], atol=2e-5, err_msg=f"prompt {i}")
    for k in range(T - 3):
        now = np.array(lengths, np.int32)[:, None] + k
        tokens = np.take_along_axis(full.tokens, now, 1)
        z, cache = forward(w, tokens, At(np.ones_like(now), now), cache)
        got = np.take_along_axis(want, now[..., None], 1)
        np.testing.assert_allclose(z, got, atol=2e-5, err_msg=f"token {k}")


def agree(family, plan):
    """Three steps under a plan are three steps under the default plan."""
    batches = [programs.rows(i, programs.UNEVEN) for i in range(3)]
    (one, metrics), (other, also) = (
        programs.run(family, Plan(), batches),
        programs.run(family, plan, batches),
    )
    for a, b in zip(metrics, also, strict=True):
        assert b == pytest.approx(a, rel=2e-5)
    programs.close(other.params, one.params, 1e-4, 1e-4)
    programs.close(other.opt.average.params, one.opt.average.params, 1e-4, 1e-4)
    assert metrics[0]["z"] > 0 and metrics[2]["loss"] != metrics[0]["loss"]
    return other


def same_sums(family, plan):
    """The loss, the other sums and the gradient of a batch under a plan are those of one pass."""
    w, batch = programs.weights(family), programs.rows(1, programs.UNEVEN)
    want = programs.prober(family, Plan())(w, batch)
    placed = jax.device_put(w, plan.shard_params(programs.shape(family).spec))
    loss, weight, sums, grads = programs.gradient(family, plan).of(
        placed, programs.given(family, 1, plan, programs.UNEVEN)
    )
    np.testing.assert_allclose(loss, want.loss, rtol=1e-5)
    np.testing.assert_allclose(weight, batch.weight.sum(), rtol=1e-6)
    assert sums.keys() == want.sums.keys() and want.sums["z"] > 0
    programs.close(sums, want.sums)
    programs.close(grads, want.grads, 2e-5, 2e-5)
    return grads


EVERYTHING = dataclasses.replace(
    programs.MESH, microbatches=2, zero=2, remat="full", unroll=2, loss_chunk=16
)
# A whole step and a pattern of layers are unrolled; elsewhere that compiles the same block twice.
ROLLED = dataclasses.replace(EVERYTHING, unroll=1)
# Stages of a pipeline in place of `data`, which ZeRO is about.
STAGED = Plan(
    pipe=2, fsdp=2, tensor=2, pipe_parts=2, microbatches=2, remat="full", unroll=2, loss_chunk=16,
    poison=True,
)  # fmt: skip
# Where the law fails under everything at once, these say by which of its parts.
PARTS = {
    "5, the batch in parts": Plan(microbatches=4, loss_chunk=16),
    "6, a mesh": programs.MESH,
    "6, a state split by data": Plan(data=2, zero=2, microbatches=2),
    "7, all recomputed": Plan(remat="full"),
    "7, all but products recomputed, and unrolled": Plan(remat="dots", unroll=3),
}


def under_everything(compare, family, plan=EVERYTHING):
    """compare(family, plan); a failure is reported with the PARTS that fail alone."""
    try:
        return compare(family, plan)
    except AssertionError as failure:
        alone = []
        for name, plan in PARTS.items():
            try:
                compare(family, plan)
            except AssertionError as part:
                alone.append(f"{name}: {str(part).strip().splitlines()[0]}")
        failure.add_note("Alone: " + ("; ".join(alone) or "every part agrees"))
        raise


def split(family):
    """The paths of the weights that a family splits over `tensor`."""
    spec = param.flatten(programs.shape(family).spec)
    paths = [k for k, p in spec.items() if "embed" in p.axes and {"heads", "ffn"} & {*p.axes}]
    assert paths
    return paths


@full
def test_5_6_7_parts_a_mesh_and_recomputing_at_once_do_not_change_the_step(family):
    state = under_everything(agree, family)
    training = programs.trainer(family, EVERYTHING)
    # the partitioner found a way for every array
    assert "rematerialization" not in training.log
    # everything lies where it should
    for path, x in param.flatten(state).items():
        assert x.sharding == param.flatten(training.shardings)[path], path
    for path in split(family):
        w = param.flatten(state.params)[path]
        assert w.addressable_shards[0].data.size * 4 == w.size, path
    # the optimiser's moments are split over `data`, too, where a dimension divides
    ends = tuple(split(family))
    moments = [x for path, x in param.flatten(state.opt).items() if path.endswith(ends)]
    parts = {x.size // x.addressable_shards[0].data.size for x in moments}
    assert len(moments) >= 2 * len(ends) and parts <= {4, 8} and 8 in parts


@rest
def test_5_6_7_parts_a_mesh_and_recomputing_at_once_do_not_change_the_gradient(family):
    """Of every other family the gradient of a batch: what the step makes of it knows no family.
    It compiles once, as law 15 says of the step."""
    plan = EVERYTHING if family == "gemma-all" else ROLLED
    grads = under_everything(same_sums, family, plan)
    gradient = programs.gradient(family, plan)
    assert "rematerialization" not in gradient.log and gradient.of._cache_size() == 1
    parts = {
        x.size // x.addressable_shards[0].data.size
        for path, x in param.flatten(grads).items()
        if path in split(family)
    }
    assert parts <= {4, 8} and 8 in parts


@pytest.mark.xdist_group("llama-all")
def test_5_6_7_and_in_stages():
    agree("llama-all", STAGED)


@pytest.mark.slow
@pytest.mark.xdist_group("llama-all")
def test_5_6_7_and_with_blocks():
    same_sums("llama-all", dataclasses.replace(EVERYTHING, attention="blockwise"))


@pytest.mark.parametrize("plan", [Plan(), programs.MESH], ids=["one", "mesh"])
def test_8_a_restored_state_steps_to_the_same_bits(plan):
    training = programs.trainer("llama-all", plan)
    state, _ = programs.run("llama-all", plan, [programs.rows(0), programs.rows(1)])
    kept = jax.tree.map(np.asarray, state)
    on, metrics = training.step(state, programs.placed(programs.rows(2), plan))
    again, metrics_again = training.step(
        jax.device_put(kept, training.shardings), programs.placed(programs.rows(2), plan)
    )
    programs.same(on, again)
    programs.same(metrics, metrics_again)


@kernels
def test_9_every_weight_has_a_gradient(family, kernel):
    probe = probing(family, kernel)
    grads = param.flatten(probe(programs.weights(family), programs.rows(4)).grads)
    largest = max(np.abs(g).max() for g in grads.values())
    for path, g in grads.items():
        assert np.isfinite(g).all(), path
        if path.endswith(programs.VOID.get(family, ())):
            assert np.abs(g).max() < 1e-5 * largest
        else:  # all its elements, in every layer; of the tables, the rows in use
            unread = programs.UNREAD.get(family, {}).get(path, 0) / len(g)
            assert np.mean(np.asarray(g) != 0) > 0.9 - unread, path


def test_9_with_dropout():
    cfg = dataclasses.replace(gpt.GPT, dropout=0.2)
    objective = clm.build(clm.Config(), models.build(cfg))
    batch, w = programs.rows(4), programs.weights("gpt")
    grad = jax.jit(jax.value_and_grad(lambda w, key: objective.loss(w, {}, batch, key)[0]))
    (a, grads), (b, _), (c, _) = (grad(w, jax.random.key(i)) for i in (0, 0, 1))
    assert a == b and a != c
    plain = programs.prober("gpt", Plan())(w, batch)
    assert abs(a / plain.loss - 1) < 0.2
    for path, g in param.flatten(grads).items():
        assert np.isfinite(g).all() and (path.endswith("k_bias") or np.mean(g != 0) > 0.9), path


@full
def test_10_the_start_is_the_same_on_every_mesh(family):
    programs.same(programs.start(family, Plan()), programs.start(family, programs.MESH))


@pytest.mark.slow
def test_10_every_weight_of_every_family_is_drawn_alike_on_every_mesh():
    """All families at once: an init compiles weight by weight, and what zeros, a scale or a number
    of layers is has nothing to do with a mesh."""
    every = {
        (p.axes, p.shape[p.axes[0] == "layer" :]): p
        for family in programs.FAMILIES
        for p in param.flatten(programs.shape(family).spec).values()
        if isinstance(p.init, param.Normal)
    }
    spec = {str(i): p for i, p in enumerate(every.values())}
    one, mesh = (
        jax.jit(
            lambda: param.init(spec, jax.random.key(3)), out_shardings=plan.shard_params(spec)
        )()
        for plan in (Plan(), programs.MESH)
    )
    split = [len({str(part.index) for part in x.addressable_shards}) > 1 for x in mesh.values()]
    assert len(split) > 30 and np.mean(split) > 0.8
    programs.same(one, mesh)


def test_10_adding_a_weight_moves_no_other():
    more = dataclasses.replace(llama.LLAMA, bias=True, qk_norm=True)
    a, b = (
        param.flatten(jax.jit(lambda c=cfg: param.init(models.spec(c), jax.random.key(1)))())
        for cfg in (llama.LLAMA, more)
    )
    assert a.keys() < b.keys()
    programs.same(a, {path: b[path] for path in a})
    # and no two weights are drawn alike
    flat = {path: np.asarray(x).ravel()[:8].tobytes() for path, x in a.items() if x.std() > 0}
    assert len(set(flat.values())) == len(flat)


@kernels
def test_14_padding_has_no_effect(family, kernel):
    probe, w = probing(family, kernel), programs.weights(family)
    batch = programs.rows(5, [(5,), (2, 3), (8,), (), (1,), (4, 4), (7,), ()])
    padding = batch.segments == 0
    r = np.random.default_rng(6)
    other = batch._replace(
        tokens=np.where(padding, r.integers(0, V, (B, T), np.int32), batch.tokens),
        targets=np.where(padding, r.integers(0, V, (B, T), np.int32), batch.targets),
        positions=np.where(padding, r.integers(0, T, (B, T), np.int32), batch.positions),
    )
    a, b = probe(w, batch), probe(w, other)
    np.testing.assert_array_equal(a.logits[~padding], b.logits[~padding])
    assert a.loss == b.loss and np.isfinite(a.logits).all()
    programs.close(a.grads, b.grads)
    # what only padding holds is not reached
    lone = programs.only(batch, np.s_[0])
    reach = np.asarray(probe(w, lone).reach)
    assert not reach[batch.tokens[0, 5:]].any() and reach[batch.tokens[0, :5]].all()
    empty = probe(w, programs.rows(5, [()] * B))
    assert empty.loss == 0 and not any(np.any(g) for g in jax.tree.leaves(empty.grads))


@pytest.mark.parametrize("plan", [Plan(), EVERYTHING], ids=["one", "everything"])
@full
def test_15_the_step_compiles_once(family, plan):
    compiled = []
    jax.monitoring.register_event_duration_secs_listener(
        lambda name, *_, **__: compiled.append(name) if "backend_compile" in name else None
    )
    training = programs.trainer(family, plan)
    batches = [programs.given(family, i, plan) for i in range(3)]
    state = training.start()
    compiled.clear()
    for batch in batches:
        state, _ = training.step(state, batch)
    restored = jax.device_put(jax.tree.map(np.asarray, state), training.shardings)
    training.step(restored, batches[0])
    assert not compiled and training.step._cache_size() == 1


def test_logits_is_the_whole_forward_pass():
    model, w, batch = models.build(llama.LLAMA), programs.weights("llama"), programs.rows(1)
    at = At(batch.segments, batch.positions)
    z = jax.jit(lambda w: logits(model, w, batch.tokens, at))(w)
    np.testing.assert_allclose(z, programs.prober("llama", Plan())(w, batch).logits, atol=1e-5)
