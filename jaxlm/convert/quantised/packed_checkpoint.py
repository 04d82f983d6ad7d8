"""Weights of a checkpoint that stay in few bits, where a form here holds them exactly."""

from collections.abc import Callable
from typing import Any

import numpy as np

from jaxlm.convert import read, tensor_files
from jaxlm.convert.quantised import compound, elements
from jaxlm.convert.quantised.compound import Compound
from jaxlm.core import param
from jaxlm.models import packed_weights
from jaxlm.ops import quant
from jaxlm.parallel import devices
from jaxlm.parallel.plan import Plan
from jaxlm.train import program

KEPT = "jaxlm keeps embeddings, output matrices, routers and MLA's matrices for each head as arrays"


def place(
    source: read.Checkpoint, plan: Plan, given: str, warn: Callable[[str], None]
) -> tuple[param.Tree, dict[str, Any]]:
    """(weights as they are stored in a run directory, NumPy; facts of its checkpoint about them).

    given: the checkpoint's name. warn: called with what is kept as arrays, and why.

    Raises: ValueError for a plan of several devices, which weights in few bits are not read by, and
    as `read.place`.
    """
    assert source.few is not None
    if plan.devices > 1:
        raise ValueError(
            f"plan: {plan.devices} devices given, and {given} is in few bits ({source.few.name}), "
            "which one device reads; take one, or --dequantize"
        )
    devices.check(f"the weights of {given}", _bytes(source))
    layers, reasons = _read(source)
    flat = {path: layers[path] for path in param.flatten(source.spec)}
    weights: dict[str, Any] = {}
    for path, parts in flat.items():
        weights[path] = parts[None] if None in parts else _stacked(path, parts, reasons)
    for why, paths in reasons.items():
        names = ", ".join(paths[:3]) + (f" and {len(paths) - 3} more" if len(paths) > 3 else "")
        warn(f"{given} ({source.few.name}): {names} are kept as float32 arrays: {why}")
    params = param.nested(weights)
    layout = packed_weights.layout(params)
    if not layout:
        return params, {"dequantised": source.few.name}
    from_there = f"{given} (`jaxlm import --dequantize` of it makes arrays)"
    few = {"name": source.few.name, "method": "imported", "source": from_there, "layout": layout}
    return packed_weights.arrays(params), {program.PACKED: few}


# The weights of each path by the layer's index, None being outside of the layers.
Layers = dict[str, dict[int | None, Any]]


def _read(source: read.Checkpoint) -> tuple[Layers, dict[str, list[str]]]:
    """The weights, and {reason: paths} of those in few bits that become arrays."""
    flat = param.flatten(source.spec)
    weights: Layers = {path: {} for path in flat}
    reasons: dict[str, list[str]] = {}
    for job in source.jobs:
        tensors = [source.tensors[name] for name in job.theirs]
        for path, w in zip(job.ours, _weights(job, tensors), strict=True):
            if isinstance(w, tuple):
                w, why = w
                if path not in reasons.setdefault(why, []):
                    reasons[why].append(path)
            weights[path][job.layer] = w
    return weights, reasons


def _weights(job: read.Job, tensors: list[Any]) -> list[Any]:
    """The weights of a job: each a quant.Packed, an array, or (array, the reason why it is one)."""
    name = " and ".join(job.theirs)
    few = [t for t in tensors if isinstance(t, Compound)]
    if len(few) < len(tensors):
        parts = job.row.read([compound.read(t) for t in tensors], job.params)
        arrays = [tensor_files.cast(x, np.float32, name) for x in parts]
        return [(x, "some of its tensors are floats") for x in arrays] if few else arrays
    moved = elements.through(job.row.read, [t.elements() for t in few], job.params)
    if isinstance(moved, str):
        parts = job.row.read([compound.read(t) for t in tensors], job.params)
        return [(x, moved) for x in parts]
    made = []
    for e, p in zip(moved, job.params, strict=True):
        kept = job.layer is not None and packed_weights.is_packed(param.stacked(1, p))
        w = elements.packed(e, p) if kept else KEPT
        made.append((elements.dense(e), w) if isinstance(w, str) else w)
    return made


def _stacked(path: str, parts: dict[int | None, Any], reasons: dict[str, list[str]]) -> Any:
    layers = [parts[i] for i in range(len(parts))]
    whole = elements.stacked(layers)
    few = [isinstance(w, quant.Packed) for w in layers]
    if any(few) and not isinstance(whole, quant.Packed):
        odd = few.index(False) if not all(few) else None
        why = "its layers are stored in several ways" if odd is None else f"layer {odd} is an array"
        reasons.setdefault(why, []).append(path)
    return whole


def _bytes(source: read.Checkpoint) -> int:
    """Bytes of the files' tensors, floats as float32."""
    total = 0
    for tensor in source.tensors.values():
        for part in tensor.parts.values() if isinstance(tensor, Compound) else [tensor]:
            width = 4 if part.dtype in tensor_files.DTYPES else 1
            total += width * int(np.prod(part.shape))
    return total
