"""A transformers checkpoint as our Config and weights, streamed tensor by tensor.

Everything that can be wrong with a checkpoint is detected from its config.json and the headers of
its files, before a weight is read or allocated.
"""

import dataclasses
import functools
import os
import pathlib
import re
from collections.abc import Callable, Collection, Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from jaxlm import convert, models
from jaxlm.convert import classifier, quantised, tensor_files
from jaxlm.convert.config_json import Fields
from jaxlm.convert.families import rope_parameters
from jaxlm.convert.quantised import compound
from jaxlm.convert.weight_rows import Row, Table
from jaxlm.core import json_file, param
from jaxlm.models.layers import value_head
from jaxlm.parallel import devices
from jaxlm.parallel.plan import Plan
from jaxlm.scaling.cost import memory

Flat = dict[str, param.Param]

# Our weights that the files of a model without its head lack: transformers' AutoModel saves those.
HEADS = {"unembed", "unembed_bias", "mlm", "score"}
NO_HEAD = (
    " (of the head, without which there are no logits; transformers would draw it at random. Where "
    "the output matrix is the embedding table, config.json says so: tie_word_embeddings=true)"
)


class Job(NamedTuple):
    """One row at one place: names of their tensors, paths of our weights, on the layer axis at
    `layer` (None for weights outside the layers), and these weights' Params without that axis."""

    row: Row
    theirs: tuple[str, ...]
    ours: tuple[str, ...]
    layer: int | None
    params: list[param.Param]


class Checkpoint(NamedTuple):
    """A checkpoint that can be imported: every weight of `spec`, those of `cfg` and the head of a
    reward model ("score"), has the tensors it is built from. ignored: unknown fields of its
    config.json that were skipped on request. few: how weights are stored in few bits, where some
    are."""

    folder: pathlib.Path
    model_type: str
    cfg: models.AnyConfig
    spec: param.Tree
    tensors: compound.Tensors
    jobs: list[Job]
    ignored: dict[str, Any]
    few: compound.Format | None


class Description(NamedTuple):
    """Contents of a config.json: its model_type, our Config, whether it is a reward model, the
    unknown fields that were ignored on request, with their values, and how weights are stored in
    few bits."""

    model_type: str
    cfg: models.AnyConfig
    scores: bool
    ignored: dict[str, Any]
    few: compound.Format | None


def config(folder: str | os.PathLike[str], ignored: Collection[str] = ()) -> Description:
    """The Description of a checkpoint. ignored: unknown fields that the user answers for.

    Raises: ValueError for an unknown model_type, for fields that are not supported, and for a name
    in `ignored` that is understood here or absent.
    """
    folder = pathlib.Path(folder).expanduser()
    file = folder / "config.json"
    if not file.is_file():
        raise FileNotFoundError(
            f"{folder} is not a checkpoint of transformers: it has no config.json"
        )
    record = json_file.read_object(tensor_files.inside(folder, file.name))
    kind = record.get("model_type")
    if kind not in convert.ARCHITECTURES:
        raise ValueError(
            f"{file}: model_type={kind!r} is not supported; there is "
            f"{sorted(convert.ARCHITECTURES)}"
        )
    _refuse_sizes(record, str(file))
    fields = Fields(record, str(file), ignored)
    try:
        few = quantised.declared(folder, record, str(file))
        cfg, scores = understood(fields, kind), classifier.named(record)
    except (TypeError, AttributeError, KeyError, ZeroDivisionError, OverflowError) as error:
        raise ValueError(
            f"{file}: a field has a value that a {kind} cannot have: {error} "
            f"(architectures={record.get('architectures')!r})"
        ) from error
    cfg = classifier.headless(kind, cfg) if scores else cfg
    return Description(kind, cfg, scores, fields.skipped(), few)


# No model has more; a larger one would be built, layer by layer, before its tensors are missed.
LAYERS, EXPERTS, SIZE = 10_000, 10_000, 2**31


