"""Products of activations with weights: the one place where a weight's storage type matters."""

import dataclasses
import functools
import math
import string
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from jaxlm.core import precision, target
from jaxlm.ops import dropout, quant
from jaxlm.ops.kernels import ragged, tiles, wide_gradients
from jaxlm.ops.kernels.tiles import Tiled

# Rows of x up to which a product on CPU is faster with the weight on the left, then stored
# with its outputs first: w [out, in] times x.T. Otherwise the weight is repacked at every call.
# [16,1024] by 24 matrices [1024,1024] on 2 cores: 27 -> 11 ms; [1,1024]: 5.6 -> 4.5.
FEW_ROWS = 32
# Numbers of a matrix in few bits that are unpacked at a time there, for few rows.
PART = 2**18


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Turned:
    """A matrix stored with its outputs first, [copies..., outputs..., inputs...]: the faster layout
    for decoding on a CPU. `einsum` takes it in place of the matrix; elsewhere it is transposed
    back."""

    data: jax.Array
    inputs: int = dataclasses.field(metadata={"static": True})

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of one matrix, [inputs..., outputs...]."""
        return self.data.shape[-self.inputs :] + self.data.shape[: -self.inputs]

    def __jax_array__(self) -> jax.Array:
        return jnp.moveaxis(self.data, range(-self.inputs, 0), range(self.inputs))


def turned(w: jax.Array, copies: int, inputs: int) -> Turned:
    """The matrix w [copies..., inputs..., outputs...] with its outputs first."""
    return Turned(jnp.moveaxis(w, range(copies, copies + inputs), range(-inputs, 0)), inputs)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Lora:
    """A frozen matrix and what is learnt on top of it, of low rank: w + scale * a b. Hu et al.
    2021.

    w [copies..., inputs..., outputs...], also as a `quant.Packed`, gets no gradient. a [copies...,
    inputs..., rank]; b [copies..., rank, outputs...]. key: uint32[copies..., 2], which turns on
    dropout of what `a` multiplies; None leaves it off.
    """

    w: Any
    a: jax.Array
    b: jax.Array
    key: jax.Array | None
    scale: float = dataclasses.field(metadata={"static": True})
    drop: float = dataclasses.field(metadata={"static": True})

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the weight it represents."""
        return self.w.shape


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Observed:
    """A matrix whose inputs x are observed: the products with it are those with `w`, and the
    gradients of `gram` and `magnitude`, whatever is differentiated, are sums over the rows of x.

    w [copies..., inputs..., outputs...]. gram [copies..., n, n], n the size of the inputs together:
    its gradient is x^T x. magnitude [copies..., n]: its gradient is the sum of |x|. Nothing is read
    of either. Of experts, the rows are those that came to each.
    """

    w: jax.Array
    gram: jax.Array
    magnitude: jax.Array

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the weight."""
        return self.w.shape


Leaf = jax.Array | Turned | Tiled | Lora | Observed | quant.Packed


def is_leaf(x: object) -> bool:
    """Whether a tree node represents one weight, whatever it is stored as."""
    return isinstance(x, Turned | Tiled | Lora | Observed | quant.Packed)


def dense(w: Leaf) -> jax.Array:
    """The weight as one array [copies..., inputs..., outputs...]; dropout aside."""
    if isinstance(w, Lora):
        copies = w.a.ndim + w.b.ndim - 2 - len(w.shape)
        a = w.a.reshape(*w.a.shape[:copies], -1, w.a.shape[-1])  # [copies..., inputs, rank]
        b = w.b.reshape(*w.b.shape[: copies + 1], -1)  # [copies..., rank, outputs]
        product = jnp.matmul(a, b, preferred_element_type=precision.wide())
        return dense(w.w) + w.scale * product.reshape(w.shape)
    if isinstance(w, Observed):
        return w.w
    if isinstance(w, Tiled):
        return tiles.dense(w)
    return quant.dense(w) if isinstance(w, quant.Packed) else jnp.asarray(w)


def merged(params: Any) -> Any:
    """The tree with every weight as one array."""
    return jax.tree.map(dense, params, is_leaf=is_leaf)


def einsum(spec: str, x: jax.Array, w: Leaf, dtype: Any = None) -> jax.Array:
    """Computes x times w by an einsum spec: "BTD,DNH->BTNH", "BTNH,NHD->BTD", "...D,VD->...V".

    The summed axes are x's last ones and, in the same order, w's first or last ones; the output is
    the rest of x followed by the rest of w, in `dtype` (None: x.dtype). w (float32 master weights)
    is cast to x.dtype here and nowhere else; sums are kept in float32, and the gradient of w comes
    back in w.dtype, rounded to x.dtype before unless `precision.wide_gradients`.

    Raises: ValueError if the spec has another form or does not fit the shapes.
    """
    summed, leading = _parse(spec, x.shape, w.shape)
    dtype = jnp.dtype(x.dtype if dtype is None else dtype)
    if isinstance(w, Lora):
        return _adapted(spec, summed, leading, dtype, x, w)
    if isinstance(w, Observed):
        rows = x.reshape(-1, w.gram.shape[-1])
        return einsum(spec, _seen(rows, w.gram, w.magnitude, None).reshape(x.shape), w.w, dtype)
    if isinstance(w, quant.Packed):
        return _frozen(spec, dtype, x, w)
    if isinstance(w, Tiled):
        if leading != w.table and summed == w.inputs:
            return tiles.product(x, w, dtype)
        w = tiles.dense(w)
    if isinstance(w, Turned):
        if leading and summed == w.inputs and target.platform() == "cpu":
            return _product(summed, False, dtype, x, w.data)
        w = jnp.asarray(w)
    if target.platform() == "cpu":
        return _product(summed, leading, dtype, x, w)
    return wide_gradients.product(wide_gradients.specs(spec, x.ndim), dtype, x, w)


def spread(w: jax.Array, like: jax.Array) -> jax.Array:
    """w, a bias or a scale, as an operand of `like` [..., *w.shape], in its dtype.

    With `precision.wide_gradients` it is copied first and cast then, so that the sum over the
    copies, which is its gradient, is one in w.dtype.
    """
    if precision.wide_gradients():
        w = jnp.broadcast_to(w, like.shape)
    return w.astype(like.dtype)


def biased(spec: str, x: jax.Array, weights: Mapping[str, Any], name: str) -> jax.Array:
    """`einsum` with weights[name], plus weights[name + "_bias"] where there is one; a plan may keep
    the output by that name."""
    y = einsum(spec, x, weights[name])
    y = y + spread(weights[f"{name}_bias"], y) if f"{name}_bias" in weights else y
    return checkpoint_name(y, name)


def grouped(x: jax.Array, w: Leaf, sizes: jax.Array, poison: bool = False) -> jax.Array:
    """Rows x [M,D] times the matrices w [E,D,F] of their groups, [M,F] in x.dtype.

    The first sizes[0] rows are of group 0, the next sizes[1] of group 1, and so on; rows after the
    last group give 0 and get no gradient; poison makes NaN of them before. sizes int32[E].
    """
    mine = (jnp.arange(x.shape[0]) < jnp.sum(sizes))[:, None]
    if poison:
        x = jnp.where(mine, x, jnp.nan)
    if isinstance(w, Observed):
        x, w = _seen(x, w.gram, w.magnitude, sizes), w.w
    if target.platform() == "cpu":
        if isinstance(w, quant.Packed):
            return ragged.frozen(x, w, sizes, x.dtype, quant.dense)
        return ragged.product(x, jnp.asarray(w), sizes, x.dtype)
    # other backends may leave anything in rows of no group
    x, full = _unpacked(x, w)
    y = jax.lax.ragged_dot(
        jnp.where(mine, x, 0), full.astype(x.dtype), sizes, preferred_element_type=x.dtype
    )
    return jnp.where(mine, y, 0)


def batched(x: jax.Array, w: Leaf) -> jax.Array:
    """x [B,E,C,D] times w [E,D,F], each of E by its own matrix: [B,E,C,F] in x.dtype."""
    if isinstance(w, Observed):
        rows = jnp.swapaxes(x, 0, 1)  # [E, B, C, D]
        rows = _seen(rows.reshape(len(rows), -1, x.shape[-1]), w.gram, w.magnitude, None)
        x, w = jnp.swapaxes(rows.reshape(x.shape[1], x.shape[0], *x.shape[2:]), 0, 1), w.w
    x, full = _unpacked(x, w)
    return wide_gradients.product(
        ("BECD,EDF->BECF", "BECF,EDF->BECD", "BECD,BECF->EDF"), x.dtype, x, full
    )


def _parse(spec: str, x_shape: tuple[int, ...], w_shape: tuple[int, ...]) -> tuple[int, bool]:
    """Returns the number of summed axes, and whether they are w's first ones (else its last)."""
    form = f"einsum spec {spec!r} with x {x_shape} and w {w_shape}"
    inputs, arrow, out = spec.partition("->")
    xs, comma, ws = inputs.partition(",")
    if not (arrow and comma):
        raise ValueError(f"{form}: expected the form 'BTD,DNH->BTNH'")
    xs, out = (
        side.replace("...", string.digits[: len(x_shape) - len(xs) + 3]) for side in (xs, out)
    )
    if len(xs) != len(x_shape) or len(ws) != len(w_shape):
        raise ValueError(f"{form}: one letter per axis is needed")
    summed = sum(letter in ws for letter in xs)
    common = xs[len(xs) - summed :]
    leading = ws.startswith(common)
    rest = ws[summed:] if leading else ws[: len(ws) - summed]
    if not summed or not (leading or ws.endswith(common)) or out != xs[: len(xs) - summed] + rest:
        raise ValueError(
            f"{form}: the summed axes must be x's last and w's first or last, "
            "and the output x's others followed by w's others"
        )
    w_common = w_shape[:summed] if leading else w_shape[len(w_shape) - summed :]
    if x_shape[len(xs) - summed :] != w_common:
        raise ValueError(f"{form}: the summed sizes of x and w differ")
    return summed, leading


