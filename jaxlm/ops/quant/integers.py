"""Matrices of integers with a scale for each output, or for each group of an output's inputs.

    symmetric   w = scale * (code - 2^(bits - 1))     codes 1 .. 2^bits - 1
    affine      w = scale * (code - zero)             codes 0 .. 2^bits - 1, zero one of them

The scale of a group spans its largest magnitude (symmetric) or the range of its numbers and 0
(affine), and each number is rounded to the nearest code: "round to nearest". Jacob et al. 2018,
section 2.1. Scales keep 16 significant bits for codes of 8 bits and 8 (bfloat16) for others, so
that a scale times a code is exact in float32, and a matrix that was rounded is rounded to itself.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp

from jaxlm.ops.quant import packing


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Integers:
    """A matrix of integers of 8, 4 or 2 bits, or a copy of it for each layer and expert."""

    codes: jax.Array
    """uint8[copies..., outputs, groups * group * bits / 8]: packed along inputs."""
    scales: jax.Array
    """float32 or a half of it [copies..., outputs, groups]: bfloat16 of what is rounded here to 4
    and 2 bits, of an imported matrix what it was stored in."""
    zeros: jax.Array | None
    """uint8[copies..., outputs, groups]: the codes of 0; None is symmetric."""
    channels: jax.Array | None
    """float32[copies..., inputs]: factors of the inputs, by which the product of scale and code is
    divided (AWQ); None is 1."""
    sizes: tuple[int, ...] = dataclasses.field(metadata={"static": True})
    """The shape of one matrix, [inputs..., outputs...]."""
    inputs: int = dataclasses.field(metadata={"static": True})
    """Number of these that are inputs."""
    bits: int = dataclasses.field(metadata={"static": True})
    """Bits of a code."""
    order: jax.Array | None = None
    """int32[copies..., inputs]: the place of each input among the codes, where groups are of inputs
    that are not neighbours (GPTQ's act-order); None is their own order."""
    table: bool = dataclasses.field(default=False, metadata={"static": True})
    """Whether it is an embedding table, whose sizes are [outputs, inputs]."""

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the weight it represents, [copies..., inputs..., outputs...]."""
        return (*self.codes.shape[:-2], *self.sizes)


def encode(
    w: jax.Array, copies: int, inputs: int, bits: int, group: int | None, affine: bool
) -> Integers:
    """A weight [copies..., inputs..., outputs...] rounded to the nearest codes.

    group: inputs that share a scale, a multiple of 8; None is all of an output's.
    """
    flat = packing.rows(w, copies, inputs)
    scales, zeros = grid(flat, bits, group, affine)
    codes = nearest(flat, scales, zeros, bits, group)
    return stored(codes, scales, zeros, None, w.shape[copies:], inputs, bits)


def stored(
    codes: jax.Array,
    scales: jax.Array,
    zeros: jax.Array | None,
    channels: jax.Array | None,
    sizes: tuple[int, ...],
    inputs: int,
    bits: int,
) -> Integers:
    """The Integers of codes uint8[..., outputs, groups * group] on the `grid` of float32 scales and
    zeros [..., outputs, groups]."""
    kept = scales if bits == 8 else scales.astype(jnp.bfloat16)
    points = None if zeros is None else zeros.astype(jnp.uint8)
    return Integers(packing.pack(codes, bits), kept, points, channels, tuple(sizes), inputs, bits)


def width(size: int, group: int | None) -> int:
    """Inputs that share a scale, of a matrix with `size` of them: no more than it has, up to a
    multiple of 8."""
    most = -(-size // 8) * 8
    return most if group is None else min(group, most)


def grid(
    rows: jax.Array, bits: int, group: int | None, affine: bool
) -> tuple[jax.Array, jax.Array | None]:
    """(scales, zeros) float32[..., outputs, groups] of rows [..., outputs, inputs]; zeros is None
    for a symmetric grid."""
    parts = packing.blocks(rows, width(rows.shape[-1], group))  # [..., outputs, groups, group]
    top = 2**bits - 1
    if not affine:
        largest = jnp.max(jnp.abs(parts), axis=-1)
        return _kept(largest / (2 ** (bits - 1) - 1), bits), None
    low = jnp.minimum(jnp.min(parts, axis=-1), 0)
    high = jnp.maximum(jnp.max(parts, axis=-1), 0)
    scales = _kept((high - low) / top, bits)
    return scales, jnp.clip(jnp.round(-low / scales), 0, top)


def _kept(scales: jax.Array, bits: int) -> jax.Array:
    """Scales to as many significant bits as are stored; 1 in place of 0 and of what is too small to
    have them all."""
    least = jnp.finfo(jnp.float32).tiny
    scales = jnp.where(scales > least, scales, 1.0)
    return jax.lax.reduce_precision(scales, 8, 15 if bits == 8 else 7)


def nearest(
    rows: jax.Array, scales: jax.Array, zeros: jax.Array | None, bits: int, group: int | None
) -> jax.Array:
    """The nearest codes uint8[..., outputs, groups * group] of rows [..., outputs, inputs] on a
    grid."""
    parts = packing.blocks(rows, width(rows.shape[-1], group))  # [..., outputs, groups, group]
    units = jnp.round(parts / scales[..., None])
    if zeros is None:
        codes = jnp.clip(units + 2 ** (bits - 1), 1, 2**bits - 1)
    else:
        codes = jnp.clip(units + zeros[..., None], 0, 2**bits - 1)
    return codes.reshape(*rows.shape[:-1], -1).astype(jnp.uint8)


def values(
    codes: jax.Array, scales: jax.Array, zeros: jax.Array | None, bits: int, size: int
) -> jax.Array:
    """The rows float32[..., outputs, inputs] of codes [..., outputs, groups * group]; size: the
    inputs that they have."""
    parts = codes.reshape(*scales.shape, -1).astype(jnp.float32)  # [..., outputs, groups, group]
    points = 2.0 ** (bits - 1) if zeros is None else zeros.astype(jnp.float32)[..., None]
    rows = (parts - points) * scales.astype(jnp.float32)[..., None]
    return rows.reshape(*codes.shape)[..., :size]


def rows(w: Integers) -> jax.Array:
    """The rows float32[copies..., outputs, inputs] of the weight that Integers represent."""
    size = w.sizes[1] if w.table else math.prod(w.sizes[: w.inputs])
    whole = values(packing.unpack(w.codes, w.bits), w.scales, w.zeros, w.bits, size)
    if w.order is not None:
        whole = jnp.take_along_axis(whole, w.order[..., None, :], axis=-1)
    return whole if w.channels is None else whole / w.channels[..., None, :]


def dense(w: Integers) -> jax.Array:
    """The weight float32[copies..., inputs..., outputs...] that Integers represent."""
    return rows(w) if w.table else packing.matrix(rows(w), w.sizes, w.inputs)
