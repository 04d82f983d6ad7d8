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
from jaxlm.ops.quant import nf4

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


# How a matrix in few bits is stored, as JSON: {"form": "Integers", "sizes": [32, 64], "inputs": 1,
# "bits": 4, "arrays": {"codes": ["uint8", [2, 64, 16]], "scales": ["bfloat16", [2, 64, 1]]}}.
Layout = dict[str, dict[str, Any]]
FORMS = {
    "Integers": quant.Integers,
    "Nf4": quant.Nf4,
    "Mxfp4": quant.Mxfp4,
    "Float8": quant.Float8,
}
STATIC = ("sizes", "inputs", "bits", "table")


def layout(params: param.Tree) -> Layout:
    """The Layout of the weights in few bits, by path, which a run's checkpoint records."""
    named = flat(params).items()
    return {path: _described(w) for path, w in named if isinstance(w, quant.Packed)}


def flat(params: param.Tree) -> dict[str, Any]:
    """{path: weight}, whatever a weight is stored as."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(params, is_leaf=linear.is_leaf)
    return {param.path_of(keys): w for keys, w in leaves}


def _described(w: quant.Packed) -> dict[str, Any]:
    parts = {name: [str(x.dtype), [*x.shape]] for name, x in param.flatten(w).items()}
    static = {name: getattr(w, name) for name in STATIC if hasattr(w, name)}
    return {"form": type(w).__name__, **static, "arrays": parts}


def abstract(spec: param.Tree, stored: Layout) -> param.Tree:
    """The ShapeDtypeStructs of weights, those of a Layout in few bits. spec: of all weights that
    are stored, an objective's heads too."""

    def leaf(path: str, p: param.Param) -> Any:
        if path not in stored:
            return jax.ShapeDtypeStruct(p.shape, jnp.float32)
        return _undescribed(stored[path])

    return param.nested({path: leaf(path, p) for path, p in param.flatten(spec).items()})


def _undescribed(entry: dict[str, Any]) -> quant.Packed:
    arrays = {
        name: jax.ShapeDtypeStruct(tuple(shape), jnp.dtype(dtype))
        for name, (dtype, shape) in entry["arrays"].items()
    }
    parts = param.nested(arrays)
    if isinstance(parts["scales"], dict):
        parts["scales"] = nf4.Scales8(**parts["scales"])
    form: Any = FORMS[entry["form"]]
    parts |= {name: None for name in ("zeros", "channels") if form is quant.Integers} | parts
    static = {name: entry[name] for name in STATIC if name in entry}
    return form(**parts | static | {"sizes": tuple(entry["sizes"])})


def places(spec: param.Tree, stored: Layout) -> param.Tree:
    """The spec of weights as they are stored, those of a Layout in few bits: a `Param` for every
    array, whose axes are split over no device."""

    def part(x: jax.ShapeDtypeStruct) -> Any:
        return param.Param(x.shape, ("code",) * len(x.shape), param.zeros)

    def leaf(path: str, p: param.Param) -> Any:
        return jax.tree.map(part, _undescribed(stored[path])) if path in stored else p

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
