"""Attention over a split sequence: values and gradients of one device, whatever holds the keys."""

import re

import jax
import jax.extend
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlm.ops import attention, position_bias
from jaxlm.ops.attention import At
from jaxlm.ops.kernels import ring
from jaxlm.parallel import context_parallel
from jaxlm.parallel.plan import Plan

T = 24
NONE = {"causal": True, "window": None, "softcap": None, "scale": None}


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    monkeypatch.setattr(ring, "BLOCK", 3)  # several a device


def packed(time=T, shared=False):
    """Rows whose documents end at, before and after the ends of devices' parts of 4, 6, 8 and 12
    tokens; the last ends in padding, and one is padding alone."""
    segments = np.zeros((4, time), np.int32)
    positions = np.zeros((4, time), np.int32)
    for row, cuts in enumerate([(0, 6, 11, 12, 13, time), (0, time), (0, 1, 5, time - 3)]):
        for k, (a, b) in enumerate(zip(cuts[:-1], cuts[1:], strict=True), 1):
            segments[row, a:b], positions[row, a:b] = k, np.arange(b - a)
    some = jnp.asarray(positions < 2) if shared else None
    return At(jnp.asarray(segments), jnp.asarray(positions), some)


def visible(at, causal, window):
    """Which keys each query sees, bool[B,T,T], pair by pair."""
    segments, positions = np.asarray(at.segments), np.asarray(at.positions)
    seen = np.zeros((*segments.shape, segments.shape[1]), bool)
    for b, t, s in np.ndindex(*seen.shape):
        gap = positions[b, t] - positions[b, s]
        seen[b, t, s] = segments[b, t] == segments[b, s] != 0
        seen[b, t, s] &= not causal or gap >= 0
        seen[b, t, s] &= window is None or abs(gap) < window
    return seen


@pytest.mark.parametrize("keys", ["ring", "gathered"])
def test_every_query_sees_its_keys_and_no_other(keys):
    """Windows of 1 and 2 keys, of a device's part and of one more or less: a window of w that kept
    w + 1 keys has been shipped by others. Values are one-hot and all scores 0, so that the output
    is which keys were seen, over their number."""
    at, q = packed(), jnp.zeros((4, T, 1, 2))
    v = jnp.broadcast_to(jnp.eye(T)[None, :, None], (4, T, 1, T))
    plan = Plan(context=4, context_keys=keys)
    windows = (1, 2, 5, 6, 7) if keys == "ring" else (6,)
    for causal, window in ((True, None), *((True, w) for w in windows), (False, 6)):
        rule = NONE | {"causal": causal, "window": window}
        run = jax.jit(
            lambda q, v, rule=rule: context_parallel.attend(
                q, q, v, at, plan, bias=None, sinks=None, **rule
            )
        )
        got = np.asarray(run(q, v))[:, :, 0]
        seen = visible(at, causal, window)
        np.testing.assert_array_equal(got > 0, seen, err_msg=f"{rule}")
        number = np.maximum(seen.sum(-1, keepdims=True), 1)
        np.testing.assert_allclose(got, seen / number, rtol=1e-6)


