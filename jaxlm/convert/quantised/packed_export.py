"""Matrices in few bits as a checkpoint of transformers, which stays in few bits.

    int8, int4, int2   compressed-tensors, "pack-quantized"
    fp8                compressed-tensors, "naive-quantized"
    nf4                bitsandbytes
    mxfp4              none: GPT-OSS's files have it for experts alone

An embedding table or output matrix in few bits is written as the array that it represents.

A matrix that is cut or joined on the way (`weight_rows`) is so number by number, as in an import.
"""

import json
import math
import os
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxlm import convert, models
from jaxlm.convert import read, tensor_files, write
from jaxlm.convert.quantised import compound, elements
from jaxlm.convert.quantised.elements import Elements
from jaxlm.core import param
from jaxlm.models import packed_weights
from jaxlm.ops import quant
from jaxlm.ops.quant import nf4

OTHERWISE = (
    "export the run or the checkpoint that it was made from (env.json names it), or make it anew "
    "with a scheme and method that are exported: int8, int4, int2, fp8 or nf4, by rtn or gptq"
)


class Written(NamedTuple):
    """Tensors that are written: their items, and the arrays or the job that gives them."""

    items: list[tensor_files.Item]
    source: list[np.ndarray] | read.Job


def weights(
    folder: str | os.PathLike[str],
    kind: str,
    cfg: models.AnyConfig,
    params: param.Tree,
    dtype: str,
    limit: int,
) -> dict[str, Any]:
    """Writes weights with matrices in few bits as safetensors of at most `limit` bytes each; arrays
    among them in `dtype`, scales in their own. Returns the field that config.json needs for them.

    Raises: ValueError, before anything is written, for matrices whose format the files have no
    place for.
    """
    if dtype not in write.DTYPES:
        raise ValueError(f"dtype: {dtype!r} given; there is {list(write.DTYPES)}")
    leaves = packed_weights.flat(params)
    # tables in few bits, which these layouts have none of, are written as arrays
    tables = {path: leaves[path] for path in packed_weights.TABLES if path in leaves}
    leaves |= packed_weights.dense(tables)
    if "score" in leaves:
        raise ValueError(f"reward models in few bits are not exported; {OTHERWISE}")
    settings = _settings(leaves)
    flat = param.flatten(models.spec(cfg))
    planned = read.jobs(convert.ARCHITECTURES[kind].names(cfg), flat)
    lost = sorted(flat.keys() - set().union(*(job.ours for job in planned)))
    if lost:
        raise ValueError(f"{kind} has no tensor for {lost}")
    made, whole = [], ["lm_head"]  # modules that stay as they are
    for job in planned:
        parts = [_layer(leaves[path], job.layer) for path in job.ours]
        if all(isinstance(w, quant.Packed) for w in parts):
            made.append(_few(job, parts, settings))
            continue
        shapes = job.row.shapes(job.params)
        items = [tensor_files.Item(n, tuple(s)) for n, s in zip(job.theirs, shapes, strict=True)]
        made.append(Written(items, job))
        if any(p.inputs for p in job.params):
            whole += [n.removesuffix(".weight") for n in job.theirs]

    def arrays(source: list[np.ndarray] | read.Job) -> list[np.ndarray]:
        if isinstance(source, list):
            return source
        parts = [np.asarray(_layer(leaves[path], source.layer)) for path in source.ours]
        return source.row.write(parts, source.params)

    tensor_files.write(folder, made, arrays, np.dtype(write.DTYPES[dtype]), limit)
    return {"quantization_config": _record(settings, [*dict.fromkeys(whole)], dtype)}


def _layer(w: Any, layer: int | None) -> Any:
    """A weight of one layer, which is stacked with others'."""
    return w if layer is None else jax.tree.map(lambda x: x[layer], w)


def _settings(leaves: dict[str, Any]) -> dict[str, Any]:
    """Settings that all matrices in few bits share. Raises: ValueError where they do not, and for
    formats without a layout."""
    few = {path: w for path, w in leaves.items() if isinstance(w, quant.Packed)}
    found = {path: _kind(path, w) for path, w in few.items()}
    sizes = {kind[2] for kind in found.values()} - {None}
    if len(sizes) == 1:  # a matrix with as many inputs has one group
        (size,) = sizes
        alone = {p for p, w in few.items() if found[p][2] is None and _inputs(w) == size}
        found |= {p: (*found[p][:2], size, *found[p][3:]) for p in alone}
    kinds = {kind: path for path, kind in reversed(found.items())}
    if len(kinds) > 1:
        shown = "; ".join(f"{path}: {kind}" for kind, path in list(kinds.items())[:3])
        raise ValueError(f"matrices of several formats ({shown}) have no layout here; {OTHERWISE}")
    form, bits, size, zeros, double = next(iter(kinds))
    return {"form": form, "bits": bits, "size": size, "zeros": zeros, "double": double}


def _inputs(w: quant.Packed) -> int:
    return math.prod(w.sizes[: w.inputs])


