"""MXFP4 against the tables of the OCP specification, and ml_dtypes."""

import functools

import jax
import ml_dtypes
import numpy as np

from jaxlm.ops.quant import mxfp4

# OCP Microscaling Formats 1.0, table 5: E2M1, code -> number.
TABLE = [0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6]


@functools.partial(jax.jit, static_argnums=(1, 2))
def through(w, copies, inputs):
    kept = mxfp4.encode(w, copies, inputs)
    once = mxfp4.dense(kept)
    return kept, once, mxfp4.dense(mxfp4.encode(once, copies, inputs))


def test_codes_are_the_specification_s():
    numbers = np.array(TABLE, np.float32)
    np.testing.assert_array_equal(jax.jit(mxfp4.e2m1)(numbers), np.arange(16))
    np.testing.assert_array_equal(jax.jit(mxfp4.numbers)(np.arange(16, dtype=np.uint8)), numbers)
    own = numbers.astype(ml_dtypes.float4_e2m1fn)
    np.testing.assert_array_equal(own.view(np.uint8), np.arange(16))


def test_rounding_is_to_the_nearest_and_halves_to_even():
    middles = np.array([0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0], np.float32)
    x = np.random.default_rng(0).uniform(-6, 6, 4000).astype(np.float32)
    x = np.concatenate([x, middles, -middles, np.nextafter(middles, np.float32(9)), [6, -6]])
    want = x.astype(ml_dtypes.float4_e2m1fn).view(np.uint8)
    np.testing.assert_array_equal(jax.jit(mxfp4.e2m1)(x), want)
    beyond = jax.jit(mxfp4.e2m1)(np.array([7.9, -100.0], np.float32))
    np.testing.assert_array_equal(beyond, [7, 15])


def test_a_block_is_scaled_by_the_power_of_two_of_section_6_3():
    """Largest magnitudes from 2^-100 to 2^100, and a block of zeros."""
    r = np.random.default_rng(1)
    blocks = r.standard_normal((40, 32)).astype(np.float32)
    blocks *= (2.0 ** r.integers(-100, 100, (40, 1))).astype(np.float32)
    blocks[3] = 0
    w = blocks.reshape(10, 128).T  # inputs by outputs
    kept, once, twice = through(w, 0, 1)
    largest = np.abs(blocks).max(1)
    exponents = np.where(largest > 0, np.floor(np.log2(np.maximum(largest, 1e-37))) - 2, -126)
    scales = np.asarray(kept.scales).ravel()
    np.testing.assert_array_equal(scales, exponents + 127)
    power = scales.view(ml_dtypes.float8_e8m0fnu).astype(np.float32)
    np.testing.assert_array_equal(power, 2.0**exponents)
    units = np.clip(blocks / power[:, None], -6, 6).astype(ml_dtypes.float4_e2m1fn)
    want = units.astype(np.float32) * power[:, None]
    np.testing.assert_array_equal(np.asarray(once).T.reshape(40, 32), want)
    np.testing.assert_array_equal(twice, once)
    codes = units.view(np.uint8).reshape(10, 128)
    np.testing.assert_array_equal(kept.codes, codes[:, :64] | (codes[:, 64:] << 4))


def test_copies_and_short_blocks():
    w = np.random.default_rng(2).standard_normal((2, 5, 8, 3)).astype(np.float32)
    kept, once, _ = through(w, 1, 2)
    assert kept.shape == once.shape == w.shape and kept.scales.shape == (2, 3, 2)
    np.testing.assert_array_equal(once[1], through(w[1], 0, 2)[1])
    assert np.abs(once - w).max() < 0.25 * np.abs(w).max()
