"""GPTQ: codes of a matrix chosen column by column, each column's error made up for by those that
are still to come. Frantar et al. 2023, algorithm 1.

In NumPy and float64 on the host: columns follow from one another, and an accelerator's sums would
decide ties otherwise than a CPU's. Of what the paper and its followers leave open:

- the scales and zeros are those of rounding to the nearest, and are not changed on the way;
- columns are taken by falling x^2 (act-order), and stored in their own order;
- an input that was always 0 has its weights rounded to the nearest (not set to 0);
- an output for which the codes so found are worse than the nearest ones keeps those.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxlm.ops.quant import integers, packing

BLOCK = 128
# Added to the diagonal, as a part of its mean.
DAMPING = 0.01


def encode(
    w: Any, gram: np.ndarray, inputs: int, bits: int, group: int | None, affine: bool
) -> integers.Integers:
    """The Integers of one matrix w [inputs..., outputs...], for inputs x of which gram [n, n] is
    the sum of x x^T; the error sum |(w - w') x|^2 is never above that of the nearest codes."""
    rows, scales, zeros, nearest = _nearest(jnp.asarray(w), inputs, bits, group, affine)
    codes = np.array(nearest)
    size = rows.shape[-1]
    each = integers.width(size, group)
    scale = np.repeat(np.asarray(scales), each, axis=-1)[:, :size]
    half = np.full_like(scales, 2 ** (bits - 1))
    zero = np.repeat(half if zeros is None else np.asarray(zeros), each, axis=-1)[:, :size]
    least = 1 if zeros is None else 0
    exact = np.asarray(rows, np.float64)
    gram = np.asarray(gram, np.float64)
    if np.diagonal(gram).any():
        chosen = _columns(exact, gram, scale, zero, least, 2**bits - 1)
        errors = [
            _errors(exact - (c - zero) * scale.astype(np.float64), gram)
            for c in (chosen, codes[:, :size])
        ]
        better = errors[0] < errors[1]
        codes[better, :size] = chosen[better]
    return integers.stored(jnp.asarray(codes), scales, zeros, None, np.shape(w), inputs, bits)


@functools.partial(jax.jit, static_argnums=(1, 2, 3, 4))
def _nearest(w, inputs, bits, group, affine):
    """(rows [outputs, n], scales, zeros, codes) of rounding to the nearest."""
    rows = packing.rows(w, 0, inputs)
    scales, zeros = integers.grid(rows, bits, group, affine)
    return rows, scales, zeros, integers.nearest(rows, scales, zeros, bits, group)


def _errors(difference: np.ndarray, gram: np.ndarray) -> np.ndarray:
    """The squared error of each output [outputs], for a difference [outputs, n] of the weights."""
    return np.sum((difference @ gram) * difference, axis=-1)


def _columns(
    rows: np.ndarray,
    gram: np.ndarray,
    scale: np.ndarray,
    zero: np.ndarray,
    least: int,
    most: int,
) -> np.ndarray:
    """The codes uint8[outputs, n] of rows float64[outputs, n]. scale, zero: float32[outputs, n]."""
    diagonal = np.diagonal(gram)
    mean = diagonal[diagonal > 0].mean()
    order = np.argsort(-diagonal, kind="stable")
    hessian = gram[np.ix_(order, order)] + np.diag(
        DAMPING * mean + np.where(diagonal > 0, 0.0, mean)[order]
    )
    # upper triangular: what a column's error adds to those after it
    factor = np.linalg.cholesky(np.linalg.inv(hessian)).T
    rest, size = rows[:, order], len(order)
    scale, zero = scale[:, order], zero[:, order]
    codes = np.zeros(rest.shape, np.uint8)
    for first in range(0, size, BLOCK):
        last = min(first + BLOCK, size)
        errors = np.zeros((len(rest), last - first))
        for i in range(first, last):
            # in float32, as the nearest codes are found
            units = np.round(rest[:, i].astype(np.float32) / scale[:, i])
            code = np.clip(units + zero[:, i], least, most)
            value = (code.astype(np.float64) - zero[:, i]) * scale[:, i]
            error = (rest[:, i] - value) / factor[i, i]
            rest[:, i + 1 : last] -= np.outer(error, factor[i, i + 1 : last])
            codes[:, i], errors[:, i - first] = code, error
        rest[:, last:] -= errors @ factor[first:last, last:]
    found = np.empty_like(codes)
    found[:, order] = codes
    return found