def _refuse_sizes(record: Any, where: str) -> None:
    """Raises: ValueError for a number of layers or experts, or any other whole number of a
    config.json, that no model has."""
    for name, value in record.items():
        if isinstance(value, dict):
            _refuse_sizes(value, f"{where}: {name}")
        most = EXPERTS if "experts" in name else LAYERS if "layer" in name else SIZE
        if isinstance(value, int) and value > most:
            raise ValueError(f"{where}: {name}={value} given; at most {most} is read")


def understood(fields: Fields, kind: str) -> models.AnyConfig:
    """Our Config of the fields of a config.json of this model_type, every one of them accounted
    for. Raises: ValueError for fields that are not supported."""
    cfg = rope_parameters.within_original(convert.ARCHITECTURES[kind].read(fields))
    fields.refuse_two_ways()
    fields.get("quantization_config", None)  # `quantised.declared` reads or refuses it
    fields.refuse_rest()
    return cfg


def inspect(folder: str | os.PathLike[str], ignored: Collection[str] = ()) -> Checkpoint:
    """Plans the conversion of a checkpoint to our weights. Reads headers, and of weights only an
    output matrix and the table that it may be tied to.

    Where several rows produce the same weight, the first one whose tensors are present is used. An
    output matrix that is present counts, whatever config.json has about tying, unless it equals
    the embedding table; a sequence classification model has none.

    ignored: as for `config`.

    Raises: ValueError as `config`, and listing tensors that are unknown, missing, of a wrong shape
    or dtype.
    """
    folder = pathlib.Path(folder).expanduser()
    kind, cfg, scores, skipped, few = config(folder, ignored)
    names = functools.partial(_names, kind, scores)
    table = names(cfg)
    tensors = _renamed(folder, table, few)
    settle = convert.ARCHITECTURES[kind].settle
    if settle is not None:
        cfg = settle(cfg, tensors.keys())
        table = names(cfg)
    same: set[str] = set()
    if _tied(cfg) and (head := _head(table)) is not None and head in tensors:
        if _equal(tensors, head, table):
            same = {head}
        else:
            cfg = dataclasses.replace(cfg, **{"tied": False})
            table = names(cfg)
    spec = models.spec(cfg)
    if scores:
        spec = classifier.spec(spec, value_head.spec(models.build(cfg)))
    flat = param.flatten(spec)
    planned = jobs(table, flat, tensors.keys())
    problems = [*_missing(table, flat, planned, tensors), *_misshaped(planned, tensors)]
    used = {name for job in planned for name in job.theirs} | same
    for name, tensor in tensors.items():
        if name in used or any(re.search(pattern, name) for pattern in table.ignored):
            continue
        shape = list(tensor.shape)
        problems.append(f"unknown tensor {name} {shape}: nothing here would compute with it")
    if problems:
        more = [f"... and {len(problems) - 20} more"] if len(problems) > 20 else []
        listing = "\n".join(f"  {p}" for p in [*problems[:20], *more])
        raise ValueError(f"{folder} ({kind}) cannot be imported:\n{listing}")
    return Checkpoint(folder, kind, cfg, spec, tensors, planned, skipped, few)


def _names(kind: str, scores: bool, cfg: models.AnyConfig) -> Table:
    table = convert.ARCHITECTURES[kind].names(cfg)
    return classifier.table(table) if scores else table


def jobs(table: Table, flat: Flat, have: Collection[str] | None = None) -> list[Job]:
    """Jobs that produce every weight of a spec, one for each row and place. Where several rows
    produce the same weight, the first whose tensors are in `have`; without `have`, the first."""
    places: list[tuple[list[Row], tuple[str, str, int] | None, int]] = [(table.outer, None, 0)]
    for path, stack in table.stacks.items():
        for i, (kind, layer) in enumerate(positions(flat, path), stack.first):
            places.append((stack.rows, (stack.prefix, kind, layer), i))
    planned = []
    for rows, at, i in places:
        produced: set[str] = set()
        for row in rows:
            job = _job(row, at, i, flat)
            if job is None or produced & set(job.ours):
                continue
            if have is None or all(name in have for name in job.theirs):
                planned.append(job)
                produced |= set(job.ours)
    return planned


