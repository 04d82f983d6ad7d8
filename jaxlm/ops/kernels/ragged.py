"""Products of rows with the matrix of their group, where XLA has none that is quick: on CPU.

XLA's own `ragged_dot` masks the rows for each of E groups there and multiplies all of them with all
matrices, E times the work. Here the rows are cut into tiles, and each tile meets only the groups it
holds rows of: M / tile + E products at most.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxlm.core import precision

# Larger tiles copy fewer matrices, smaller ones multiply fewer masked rows.
LARGEST, SMALLEST = 128, 8


class _Visits(NamedTuple):
    """Which tile meets which group, in order: each int32 [visits]. A visit is of the rows from
    `first` up to `last`; none, once all rows were met."""

    tile: jax.Array
    group: jax.Array
    first: jax.Array
    last: jax.Array


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def product(x: jax.Array, w: jax.Array, sizes: jax.Array, dtype: jnp.dtype) -> jax.Array:
    """[M, F] in `dtype`: the rows x [M, D] times the matrices w [E, D, F] of their groups.

    The first sizes[0] rows are of group 0, the next sizes[1] of group 1, and so on; rows after
    the last group give 0 and get no gradient. Equal to `jax.lax.ragged_dot`. sizes int32[E].
    """
    return _multiply(x, w, sizes, dtype, 0)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def frozen(
    x: jax.Array,
    w: Any,
    sizes: jax.Array,
    dtype: jnp.dtype,
    dense: Callable[[Any], jax.Array],
) -> jax.Array:
    """`product` with matrices that are stored otherwise, a tree of arrays [E, ...] with the shape
    [E, D, F]: `dense` makes the array [D, F] of one group's, as that group is met, also for the
    gradient of x. w gets none."""
    return _multiply(x, _Stored(w, dense), sizes, dtype, 0)


@dataclasses.dataclass(frozen=True)
class _Stored:
    """Matrices [E, D, F] of which one is made an array at a time."""

    parts: Any
    dense: Callable[[Any], jax.Array]

    @property
    def shape(self) -> tuple[int, ...]:
        return self.parts.shape

    def __getitem__(self, group: jax.Array) -> jax.Array:
        return self.dense(jax.tree.map(lambda part: part[group], self.parts))


def _multiply(x, w, sizes, dtype, side):
    """x times w over w's inputs (side 0) or its outputs (side 1)."""
    size = _tile(x.shape[0], w.shape[0])
    visits = _visits(sizes, x.shape[0], size)
    padded = jnp.pad(x, ((0, -x.shape[0] % size), (0, 0)))  # [tiles size, D]

    def visit(out, at):
        rows = _rows(padded, at, size)
        # [size, F], of side 1 [size, D]
        y = _dot(rows, w[at.group].astype(x.dtype), ((1,), (side,))).astype(dtype)
        old = jax.lax.dynamic_slice_in_dim(out, at.tile * size, size)
        return jax.lax.dynamic_update_slice_in_dim(out, old + y, at.tile * size, 0), None

    out = jnp.zeros((padded.shape[0], w.shape[2 - side]), dtype)
    return jax.lax.scan(visit, out, visits)[0][: x.shape[0]]


def _forward(x, w, sizes, dtype):
    return _multiply(x, w, sizes, dtype, 0), (x, w, sizes)


def _backward(dtype, saved, g):
    x, w, sizes = saved
    g = g.astype(x.dtype)
    size = _tile(x.shape[0], w.shape[0])
    padding = ((0, -x.shape[0] % size), (0, 0))
    x_tiles, g_tiles = jnp.pad(x, padding), jnp.pad(g, padding)  # [tiles size, D], [tiles size, F]

    def visit(dw, at):
        y = _dot(_rows(x_tiles, at, size), _rows(g_tiles, at, size), ((0,), (0,)))  # [D, F]
        return dw.at[at.group].add(y), None

    dw = jnp.zeros(w.shape, precision.wide())
    dw = jax.lax.scan(visit, dw, _visits(sizes, x.shape[0], size))[0]
    return _multiply(g, w, sizes, x.dtype, 1), dw.astype(w.dtype), None


product.defvjp(_forward, _backward)


def _frozen_forward(x, w, sizes, dtype, dense):
    y = _multiply(x, _Stored(w, dense), sizes, dtype, 0)
    return y, (w, sizes, jnp.zeros((), x.dtype))


def _frozen_backward(dtype, dense, saved, g):
    w, sizes, like = saved
    return _multiply(g.astype(like.dtype), _Stored(w, dense), sizes, like.dtype, 1), None, None


frozen.defvjp(_frozen_forward, _frozen_backward)


def _tile(rows: int, groups: int) -> int:
    """Rows a tile: half of a group's mean, a power of two within bounds."""
    half = max(1, rows // (2 * groups))
    return min(LARGEST, max(SMALLEST, 1 << (half - 1).bit_length()))


@functools.partial(jax.jit, static_argnums=(1, 2))  # traced once for all layers and products
def _visits(sizes: jax.Array, rows: int, size: int) -> _Visits:
    groups = sizes.shape[0]
    # every group but the first may begin within a tile that another one has met
    count = -(-rows // size) + min(groups, rows) - 1
    ends = jnp.cumsum(sizes)  # [E]
    starts = ends - sizes
    each = jnp.where(sizes > 0, (ends - 1) // size - starts // size + 1, 0)  # [E] tiles
    done = jnp.cumsum(each)
    visit = jnp.arange(count)  # [visits]
    group = jnp.minimum(jnp.searchsorted(done, visit, side="right"), groups - 1)
    tile = starts[group] // size + visit - (done - each)[group]
    tile = jnp.where(visit < done[-1], tile, 0)
    last = jnp.where(visit < done[-1], ends[group], 0)
    return _Visits(tile, group, starts[group], last)


def _rows(x: jax.Array, at: _Visits, size: int) -> jax.Array:
    """A tile of x, with 0 for the rows of other groups."""
    row = at.tile * size + jnp.arange(size)
    mine = (at.first <= row) & (row < at.last)  # [size]
    tile = jax.lax.dynamic_slice_in_dim(x, at.tile * size, size)  # [size, D]
    return jnp.where(mine[:, None], tile, 0)


def _dot(a, b, contract):
    return jax.lax.dot_general(a, b, (contract, ((), ())), preferred_element_type=precision.wide())
