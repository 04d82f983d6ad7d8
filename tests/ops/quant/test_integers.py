"""Integers: codes and numbers against float64 NumPy, bits, exactness, packing."""

import dataclasses
import functools

import jax
import ml_dtypes
import numpy as np
import pytest

from jaxlm.ops import quant
from jaxlm.ops.quant import integers, packing

GRIDS = [(8, None, False), (8, None, True), (8, 16, True), (4, 32, True), (4, 16, False)]
GRIDS += [(2, 16, True), (2, 16, False)]
grids = pytest.mark.parametrize("bits, group, affine", GRIDS)


def gaussian(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape, np.float32)


@functools.partial(jax.jit, static_argnums=(1, 2, 3, 4, 5))
def through(w, copies, inputs, bits, group, affine):
    """(the Integers of a weight, the array that they represent, that array once more)."""
    kept = integers.encode(w, copies, inputs, bits, group, affine)
    once = integers.dense(kept)
    twice = integers.dense(integers.encode(once, copies, inputs, bits, group, affine))
    return kept, once, twice


def shortened(scale, bits):
    """A scale as it is kept: 16 significant bits of float32, or bfloat16."""
    if bits != 8:
        return np.float64(np.float32(scale).astype(ml_dtypes.bfloat16))
    whole, exponent = np.frexp(np.float64(np.float32(scale)))
    return np.ldexp(np.rint(whole * 2**16), exponent - 16)


def reference(rows, bits, group, affine):
    """The numbers float64 of rows [outputs, inputs], each group on its own."""
    result = np.empty(rows.shape, np.float64)
    group = rows.shape[1] if group is None else group
    for r, row in enumerate(rows.astype(np.float64)):
        for first in range(0, len(row), group):
            part = row[first : first + group]
            if affine:
                low, high = min(part.min(), 0), max(part.max(), 0)
                scale = shortened((high - low) / (2**bits - 1), bits)
                zero = np.clip(np.rint(-low / scale), 0, 2**bits - 1)
                codes = np.clip(np.rint(part / scale) + zero, 0, 2**bits - 1) - zero
            else:
                most = 2 ** (bits - 1) - 1
                scale = shortened(np.abs(part).max() / most, bits)
                codes = np.clip(np.rint(part / scale), -most, most)
            result[r, first : first + group] = codes * scale
    return result


@grids
def test_the_numbers_are_those_of_float64(bits, group, affine):
    """67 inputs: the last group is short. What is rounded once is rounded to itself."""
    w = gaussian(67, 5, seed=bits)
    kept, once, twice = through(w, 0, 1, bits, group, affine)
    assert kept.shape == w.shape == once.shape
    np.testing.assert_array_equal(once, reference(w.T, bits, group, affine).T)
    np.testing.assert_array_equal(once, twice)


def test_bits_of_a_weight_are_codes_scales_and_zeros():
    wants = (8 + 32 / 512, 8 + 40 / 512, 10.5, 4.75, 5.0, 3.5, 3.0)
    for grid, want in zip(GRIDS, wants, strict=True):
        like = jax.eval_shape(
            lambda w, grid=grid: integers.encode(w, 0, 1, *grid),
            jax.ShapeDtypeStruct((512, 8), np.float32),
        )
        size = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(like))
        assert 8 * size / (512 * 8) == want


@pytest.mark.parametrize("copies, inputs", [(1, 1), (2, 1), (0, 2)])
def test_copies_are_coded_apart_and_axes_come_back(copies, inputs):
    w = gaussian(3, 24, 2, 4)
    kept, once, _ = through(w, copies, inputs, 4, 16, True)
    assert once.shape == w.shape == kept.shape
    assert kept.codes.shape[:-2] == w.shape[:copies]
    flat = w.reshape(-1, *w.shape[copies:])
    for one, got in zip(flat, np.asarray(once).reshape(flat.shape), strict=True):
        n = int(np.prod(one.shape[:inputs]))
        want = reference(one.reshape(n, -1).T, 4, 16, True).T.reshape(one.shape)
        np.testing.assert_array_equal(got, want)


def test_zeros_and_tiny_numbers_stay_what_they_are():
    w = np.zeros((16, 3), np.float32)
    w[:, 1], w[3, 2] = 1e-20, -5.0
    for affine in (False, True):
        _, once, _ = through(w, 0, 1, 8, None, affine)
        np.testing.assert_allclose(once, w, rtol=1e-4, atol=1e-30)


def test_bytes_hold_numbers_of_equal_parts_from_the_low_bits_on():
    codes = np.arange(16, dtype=np.uint8)
    assert list(np.asarray(packing.pack(codes, 4))[:2]) == [0x80, 0x91]
    assert list(np.asarray(packing.pack(codes // 4, 2))) == 4 * [0b11100100]
    for bits in (2, 4, 8):
        small = codes & (2**bits - 1)
        packed = packing.pack(small, bits)
        assert packed.shape == (16 * bits // 8,)
        np.testing.assert_array_equal(packing.unpack(packed, bits), small)


def test_inputs_in_another_order_are_put_back():
    """GPTQ's act-order: groups are of inputs that are not neighbours; also in parts."""
    w, order = (
        gaussian(2, 32, 12),
        np.stack([np.random.default_rng(i).permutation(32) for i in (1, 2)]),
    )
    sorted_ = np.take_along_axis(w, np.argsort(order, axis=-1)[..., None], axis=1)

    @jax.jit
    def both(sorted_, order):
        kept = integers.encode(sorted_, 1, 1, 4, 16, True)
        ordered = dataclasses.replace(kept, order=order.astype(np.int32))
        one = jax.tree.map(lambda x: x[1], ordered)
        parts = quant.split(one, 32 * 4)
        assert parts is not None
        return integers.dense(kept), integers.dense(ordered), integers.dense(parts)

    plain, got, parts = both(sorted_, order)
    np.testing.assert_array_equal(got, np.take_along_axis(plain, order[..., None], axis=1))
    np.testing.assert_array_equal(np.moveaxis(parts, 0, 1).reshape(32, 12), got[1])
