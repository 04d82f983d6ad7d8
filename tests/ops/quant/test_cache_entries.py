"""Keys and values in 8 bits against float64: what is stored, how far it is off, and E4M3 itself."""

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from jaxlm.ops.quant import cache_entries

KINDS = ("int8", "fp8")


def vectors(size, seed=0):
    """float32[6, 5, size] of magnitudes from 1e-20 to 1e20, some elements far above the others."""
    draw = np.random.default_rng(seed)
    x = draw.normal(size=(6, 5, size)) * 10.0 ** draw.integers(-20, 20, (6, 5, 1))
    return (x * np.where(draw.random(x.shape) < 0.03, 50, 1)).astype(np.float32)


@pytest.mark.parametrize("numbers", KINDS)
@pytest.mark.parametrize("size", [8, 64, 96, 576])
def test_no_element_is_farther_off_than_its_bound(numbers, size):
    """int8: half a step of its group's scale, and as much again where bfloat16 rounded that down.
    fp8: 2^-4 of the element or half of the least step, and 2^-8 of the group's largest."""
    x = vectors(size)
    stored = jax.jit(cache_entries.encode, static_argnums=1)(x, numbers)
    got = np.asarray(jax.jit(cache_entries.decode)(stored), np.float64)
    groups = cache_entries.groups(size)
    assert size // groups <= 64 and stored.scales.shape == (6, 5, groups)
    assert stored.codes.dtype.itemsize == 1 and stored.scales.dtype == jnp.bfloat16
    exact = x.astype(np.float64).reshape(6, 5, groups, -1)
    largest = np.abs(exact).max(-1, keepdims=True)
    off = np.abs(got.reshape(exact.shape) - exact)
    clipped = largest * 2.0**-8  # a scale in bfloat16 has 8 bits
    if numbers == "int8":
        bound = np.maximum(largest / 127 / 2 * (1 + 2.0**-8), clipped)
    else:
        bound = np.maximum(np.abs(exact) * 2.0**-4, largest / 448 * 2.0**-10 * (1 + 2.0**-8))
        bound = np.maximum(bound, clipped)
    assert (off <= bound * (1 + 1e-5)).all()
    typical = np.sqrt((off**2).mean() / (exact**2).mean())
    assert typical < (0.02 if numbers == "int8" else 0.04)


def test_groups_are_equal_and_as_large_as_may_be():
    sizes = {1: 1, 64: 1, 65: 5, 96: 2, 128: 2, 256: 4, 576: 9, 80: 2}
    assert {size: cache_entries.groups(size) for size in sizes} == sizes


def test_int8_is_the_nearest_integer_of_each_scale():
    x = jnp.asarray([[127.0, 1.4, -2.6, 0.0], [0.0, 0.0, 0.0, 0.0], [-254.0, 127.0, 3.0, 1.0]])
    codes, scales = cache_entries.encode(x, "int8")
    np.testing.assert_array_equal(scales[:, 0].astype(jnp.float32), [1.0, 1.0, 2.0])
    want = [[127, 1, -3, 0], [0, 0, 0, 0], [-127, 64, 2, 0]]
    np.testing.assert_array_equal(codes, want)


def test_codes_of_fp8_are_e4m3():
    """All that are numbers, as ml_dtypes reads them; and what it rounds to."""
    codes = np.arange(256, dtype=np.uint8)
    codes = codes[(codes & 0x7F) != 0x7F]
    one = jnp.ones((1,), jnp.bfloat16)
    got = cache_entries.decode(cache_entries.Stored(jnp.asarray(codes), one))
    want = codes.view(ml_dtypes.float8_e4m3fn).astype(np.float32)
    np.testing.assert_array_equal(got, want)
    x = np.concatenate([[448.0], np.random.default_rng(1).normal(size=63) * 60]).astype(np.float32)
    stored = cache_entries.encode(jnp.asarray(x), "fp8")
    assert float(stored.scales[0]) == 1.0
    np.testing.assert_array_equal(
        np.asarray(stored.codes), x.astype(ml_dtypes.float8_e4m3fn).view(np.uint8)
    )


@pytest.mark.parametrize("numbers", KINDS)
def test_what_is_not_finite_stays_so_and_what_is_tiny_is_zero(numbers):
    x = jnp.asarray([[1.0, jnp.inf], [jnp.nan, 1.0], [1e-44, 0.0], [1.0, -2.0]])
    got = np.asarray(cache_entries.decode(cache_entries.encode(x, numbers)))
    assert not np.isfinite(got[:2]).any()
    np.testing.assert_array_equal(got[2], 0)
    np.testing.assert_allclose(got[3], [1, -2], rtol=2.0**-4)


def test_a_vector_is_stored_alike_whatever_is_beside_it():
    x = vectors(128, seed=3)
    whole = cache_entries.encode(jnp.asarray(x), "int8")
    for i in (0, 4):
        part = cache_entries.encode(jnp.asarray(x[i : i + 1, 2:3]), "int8")
        np.testing.assert_array_equal(part.codes[0, 0], whole.codes[i, 2])
        np.testing.assert_array_equal(part.scales[0, 0], whole.scales[i, 2])
