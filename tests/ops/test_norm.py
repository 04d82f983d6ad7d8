"""Norms against float64 formulas, in value and gradient."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlm.ops import norm

EPS = 1e-3


def inputs():
    rng = np.random.default_rng(0)
    x = (rng.normal(size=(2, 3, 16)) * 3 + 1).astype(np.float32)
    return x, *(rng.normal(size=16).astype(np.float32) for _ in range(2))


def rms64(x, scale):
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + EPS) * scale


def layer64(x, scale, bias):
    centred = x - x.mean(-1, keepdims=True)
    return centred / np.sqrt(centred.var(-1, keepdims=True) + EPS) * scale + bias


def test_values():
    x, scale, bias = inputs()
    wide = x.astype(np.float64)
    np.testing.assert_allclose(norm.rms_norm(x, scale, EPS), rms64(wide, scale), atol=1e-5)
    got = norm.rms_norm(x, scale, EPS, offset=1.0)
    np.testing.assert_allclose(got, rms64(wide, 1 + scale.astype(np.float64)), atol=1e-5)
    got = norm.layer_norm(x, scale, bias, EPS)
    np.testing.assert_allclose(got, layer64(wide, scale, bias), atol=1e-5)
    got = norm.layer_norm(x, scale, None, EPS)
    np.testing.assert_allclose(got, layer64(wide, scale, 0.0), atol=1e-5)


@pytest.mark.parametrize("name", ["rms", "rms of 1 + w", "layer", "layer without bias"])
def test_gradients_are_those_of_finite_differences(name):
    """d sum(g * norm) along a random direction of (x, scale, bias), to 6 decimals in float64."""
    x, *weights = inputs()
    weights = weights if name == "layer" else weights[:1]
    rng = np.random.default_rng(1)
    g = rng.normal(size=x.shape)
    ours = {
        "rms": lambda x, scale: norm.rms_norm(x, scale, EPS),
        "rms of 1 + w": lambda x, scale: norm.rms_norm(x, scale, EPS, offset=1.0),
        "layer": lambda x, scale, bias: norm.layer_norm(x, scale, bias, EPS),
        "layer without bias": lambda x, scale: norm.layer_norm(x, scale, None, EPS),
    }[name]
    wide = {
        "rms": rms64,
        "rms of 1 + w": lambda x, scale: rms64(x, 1 + scale),
        "layer": layer64,
        "layer without bias": lambda x, scale: layer64(x, scale, 0.0),
    }[name]
    grads = jax.vjp(ours, x, *weights)[1](jnp.asarray(g, jnp.float32))
    arguments = [a.astype(np.float64) for a in (x, *weights)]
    for i, slope in enumerate(grads):
        step = rng.normal(size=slope.shape)
        moved = [
            np.sum(g * wide(*(a + h * step if i == j else a for j, a in enumerate(arguments))))
            for h in (1e-5, -1e-5)
        ]
        true = (moved[0] - moved[1]) / 2e-5
        np.testing.assert_allclose(np.sum(slope * step), true, rtol=1e-4, atol=1e-4)


def test_bfloat16_keeps_its_type_and_float32_statistics():
    """1 + 2^-7 k differ only in the last bits of bfloat16: statistics in it would be all wrong."""
    x = (1 + np.arange(16) / 128).astype(np.float32)[None]
    ones, zeros = np.ones(16, np.float32), np.zeros(16, np.float32)
    low = jnp.asarray(x, jnp.bfloat16)
    for ours, true in (
        (norm.rms_norm(low, ones, 0.0), x / np.sqrt((x**2).mean())),
        (norm.layer_norm(low, ones, zeros, 0.0), (x - x.mean()) / x.std()),
    ):
        assert ours.dtype == jnp.bfloat16
        np.testing.assert_allclose(np.asarray(ours, np.float32), true, atol=1e-2)


def test_an_offset_is_added_in_float32():
    """1 + 2^-9 is 1 in bfloat16, though 2^-9 is not 0: such a weight is not lost."""
    x, w = np.ones((1, 16), np.float32), np.full(16, 2.0**-9, np.float32)
    low = norm.rms_norm(x, jnp.asarray(w, jnp.bfloat16), 0.0, offset=1.0)
    np.testing.assert_array_equal(low, np.full((1, 16), 1 + 2.0**-9, np.float32))
