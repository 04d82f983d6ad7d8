"""Slopes of any law by automatic differentiation in JAX, in float64.

A block of problems shares one compiled program; the number of points is rounded up to few sizes
with weight 0, so that subsets of one study compile once.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxlm.scaling.laws.slopes import Array, Points, Rows, Slopes, Trial

BLOCK = 16  # problems in one run of the compiled program: its arrays stay within a core's cache
LEAST = 64  # points of the smallest program


def trial(model: Callable, phi: Array, y: Array, w: Array, at: Points) -> Trial:
    """The Trial of model(phi [k], logs, centre) -> log loss [n] of jnp; phi [S,k], y, w [S,n]."""
    n = y.shape[1]
    more = rounded(n) - n

    def padded(a: Array, mode: Any = "edge") -> Array:
        return np.pad(a, [*[(0, 0)] * (a.ndim - 1), (0, more)], mode)

    y, w = padded(y), padded(w, "constant")
    with jax.enable_x64(True):
        logs, centre = padded(at.logs.swapaxes(0, 1)), at.centre[:, :, 0].T
        blocks = []
        for i in range(0, len(phi), BLOCK):
            rows = np.resize(np.arange(i, min(i + BLOCK, len(phi))), BLOCK)
            arrays = (a[rows] for a in (phi, y, w, logs, centre))
            blocks.append(_block(model, *arrays, float(at.delta), float(at.log)))
        value, gradient, hessian, bound = (
            np.concatenate(parts)[: len(phi)] for parts in zip(*blocks)
        )

    def slopes(rows: Rows) -> Slopes:
        return Slopes(gradient[rows], hessian[rows], bound[rows])

    return Trial(value, slopes)


def rounded(n: int) -> int:
    """The least power of 2 from LEAST on that is at least n: few sizes to trace and compile, which
    costs more than points of weight 0."""
    return max(LEAST, 1 << (n - 1).bit_length())


@functools.partial(jax.jit, static_argnames="model")
def _block(
    model: Callable,
    phi: jax.Array,
    y: jax.Array,
    w: jax.Array,
    logs: jax.Array,
    centre: jax.Array,
    delta: jax.Array,
    log: jax.Array,
) -> tuple[jax.Array, ...]:
    """(value, gradient, Hessian, bound) of S problems."""

    def value(p, logs, centre):
        log_loss = model(p, logs, centre)
        return jnp.where(log > 0, log_loss, jnp.exp(log_loss))

    def problem(p, y, w, *x):
        def total(p):
            r = y - value(p, *x)
            inside = jnp.clip(r, -delta, delta)
            return (w * inside * (r - inside / 2)).sum(), r

        def slope(p):
            gradient, r = jax.grad(total, has_aux=True)(p)
            return gradient, (gradient, r)

        hessian, (gradient, r) = jax.jacfwd(slope, has_aux=True)(p)
        slope = jax.jacfwd(value)(p, *x)
        weights = w * jnp.minimum(1.0, delta / jnp.maximum(jnp.abs(r), 1e-300))
        return total(p)[0], gradient, hessian, slope.T @ (weights[:, None] * slope)

    return jax.vmap(problem)(phi, y, w, logs, centre)
