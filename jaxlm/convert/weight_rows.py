"""Correspondence of our weights to theirs: rows that convert both ways.

    linear("attn/q", "self_attn.q_proj.weight")      torch [out, in]  <->  ours [in..., out...]
    conv1d("ffn/up", "mlp.c_fc.weight")              GPT-2's [in, out]
    same("attn_norm", "input_layernorm.weight")      reshaped at most
    fused(linear, ("attn/q", "attn/k", "attn/v"), "qkv_proj.weight")   one after the other

A row is the unit of conversion: it reads a few of their tensors and produces a few of ours, or the
reverse. Rows of weights that the spec does not have are left out, so that biases, norms and tied
tables need no flag. Where several rows produce the same weight, the first whose tensors are present
is read, and the first is written: files of an older layout need one more row. In a stack's rows
`{i}` is the number of the layer.
"""

import re
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import numpy as np

from jaxlm.core import param

Arrays = list[np.ndarray]


class Row(NamedTuple):
    """ours: paths of our weights (a layer's: below its kind). theirs: names of their tensors.

    read(their arrays, our Params without the layer axis) -> our arrays, of the Params' shapes.
    write(our arrays, our Params) -> their arrays. Each is the inverse of the other.
    shapes(our Params) -> the shapes their tensors have to have.
    """

    ours: tuple[str, ...]
    theirs: tuple[str, ...]
    read: Callable[[Arrays, Sequence[param.Param]], Arrays]
    write: Callable[[Arrays, Sequence[param.Param]], Arrays]
    shapes: Callable[[Sequence[param.Param]], list[tuple[int, ...]]]


class Stack(NamedTuple):
    """The rows of one stack of layers. prefix holds `{i}`, counted from `first`; a row of which a
    name begins with "/" is outside the layers, without the prefix."""

    prefix: str
    rows: list[Row]
    first: int = 0


class Table(NamedTuple):
    """All rows of a model: `outer` outside the layers, `stacks` by the path of the stack ("stack").

    ignored: names (regular expressions) of tensors that hold no weight: buffers, and parts the
    model here does not have by design. renames: (regular expression, replacement), older names
    first. prefix: transformers' `base_model_prefix`, with which names of this table begin, or may;
    files with it and without it are both read, as transformers does.
    """

    outer: list[Row]
    stacks: dict[str, Stack]
    ignored: tuple[str, ...] = ()
    renames: tuple[tuple[str, str], ...] = ()
    prefix: str = "model"

    def renamed(self, names: Iterable[str]) -> dict[str, str]:
        """{name in a file: name in this table} of tensors.

        Raises: ValueError for two names in the file of one tensor.
        """
        known = {_numberless(name) for row in self.outer for name in row.theirs}
        known |= {
            _numberless(name[1:] if name.startswith("/") else stack.prefix + name)
            for stack in self.stacks.values()
            for row in stack.rows
            for name in row.theirs
        }
        stored_as: dict[str, str] = {}
        for stored in names:
            name = stored
            for pattern, new in self.renames:
                name = re.sub(pattern, new, name)
            bare = name.removeprefix(f"{self.prefix}.")
            if _numberless(name) not in known:
                fits = (n for n in (bare, f"{self.prefix}.{name}") if _numberless(n) in known)
                name = next(fits, name)
            if name in stored_as:
                raise ValueError(f"{stored} and {stored_as[name]} are both {name}")
            stored_as[name] = stored
        return {stored: name for name, stored in stored_as.items()}


def _numberless(name: str) -> str:
    """A tensor's name with one spelling for every number of a layer or expert."""
    return re.sub(r"(?<=\.)(\d+|\{i\})(?=\.)", "#", name)


# A layout: how a matrix is stored in their file. (to ours, to theirs, their shape).
Layout = tuple[
    Callable[[np.ndarray, param.Param], np.ndarray],
    Callable[[np.ndarray, param.Param], np.ndarray],
    Callable[[param.Param], tuple[int, ...]],
]


