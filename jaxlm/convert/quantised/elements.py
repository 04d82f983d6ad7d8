"""Weights in few bits, number by number: between the formats of others and `ops.quant`.

A file has one scale for a group of a matrix' numbers, and so have matrices here; but a row of
`weight_rows` cuts, joins and transposes matrices. So every number is given its code, its scale and
its zero, as arrays of the weight's shape (views where numbers share them): a row moves each as it
moves the weight. Afterwards they are groups again, or it is found that they are not.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxlm.core import param
from jaxlm.ops import quant
from jaxlm.ops.quant import mxfp4, nf4, packing

Form = Literal["integers", "nf4", "mxfp4", "float8", "values"]


class Elements(NamedTuple):
    """A weight in few bits. parts, of the shape of the weight:

    integers   code uint8, scale, [zero uint8], [group int32, of the input]   scale * (code - zero)
    nf4        code uint8 of `nf4.LEVELS`, scale float32; or scale_code uint8, largest and offset
    mxfp4      code uint8 of E2M1, scale uint8 of E8M0
    float8     code uint8 of E4M3, scale float32
    values     value float32: what has no packed form here, for the reason `why`
    """

    form: Form
    parts: dict[str, np.ndarray]
    bits: int = 4
    group: int | None = None
    """Inputs that share a scale, of integers; None is all."""
    why: str = ""


def dense(e: Elements) -> np.ndarray:
    """The weight float32[shape] that they represent."""
    parts = e.parts
    if e.form == "values":
        return parts["value"]
    if e.form == "integers":
        zero = parts.get("zero", np.uint8(2 ** (e.bits - 1)))
        return (parts["code"].astype(np.float32) - zero) * parts["scale"].astype(np.float32)
    if e.form == "nf4":
        return np.array(nf4.LEVELS, np.float32)[parts["code"]] * _scale(parts)
    if e.form == "mxfp4":
        code = parts["code"]
        size = np.array(mxfp4.MAGNITUDES, np.float32)[code & 7]
        signed = np.where(code > 7, -size, size)
        return np.ldexp(signed, parts["scale"].astype(np.int32) - mxfp4.BIAS)
    units = parts["code"].view(jnp.float8_e4m3fn).astype(np.float32)
    return units * parts["scale"].astype(np.float32)


def _scale(parts: dict[str, np.ndarray]) -> np.ndarray:
    """The scale of every number of NF4."""
    if "scale" in parts:
        return parts["scale"]
    return nf4.dynamic_levels()[parts["scale_code"]] * parts["largest"] + parts["offset"]


def through(
    move: Callable[[list[np.ndarray], Sequence[param.Param]], list[np.ndarray]],
    given: Sequence[Elements],
    params: Sequence[param.Param],
) -> list[Elements] | str:
    """Elements that a row makes of others, `move` being its `read` or its `write`; the reason where
    they are not all of one form."""
    first = given[0]
    kinds = {(e.form, e.bits, e.group, *sorted(e.parts)) for e in given}
    if len(kinds) > 1:
        return "tensors of several formats in one weight"
    moved = {name: move([e.parts[name] for e in given], params) for name in first.parts}
    count = len(moved["code"]) if "code" in moved else len(moved["value"])
    return [
        first._replace(parts={name: arrays[i] for name, arrays in moved.items()})
        for i in range(count)
    ]


def packed(e: Elements, p: param.Param) -> quant.Packed | str:
    """The weight [copies..., inputs..., outputs...] of a Param as it is kept in few bits, NumPy
    arrays; or the reason why there is no form here that holds it exactly."""
    if e.form == "values":
        return e.why
    sizes = p.shape[p.copies :]
    rows = {name: _rows(x, p) for name, x in e.parts.items()}  # each [copies..., outputs, inputs]
    if e.form == "integers":
        return _integers(rows, e, sizes, p.inputs)
    if e.form == "nf4":
        return _nf4(rows, sizes, p.inputs)
    if e.form == "mxfp4":
        return _mxfp4(rows, sizes, p.inputs)
    scales = shared(rows["scale"], rows["scale"].shape[-1])
    if scales is None:
        return "scales of blocks of float8, where one for each output is kept"
    return quant.Float8(_ours(rows["code"]), _ours(scales[..., 0], np.float32), sizes, p.inputs)


def _ours(x: np.ndarray, dtype: Any = None) -> Any:
    return np.ascontiguousarray(x, dtype)


def _rows(x: np.ndarray, p: param.Param) -> np.ndarray:
    """`packing.rows` of any dtype, in NumPy."""
    cut = p.copies + p.inputs
    last = np.moveaxis(x.reshape(p.shape), range(p.copies, cut), range(-p.inputs, 0))
    return last.reshape(*p.shape[: p.copies], -1, math.prod(p.shape[p.copies : cut]))


def shared(x: np.ndarray, size: int) -> np.ndarray | None:
    """[..., n / size]: the number that every `size` neighbours of [..., n] share, the last ones
    perhaps fewer; None where they do not share it."""
    whole = x.shape[-1] // size * size
    parts = [x[..., :whole].reshape(*x.shape[:-1], -1, size)]
    if whole < x.shape[-1]:
        parts.append(x[..., None, whole:])
    if not all((part == part[..., :1]).all() for part in parts):
        return None
    return np.concatenate([part[..., 0] for part in parts], axis=-1)


def _integers(
    rows: dict[str, np.ndarray], e: Elements, sizes: tuple[int, ...], inputs: int
) -> quant.Integers | str:
    count = rows["code"].shape[-1]
    order = None
    if "group" in rows:
        group = rows["group"][..., 0, :]  # [copies..., inputs]
        if not (rows["group"] == group[..., None, :]).all():
            return "outputs whose inputs are grouped in several ways"
        # codes are kept group after group
        sort = np.argsort(group, axis=-1, kind="stable")
        order = np.argsort(sort, axis=-1).astype(np.int32)
        rows = {k: np.take_along_axis(x, sort[..., None, :], -1) for k, x in rows.items()}
    size = -(-count // 8) * 8 if e.group is None else e.group
    if size % (8 // e.bits):
        return f"groups of {size} inputs, which are no whole bytes"
    grouped = {k: shared(rows[k], size) for k in ("scale", "zero") if k in rows}
    if "group" in rows:
        grouped["group"] = shared(rows["group"], size)
    if any(x is None for x in grouped.values()):
        return f"scales that are not those of groups of {size} inputs"
    rest = [(0, 0)] * (rows["code"].ndim - 1) + [(0, -count % size)]
    codes = np.asarray(packing.pack(jnp.asarray(np.pad(rows["code"], rest)), e.bits))
    kept: Any = codes, grouped["scale"], grouped.get("zero"), None, sizes, inputs, e.bits, order
    return quant.Integers(*kept)


def _nf4(rows: dict[str, np.ndarray], sizes: tuple[int, ...], inputs: int) -> quant.Nf4 | str:
    # [copies..., outputs * inputs]
    flat = {name: x.reshape(*x.shape[:-2], -1) for name, x in rows.items()}
    rest = [(0, 0)] * (flat["code"].ndim - 1) + [(0, -flat["code"].shape[-1] % nf4.BLOCK)]
    codes = np.pad(flat["code"], rest, constant_values=nf4.LEVELS.index(0.0))
    pairs = (codes[..., 0::2] << 4) | codes[..., 1::2]
    pairs = pairs.reshape(*pairs.shape[:-1], -1, nf4.BLOCK // 2)
    blocks = {
        "scale": nf4.BLOCK,
        "scale_code": nf4.BLOCK,
        "largest": nf4.BLOCK * nf4.GROUP,
        "offset": flat["code"].shape[-1],
    }
    kept = {name: shared(flat[name], blocks[name]) for name in flat if name != "code"}
    if any(x is None for x in kept.values()):
        return f"scales that are not those of blocks of {nf4.BLOCK} numbers"
    scales: Any = kept.get("scale")
    if scales is None:
        eight: Any = kept["scale_code"], kept["largest"], kept["offset"]
        scales = nf4.Scales8(eight[0], eight[1], eight[2][..., 0])
    codes8: Any = pairs
    return quant.Nf4(codes8, scales, sizes, inputs)


def _mxfp4(rows: dict[str, np.ndarray], sizes: tuple[int, ...], inputs: int) -> quant.Mxfp4 | str:
    scales = shared(rows["scale"], mxfp4.BLOCK)
    if scales is None:
        return f"scales that are not those of blocks of {mxfp4.BLOCK} inputs"
    if ((rows["scale"] == 0) & (rows["code"] & 7 > 0)).any():
        return "scales of 2^-127, which are no normal number of float32"
    count = rows["code"].shape[-1]
    rest = [(0, 0)] * (rows["code"].ndim - 1) + [(0, -count % mxfp4.BLOCK)]
    codes = packing.pack(jnp.asarray(np.pad(rows["code"], rest)), 4)
    kept: Any = np.asarray(codes), scales
    return quant.Mxfp4(*kept, sizes, inputs)


def of(w: quant.Packed) -> Elements:
    """The Elements of a weight [copies..., inputs..., outputs...] in few bits.

    Raises: ValueError for factors of inputs (AWQ) and an order of inputs (act-order), which the
    formats that are written have no place for.
    """
    sizes, copies = w.sizes, w.codes.shape[:-2]
    inputs, outputs = math.prod(sizes[: w.inputs]), math.prod(sizes[w.inputs :])

    def whole(rows: Any) -> np.ndarray:
        full = jnp.asarray(rows).reshape(*copies, outputs, inputs)
        return np.asarray(packing.matrix(full, sizes, w.inputs))

    def spread(x: Any, size: int) -> np.ndarray:
        """[copies..., outputs, groups] for every number."""
        return whole(np.repeat(np.asarray(x), size, axis=-1)[..., :inputs])

    if isinstance(w, quant.Integers):
        if w.channels is not None:
            raise ValueError("factors of the inputs (method awq)")
        if w.order is not None:
            raise ValueError("groups of inputs that are not neighbours (act-order)")
        codes = np.asarray(packing.unpack(w.codes, w.bits))
        size = codes.shape[-1] // w.scales.shape[-1]
        parts = {"scale": spread(w.scales, size), "code": whole(codes[..., :inputs])}
        if w.zeros is not None:
            parts["zero"] = spread(w.zeros, size)
        count = None if w.scales.shape[-1] == 1 else size
        return Elements("integers", parts, w.bits, count)
    if isinstance(w, quant.Float8):
        return Elements(
            "float8", {"code": whole(w.codes), "scale": spread(w.scales[..., None], inputs)}
        )
    if isinstance(w, quant.Mxfp4):
        codes = np.asarray(packing.unpack(w.codes, 4))[..., :inputs]
        return Elements("mxfp4", {"code": whole(codes), "scale": spread(w.scales, mxfp4.BLOCK)})
    return _of_nf4(w, whole)


def _of_nf4(w: quant.Nf4, whole: Callable[[Any], np.ndarray]) -> Elements:
    codes, total = np.asarray(w.codes), math.prod(w.sizes)
    lead = codes.shape[:-2]
    pairs = np.stack([codes >> 4, codes & 15], axis=-1)  # [copies..., blocks, 32, 2]

    def spread(x: Any, size: int) -> np.ndarray:
        return whole(np.repeat(np.asarray(x), size, axis=-1)[..., :total])

    parts = {"code": whole(pairs.reshape(*lead, -1)[..., :total])}
    if not isinstance(w.scales, nf4.Scales8):
        return Elements("nf4", parts | {"scale": spread(w.scales, nf4.BLOCK)})
    eight = w.scales
    parts["scale_code"] = spread(eight.codes, nf4.BLOCK)
    parts["largest"] = spread(eight.largest, nf4.BLOCK * nf4.GROUP)
    parts["offset"] = spread(np.asarray(eight.offset)[..., None], total)
    return Elements("nf4", parts)


def stacked(layers: Sequence[quant.Packed | np.ndarray]) -> Any:
    """One weight [layer, ...] of those of its layers: in few bits where all are, and alike; else an
    array."""
    first = layers[0]
    alike = {
        (jax.tree.structure(w), tuple((x.shape, str(x.dtype)) for x in jax.tree.leaves(w)))
        for w in layers
    }
    if isinstance(first, quant.Packed) and len(alike) == 1:
        return jax.tree.map(lambda *parts: np.stack(parts), *layers)
    arrays = [np.asarray(quant.dense(w)) if isinstance(w, quant.Packed) else w for w in layers]
    return np.stack(arrays)