def _others(shape, summed, leading):
    return shape[summed:] if leading else shape[: len(shape) - summed]


def _adapted(spec: str, summed: int, leading: bool, dtype: Any, x: jax.Array, w: Lora) -> jax.Array:
    if not leading:
        raise ValueError(f"einsum spec {spec!r}: a Lora's inputs are its first axes")
    inputs, _, out = spec.partition("->")
    xs, _, ws = inputs.partition(",")
    rest = ws[summed:]
    keep = out[: len(out) - len(rest)]
    key = None if w.key is None else jax.random.wrap_key_data(w.key)
    h = dropout.dropout(x, w.drop, key)
    h = einsum(f"{xs},{ws[:summed]}r->{keep}r", h, w.a)
    h = einsum(f"{keep}r,r{rest}->{out}", h, w.b, dtype)
    return _frozen(spec, dtype, x, w.w) + w.scale * h


# The product with a weight that is read and never moved. What the backward pass keeps is the weight
# as it is stored, not the array computed from it.
@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _frozen(spec: str, dtype: Any, x: jax.Array, w: jax.Array | quant.Packed) -> jax.Array:
    return _read(spec, dtype, x, w)


def _read(spec, dtype, x, w):
    summed, leading = _parse(spec, x.shape, w.shape)
    if target.platform() == "cpu":
        parts = None
        if isinstance(w, quant.Packed) and leading != quant.is_table(w):
            # two at least: a loop of one turn is none; of many rows each part is a product of its
            # own cost, and so no more than two
            half = math.prod(w.shape) // 2
            few = math.prod(x.shape[: x.ndim - summed]) <= FEW_ROWS
            parts = quant.split(w, min(PART, half) if few else half)
        if parts is not None:
            return _in_parts(summed, dtype, x, parts).reshape(
                *x.shape[: x.ndim - summed], *_others(w.shape, summed, leading)
            )
        x, full = _unpacked(x, w)
        return _multiply(summed, leading, dtype, x, full)
    x, full = _unpacked(x, w)
    return jnp.einsum(spec, x, full.astype(x.dtype), preferred_element_type=dtype)


