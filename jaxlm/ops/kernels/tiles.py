"""Matrices in tiles of outputs, for decoding on a CPU with extra `cpu`: the layout that
`tile_products` multiplies, in float32, bfloat16, 8 bits or 4 bits.

A product reads the matrix once, as it is stored, for as many rows as its registers hold, and gives
each row the same numbers whatever rows are beside it.
"""

import ctypes
import dataclasses
import functools
import importlib.util
import math
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp

from jaxlm.core import target
from jaxlm.ops.kernels.tile_products import LANES
from jaxlm.ops.quant import packing
from jaxlm.ops.quant.integers import Integers

INSTALL = "pip install 'jaxlm[cpu]'"


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Tiled:
    """A matrix, or a copy of it for each layer, in tiles of LANES outputs each; outputs are filled
    up with zeros to whole tiles. Nothing is differentiated through it."""

    data: jax.Array
    """float32, bfloat16, int8 or uint8 [copies..., tiles, inputs, LANES]. With 4 bits [copies...,
    tiles, inputs / 2, LANES]: input 2n in the low bits, 2n + 1 in the high ones."""
    scales: jax.Array | None
    """Scales of integers: float32 (8 bits), bfloat16 (4) [copies..., tiles, groups, LANES]."""
    zeros: jax.Array | None
    """uint8[copies..., tiles, groups, LANES]: the codes of 0; None where `data` is signed."""
    factors: jax.Array | None
    """float32[copies..., inputs]: factors of the inputs (AWQ); None is 1."""
    sizes: tuple[int, ...] = dataclasses.field(metadata={"static": True})
    """The shape of one matrix, [inputs..., outputs...], or [outputs, inputs] of a table."""
    inputs: int = dataclasses.field(metadata={"static": True})
    """Number of its axes that are inputs."""
    table: bool = dataclasses.field(default=False, metadata={"static": True})
    """Whether it is a tied embedding table, [outputs, inputs]."""

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the weight it represents."""
        return (*self.data.shape[:-3], *self.sizes)

    @property
    def width(self) -> int:
        """Inputs of a product."""
        return math.prod(self.sizes[1:] if self.table else self.sizes[: self.inputs])

    @property
    def outputs(self) -> int:
        """Outputs of a product."""
        return math.prod(self.sizes) // self.width

    @property
    def format(self) -> str:
        """Its name in `tile_products.FORMATS`."""
        if self.scales is None:
            return "f32" if self.data.dtype == jnp.float32 else "bf16"
        if self.zeros is None:
            return "s8"
        return "u8" if self.scales.dtype == jnp.float32 else "u4"


def available() -> bool:
    """Whether products may be by tiles: llvmlite is installed."""
    return importlib.util.find_spec("llvmlite") is not None


def chosen(dtype: Any) -> bool:
    """Whether products are by tiles unless another kernel is asked for: on one CPU with llvmlite,
    in float32 or bfloat16."""
    one = target.platform() == "cpu" and len(target.devices()) == 1
    return one and dtype in (jnp.float32, jnp.bfloat16) and available()


def problems(dtype: Any) -> Iterator[str]:
    """Reasons that products in a dtype cannot be by tiles here, in lines that name what fits."""
    if target.platform() != "cpu":
        yield f"products: 'tiles' given on {target.platform()}; they are for CPUs, use 'xla'"
    elif dtype not in (jnp.float32, jnp.bfloat16):
        yield f"products: 'tiles' given in {dtype}; they are in float32 and bfloat16, use 'xla'"
    elif not available():
        yield f"products: 'tiles' given without llvmlite: {INSTALL}"


def tiled(w: jax.Array, copies: int, inputs: int) -> Tiled:
    """The matrix w [copies..., inputs..., outputs...], float32 or bfloat16, in tiles."""
    last = jnp.moveaxis(w, range(copies, copies + inputs), range(-inputs, 0))
    rows = last.reshape(*w.shape[:copies], -1, math.prod(w.shape[copies : copies + inputs]))
    return Tiled(_tiles(rows), None, None, None, w.shape[copies:], inputs)


def tiled_table(table: jax.Array) -> Tiled:
    """The tied embedding table [V, D] in tiles."""
    return Tiled(_tiles(table), None, None, None, table.shape, 1, table=True)


def tiled_integers(w: Integers) -> Tiled | None:
    """The same integers in tiles; None where they have 2 bits, groups of inputs that are not
    neighbours, or 4 bits with scales that bfloat16 cannot hold."""
    if w.bits == 2 or w.order is not None or (w.bits == 4 and w.scales.dtype != jnp.bfloat16):
        return None
    codes = packing.unpack(w.codes, w.bits)  # [copies..., outputs, groups * group]
    zeros, scales = w.zeros, w.scales.astype(jnp.float32) if w.bits == 8 else w.scales
    if w.bits == 8 and zeros is None:
        data = _tiles(jax.lax.bitcast_convert_type(codes ^ 128, jnp.int8))
    else:
        data = _tiles(codes)
        zeros = jnp.full(scales.shape, 2 ** (w.bits - 1), jnp.uint8) if zeros is None else zeros
    if w.bits == 4:
        data = data[..., 0::2, :] | (data[..., 1::2, :] << 4)
    points = None if zeros is None else _tiles(zeros)
    # XLA's quotients of few and of many rows round differently; products do not
    factors = None if w.channels is None else 1 / w.channels
    return Tiled(data, _tiles(scales), points, factors, w.sizes, w.inputs, w.table)


def product(x: jax.Array, w: Tiled, dtype: Any) -> jax.Array:
    """x [..., inputs...] times one matrix: [..., outputs...] in `dtype`; sums are in float32."""
    keep = x.shape[: x.ndim - w.inputs]
    name = _target(w.format)
    from jaxlm.ops.kernels import machine_code

    rows = x.reshape(-1, w.width).astype(jnp.float32)  # [M, inputs]
    if w.factors is not None:
        rows = rows * w.factors
    # of groups that do not divide the inputs the last is filled up
    width = w.data.shape[-2] * (2 if w.format == "u4" else 1)
    rows = jnp.pad(rows, ((0, 0), (0, width - w.width)))
    tiles = w.data.shape[-3]
    first, flat = 0, []
    for count, size in machine_code.pieces(len(rows)):
        block = rows[first : first + count * size].reshape(count, size, width)
        flat += [jnp.swapaxes(block, 1, 2).reshape(-1)]  # [blocks, inputs, rows] in a line
        first += count * size
    call = jax.ffi.ffi_call(
        name,
        jax.ShapeDtypeStruct((len(rows), tiles * LANES), jnp.float32),
        vmap_method="sequential",
    )
    y = call(
        jnp.concatenate(flat), *(part for part in (w.data, w.scales, w.zeros) if part is not None)
    )
    others = w.sizes[:1] if w.table else w.sizes[w.inputs :]
    return y[:, : w.outputs].astype(dtype).reshape(*keep, *others)


def take(w: Tiled, tokens: jax.Array) -> jax.Array:
    """Rows of a table at tokens int32[...]: [..., inputs]."""
    tile, lane = tokens // LANES, tokens % LANES

    def column(part: jax.Array) -> jax.Array:
        return part[tile, :, lane]  # [..., inputs or groups]

    if w.scales is None:
        return column(w.data)
    codes = column(w.data)
    if w.format == "u4":
        codes = jnp.stack([codes & 15, codes >> 4], axis=-1).reshape(*tokens.shape, -1)
    zeros = 0.0 if w.zeros is None else column(w.zeros).astype(jnp.float32)[..., None]
    scales = column(w.scales).astype(jnp.float32)
    parts = codes.astype(jnp.float32).reshape(*scales.shape, -1)
    rows = ((parts - zeros) * scales[..., None]).reshape(*tokens.shape, -1)[..., : w.width]
    return rows if w.factors is None else rows * w.factors


def dense(w: Tiled) -> jax.Array:
    """The weight that it represents, float32 or bfloat16 [copies..., *sizes]."""
    copies = w.data.ndim - 3
    if copies:
        return jax.lax.map(dense, w)
    rows = take(w, jnp.arange(w.outputs))  # [outputs, inputs]
    return rows if w.table else packing.matrix(rows, w.sizes, w.inputs)


def _tiles(rows: jax.Array) -> jax.Array:
    """[copies..., outputs, n] as [copies..., tiles, n, LANES]."""
    *copies, outputs, n = rows.shape
    padded = jnp.pad(rows, [(0, 0)] * len(copies) + [(0, -outputs % LANES), (0, 0)])
    return jnp.swapaxes(padded.reshape(*copies, -1, LANES, n), -1, -2)


@functools.cache
def _target(name: str) -> str:
    """The name by which XLA calls a format's handler, which is compiled by then.

    Raises: ImportError without llvmlite.
    """
    if not available():
        raise ImportError(f"products by tiles need llvmlite: {INSTALL}")
    from jaxlm.ops.kernels import machine_code

    capsule = ctypes.pythonapi.PyCapsule_New
    capsule.restype = ctypes.py_object
    capsule.argtypes = [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p]
    registered = f"jaxlm_tiles_{name}"
    handler = capsule(machine_code.compiled(name), None, None)
    jax.ffi.register_ffi_target(registered, handler, platform="cpu")
    return registered
