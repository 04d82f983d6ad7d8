"""AWQ: inputs of large activations get finer steps, by factors on the columns of a matrix. Lin et
al. 2024, section 3.2.

    w = Q(w * s) / s        s = (mean |x|)^a, a = 0, 1/20, ..., 19/20

The exponent is the one with the least error sum |(w - w') x|^2; a = 0 is rounding to the nearest.
The factors are searched for each matrix, and stored with it: no norm or other matrix before it
has to take them up, so that it makes no difference which family it is of. The clipping that the
authors' code searches for as well is left out.
"""

import functools

import jax
import jax.numpy as jnp

from jaxlm.ops.quant import integers, packing

EXPONENTS = 20


@functools.partial(jax.jit, static_argnums=(3, 4, 5, 6))
def encode(
    w: jax.Array,
    gram: jax.Array,
    magnitude: jax.Array,
    inputs: int,
    bits: int,
    group: int | None,
    affine: bool,
) -> integers.Integers:
    """The Integers of one matrix w [inputs..., outputs...], for inputs x of which gram [n, n] is
    the sum of x x^T, and magnitude [n] that of |x|."""
    rows = packing.rows(w, 0, inputs)  # [outputs, n]

    def rounded(factors: jax.Array) -> tuple:
        scaled = rows * factors
        scales, zeros = integers.grid(scaled, bits, group, affine)
        return integers.nearest(scaled, scales, zeros, bits, group), scales, zeros

    def error(exponent: jax.Array) -> jax.Array:
        factors = channels(magnitude, exponent)
        codes, scales, zeros = rounded(factors)
        values = integers.values(codes, scales, zeros, bits, rows.shape[-1])
        off = rows - values / factors
        return jnp.sum(jnp.matmul(off, gram, precision="highest") * off)

    exponents = jnp.arange(EXPONENTS) / EXPONENTS
    best = exponents[jnp.argmin(jax.lax.map(error, exponents))]
    factors = channels(magnitude, best)
    return integers.stored(*rounded(factors), factors, w.shape, inputs, bits)


def channels(magnitude: jax.Array, exponent: jax.Array) -> jax.Array:
    """The factors [n] of inputs with these magnitudes [n]; the geometric mean of the largest and
    the least is 1, and so are all where no input was ever other than 0."""
    share = magnitude / jnp.mean(magnitude)
    share = jnp.where(jnp.isfinite(share), jnp.maximum(share, 1e-4), 1.0)
    factors = share**exponent
    return factors / jnp.sqrt(jnp.max(factors) * jnp.min(factors))
