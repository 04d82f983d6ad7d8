"""Weights of a model with the matrices of its layers in few bits (`ops.quant`).

Embedding tables and the output matrix, unless `Scheme.tables`, what follows the layers, norms,
biases, routers and gates of experts, and the matrices that latent attention has for each head stay
as they are.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxlm.core import param
from jaxlm.ops import linear, quant

TABLES = ("embed/table", "unembed")
"""Weights outside of the layers that `Scheme.tables` packs."""


class Size(NamedTuple):
    """Number and bytes of weights: of those in few bits, and of all others."""

    packed: int
    packed_bytes: int
    others: int
    others_bytes: int

    @property
    def bits(self) -> float:
        """Bits a weight of those in few bits, scales included."""
        return 8 * self.packed_bytes / self.packed


def is_packed(p: param.Param) -> bool:
    """Whether a weight is kept in few bits: a matrix of the layers, or one for each expert."""
    copies, others = {*p.axes[: p.copies]}, {*p.axes[p.copies :]}
    layers = "layer" in copies and copies <= {"layer", "expert"}
    return bool(p.inputs) and layers and not others & {"vocab", "expert", "shared"}


def paths(spec: param.Tree) -> dict[str, param.Param]:
    """The weights that are kept in few bits, by path. Raises: ValueError where there are none."""
    chosen = {path: p for path, p in param.flatten(spec).items() if is_packed(p)}
    if not chosen:
        raise ValueError("this model has no matrices of layers (those of a module are not known)")
    return chosen


# (path, number of the layer on its axis, w [copies..., inputs..., outputs...], Param) -> packed,
# both without the axis of layers
Encode = Callable[[str, int, jax.Array, param.Param], quant.Packed]


def encode(
    spec: param.Tree, params: param.Tree, make: Encode, scheme: quant.Scheme | None = None
) -> param.Tree:
    """The weights with those of `paths` as `make` packs them, one matrix at a time, and with TABLES
    rounded to the nearest where a scheme is given that includes them."""
    chosen, flat = paths(spec), param.flatten(params)
    tables = TABLES if scheme is not None and scheme.tables else ()

    def leaf(path: str) -> Any:
        if path in tables:
            return jax.jit(_table, static_argnums=(0, 2))(path, flat[path], scheme)
        if path not in chosen:
            return flat[path]
        p, w = layer(chosen[path]), flat[path]
        each = [make(path, i, w[i], p) for i in range(len(w))]
        return jax.tree.map(lambda *parts: jnp.stack(parts), *each)

    return param.nested({path: leaf(path) for path in flat})


def _table(path: str, w: jax.Array, scheme: quant.Scheme) -> quant.Packed:
    """The embedding table [V, D], or the output matrix [D, V], packed."""
    return quant.encode(w, 0, 1, scheme) if path == "unembed" else quant.encode_table(w, scheme)


def layer(p: param.Param) -> param.Param:
    """The Param of one layer's weight, whose first axis is that of layers."""
    return dataclasses.replace(p, shape=p.shape[1:], axes=p.axes[1:], copies=p.copies - 1)


def rounding(scheme: quant.Scheme) -> Encode:
    """The Encode that rounds every number to the nearest, compiled once for each shape."""
    make = jax.jit(quant.encode, static_argnums=(1, 2, 3))
    return lambda path, i, w, p: make(w, p.copies, p.inputs, scheme)


def abstract(spec: param.Tree, scheme: quant.Scheme, channels: bool) -> param.Tree:
    """The ShapeDtypeStructs of weights in few bits. spec: of all weights that are stored, an
    objective's heads too; channels: whether integers have factors of their inputs."""
    chosen = paths(spec)

    def leaf(path: str, p: param.Param) -> Any:
        like = jax.ShapeDtypeStruct(p.shape, jnp.float32)
        if scheme.tables and path in TABLES:
            return jax.eval_shape(lambda w: _table(path, w, scheme), like)
        if path not in chosen:
            return like
        w: Any = jax.eval_shape(lambda w: quant.encode(w, p.copies, p.inputs, scheme), like)
        if not channels:
            return w
        factors = jax.ShapeDtypeStruct((*p.shape[: p.copies], p.fan_in), jnp.float32)
        return dataclasses.replace(w, channels=factors)

    return param.nested({path: leaf(path, p) for path, p in param.flatten(spec).items()})


def arrays(params: param.Tree) -> param.Tree:
    """Weights as dicts of arrays alone, as they are stored: {"q": {"codes": ..., "scales": ...}}.
    Also of abstract ones."""
    return param.nested(param.flatten(params))


def restored(stored: param.Tree, like: param.Tree) -> param.Tree:
    """The weights that `arrays` took apart. like: `abstract` ones."""
    flat = param.flatten(stored)
    leaves = [flat[path] for path in param.flatten(like)]
    return jax.tree.unflatten(jax.tree.structure(like), leaves)


def dense(params: param.Tree) -> param.Tree:
    """The weights that are represented, all as arrays: for comparisons, as it needs the memory that
    few bits save."""
    return linear.merged(params)


def size(params: param.Tree) -> Size:
    """The Size of weights, arrays or abstract ones."""
    leaves = jax.tree.leaves(params, is_leaf=linear.is_leaf)
    few = [w for w in leaves if isinstance(w, quant.Packed)]
    rest = [w for w in leaves if not isinstance(w, quant.Packed)]
    count = [sum(math.prod(w.shape) for w in part) for part in (few, rest)]
    return Size(count[0], _bytes(few), count[1], _bytes(rest))


def _bytes(tree: Any) -> int:
    return sum(math.prod(x.shape) * np.dtype(x.dtype).itemsize for x in jax.tree.leaves(tree))
