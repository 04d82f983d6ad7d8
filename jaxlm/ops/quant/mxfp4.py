"""Matrices in MXFP4: blocks of 32 numbers of 4 bits (E2M1) with a power of two for each block
(E8M0). Open Compute Project, Microscaling Formats (MX) Specification 1.0, sections 5 and 6.

    E2M1   sign, 2 bits of exponent, 1 of mantissa   0 0.5 1 1.5 2 3 4 6 and their negatives
    E8M0   the byte e is 2^(e - 127)                 255 is NaN, which nothing here writes

The scale is 2^(floor(log2(the largest magnitude)) - 2), as section 6.3 has it: numbers above 6
scales become 6 scales. Numbers are rounded to the nearest, halves to the even mantissa.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np

from jaxlm.ops.quant import packing

BLOCK = 32
# Magnitudes of E2M1 by their code; the fourth bit is the sign.
MAGNITUDES = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
BIAS, LARGEST_EXPONENT = 127, 2


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Mxfp4:
    """A matrix in MXFP4, or a copy of it for each layer and expert. Blocks are of an output's
    inputs, the last one filled up with zeros."""

    codes: jax.Array
    """uint8[copies..., outputs, blocks * 16]: two numbers a byte, as `packing.pack` puts them."""
    scales: jax.Array
    """uint8[copies..., outputs, blocks]: E8M0."""
    sizes: tuple[int, ...] = dataclasses.field(metadata={"static": True})
    """The shape of one matrix, [inputs..., outputs...]."""
    inputs: int = dataclasses.field(metadata={"static": True})
    """Number of these that are inputs."""

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the weight it represents, [copies..., inputs..., outputs...]."""
        return (*self.codes.shape[:-2], *self.sizes)


def encode(w: jax.Array, copies: int, inputs: int) -> Mxfp4:
    """A weight [copies..., inputs..., outputs...] in MXFP4."""
    parts = packing.blocks(packing.rows(w, copies, inputs), BLOCK)  # [..., outputs, blocks, 32]
    largest = jnp.max(jnp.abs(parts), axis=-1)
    # frexp: largest = m * 2^e with m in [0.5, 1), so that floor(log2(largest)) = e - 1
    exponents = jnp.frexp(largest)[1] - 1 - LARGEST_EXPONENT
    # a block of zeros has the least scale; a weight is never as large as the other end
    exponents = jnp.where(largest > 0, jnp.clip(exponents, 1 - BIAS, BIAS), 1 - BIAS)
    units = jnp.ldexp(parts, -exponents[..., None])
    codes = e2m1(units).reshape(*parts.shape[:-2], -1)  # [..., outputs, blocks * 32]
    scales = (exponents + BIAS).astype(jnp.uint8)
    return Mxfp4(packing.pack(codes, 4), scales, tuple(w.shape[copies:]), inputs)


def e2m1(x: jax.Array) -> jax.Array:
    """The codes uint8 of the nearest numbers of E2M1; halves go to the even code, what is beyond 6
    to 6."""
    levels = np.array(MAGNITUDES)
    between = jnp.asarray((levels[1:] + levels[:-1]) / 2, jnp.float32)
    size = jnp.abs(x)
    # the number of midpoints below; one that is hit counts where the code above it is even
    low, high = (jnp.searchsorted(between, size, side=side) for side in ("left", "right"))
    code = jnp.where(low % 2 == 0, low, high).astype(jnp.uint8)
    return code | (jnp.signbit(x).astype(jnp.uint8) << 3)


def numbers(codes: jax.Array) -> jax.Array:
    """The numbers float32[...] of codes of E2M1, uint8[...]."""
    code = codes.astype(jnp.uint32)
    exponent, mantissa = (code >> 1) & 3, code & 1
    # the bits of a float32 with the same exponent and mantissa; the least exponent has no leading 1
    bits = ((exponent + BIAS - 1) << 23) | (mantissa << 22)
    size = jnp.where(exponent > 0, jax.lax.bitcast_convert_type(bits, jnp.float32), 0.5 * mantissa)
    return jnp.where(code > 7, -size, size)


def rows(w: Mxfp4) -> jax.Array:
    """The rows float32[copies..., outputs, inputs] of the weight that an Mxfp4 represents."""
    units = numbers(packing.unpack(w.codes, 4))  # [..., outputs, blocks * 32]
    # E8M0 is the exponent of float32
    powers = jax.lax.bitcast_convert_type(w.scales.astype(jnp.uint32) << 23, jnp.float32)
    whole = units.reshape(*w.scales.shape, BLOCK) * powers[..., None]
    size = math.prod(w.sizes[: w.inputs])
    return whole.reshape(*w.scales.shape[:-1], -1)[..., :size]


def dense(w: Mxfp4) -> jax.Array:
    """The weight float32[copies..., inputs..., outputs...] that an Mxfp4 represents."""
    return packing.matrix(rows(w), w.sizes, w.inputs)