def _job(row: Row, at: tuple[str, str, int] | None, i: int, flat: Flat) -> Job | None:
    """A row at a place (prefix of the stack, path of the kind, index); None for a spec without its
    weights."""
    if at is None:
        if not all(path in flat for path in row.ours):
            return None
        return Job(row, row.theirs, row.ours, None, [flat[path] for path in row.ours])
    prefix, kind, index = at
    ours = tuple(f"{kind}/{name}" for name in row.ours)
    if not all(path in flat for path in ours):
        return None
    theirs = tuple((n[1:] if n.startswith("/") else prefix + n).format(i=i) for n in row.theirs)
    return Job(row, theirs, ours, index, [layer(flat[path]) for path in ours])


def _renamed(folder: pathlib.Path, table: Table, few: compound.Format | None) -> compound.Tensors:
    """The tensors of a checkpoint under the names the table knows them by; weights in few bits as
    one each."""
    stored = tensor_files.find(folder)
    try:
        tensors: compound.Tensors = dict(stored) if few is None else few.gather(stored)
        names = table.renamed(tensors)
    except ValueError as error:
        raise ValueError(f"{folder}: {error}") from error
    return {names[stored]: tensor for stored, tensor in tensors.items()}


def _tied(cfg: models.AnyConfig) -> bool:
    values = {f.name: getattr(cfg, f.name) for f in dataclasses.fields(cfg)}
    return bool(values.get("tied"))


def _head(table: Table) -> str | None:
    """The name of their output matrix."""
    return next((row.theirs[0] for row in table.outer if row.ours == ("unembed",)), None)


def _equal(tensors: compound.Tensors, head: str, table: Table) -> bool:
    """Whether the output matrix is the embedding table once more."""
    embed = next((row.theirs[0] for row in table.outer if "embed/table" in row.ours), None)
    if embed is None or embed not in tensors or tensors[embed].shape != tensors[head].shape:
        return False
    return np.array_equal(compound.read(tensors[embed]), compound.read(tensors[head]))


def _missing(table: Table, flat: Flat, planned: list[Job], tensors: Collection[str]) -> list[str]:
    """Problems with weights that no job produces: the missing tensors of the first row for each."""
    produced = _produced(planned)
    problems, complete = [], jobs(table, flat)
    for job in complete:
        if not _produced([job]) <= produced:
            head = {path.partition("/")[0] for path in job.ours} <= HEADS
            reason = NO_HEAD if head else ""
            problems += [f"missing tensor {n}{reason}" for n in job.theirs if n not in tensors]
    known = {path for path, _ in produced | _produced(complete)}
    return problems + [f"no row has our weight {path}" for path in flat if path not in known]


def _produced(planned: Iterable[Job]) -> set[tuple[str, int | None]]:
    """(path, index on the layer axis) of the weights that jobs produce."""
    return {(path, job.layer) for job in planned for path in job.ours}


def _misshaped(planned: list[Job], tensors: compound.Tensors) -> list[str]:
    problems = []
    for job in planned:
        for name, shape in zip(job.theirs, job.row.shapes(job.params), strict=True):
            tensor = tensors[name]
            if tensor.shape != tuple(shape):
                problems.append(
                    f"tensor {name} is {list(tensor.shape)}, and {list(shape)} follows from "
                    "config.json"
                )
            elif tensor.dtype not in tensor_files.DTYPES:
                problems.append(
                    f"tensor {name} is stored as {tensor.dtype}; "
                    f"{sorted(tensor_files.DTYPES)} are read"
                )
    return problems


def load(folder: str | os.PathLike[str]) -> tuple[models.AnyConfig, param.Tree]:
    """(Config, float32 NumPy weights) of a checkpoint. Raises: as `inspect`."""
    source = inspect(folder)
    flat = param.flatten(source.spec)
    weights = {path: np.empty(p.shape, np.float32) for path, p in flat.items()}

    def put(path: str, index: int | None, array: np.ndarray) -> None:
        weights[path][... if index is None else index] = array

    _fill(source, np.float32, put)
    return source.cfg, param.nested(weights)


