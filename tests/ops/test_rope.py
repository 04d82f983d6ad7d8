"""Rotary positions against complex multiplication in float64."""

import jax.numpy as jnp
import numpy as np
import pytest

from jaxlm.ops import rope

H, THETA = 8, 10_000.0


def test_frequencies():
    np.testing.assert_allclose(rope.frequencies(H, THETA), [1, 0.1, 0.01, 0.001], rtol=1e-6)


def test_apply_turns_each_half_split_pair():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2, 5, 3, H)).astype(np.float32)
    positions = rng.integers(0, 100, (2, 5)).astype(np.int32)
    got = rope.apply(x, positions, rope.frequencies(H, THETA))
    pair = x[..., : H // 2].astype(np.complex128) + 1j * x[..., H // 2 :]
    angle = positions[:, :, None, None] * THETA ** (-np.arange(0, H, 2) / H)
    turned = pair * np.exp(1j * angle)
    np.testing.assert_allclose(got, np.concatenate([turned.real, turned.imag], -1), atol=2e-5)


def test_scores_depend_on_the_distance_alone():
    rng = np.random.default_rng(0)
    q, k = (np.tile(rng.normal(size=(1, 1, 1, H)), (1, 2, 1, 1)) for _ in range(2))
    freqs = rope.frequencies(H, THETA)
    q = rope.apply(jnp.asarray(q), np.array([[7, 1007]]), freqs)
    k = rope.apply(jnp.asarray(k), np.array([[3, 1003]]), freqs)
    near, far = jnp.sum(q * k, axis=(0, 2, 3))
    np.testing.assert_allclose(near, far, rtol=1e-3)


def test_bfloat16_keeps_its_type_and_large_positions():
    """Position 4097 is 4096 in bfloat16: the angle has to be formed in float32."""
    x = jnp.ones((1, 1, 1, 2), jnp.bfloat16)
    out = rope.apply(x, np.array([[4097]]), rope.frequencies(2, THETA))
    assert out.dtype == jnp.bfloat16
    true = [np.cos(4097) - np.sin(4097), np.cos(4097) + np.sin(4097)]
    np.testing.assert_allclose(np.asarray(out[0, 0, 0], np.float64), true, atol=0.01)


def test_errors():
    with pytest.raises(ValueError, match="head_dim must be even for rotary positions, got 7"):
        rope.frequencies(7, THETA)
    with pytest.raises(ValueError, match="theta must be positive, got 0"):
        rope.frequencies(8, 0.0)
    with pytest.raises(ValueError, match="freqs must hold"):
        rope.apply(jnp.ones((1, 1, 1, 8)), jnp.zeros((1, 1), jnp.int32), jnp.ones(3))