def _kind(path: str, w: quant.Packed) -> tuple:
    """(form, bits, inputs that share a scale or None, whether there are zeros, double quant)."""
    if isinstance(w, quant.Integers):
        for name, given in (("factors of inputs (awq)", w.channels), ("act-order", w.order)):
            if given is not None:
                raise ValueError(f"{path}: {name} have no place in what is written; {OTHERWISE}")
        groups = w.scales.shape[-1]
        size = None if groups == 1 else w.codes.shape[-1] * 8 // w.bits // groups
        if size is not None and _inputs(w) % size:
            raise ValueError(
                f"{path}: groups of {size} do not divide its {_inputs(w)} inputs, as files need; "
                f"quantise with another --group, or {OTHERWISE}"
            )
        return "integers", w.bits, size, w.zeros is not None, False
    if isinstance(w, quant.Float8):
        return "float8", 8, None, False, False
    if isinstance(w, quant.Nf4):
        return "nf4", 4, None, False, isinstance(w.scales, nf4.Scales8)
    raise ValueError(f"{path}: mxfp4 has no layout that is written here; {OTHERWISE}")


def _few(job: read.Job, parts: list[quant.Packed], settings: dict[str, Any]) -> Written:
    """The tensors of a job whose weights are all in few bits."""
    moved = elements.through(job.row.write, [elements.of(w) for w in parts], job.params)
    if isinstance(moved, str):
        raise ValueError(f"{job.ours}: {moved}; {OTHERWISE}")
    items, arrays = [], []
    for name, e in zip(job.theirs, moved, strict=True):
        stem = name.removesuffix(".weight")
        code = next(iter(e.parts.values()))
        if stem == name or code.ndim != 2:
            raise ValueError(
                f"{name} is no matrix of a module, which alone the files have in few bits; "
                f"{OTHERWISE}"
            )
        for suffix, array in _tensors(name, e, settings):
            stored = next(k for k, v in tensor_files.READ.items() if np.dtype(v) == array.dtype)
            items.append(tensor_files.Item(stem + suffix, array.shape, stored))
            arrays.append(array)
    return Written(items, arrays)


def _tensors(name: str, e: Elements, settings: dict[str, Any]) -> Iterator[tuple[str, np.ndarray]]:
    """(suffix, tensor) of a matrix [outputs, inputs]. Raises: ValueError for scales that are not
    shared as the files have it, once several matrices were joined."""
    if settings["form"] == "nf4":
        yield from _nf4(name, e)
        return
    code = np.ascontiguousarray(e.parts["code"])
    outputs, inputs = code.shape
    size = settings["size"] or inputs
    if settings["form"] == "float8":
        yield ".weight", code.view(jnp.float8_e4m3fn)
    else:
        yield ".weight_packed", compound.pack(code, e.bits)
        yield ".weight_shape", np.array([outputs, inputs], np.int64)
    yield ".weight_scale", _shared(name, e.parts["scale"], size)
    if settings["zeros"]:
        zeros = _shared(name, e.parts["zero"], size)
        yield ".weight_zero_point", compound.pack(np.ascontiguousarray(zeros.T), e.bits).T


def _shared(name: str, x: np.ndarray, size: int) -> np.ndarray:
    kept = elements.shared(x, size)
    if kept is None:
        raise ValueError(f"{name}: scales are not those of {size} neighbours; {OTHERWISE}")
    return kept


def _nf4(name: str, e: Elements) -> Iterator[tuple[str, np.ndarray]]:
    shape = e.parts["code"].shape
    flat = {part: x.ravel() for part, x in e.parts.items()}
    codes = np.pad(flat["code"], (0, flat["code"].size % 2))
    yield ".weight", ((codes[0::2] << 4) | codes[1::2])[:, None]
    state: dict[str, Any] = {
        "quant_type": "nf4",
        "blocksize": nf4.BLOCK,
        "dtype": "float32",
        "shape": [*shape],
    }
    if "scale" in flat:
        yield ".weight.absmax", _shared(name, flat["scale"], nf4.BLOCK)
    else:
        yield ".weight.absmax", _shared(name, flat["scale_code"], nf4.BLOCK)
        largest = _shared(name, flat["largest"], nf4.BLOCK * nf4.GROUP)
        yield ".weight.nested_absmax", largest
        yield ".weight.nested_quant_map", nf4.dynamic_levels()
        offset = _shared(name, flat["offset"], flat["offset"].size)
        state |= {"nested_blocksize": nf4.GROUP, "nested_dtype": "float32"}
        state |= {"nested_offset": float(offset[0])}
    yield ".weight.quant_map", np.array(nf4.LEVELS, np.float32)
    text = json.dumps(state).encode()
    yield ".weight.quant_state.bitsandbytes__nf4", np.frombuffer(text, np.uint8)


def _record(settings: dict[str, Any], whole: list[str], dtype: str) -> dict[str, Any]:
    """The quantization_config. whole: modules whose matrices are arrays."""
    if settings["form"] == "nf4":
        return {
            "quant_method": "bitsandbytes",
            "load_in_4bit": True,
            "load_in_8bit": False,
            "bnb_4bit_quant_type": "nf4",
            "bnb_4bit_use_double_quant": settings["double"],
            "bnb_4bit_compute_dtype": dtype,
            "bnb_4bit_quant_storage": "uint8",
            "llm_int8_skip_modules": whole,
        }
    integers = settings["form"] == "integers"
    matrices = {
        "num_bits": settings["bits"],
        "type": "int" if integers else "float",
        "symmetric": not settings["zeros"],
        "strategy": "channel" if settings["size"] is None else "group",
        "group_size": settings["size"],
        "dynamic": False,
    }
    form = "pack-quantized" if integers else "naive-quantized"
    group: dict[str, Any] = {"targets": ["Linear"], "weights": matrices}
    group |= {"input_activations": None, "output_activations": None}
    return {
        "quant_method": "compressed-tensors",
        "format": form,
        "quantization_status": "compressed",
        "config_groups": {"group_0": group},
        "ignore": whole,
        "kv_cache_scheme": None,
    }
