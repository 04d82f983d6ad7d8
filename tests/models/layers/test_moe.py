"""A mixture of experts against a loop over its tokens, and its two forms against each other."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlm.core import param
from jaxlm.models.layers import ffn, mha, moe, stack
from jaxlm.ops import routing
from jaxlm.ops.attention import At
from jaxlm.parallel.plan import Plan
from tests import programs

B, T, D, E = 2, 6, 8, 4
RULE = routing.Rule(2, renormalise=True)
P = param.shaper(embed=D, ffn=4, expert=E, shared=1)
OUT = param.fan_in()
SPEC = moe.spec(
    P,
    out=OUT,
    bias=True,
    select_bias=True,
    shared=ffn.spec(P, gated=True, bias=False, out=OUT),
    shared_gate=True,
)
SEGMENTS = np.array([[1, 1, 1, 2, 2, 0], [1, 1, 1, 1, 1, 1]], np.int32)


def draw(seed, shape, scale=1.0):
    return (scale * np.random.default_rng(seed).standard_normal(shape)).astype(np.float32)


W = param.map(lambda p: draw(len(p.shape) + sum(p.shape), p.shape, 0.5), SPEC)
H = draw(0, (B, T, D))


@functools.cache
def program(capacity):
    """(w, h) -> ((loss, (y, stats)), gradients), compiled."""

    def loss(w, h):
        at = At(jnp.asarray(SEGMENTS), jnp.tile(jnp.arange(T), (B, 1)))
        y, stats = moe.apply(w, h, at, RULE, Plan(), capacity=capacity)
        return jnp.sum(jnp.sin(y)), (y, stats)

    return jax.jit(jax.value_and_grad(loss, argnums=(0, 1), has_aux=True))


def by_hand(w, h, limit=T):
    """(outputs, choices of each expert, dropped choices), token after token."""
    w = jax.tree.map(np.float64, w)
    swish = lambda x: x / (1 + np.exp(-x))  # noqa: E731
    y, load, dropped = np.zeros(h.shape), np.zeros(E), 0
    for b in range(B):
        taken = np.zeros(E)
        for t in range(T):
            x = h[b, t].astype(np.float64)
            gate, up = x @ w["shared"]["gate"], x @ w["shared"]["up"]
            sure = 1 / (1 + np.exp(-x @ w["shared_gate"]))
            y[b, t] = sure * ((swish(gate) * up) @ w["shared"]["down"])
            if not SEGMENTS[b, t]:
                continue
            z = x @ w["router"] + w["router_bias"]
            score = np.exp(z) / np.exp(z).sum()
            chosen = np.argsort(-(score + w["select_bias"]))[:2]
            for e in chosen:
                load[e] += 1
                if taken[e] == limit:
                    dropped += 1
                    continue
                taken[e] += 1
                gate, up = (x @ w[n][e] + w[f"{n}_bias"][e] for n in ("gate", "up"))
                out = (swish(gate) * up) @ w["down"][e] + w["down_bias"][e]
                y[b, t] += score[e] / score[chosen].sum() * out
    return y, load, dropped


def test_dropless_is_the_loop():
    (_, (y, stats)), _ = program(None)(W, H)
    want, load, _ = by_hand(W, H)
    np.testing.assert_allclose(y, want, atol=2e-5)
    assert stats["load"].tolist() == load.tolist()
    assert stats["routed"] == 11 and stats["dropped"] == 0
    assert np.sum(stats["shares"]) == pytest.approx(11, rel=1e-6)


def test_capacity_that_drops_nothing_is_dropless_in_value_and_gradient():
    (loss, (y, stats)), grads = program(None)(W, H)
    (also, (z, same_stats)), other = program(float(E))(W, H)
    np.testing.assert_allclose(y, z, atol=1e-5)
    assert also == pytest.approx(float(loss), rel=1e-5)
    for name in stats:
        np.testing.assert_allclose(stats[name], same_stats[name], rtol=1e-6)
    programs.close({"w": grads[0], "h": grads[1]}, {"w": other[0], "h": other[1]})
    for path, g in param.flatten(grads[0]).items():
        assert np.any(g) != (path == "select_bias"), path


def test_capacity_drops_the_later_tokens():
    (_, (y, stats)), grads = program(0.5)(W, H)  # ceil(0.5 * 2 * 6 / 4) = 2 places
    want, load, dropped = by_hand(W, H, limit=2)
    np.testing.assert_allclose(y, want, atol=2e-5)
    assert stats["dropped"] == dropped > 0 and stats["load"].tolist() == load.tolist()
    assert all(np.isfinite(g).all() for g in jax.tree.leaves(grads))
    # no token takes a place from an earlier one
    later = H.copy()
    later[:, 3:] = draw(5, (B, T - 3, D))
    (_, (z, _)), _ = program(0.5)(W, later)
    np.testing.assert_array_equal(y[:, :3], z[:, :3])


def test_padding_meets_no_expert():
    other = H.copy()
    other[SEGMENTS == 0] = 100.0
    (a, (_, stats)), grads = program(None)(W, H)
    (b, (_, same_stats)), also = program(None)(W, other)
    jax.tree.map(np.testing.assert_array_equal, stats, same_stats)
    for name in ("router", "gate", "up", "down", "down_bias"):
        np.testing.assert_array_equal(grads[0][name], also[0][name], err_msg=name)


def test_rebalance_moves_each_layer_by_its_own_load():
    kinds = ("dense", *2 * ("moe", "plain", "other"))
    layers = [mha.layer(kind, heads=1, kv=1, head=1) for kind in kinds]
    dense, mixture = {"ffn": P("embed", init=param.zeros)}, {"moe": SPEC}
    weights = {"dense": dense, "plain": dense, "moe": mixture, "other": mixture}
    params = {"stack": param.map(lambda p: np.zeros(p.shape), stack.spec(layers, weights.get))}
    load = np.array([[3, 1, 1, 3], [2, 2, 2, 2], [0, 0, 0, 8], [1, 0, 0, 0]], np.float32)
    got = moe.rebalance(jax.tree.map(jnp.asarray, params), jnp.asarray(load), 0.5)["stack"]["1"]
    first, last = (np.asarray(got[name]["moe"]["select_bias"]) for name in ("0_moe", "2_other"))
    want = 0.5 * np.array([[-1, 1, 1, -1], [0, 0, 0, 0], [1, 1, 1, -1], [-1, 1, 1, 1]])
    np.testing.assert_array_equal(np.stack([first[0], last[0], first[1], last[1]]), want)
    assert not np.any(got["0_moe"]["moe"]["router"])
    with pytest.raises(ValueError, match="3 layers have experts, 4 a select_bias"):
        moe.rebalance(params, load[:3], 0.5)
