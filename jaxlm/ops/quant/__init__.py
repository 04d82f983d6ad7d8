"""Matrices in few bits: what `linear.einsum` takes in place of an array.

A module for each format, all of one form: a dataclass of arrays, whose leading axes are the
matrix's copies (layers, experts), with the `shape` of the weight that it represents; `encode`, and
`dense`, which gives that weight back as float32.
"""

import dataclasses
import math
from collections.abc import Iterator
from typing import Any, Literal

import jax
import jax.numpy as jnp

from jaxlm.core import check
from jaxlm.ops.quant import float8, integers, mxfp4, nf4
from jaxlm.ops.quant.float8 import Float8
from jaxlm.ops.quant.integers import Integers
from jaxlm.ops.quant.mxfp4 import Mxfp4
from jaxlm.ops.quant.nf4 import Nf4

Packed = Nf4 | Integers | Mxfp4 | Float8
Name = Literal["int8", "int4", "int2", "nf4", "mxfp4", "fp8"]
BITS = {"int8": 8, "int4": 4, "int2": 2}


@dataclasses.dataclass(frozen=True)
class Scheme:
    """A format of matrices."""

    name: Name
    """int8, int4, int2: integers. nf4: 16 levels in blocks of 64 (QLoRA). mxfp4: floating point of
    4 bits in blocks of 32, with powers of two for scales. fp8: E4M3, with a scale an output."""
    group: int | None = None
    """Inputs that share a scale, for integers; None is 64 for int4 and int2, and all of an output's
    for int8."""
    affine: bool | None = None
    """Whether a group of integers has a zero of its own, and its scale spans their range in place
    of their magnitude; None is so for int4 and int2."""
    double_quant: bool = False
    """Whether the scales of nf4 are kept in 8 bits."""
    tables: bool = False
    """Whether the embedding table and the output matrix are packed, too, as integers."""

    def __post_init__(self) -> None:
        check.refuse("", self.problems())

    def problems(self) -> Iterator[str]:
        """Problems of the fields, in lines that name the field, its value and what fits."""
        yield from check.choices("", self)
        if self.name not in BITS:
            why = f"with scheme {self.name}, whose blocks are its own"
            yield from check.changed("", self, "group", "affine", "tables", why=why)
        elif self.group is not None:
            ok = self.group >= 8 and self.group % 8 == 0
            yield from check.problem("group", self.group, ok, "a multiple of 8, at least 8")
        if self.name != "nf4":
            why = f"with scheme {self.name}; only nf4 keeps its scales in 8 bits"
            yield from check.changed("", self, "double_quant", why=why)

    @property
    def integers(self) -> tuple[int, int | None, bool]:
        """(bits, inputs that share a scale, affine) of integers."""
        small = self.name != "int8"
        group = 64 if self.group is None and small else self.group
        return BITS[self.name], group, small if self.affine is None else self.affine


def encode(w: jax.Array, copies: int, inputs: int, scheme: Scheme) -> Packed:
    """A weight [copies..., inputs..., outputs...] rounded to the nearest of a scheme's numbers."""
    if scheme.name == "nf4":
        return nf4.nf4(w, copies, inputs, scheme.double_quant)
    if scheme.name == "mxfp4":
        return mxfp4.encode(w, copies, inputs)
    if scheme.name == "fp8":
        return float8.encode(w, copies, inputs)
    return integers.encode(w, copies, inputs, *scheme.integers)


def encode_table(table: jax.Array, scheme: Scheme) -> Packed:
    """An embedding table [V, D] rounded to the nearest of a scheme's integers, with scales for each
    of its rows."""
    w = integers.encode(table.T, 0, 1, *scheme.integers)
    return dataclasses.replace(w, sizes=table.shape, table=True)


def is_table(w: Packed) -> bool:
    """Whether a packed weight is an embedding table, [outputs, inputs]."""
    return isinstance(w, Integers) and w.table


def take(table: Packed, tokens: jax.Array) -> jax.Array:
    """Rows of a packed embedding table [V, D] at tokens int32[...]: float32[..., D]."""
    return rows(jax.tree.map(lambda x: jnp.take(x, tokens, axis=0), table))


def dense(w: Packed) -> jax.Array:
    """The weight float32[copies..., inputs..., outputs...] that a packed one represents."""
    return _module(w).dense(w)


def rows(w: Packed) -> jax.Array:
    """That weight with its outputs first, float32[copies..., outputs, inputs]."""
    return _module(w).rows(w)


def split(w: Packed, most: int) -> Packed | None:
    """One matrix in parts of whole outputs, as copies [parts, inputs, outputs / parts]: the fewest
    equal ones of at most `most` numbers. None where its outputs do not divide so."""
    inputs, outputs = math.prod(w.sizes[: w.inputs]), math.prod(w.sizes[w.inputs :])
    if is_table(w):
        w, (outputs, inputs) = dataclasses.replace(w, table=False), w.sizes
    fits = (n for n in range(1, outputs + 1) if outputs % n == 0 and outputs // n * inputs <= most)
    count = next(fits, outputs)
    if isinstance(w, Nf4):
        return nf4.split(w, count)

    def part(x: jax.Array) -> jax.Array:
        return x.reshape(count, -1, *x.shape[1:])

    if isinstance(w, Integers):
        # what all outputs share is given to every part
        shared = {
            name: jnp.broadcast_to(x, (count, inputs))
            for name, x in (("channels", w.channels), ("order", w.order))
            if x is not None
        }
        w = dataclasses.replace(w, channels=None, order=None)
        w = dataclasses.replace(jax.tree.map(part, w), **shared)
    else:
        w = jax.tree.map(part, w)
    return dataclasses.replace(w, sizes=(inputs, outputs // count), inputs=1)


def _module(w: Packed) -> Any:
    modules: dict[type, Any] = {Nf4: nf4, Integers: integers, Mxfp4: mxfp4, Float8: float8}
    return modules[type(w)]