CASES = {
    "a ring of 4": (Plan(context=4, data=2), {}),
    "of 3, an odd sequence": (Plan(context=3), {"time": 21}),
    "of 6": (Plan(context=6), {"window": 5}),
    "everything": (
        Plan(context=2, tensor=2, fsdp=2),
        {"bias": True, "sinks": True, "softcap": 2.0, "scale": 0.7, "window": 9},
    ),
    "shared tokens": (Plan(context=4, fsdp=2), {"shared": True, "window": 3}),
    "both ways": (Plan(context=2, tensor=2), {"causal": False, "bias": True}),
    "gathered": (
        Plan(context=4, tensor=2, context_keys="gathered"),
        {"bias": True, "sinks": True, "softcap": 2.0, "window": 9},
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_value_and_gradients_are_those_of_one_device(case):
    """Of q, k, v, the sinks and the bias's table, in float64: a ring whose backward pass read the
    keys of its first turn was right forward and wrong backward."""
    plan, given = CASES[case]
    given = dict(given)
    time, shared, sinks = given.pop("time", T), given.pop("shared", False), given.pop("sinks", 0)
    bias, rule = given.pop("bias", False), NONE | given
    with jax.enable_x64(True):
        at, draw = packed(time, shared), np.random.default_rng(0)
        q, k, v, g = (
            draw.normal(size=(4, time, n, h)) for n, h in ((4, 4), (2, 4), (2, 6), (4, 6))
        )
        table, sink = draw.normal(size=(8, 4)), draw.normal(size=4)

        def loss(run, q, k, v, table, sink):
            near = position_bias.bucketed(table, 16, rule["causal"]) if bias else None
            return jnp.sum(g * run(q, k, v, bias=near, sinks=sink if sinks else None, **rule))

        def one(q, k, v, **rule):
            return attention.attend(q, k, v, at, at, **rule)

        def split(q, k, v, **rule):
            return context_parallel.attend(q, k, v, at, plan, **rule)

        want, got = (
            jax.jit(jax.value_and_grad(lambda *x, run=run: loss(run, *x), range(5)))(
                q, k, v, table, sink
            )
            for run in (one, split)
        )
        names = ("q", "k", "v", "table", "sinks")
        np.testing.assert_allclose(got[0], want[0], rtol=1e-12)
        for name, a, b in zip(names, got[1], want[1], strict=True):
            np.testing.assert_allclose(a, b, atol=1e-12 * (np.abs(b).max() + 1e-9), err_msg=name)


def test_keys_make_one_turn_less_than_there_are_devices():
    """The keys of the last turn are not sent on; their gradients are, home."""
    at, plan = packed(), Plan(context=4)
    x = jnp.zeros((4, T, 1, 2))

    def loss(x):
        return jnp.sum(context_parallel.attend(x, x, x, at, plan, bias=None, sinks=None, **NONE))

    def turns(jaxpr):
        for eqn in jaxpr.eqns:
            for inner in jax.extend.core.jaxprs_in_params(eqn.params):
                yield from turns(inner)
                if eqn.primitive.name == "scan":
                    sent = sum(e.primitive.name == "ppermute" for e in inner.eqns)
                    if sent:
                        yield eqn.params["length"], sent

    forward, backward = list(turns(jax.make_jaxpr(jax.grad(loss))(x).jaxpr))
    # k, v, segments and positions; on the way back the gradients of k and v, too
    assert forward == (3, 4) and backward == (3, 6)


def test_halves_are_dealt_and_come_back():
    mesh = Plan(context=4).mesh
    place = jax.sharding.PartitionSpec(None, "context")

    def run(f):
        return jax.jit(
            jax.shard_map(f, mesh=mesh, in_specs=place, out_specs=place, check_vma=False)
        )

    x = jnp.arange(8)[None]
    dealt = run(lambda x: ring.deal(x, "context", 4))(x)
    pairs = {frozenset(pair) for pair in np.asarray(dealt).reshape(4, 2).tolist()}
    assert pairs == {frozenset((i, 7 - i)) for i in range(4)}
    np.testing.assert_array_equal(run(lambda x: ring.undeal(x, "context", 4))(dealt), x)


def test_no_more_than_a_block_of_scores_is_kept():
    """Segments and positions are known before any layer, so that autodiff computed the masks of all
    pairs of blocks, as wide as their scores, ahead of the layers and kept them: 4 of the 6 GiB of
    LLaMA 3.2 1B on 8,192 tokens under fsdp=2 x context=4."""
    plan = Plan(context=4)

    def loss(w, x, at):
        def layer(x, w):
            return context_parallel.attend(
                x * w, x, x, at, plan, **NONE, bias=None, sinks=None
            ), None

        return jnp.sum(jax.lax.scan(jax.checkpoint(layer), x, w)[0])

    args = jnp.ones(2), jnp.ones((4, T, 1, 2)), packed()
    text = jax.jit(jax.grad(loss)).lower(*args).as_text()
    assert re.search(r"tensor<4x1x1x3x3xf32>", text)  # [B, K, G, T, S] of a block
    assert not re.search(r"tensor<\d+x4x1x1x3x3x(f32|i1)>", text)