def _in_parts(summed: int, dtype: Any, x: jax.Array, parts: quant.Packed) -> jax.Array:
    """x times a matrix in parts [rows, outputs], one part after another: XLA on CPU would unpack
    the matrices of all layers before it uses the first."""
    rows = x.reshape(-1, math.prod(x.shape[x.ndim - summed :]))

    def product(part: quant.Packed) -> jax.Array:
        return _multiply(1, False, dtype, rows, quant.rows(part))

    y = jax.lax.map(product, parts)  # [parts, rows, outputs / parts]
    return jnp.moveaxis(y, 0, 1)


def _unpacked(x: jax.Array, w: Leaf) -> tuple[jax.Array, jax.Array]:
    """x, and the weight as one array. Of one in few bits XLA would take that out of a loop around
    it, all layers' at once, if it did not seem to depend on x."""
    if isinstance(w, quant.Packed):
        x, w = jax.lax.optimization_barrier((x, w))
    return x, dense(w)


def _frozen_forward(spec, dtype, x, w):
    return _read(spec, dtype, x, w), (w, jnp.zeros((0, *x.shape), x.dtype))


def _frozen_backward(spec, dtype, saved, g):
    w, like = saved
    _, pull = jax.vjp(
        lambda x: einsum(spec, x, dense(w), dtype),
        jnp.zeros(like.shape[1:], like.dtype),
    )
    return *pull(g), None


