"""Adapters as peft's files, and back: adapter_config.json and adapter_model.safetensors, as peft
0.21 writes them.

    ours     a [inputs..., r], b [r, outputs...]
    theirs   <module>.lora_A.weight [r, in], <module>.lora_B.weight [out, r]

The family's table (weight_rows.py) defines how a matrix of theirs is built from ours: a row is
written once with the numbers of its elements in place of weights, which shows the position of each
of our inputs and outputs. Where one module holds several of our matrices (queries, keys and values
fused), their adapters become one of as many times the rank, block by block: the product is the
same.
"""

import json
import math
import os
import pathlib
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxlm import convert, models
from jaxlm.convert import lora_config, read, tensor_files
from jaxlm.core import param
from jaxlm.objectives import lora as adapter

CONFIG, WEIGHTS = lora_config.NAME, "adapter_model.safetensors"
PREFIX = "base_model.model."
# The version of peft whose files these are.
VERSION = "0.21.2"

Pairs = dict[str, tuple[np.ndarray, np.ndarray]]


class Place(NamedTuple):
    """Positions of our matrices in one of theirs, [out, in] or (`transposed`) [in, out].

    part int[out], output int[out]: which matrix a row belongs to, and which of its outputs it is.
    input int[in]: which of the inputs a column is.
    """

    part: np.ndarray
    output: np.ndarray
    input: np.ndarray
    transposed: bool


class Module(NamedTuple):
    """A linear layer of theirs: its name, the paths of our matrices in it, their Params without the
    layer axis, their place on that axis (None without one)."""

    name: str
    ours: tuple[str, ...]
    params: list[param.Param]
    layer: int | None
    place: Place


def modules(kind: str, cfg: models.AnyConfig, targets: dict[str, Any]) -> list[Module]:
    """Their layers that hold any of our matrices `targets`, in the order of the table.

    Raises: ValueError for a matrix that is no linear layer of theirs.
    """
    flat = param.flatten(models.spec(cfg))
    adapted, places = [], {}
    for job in read.jobs(convert.ARCHITECTURES[kind].names(cfg), flat):
        if not targets.keys() & {*job.ours}:
            continue
        about = (job.ours, job.params[0].shape)
        if about not in places:
            places[about] = _place(job, kind)
        name = job.theirs[0].removesuffix(".weight")
        adapted.append(Module(name, job.ours, job.params, job.layer, places[about]))
    lost = targets.keys() - {path for m in adapted for path in m.ours}
    if lost:
        raise ValueError(f"adapter.targets: {kind} has no tensor for {sorted(lost)}")
    return adapted


def _place(job: read.Job, kind: str) -> Place:
    """Computes the positions of our matrices' elements in theirs."""
    refused = ValueError(
        f"adapter.targets: {list(job.ours)} are {list(job.theirs)} of {kind}, which is not a "
        "linear layer, as an adapter of peft requires"
    )
    router = any("expert" in p.axes for p in job.params)
    if router or len(job.theirs) != 1 or not job.theirs[0].endswith(".weight"):
        raise refused
    sizes = [math.prod(p.shape) for p in job.params]
    outs = np.array([math.prod(p.shape[p.inputs :]) for p in job.params])
    starts = np.cumsum([0, *sizes[:-1]])
    numbers = [
        np.arange(start, start + size).reshape(p.shape)
        for start, size, p in zip(starts, sizes, job.params, strict=True)
    ]
    (numbered,) = job.row.write(numbers, job.params)
    for transposed in (False, True):
        matrix = numbered.T if transposed else numbered
        if matrix.ndim != 2:
            raise refused
        # [rows] which of our weights
        part = np.searchsorted(starts, matrix[:, 0], side="right") - 1
        output = (matrix[:, 0] - starts[part]) % outs[part]  # [rows]
        column = (matrix[0] - starts[part[0]]) // outs[part[0]]  # [columns]
        rebuilt = (starts[part] + output)[:, None] + outs[part][:, None] * column[None]
        if np.array_equal(rebuilt, matrix):
            return Place(part, output, column, transposed)
    raise refused


# --- Writing ---------------------------------------------------------------------------------


