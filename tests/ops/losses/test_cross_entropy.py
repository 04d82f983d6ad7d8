"""Chunked cross-entropy against closed forms in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from jaxlm.ops import linear
from jaxlm.ops.losses import cross_entropy
from tests.objectives import published

B, T, D, V = 4, 7, 6, 11
Z = 0.1


def inputs():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(B, T, D)).astype(np.float32)
    params = {
        "head": rng.normal(size=(D, V)).astype(np.float32),
        "bias": rng.normal(size=V).astype(np.float32),
        "ignored": np.ones((3, 2), np.float32),
    }
    targets = rng.integers(0, V, (B, T)).astype(np.int32)
    weight = rng.random((B, T)).astype(np.float32) * (rng.random((B, T)) < 0.7)
    return params, x, targets, weight.astype(np.float32)


def logits_fn(params, h):
    return linear.einsum("...D,DV->...V", h, params["head"]).astype(jnp.float32) + params["bias"]


def oracle(params, x, targets, weight):
    """Sums, and the gradient of the loss in x, head and bias, in float64."""
    x, weight, head, bias = (
        a.astype(np.float64) for a in (x, weight, params["head"], params["bias"])
    )
    logits = x @ head + bias
    log_z = np.log(np.exp(logits).sum(-1))
    onehot = np.eye(V)[targets]
    sums = {
        "nll": (weight * (log_z - (logits * onehot).sum(-1))).sum(),
        "z": (weight * log_z**2).sum(),
        "correct": (weight * (logits.argmax(-1) == targets)).sum(),
    }
    p = np.exp(logits - log_z[..., None])
    slope = weight[..., None] * (p * (1 + 2 * Z * log_z[..., None]) - onehot)
    head_slope = np.einsum("BTD,BTV->DV", x, slope)
    return sums, slope @ head.T, head_slope, slope.sum((0, 1))


@pytest.mark.parametrize("chunk", [1, B, 3 * B, 5 * B, B * T, 10**6])
def test_value_and_gradient_do_not_depend_on_the_chunk(chunk):
    """3 and 5 columns do not divide 7: the last chunk is padded with weight 0."""
    params, x, targets, weight = inputs()

    @jax.jit
    def run(params, x):
        return jax.value_and_grad(
            lambda p, x: cross_entropy.cross_entropy(
                logits_fn, p, x, targets, weight, chunk=chunk, z_loss=Z
            ),
            (0, 1),
            has_aux=True,
        )(params, x)

    (value, sums), (dparams, dx) = run(params, x)
    true, true_dx, true_head, true_bias = oracle(params, x, targets, weight)
    for name in true:
        np.testing.assert_allclose(sums[name], true[name], rtol=1e-5)
    np.testing.assert_allclose(value, true["nll"] + Z * true["z"], rtol=1e-5)
    np.testing.assert_allclose(dx, true_dx, atol=2e-5)
    np.testing.assert_allclose(dparams["head"], true_head, atol=2e-5)
    np.testing.assert_allclose(dparams["bias"], true_bias, atol=2e-5)
    assert (dparams["ignored"] == 0).all()
    assert (np.asarray(dx)[weight == 0] == 0).all()


def test_evaluation_is_the_same_value_without_a_gradient():
    params, x, targets, weight = inputs()
    run = jax.jit(
        lambda p: cross_entropy.cross_entropy(logits_fn, p, x, targets, weight, chunk=8, z_loss=Z)
    )
    value, sums = run(params)
    true = oracle(params, x, targets, weight)[0]
    np.testing.assert_allclose(value, true["nll"] + Z * true["z"], rtol=1e-5)
    np.testing.assert_allclose(sums["nll"], true["nll"], rtol=1e-5)
    forward = run.lower(params).cost_analysis()["flops"]
    both = jax.jit(jax.grad(lambda p: run(p)[0])).lower(params).cost_analysis()["flops"]
    assert forward < 0.6 * both


def test_uniform_logits_cost_log_vocab():
    _, x, targets, _ = inputs()
    flat = {"head": np.zeros((D, V), np.float32), "bias": np.full(V, 3.0, np.float32)}
    value, _ = cross_entropy.cross_entropy(
        logits_fn, flat, x, targets, np.ones((B, T), np.float32), chunk=10
    )
    np.testing.assert_allclose(value, B * T * np.log(V), rtol=1e-6)


def test_gradient_scales_with_the_cotangent():
    params, x, targets, weight = inputs()

    def scaled(x, factor):
        return (
            factor * cross_entropy.cross_entropy(logits_fn, params, x, targets, weight, chunk=8)[0]
        )

    once, thrice = (jax.grad(scaled)(jnp.asarray(x), f) for f in (1.0, 3.0))
    np.testing.assert_allclose(thrice, 3 * once, rtol=1e-6)


def test_sharded_over_eight_devices():
    """Rows over data, vocabulary over tensor: the sums and gradients of one device."""
    if jax.device_count() < 8:
        pytest.skip("needs 8 devices")
    mesh = jax.make_mesh((4, 2), ("data", "tensor"), axis_types=(AxisType.Auto,) * 2)

    def place(a, *axes):
        return jax.device_put(a, NamedSharding(mesh, PartitionSpec(*axes)))

    params, x, targets, weight = inputs()
    params = {"head": params["head"][:, :10], "bias": params["bias"][:10]}
    targets = targets % 10
    shards = {"head": place(params["head"], None, "tensor"), "bias": place(params["bias"])}

    @jax.jit
    def run(params, x, targets, weight):
        return jax.value_and_grad(
            lambda p, x: cross_entropy.cross_entropy(logits_fn, p, x, targets, weight, chunk=8)[0],
            (0, 1),
        )(params, x)

    got = run(shards, *(place(a, "data") for a in (x, targets, weight)))
    true = run(params, x, targets, weight)
    for ours, theirs in zip(jax.tree.leaves(got), jax.tree.leaves(true), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("chunk", [8, 12, B * T])
def test_token_logprobs(chunk):
    params, x, targets, weight = inputs()

    @jax.jit
    def run(params, x):
        def total(params, x):
            out = cross_entropy.token_logprobs(logits_fn, params, x, targets, chunk)
            return -jnp.sum(weight * out), out

        return jax.value_and_grad(total, (0, 1), has_aux=True)(params, x)

    (value, out), (dparams, dx) = run(params, x)
    logits = x.astype(np.float64) @ params["head"] + params["bias"]
    p = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    true = np.log(np.take_along_axis(p, targets[..., None], -1))[..., 0]
    np.testing.assert_allclose(out, true, atol=1e-5)
    slope = weight[..., None] * (p - np.eye(V)[targets])
    np.testing.assert_allclose(dx, slope @ params["head"].T, atol=2e-5)
    head_slope = np.einsum("BTD,BTV->DV", x, slope)
    np.testing.assert_allclose(dparams["head"], head_slope, atol=2e-5)
    assert (np.asarray(dx)[weight == 0] == 0).all()


def test_responses_log_probabilities_are_the_published_ones():
    """Logits of one token predict the label of the next; labels of -100 are none."""
    block = published.blocks()["seq_logps"]
    logits, labels = (np.array(block["inputs"][n]) for n in ("logits", "labels"))
    targets, there = np.maximum(labels[:, 1:], 0), labels[:, 1:] != -100
    x = jnp.float32(logits[:, :-1])
    out = cross_entropy.token_logprobs(lambda head, x: x * head, jnp.float32(1.0), x, targets, 64)
    total = np.sum(np.asarray(out), axis=1, where=there)
    np.testing.assert_allclose(total, block["outputs"]["sum"], rtol=1e-6)
    np.testing.assert_allclose(total / there.sum(1), block["outputs"]["mean"], rtol=1e-6)


def test_errors():
    params, x, targets, weight = inputs()
    with pytest.raises(ValueError, match="chunk must be at least 1 token, got 0"):
        cross_entropy.cross_entropy(logits_fn, params, x, targets, weight, chunk=0)
    with pytest.raises(ValueError, match=r"\(4, 7\), \(4, 6\), \(4, 7\).*targets \[B,T\]"):
        cross_entropy.cross_entropy(logits_fn, params, x, targets[:, 1:], weight, chunk=8)