_frozen.defvjp(_frozen_forward, _frozen_backward)


# x [..., rows, n] as it is; the gradients of gram [..., n, n] and magnitude [..., n] are sums over
# the rows. sizes: rows x [M, n] are grouped as in `grouped`, gram is [E, n, n].
@jax.custom_vjp
def _seen(x, gram, magnitude, sizes):
    return x


def _seen_backward(saved, g):
    x, sizes = saved
    x = x.astype(precision.wide())
    if sizes is None:
        gram, magnitude = jnp.einsum("...ma,...mb->...ab", x, x), jnp.sum(jnp.abs(x), axis=-2)
        return g, gram, magnitude, None
    group = jnp.searchsorted(jnp.cumsum(sizes), jnp.arange(len(x)), side="right")
    hit = (group[:, None] == jnp.arange(len(sizes))).astype(x.dtype)  # [M, E]
    # one group after another: the rows of all others are 0
    gram = jax.lax.map(lambda mine: x.T @ (x * mine[:, None]), hit.T)  # [E, n, n]
    return g, gram, hit.T @ jnp.abs(x), None


_seen.defvjp(lambda x, gram, magnitude, sizes: (x, (x, sizes)), _seen_backward)


# XLA on CPU fuses the backward of what follows (activation, norm) into the operand of dW, as a
# strided transpose that it recomputes for every output tile. Two flat matrices behind a barrier
# keep both products plain GEMMs.
@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def _product(summed: int, leading: bool, dtype: Any, x: jax.Array, w: jax.Array) -> jax.Array:
    return _multiply(summed, leading, dtype, x, w)


def _multiply(summed, leading, dtype, x, w):
    keep = x.ndim - summed
    rest = _others(w.shape, summed, leading)
    x2, w2 = _flat(summed, leading, x, w)
    if not leading and x2.shape[0] <= FEW_ROWS:
        # the barriers keep XLA from folding the small transposes into the product
        columns = _dot(w2.astype(x.dtype), _barrier(x2.T), ((1,), (0,)), dtype)  # [outputs, rows]
        return _barrier(columns).T.reshape(x.shape[:keep] + rest)
    contract = ((1,), (0 if leading else 1,))
    return _dot(x2, w2.astype(x.dtype), contract, dtype).reshape(x.shape[:keep] + rest)


def _product_forward(summed, leading, dtype, x, w):
    # not _product: a remat policy that keeps matrix products must see them
    return _multiply(summed, leading, dtype, x, w), (x, w)


def _product_backward(summed, leading, dtype, saved, g):
    x, w = saved
    x2, w2 = _flat(summed, leading, x, w)
    g2 = _barrier(g.astype(x.dtype).reshape(x2.shape[0], -1))  # [rows, outputs]
    dx = _dot(g2, w2.astype(x.dtype), ((1,), (1 if leading else 0,)), x.dtype)  # [rows, inputs]
    first, second = (x2, g2) if leading else (g2, x2)
    dw = _weight_gradient(first, second, w.dtype)
    return dx.reshape(x.shape), dw.reshape(w.shape)


_product.defvjp(_product_forward, _product_backward)


def _weight_gradient(a, b, dtype):
    """a.T @ b, with the longer side of the result as its rows' length."""
    # [2048,128] = a.T @ b took four times as long as its transpose
    if a.shape[1] <= b.shape[1]:
        return _dot(a, b, ((0,), (0,)), dtype)
    return _barrier(_dot(b, a, ((0,), (0,)), dtype)).T


def _flat(summed, leading, x, w):
    """x as [rows, inputs]; w as [inputs, outputs], or [outputs, inputs] where it ends in them."""
    inputs = math.prod(x.shape[x.ndim - summed :])
    return x.reshape(-1, inputs), w.reshape((inputs, -1) if leading else (-1, inputs))


def _barrier(x):
    return jax.lax.optimization_barrier(x)


def _dot(a, b, contract, dtype):
    out = jax.lax.dot_general(a, b, (contract, ((), ())), preferred_element_type=precision.wide())
    return out.astype(dtype)
