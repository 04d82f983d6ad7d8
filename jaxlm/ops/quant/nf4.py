"""Matrices in 4 bits: NF4 in blocks of 64, as bitsandbytes stores it, bit for bit. Dettmers et al.
2023 (QLoRA), sections 2 and 3.

A matrix is stored flat, outputs first, as torch stores a linear layer: [outputs..., inputs...].
Every 64 numbers share one float32, the largest of their magnitudes, and each is the nearest of 16
fixed levels times it. Double quantisation keeps those float32 in 8 bits, 256 of them to a float32.
"""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np

from jaxlm.ops.quant import packing

BLOCK, GROUP = 64, 256

# Quantiles of a normal distribution with an exact 0. QLoRA, appendix E.
LEVELS = (
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635,
    -0.18477343022823334, -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725,
    0.24611230194568634, 0.33791524171829224, 0.44070982933044434, 0.5626170039176941,
    0.7229568362236023, 1.0,
)  # fmt: skip


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Scales8:
    """Block scales in 8 bits: offset + level of code * the largest magnitude of its group."""

    codes: jax.Array
    """uint8[copies..., blocks]."""
    largest: jax.Array
    """float32[copies..., groups]."""
    offset: jax.Array
    """float32[copies...]: their mean."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Nf4:
    """A matrix in 4 bits, or a copy of it for each layer: what `linear.einsum` takes in its place.
    It is read and never moved: it has no gradient."""

    codes: jax.Array
    """uint8[copies..., blocks, 32]: two numbers a byte, the first in the high bits."""
    scales: jax.Array | Scales8
    """float32[copies..., blocks]."""
    sizes: tuple[int, ...] = dataclasses.field(metadata={"static": True})
    """The shape of one matrix, [inputs..., outputs...]."""
    inputs: int = dataclasses.field(metadata={"static": True})
    """Number of these that are inputs."""

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the weight it represents, [copies..., inputs..., outputs...]."""
        return (*self.codes.shape[:-2], *self.sizes)


def nf4(w: jax.Array, copies: int, inputs: int, double: bool) -> Nf4:
    """A weight float32[copies..., inputs..., outputs...] in 4 bits; the last block is filled up
    with zeros. double: whether its scales are kept in 8 bits."""
    lead, sizes = w.shape[:copies], w.shape[copies:]
    # [copies..., outputs..., inputs...]
    last = jnp.moveaxis(w, range(copies, copies + inputs), range(-inputs, 0))
    flat = last.reshape(*lead, math.prod(sizes)).astype(jnp.float32)  # [copies..., n]
    rest = -flat.shape[-1] % BLOCK
    flat = jnp.pad(flat, [(0, 0)] * copies + [(0, rest)])  # [copies..., blocks * 64]
    codes, scales = encode(flat)
    return Nf4(codes, scales8(scales) if double else scales, sizes, inputs)


def dense(w: Nf4) -> jax.Array:
    """The weight float32[copies..., inputs..., outputs...] that an Nf4 represents."""
    return packing.matrix(rows(w), w.sizes, w.inputs)


def rows(w: Nf4) -> jax.Array:
    """The rows float32[copies..., outputs, inputs] of the weight that an Nf4 represents."""
    flat = decode(w.codes, _scales(w))[..., : math.prod(w.sizes)]  # [copies..., n]
    return flat.reshape(*flat.shape[:-1], -1, math.prod(w.sizes[: w.inputs]))