def write(
    folder: str | os.PathLike[str],
    kind: str,
    cfg: models.AnyConfig,
    lora: adapter.Lora,
    adapters: param.Tree,
    base: str | None = None,
) -> list[str]:
    """Write adapters on a model of this Config as peft's two files; the names of the modules.

    adapters: {path: {"a", "b"}}, nested. base: the name of the model underneath in their config.

    Raises: ValueError as `modules`.
    """
    folder = pathlib.Path(folder).expanduser()
    pairs = _pairs(adapters)
    adapted = modules(kind, cfg, pairs)
    groups = []
    for module in adapted:
        rank = lora.rank * sum(path in pairs for path in module.ours)
        items = [
            tensor_files.Item(
                f"{PREFIX}{module.name}.lora_A.weight", (rank, len(module.place.input))
            ),
            tensor_files.Item(
                f"{PREFIX}{module.name}.lora_B.weight", (len(module.place.output), rank)
            ),
        ]
        groups.append((items, module))
    (name,) = tensor_files.write(
        folder, groups, lambda m: _theirs(m, pairs, lora.rank), np.dtype(np.float32), 1 << 62
    )
    (folder / name).rename(folder / WEIGHTS)
    record = _config(adapted, pairs, lora, _names(kind, cfg), base)
    (folder / CONFIG).write_text(json.dumps(record, indent=2) + "\n", "utf-8")
    return [m.name for m in adapted]


def _pairs(adapters: param.Tree) -> Pairs:
    flat = {path: np.asarray(jax.device_get(x)) for path, x in param.flatten(adapters).items()}
    return {
        path.removesuffix("/a"): (x, flat[f"{path.removesuffix('/a')}/b"])
        for path, x in flat.items()
        if path.endswith("/a")
    }


def _theirs(module: Module, pairs: Pairs, rank: int) -> list[np.ndarray]:
    """[lora_A, lora_B] of a module: the blocks of its matrices that have adapters."""
    own = [i for i, path in enumerate(module.ours) if path in pairs]
    place = module.place
    first = np.empty((rank * len(own), len(place.input)), np.float32)  # [ranks, in]
    second = np.zeros((len(place.output), rank * len(own)), np.float32)  # [out, ranks]
    for slot, i in enumerate(own):
        a, b = pairs[module.ours[i]]
        a, b = (a, b) if module.layer is None else (a[module.layer], b[module.layer])
        at = slice(slot * rank, (slot + 1) * rank)
        first[at] = a.reshape(-1, rank).T[:, place.input]  # [rank, in]
        rows = place.part == i
        second[rows, at] = b.reshape(rank, -1)[:, place.output[rows]].T  # [out, rank]
    return [first, second]


def _names(kind: str, cfg: models.AnyConfig) -> list[str]:
    """The names of all their tensors' modules."""
    jobs = read.jobs(convert.ARCHITECTURES[kind].names(cfg), param.flatten(models.spec(cfg)))
    return [name.removesuffix(".weight") for job in jobs for name in job.theirs]


def _config(
    adapted: list[Module], pairs: Pairs, lora: adapter.Lora, everything: list[str], base: str | None
) -> dict[str, Any]:
    wider = {}  # {module: its adapters}, of those with several
    for module in adapted:
        adapters = sum(path in pairs for path in module.ours)
        if adapters > 1:
            wider[module.name] = adapters
    # alpha / rank, or alpha / sqrt(rank), stays what it is
    grown = {n: n if lora.scaling == "rank" else math.sqrt(n) for n in wider.values()}
    return {
        "peft_type": "LORA",
        "peft_version": VERSION,
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "revision": None,
        "inference_mode": True,
        "r": lora.rank,
        "lora_alpha": _number(lora.alpha),
        "lora_dropout": lora.dropout,
        "use_rslora": lora.scaling == "root",
        "use_dora": False,
        "bias": "none",
        "fan_in_fan_out": any(m.place.transposed for m in adapted),
        "init_lora_weights": True,
        "modules_to_save": None,
        "layers_to_transform": None,
        "layers_pattern": None,
        "target_modules": _targeted([m.name for m in adapted], everything),
        "rank_pattern": {name: lora.rank * n for name, n in wider.items()},
        "alpha_pattern": {name: _number(lora.alpha * grown[n]) for name, n in wider.items()},
    }


def _number(x: float) -> float | int:
    return int(x) if x == int(x) else x


def _targeted(names: list[str], everything: list[str]) -> list[str]:
    """The last words of the names, where all modules that end so are chosen; else whole names."""
    chosen: dict[str, None] = {}
    for name in names:
        word = name.rpartition(".")[2]
        alike = {n for n in everything if n == word or n.endswith(f".{word}")}
        chosen[word if alike <= {*names} else name] = None
    return [*chosen]


# --- Reading ---------------------------------------------------------------------------------


