"""Matrices in float8 E4M3 with a scale for each output. Micikevicius et al. 2022, sections 3 and 4.

The scale makes the largest magnitude of an output 448, the largest number of the format, and keeps
16 significant bits: times a number of 4 it is exact in float32.
"""

import dataclasses

import jax
import jax.numpy as jnp

from jaxlm.ops.quant import packing

LARGEST = 448.0


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Float8:
    """A matrix in E4M3, or a copy of it for each layer and expert."""

    codes: jax.Array
    """uint8[copies..., outputs, inputs]: the bits of the numbers."""
    scales: jax.Array
    """float32[copies..., outputs]."""
    sizes: tuple[int, ...] = dataclasses.field(metadata={"static": True})
    """The shape of one matrix, [inputs..., outputs...]."""
    inputs: int = dataclasses.field(metadata={"static": True})
    """Number of these that are inputs."""

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the weight it represents, [copies..., inputs..., outputs...]."""
        return (*self.codes.shape[:-2], *self.sizes)


def encode(w: jax.Array, copies: int, inputs: int) -> Float8:
    """A weight [copies..., inputs..., outputs...] in E4M3, rounded to the nearest, halves to even;
    what the rounding of the scale puts beyond 448 becomes 448."""
    flat = packing.rows(w, copies, inputs)  # [..., outputs, inputs]
    scales = jnp.max(jnp.abs(flat), axis=-1) / LARGEST
    scales = jnp.where(scales > jnp.finfo(jnp.float32).tiny, scales, 1.0)
    scales = jax.lax.reduce_precision(scales, 8, 15)
    units = jnp.clip(flat / scales[..., None], -LARGEST, LARGEST)
    codes = jax.lax.bitcast_convert_type(units.astype(jnp.float8_e4m3fn), jnp.uint8)
    return Float8(codes, scales, tuple(w.shape[copies:]), inputs)


def rows(w: Float8) -> jax.Array:
    """The rows float32[copies..., outputs, inputs] of the weight that a Float8 represents."""
    units = jax.lax.bitcast_convert_type(w.codes, jnp.float8_e4m3fn).astype(jnp.float32)
    return units * w.scales[..., None]


def dense(w: Float8) -> jax.Array:
    """The weight float32[copies..., inputs..., outputs...] that a Float8 represents."""
    return packing.matrix(rows(w), w.sizes, w.inputs)