def split(w: Nf4, count: int) -> Nf4 | None:
    """`quant.split` of one matrix; None where blocks do not end with the parts."""
    blocks = len(w.codes)
    size = math.prod(w.sizes)
    if size % (BLOCK * count):
        return None
    codes, scales = (x.reshape(count, blocks // count, *x.shape[1:]) for x in (w.codes, _scales(w)))
    inputs = math.prod(w.sizes[: w.inputs])
    return Nf4(codes, scales, (inputs, size // inputs // count), 1)


def _scales(w: Nf4) -> jax.Array:
    """The scales of blocks as float32[copies..., blocks]."""
    return of_scales8(w.scales) if isinstance(w.scales, Scales8) else w.scales


def encode(flat: jax.Array) -> tuple[jax.Array, jax.Array]:
    """(codes uint8[..., n / 64, 32], scales float32[..., n / 64]) of numbers [..., n]."""
    blocks = flat.reshape(*flat.shape[:-1], -1, BLOCK)  # [..., n/64, 64]
    scales = jnp.max(jnp.abs(blocks), axis=-1)  # [..., n/64]
    # a block of zeros has scale 0
    unit = blocks / jnp.where(scales > 0, scales, 1.0)[..., None]
    codes = _nearest(unit, np.array(LEVELS, np.float32))  # [..., n/64, 64]
    return (codes[..., 0::2] << 4) | codes[..., 1::2], scales


def decode(codes: jax.Array, scales: jax.Array) -> jax.Array:
    """The numbers float32[..., n] of `encode`'s codes and scales."""
    pairs = jnp.stack([codes >> 4, codes & 15], axis=-1)  # [..., n/64, 32, 2]
    unit = jnp.asarray(np.array(LEVELS, np.float32))[pairs]
    unit = unit.reshape(*codes.shape[:-1], BLOCK)  # [..., n/64, 64]
    return (unit * scales[..., None]).reshape(*codes.shape[:-2], -1)


def scales8(scales: jax.Array) -> Scales8:
    """Block scales float32[..., n] in 8 bits: less their mean, the nearest level in each 256."""
    offset = jnp.mean(scales, axis=-1)
    count = scales.shape[-1]
    rest = [(0, 0)] * (scales.ndim - 1) + [(0, -count % GROUP)]
    groups = jnp.pad(scales - offset[..., None], rest)  # [..., groups * 256]
    groups = groups.reshape(*scales.shape[:-1], -1, GROUP)  # [..., groups, 256]
    largest = jnp.max(jnp.abs(groups), axis=-1)  # [..., groups]
    unit = groups / jnp.where(largest > 0, largest, 1.0)[..., None]
    # [..., groups * 256]
    codes = _nearest(unit, dynamic_levels()).reshape(*scales.shape[:-1], -1)
    return Scales8(codes[..., :count], largest, offset)


def of_scales8(kept: Scales8) -> jax.Array:
    """The block scales float32[..., n] that are kept in 8 bits."""
    unit = jnp.asarray(dynamic_levels())[kept.codes]
    each = jnp.repeat(kept.largest, GROUP, axis=-1)[..., : kept.codes.shape[-1]]  # [..., n]
    return unit * each + kept.offset[..., None]


@functools.cache
def dynamic_levels() -> np.ndarray:
    """float32[256], rising: levels with a sign, denser towards 0. Dettmers et al. 2022 (8-bit
    optimizers), section 2.1: for e = 0 .. 6, the midpoints of 2^e equal steps
    from 0.1 to 1, times 10^(e - 6); and 0 and 1. In float32 as torch steps, from both ends, so that
    they are bitsandbytes' to the last bit."""
    levels = [0.0, 1.0]
    for e in range(7):
        count = 2**e
        low, high = np.float32(0.1), np.float32(1)
        step = np.float64((high - low) / np.float32(count))
        i = np.arange(count + 1)
        up, down = np.float64(low) + step * i, np.float64(high) - step * (count - i)
        steps = np.where(i < (count + 1) // 2, up, down).astype(np.float32)
        middle = np.float32(10.0 ** (e - 6)) * ((steps[:-1] + steps[1:]) / np.float32(2))
        levels += [*middle, *-middle]
    return np.sort(np.array(levels, np.float32))


def _nearest(x: jax.Array, levels: np.ndarray) -> jax.Array:
    """uint8: the number of the nearest of the rising levels."""
    between = (levels[1:].astype(np.float64) + levels[:-1]) / 2
    return jnp.searchsorted(jnp.asarray(between, jnp.float32), x).astype(jnp.uint8)
