"""E4M3 with a scale for each output, against ml_dtypes."""

import functools

import jax
import ml_dtypes
import numpy as np

from jaxlm.ops.quant import float8


@functools.partial(jax.jit, static_argnums=(1, 2))
def through(w, copies, inputs):
    kept = float8.encode(w, copies, inputs)
    once = float8.dense(kept)
    return kept, once, float8.dense(float8.encode(once, copies, inputs))


def test_numbers_are_those_of_ml_dtypes():
    w = np.random.default_rng(0).standard_normal((3, 40, 2, 5)).astype(np.float32)
    w[1, :, 0] *= 1e-6
    w[0, :, 1, 2] = 0
    kept, once, twice = through(w, 1, 1)
    assert kept.shape == w.shape
    rows = np.moveaxis(w, 1, -1).reshape(3, 10, 40)
    scales = np.asarray(kept.scales)
    most = np.abs(rows).max(-1)
    np.testing.assert_allclose(scales, np.where(most > 0, most / 448, 1), rtol=2**-16)
    units = np.clip(rows / scales[..., None], -448, 448).astype(ml_dtypes.float8_e4m3fn)
    np.testing.assert_array_equal(kept.codes, units.view(np.uint8))
    want = units.astype(np.float32) * scales[..., None]
    np.testing.assert_array_equal(np.moveaxis(once, 1, -1).reshape(3, 10, 40), want)
    np.testing.assert_array_equal(twice, once)
    # 3 bits of mantissa: 0.026 of normal weights
    error = np.sqrt(np.mean((np.asarray(once[2]) - w[2]) ** 2) / np.mean(w[2] ** 2))
    assert 0.02 < error < 0.03