def place(source: Checkpoint, plan: Plan = Plan(), dtype: Any = jnp.float32) -> param.Tree:
    """The weights of a checkpoint in a dtype, laid out over the plan's devices: never more in
    memory than they and the tensors of one row.

    Raises: ValueError as `plan.shard_params`, for numbers beyond the dtype, and where the devices
    cannot hold the weights.
    """
    need = memory.spec_bytes(source.spec, memory.mesh(plan), dtype)
    devices.check(f"the weights of {source.folder}", need)
    flat, shardings = (
        param.flatten(tree) for tree in (source.spec, plan.shard_params(source.spec))
    )
    weights: dict[str, jax.Array] = {}

    def put(path: str, index: int | None, array: np.ndarray) -> None:
        sharding = shardings[path]
        if index is None:
            weights[path] = jax.block_until_ready(_onto(array, sharding))
            return
        if path not in weights:
            weights[path] = _empty(flat[path].shape, dtype, sharding)
        part = NamedSharding(sharding.mesh, PartitionSpec(*sharding.spec[1:]))
        # waited for, or tensors would be read, and held, faster than they are placed
        weights[path] = jax.block_until_ready(
            _setter(sharding)(weights[path], _onto(array, part), index)
        )

    _fill(source, dtype, put)
    return param.nested({path: weights[path] for path in flat})


def _fill(
    source: Checkpoint, dtype: Any, put: Callable[[str, int | None, np.ndarray], None]
) -> None:
    """put(path, index on the layer axis or None, array in the dtype) for every weight, row after
    row."""
    for job in source.jobs:
        arrays = [compound.read(source.tensors[name]) for name in job.theirs]
        parts = job.row.read(arrays, job.params)
        for path, array, p in zip(job.ours, parts, job.params, strict=True):
            if array.shape != p.shape:
                raise ValueError(f"{job.theirs}: {path} is {p.shape}, not {array.shape}")
            put(path, job.layer, tensor_files.cast(array, dtype, " and ".join(job.theirs)))


def _onto(array: np.ndarray, where: NamedSharding) -> jax.Array:
    """An array of the host on the devices; each process gives its own parts."""
    return jax.make_array_from_callback(array.shape, where, lambda part: array[part])


def _empty(shape: tuple[int, ...], dtype: Any, where: NamedSharding) -> jax.Array:
    return jax.jit(lambda: jnp.zeros(shape, dtype), out_shardings=where)()


@functools.lru_cache
def _setter(where: NamedSharding) -> Callable[..., jax.Array]:
    """set(stacked, array of one layer, index) -> stacked, in the same memory."""

    def put(stacked: jax.Array, layer: jax.Array, index: jax.Array) -> jax.Array:
        return jax.lax.dynamic_update_index_in_dim(stacked, layer, index, 0)

    return jax.jit(put, donate_argnums=0, out_shardings=where)


def positions(flat: Flat, stack: str) -> list[tuple[str, int]]:
    """(path of the layer's kind, index on the layer axis) of every layer of a stack, in order."""
    kinds: dict[str, int] = {}
    for path, p in flat.items():
        if path.startswith(f"{stack}/"):
            kinds["/".join(path.split("/")[: stack.count("/") + 3])] = p.shape[0]
    segments: dict[int, list[str]] = {}
    for kind in kinds:
        segments.setdefault(int(kind.split("/")[-2]), []).append(kind)
    order = []
    for number in sorted(segments):
        names = sorted(segments[number], key=lambda k: int(k.split("/")[-1].partition("_")[0]))
        order += [(name, i) for i in range(kinds[names[0]]) for name in names]
    return order


def layer(p: param.Param) -> param.Param:
    """One layer's Param, without the layer axis."""
    return param.Param(p.shape[1:], p.axes[1:], p.init, p.copies - 1, p.inputs)
