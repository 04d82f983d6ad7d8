"""GPTQ against an independent reference in float64, and its laws."""

import jax
import numpy as np
import pytest

from jaxlm.ops.quant import gptq, integers

GRIDS = [(4, 32, True), (2, 16, True), (8, None, False)]

encode = jax.jit(integers.encode, static_argnums=(1, 2, 3, 4, 5))
rows = jax.jit(integers.rows)


def inputs_of(n, rows=400, seed=0):
    """Correlated inputs of unequal size [rows, n]; one of them is always 0."""
    r = np.random.default_rng(seed)
    x = r.standard_normal((rows, n)) @ (np.eye(n) + r.standard_normal((n, n)) / np.sqrt(n))
    x *= np.exp(r.standard_normal(n))
    x[:, 5] = 0
    return x


def obq(w, gram, scale, zero, least, most):
    """The same codes by Gaussian elimination in the inverse itself, one column after another.
    Frantar and Alistarh 2022, equations 3 and 4, in GPTQ's fixed order."""
    left, n = w.copy(), len(gram)
    live = np.diagonal(gram) > 0
    mean = np.diagonal(gram)[live].mean()
    damped = gram + np.diag(np.where(live, 0.01 * mean, 1.01 * mean))
    inverse = np.linalg.inv(damped)
    codes = np.zeros(left.shape)
    for q in sorted(range(n), key=lambda i: (-gram[i, i], i)):
        code = np.clip(np.rint(left[:, q] / scale[:, q]) + zero[:, q], least, most)
        error = left[:, q] - (code - zero[:, q]) * scale[:, q]
        left -= np.outer(error / inverse[q, q], inverse[q])
        inverse -= np.outer(inverse[:, q], inverse[q]) / inverse[q, q]
        codes[:, q] = code
    return codes


def grid_of(w, bits, group, affine):
    """(the nearest numbers, scales, zeros) float64 [outputs, inputs]."""
    n = w.shape[0]
    kept = encode(w, 0, 1, bits, group, affine)
    scales = np.asarray(kept.scales, np.float64)
    zeros = np.full_like(scales, 2 ** (bits - 1)) if kept.zeros is None else kept.zeros
    size = integers.width(n, group)
    each = [np.repeat(np.asarray(x, np.float64), size, axis=-1)[:, :n] for x in (scales, zeros)]
    return np.asarray(rows(kept), np.float64), *each


def loss(difference, gram):
    return np.einsum("oi,ij,oj->o", difference, gram, difference)


@pytest.mark.parametrize("bits, group, affine", GRIDS)
def test_integers_are_those_of_a_reference_in_float64(bits, group, affine):
    """150 inputs: more than a block of columns. Outputs on which rounding is better keep that."""
    n, x = 150, inputs_of(150)
    w = np.random.default_rng(1).standard_normal((n, 24)).astype(np.float32)
    gram = x.T @ x
    rounded, scale, zero = grid_of(w, bits, group, affine)
    codes = obq(w.T.astype(np.float64), gram, scale, zero, 1 - affine, 2**bits - 1)
    values = (codes - zero) * scale
    losses = [loss(w.T - v, gram) for v in (values, rounded)]
    want = np.where((losses[0] < losses[1])[:, None], values, rounded)
    got = np.asarray(rows(gptq.encode(w, gram, 1, bits, group, affine)))
    np.testing.assert_array_equal(got, want)
    assert (losses[0] < losses[1]).mean() > 0.8
    # no output is worse, and all together are far better
    ours = loss(w.T - got, gram)
    assert (ours <= losses[1]).all() and ours.sum() < 0.6 * losses[1].sum()


@pytest.mark.parametrize("bits, group, affine", GRIDS)
def test_white_inputs_and_none_give_the_nearest_codes(bits, group, affine):
    w = np.random.default_rng(2).standard_normal((4, 40, 6)).astype(np.float32)
    want = encode(w, 0, 2, bits, group, affine)
    for gram in (3.0 * np.eye(160), np.zeros((160, 160))):
        got = gptq.encode(w, gram, 2, bits, group, affine)
        np.testing.assert_array_equal(got.codes, want.codes)
        np.testing.assert_array_equal(np.asarray(got.scales), np.asarray(want.scales))
        assert got.shape == (4, 40, 6)


def test_an_input_that_never_came_has_its_weights_rounded():
    x = inputs_of(64)
    w = np.random.default_rng(3).standard_normal((64, 8)).astype(np.float32)
    got = rows(gptq.encode(w, x.T @ x, 1, 4, 32, True))
    rounded, _, _ = grid_of(w, 4, 32, True)
    np.testing.assert_array_equal(np.asarray(got)[:, 5], rounded[:, 5])