def _sizes(p: param.Param) -> tuple[int, int]:
    """(inputs, outputs) of a matrix: the products of its input and output axes."""
    inputs = int(np.prod(p.shape[: p.inputs]))
    return inputs, int(np.prod(p.shape[p.inputs :]))


def _torch(p: param.Param) -> tuple[int, ...]:
    return _sizes(p)[::-1]


TORCH: Layout = (
    lambda a, p: a.T.reshape(p.shape),
    lambda a, p: a.reshape(_sizes(p)).T,
    _torch,
)
"""torch.nn.Linear's weight: [out, in]."""

PLAIN: Layout = (
    lambda a, p: a.reshape(p.shape),
    lambda a, p: a.reshape(_sizes(p)) if p.inputs else a.reshape(_flat(p)),
    lambda p: _sizes(p) if p.inputs else _flat(p),
)
"""Stored as ours: vectors, tables, GPT-2's Conv1D [in, out]. A bias [heads, head] is one vector."""


def _flat(p: param.Param) -> tuple[int, ...]:
    return p.shape if "vocab" in p.axes or "seq" in p.axes else (int(np.prod(p.shape)),)


def _single(layout: Layout, ours: str, theirs: str) -> Row:
    read, write, shape = layout
    return Row(
        (ours,),
        (theirs,),
        lambda arrays, ps: [read(arrays[0], ps[0])],
        lambda arrays, ps: [write(arrays[0], ps[0])],
        lambda ps: [shape(ps[0])],
    )


def linear(ours: str, theirs: str) -> Row:
    """A torch.nn.Linear weight [out, in]."""
    return _single(TORCH, ours, theirs)


def conv1d(ours: str, theirs: str) -> Row:
    """A Conv1D weight [in, out], as GPT-1 and GPT-2 have it."""
    return _single(PLAIN, ours, theirs)


def same(ours: str, theirs: str) -> Row:
    """A weight that contracts nothing: a vector or table of the same order of elements."""
    return _single(PLAIN, ours, theirs)


def unchanged(ours: str, theirs: str) -> Row:
    """A weight of the same shape in their file, where `same` would make a vector of it."""
    return _single((lambda a, p: a, lambda a, p: a, lambda p: p.shape), ours, theirs)


def layer_norm(ours: str, theirs: str) -> list[Row]:
    """Both weights of a LayerNorm."""
    return [same(f"{ours}/scale", f"{theirs}.weight"), same(f"{ours}/bias", f"{theirs}.bias")]


def biased(ours: str, theirs: str) -> list[Row]:
    """A torch.nn.Linear and its bias."""
    return [linear(ours, f"{theirs}.weight"), same(f"{ours}_bias", f"{theirs}.bias")]


def fused(layout: Layout, ours: tuple[str, ...], theirs: str) -> Row:
    """Several of our weights, one after the other along the outputs of one of theirs."""
    to_ours, to_theirs, shape = layout
    axis = 0 if layout is TORCH else -1

    def read(arrays: Sequence[np.ndarray], ps: Sequence[param.Param]) -> list[np.ndarray]:
        ends = np.cumsum([shape(p)[axis] for p in ps])
        # [sum of outputs, inputs] as one [outputs, inputs] each
        parts = np.split(arrays[0], ends[:-1].tolist(), axis)
        return [to_ours(part, p) for part, p in zip(parts, ps, strict=True)]

    def write(arrays: Sequence[np.ndarray], ps: Sequence[param.Param]) -> list[np.ndarray]:
        parts = [to_theirs(a, p) for a, p in zip(arrays, ps, strict=True)]
        return [np.concatenate(parts, axis)]  # [sum of outputs, inputs]

    def joined(ps: Sequence[param.Param]) -> list[tuple[int, ...]]:
        first = list(shape(ps[0]))
        first[axis] = sum(shape(p)[axis] for p in ps)
        return [tuple(first)]

    return Row(ours, (theirs,), read, write, joined)