def load(
    folder: str | os.PathLike[str], kind: str, cfg: models.AnyConfig
) -> tuple[adapter.Lora, param.Tree]:
    """(config, adapters) of peft's files, for a model of this Config.

    Our matrices of one module share its adapter. Of different ranks the largest is taken, and
    layers without an adapter are given one: what is filled up is 0, and stays so in training.

    Raises: FileNotFoundError without the files; ValueError for a kind of adapter that is not read,
    and for tensors that are unknown, missing or of a wrong shape.
    """
    folder = pathlib.Path(folder).expanduser()
    record, tensors = lora_config.read(folder / CONFIG), tensor_files.find(folder)
    end = ".lora_A.weight"
    given = {n.removeprefix(PREFIX).removesuffix(end) for n in tensors if n.endswith(end)}
    flat = param.flatten(models.spec(cfg))
    jobs = read.jobs(convert.ARCHITECTURES[kind].names(cfg), flat)
    adapted = [job.ours for job in jobs if job.theirs[0].removesuffix(".weight") in given]
    ours = dict.fromkeys(path for paths in adapted for path in paths)
    known = {m.name: m for m in modules(kind, cfg, ours) if m.name in given}
    expected = {f"{PREFIX}{name}.lora_{x}.weight" for name in known for x in "AB"}
    if odd := sorted(tensors.keys() ^ expected):
        raise ValueError(f"{folder}: a {kind} of this config has no adapter with {odd[:8]}")
    if not known:
        raise ValueError(f"{folder} holds no adapter")
    lora_config.refuse_unchosen(folder / CONFIG, record, known)
    parts_of = {name: _read(folder, m, record, tensors) for name, m in known.items()}
    rank = max(a.shape[0] for parts in parts_of.values() for a, _, _ in parts.values())
    scale = lora_config.scale(record)
    weights: dict[str, np.ndarray] = {}
    for name, module in known.items():
        for path, (a, b, own) in parts_of[name].items():
            _put(weights, module, path, flat[path], rank, a, b * np.float32(own / scale))
    root = record["use_rslora"]
    lora = adapter.Lora(
        rank=rank,
        alpha=scale * (math.sqrt(rank) if root else rank),
        targets=tuple(dict.fromkeys(path.rpartition("/")[0] for path in weights)),
        scaling="root" if root else "rank",
        dropout=record["lora_dropout"],
    )
    return lora, param.nested(weights)


def _read(
    folder: pathlib.Path,
    module: Module,
    record: dict[str, Any],
    tensors: dict[str, tensor_files.Tensor],
) -> dict[str, tuple[np.ndarray, np.ndarray, float]]:
    """{our path: (a [r, inputs], b [outputs, r], scale)} of a module."""
    names = [f"{PREFIX}{module.name}.lora_{x}.weight" for x in "AB"]
    a, b = (tensor_files.cast(tensor_files.read(tensors[name]), np.float32, name) for name in names)
    rank, place = lora_config.rank(record, module.name), module.place
    want = (rank, len(place.input)), (len(place.output), rank)
    if (a.shape, b.shape) != want:
        raise ValueError(
            f"{folder}: {module.name} has {a.shape} and {b.shape}; {want} is right for r="
            f"{record['r']}, rank_pattern={record['rank_pattern']}"
        )
    scale = lora_config.scale(record, module.name)
    first = np.empty_like(a)
    first[:, place.input] = a
    ours, slots = {}, _slots(module, b)
    for i, path in enumerate(module.ours):
        rows = place.part == i
        second = np.empty((int(rows.sum()), rank), np.float32)
        second[place.output[rows]] = b[rows]
        ours[path] = (first[slots[i]], second[:, slots[i]], scale)
    return ours


def _slots(module: Module, b: np.ndarray) -> list[slice]:
    """The ranks that belong to each matrix: blocks, where every matrix has its own; else all."""
    count, rank = len(module.ours), b.shape[1]
    size = rank // count
    blocks = [slice(i * size, (i + 1) * size) for i in range(count)]
    rest = b.copy()
    for i, block in enumerate(blocks):
        rest[module.place.part == i, block] = 0
    return blocks if rank % count == 0 and b.any() and not rest.any() else [slice(None)] * count


def _put(
    weights: dict[str, np.ndarray],
    module: Module,
    path: str,
    p: param.Param,
    rank: int,
    a: np.ndarray,
    b: np.ndarray,
) -> None:
    """Write one layer's a [r, inputs] and b [outputs, r] into ours, which begin as zeros."""
    cut, own = p.copies + p.inputs, a.shape[0]
    first = weights.setdefault(f"{path}/a", np.zeros((*p.shape[:cut], rank), np.float32))
    shape = (*p.shape[: p.copies], rank, *p.shape[cut:])
    second = weights.setdefault(f"{path}/b", np.zeros(shape, np.float32))
    at: Any = ... if module.layer is None else module.layer
    first[at][..., :own] = a.T.reshape(*p.shape[p.copies : cut], own)
    second[at][:own] = b.T.reshape(own, *p.shape[cut:])
