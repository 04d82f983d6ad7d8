"""A weight before it exists: shape, axis names and init, from one string.

    p = shaper(embed=4096, heads=32, kv=8, head=128, ffn=14336, expert=8)
    p("embed -> heads head")         # shape (4096, 32, 128), fan-in 4096
    p("heads head -> embed")         # fan-in 4096 = 32 * 128
    p("expert | embed -> ffn")       # axes before `|` are copies, not inputs
    p("embed", init=ones)            # no arrow: it must say how it starts

A spec is a nested dict of `Param`. Initialisation, abstract shapes, shardings, counts, FLOPs and
the weight-decay mask are all tree-maps over it, so each fact about a weight is written once.
"""

import dataclasses
import math
import zlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxlm.core import joint, precision

Tree = Any  # a nested dict with one kind of leaf
Init = Callable[[jax.Array, "Param"], jax.Array]


@dataclasses.dataclass(frozen=True)
class Param:
    """One weight: shape and axis names of equal length, and its initialiser.

    The first `copies` axes are copies (layers, experts), the next `inputs` axes are contracted with
    the input, the rest are outputs. inputs is 0 for weights that contract nothing (norm scales,
    biases, embedding tables). rate is its learning rate, relative to the run's. dtype: by name, of
    a cache's entries that have one of their own.
    """

    shape: tuple[int, ...]
    axes: tuple[str, ...]
    init: Init
    copies: int = 0
    inputs: int = 0
    rate: float = 1.0
    dtype: str | None = None

    @property
    def fan_in(self) -> int:
        """The number of inputs each output sums over; 0 for weights that contract nothing."""
        return math.prod(self.shape[self.copies : self.copies + self.inputs]) if self.inputs else 0

    @property
    def fan_out(self) -> int:
        """The number of outputs that each input has a part in: all but copies and inputs."""
        return math.prod(self.shape[self.copies + self.inputs :])


@dataclasses.dataclass(frozen=True)
class Normal:
    """An initialiser drawing N(0, std(p)^2)."""

    std: Callable[["Param"], float]

    def __call__(self, key: jax.Array, p: "Param") -> jax.Array:
        """float32 draws of the weight's shape."""
        return self.std(p) * jax.random.normal(key, p.shape, jnp.float32).astype(precision.wide())


def zeros(key: jax.Array, p: Param) -> jax.Array:
    """float32 zeros of the weight's shape."""
    return jnp.zeros(p.shape, precision.wide())


def ones(key: jax.Array, p: Param) -> jax.Array:
    """float32 ones of the weight's shape."""
    return jnp.ones(p.shape, precision.wide())


def normal(std: float) -> Normal:
    """An initialiser drawing N(0, std^2)."""
    return Normal(lambda p: std)


def fan_in(gain: float = 1.0) -> Normal:
    """An initialiser drawing N(0, gain^2 / fan_in): unit-variance inputs stay unit-variance."""
    return Normal(lambda p: gain * p.fan_in**-0.5)


def shaper(**sizes: int) -> Callable[..., Param]:
    """A function from a weight's string to its `Param`, for these axis sizes.

    Raises: ValueError for a size below 1, an unknown axis name, an arrow without inputs or
    outputs, and a string without an arrow and without an `init`.
    """
    for name, size in sizes.items():
        if size < 1:
            raise ValueError(f"axis {name!r} has size {size}; sizes are at least 1")

    def make(text: str, init: Init | None = None) -> Param:
        copies, _, body = text.rpartition("|")
        ins, arrow, outs = body.partition("->")
        if not arrow and init is None:
            raise ValueError(f"weight {text!r} has no arrow, so it requires init=...")
        if arrow and not (ins.split() and outs.split()):
            raise ValueError(
                f"weight {text!r}: an arrow requires inputs before it and outputs after it"
            )
        inputs = len(ins.split()) if arrow else 0
        axes = tuple((copies + " " + ins + " " + outs).split())
        if unknown := [a for a in axes if a not in sizes]:
            raise ValueError(f"weight {text!r}: unknown axis {unknown[0]!r}; have {sorted(sizes)}")
        shape = tuple(sizes[a] for a in axes)
        return Param(shape, axes, init or fan_in(), len(copies.split()), inputs)

    return make


def is_param(x: object) -> bool:
    """Whether a tree node is a `Param` leaf."""
    return isinstance(x, Param)


def map(f: Callable[..., Any], spec: Tree, *rest: Tree) -> Tree:
    """The tree of f(param, ...) over a spec."""
    return jax.tree.map(f, spec, *rest, is_leaf=is_param)


def path_of(keys: tuple) -> str:
    """A leaf's path as text: ("embed", "table") -> "embed/table"."""
    return "/".join(str(getattr(k, "key", getattr(k, "name", getattr(k, "idx", k)))) for k in keys)


def flatten(spec: Tree) -> dict[str, Any]:
    """{path: leaf} in tree order, for a spec or for arrays of the same structure."""
    return {path_of(k): leaf for k, leaf in jax.tree.flatten_with_path(spec, is_leaf=is_param)[0]}


def nested(flat: dict[str, Any]) -> Tree:
    """{"a/b": x} -> {"a": {"b": x}}."""
    tree: dict[str, Any] = {}
    for path, value in flat.items():
        *folders, name = path.split("/")
        at = tree
        for folder in folders:
            at = at.setdefault(folder, {})
        at[name] = value
    return tree


def stacked(n: int, spec: Tree) -> Tree:
    """The spec of n layers: a leading `layer` axis on every weight. Fan-ins do not change."""

    def stack(p: Param) -> Param:
        shape, axes = (n, *p.shape), ("layer", *p.axes)
        return dataclasses.replace(p, shape=shape, axes=axes, copies=p.copies + 1)

    return map(stack, spec)


def init(spec: Tree, key: jax.Array) -> Tree:
    """float32 weights for a spec. Each key is folded from the leaf's path, so that adding a weight
    never changes another's initial value; the values do not depend on the mesh."""

    drawn: dict[Any, dict[str, jax.Array]] = {}

    def leaf(keys: tuple, p: Param) -> jax.Array:
        own = jax.random.fold_in(key, zlib.crc32(path_of(keys).encode()))
        return p.init.part(key, drawn) if isinstance(p.init, joint.Joint) else p.init(own, p)

    return jax.tree_util.tree_map_with_path(leaf, spec, is_leaf=is_param)


def abstract(spec: Tree, dtype: Any = None) -> Tree:
    """ShapeDtypeStructs for a spec: for restoring, counting and compiling without memory. dtype:
    None is that of weights, `precision.wide`."""
    dtype = precision.wide() if dtype is None else dtype
    return map(lambda p: jax.ShapeDtypeStruct(p.shape, dtype), spec)


def count(spec: Tree) -> int:
    """The number of parameters in a spec; nothing is allocated."""
    return sum(math.prod(p.shape) for p in flatten(spec).values())


def decayed(spec: Tree) -> Tree:
    """True where weight decay applies: every weight that contracts something, and embedding
    tables; not norm scales and biases. (Loshchilov & Hutter 2019; the GPT-3 and LLaMA practice.)"""
    return map(lambda p: p.fan_in > 0 or {"vocab", "embed"} <= {*p.axes}, spec)


def matrices(spec: Tree) -> Tree:
    """True for the hidden layers' matrices: what Muon updates (not embeddings, head, vectors)."""
    return map(lambda p: p.fan_in > 0 and "vocab" not in p.axes, spec)
