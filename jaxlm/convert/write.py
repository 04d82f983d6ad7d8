"""Our Config and weights as a transformers checkpoint, written row after row."""

import json
import os
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxlm import convert, models
from jaxlm.convert import classifier, read, tensor_files
from jaxlm.convert.config_json import Fields
from jaxlm.convert.families import rope_parameters
from jaxlm.core import config, param
from jaxlm.models.layers import value_head
from jaxlm.ops import rope

DTYPES = {"float32": np.float32, "bfloat16": jnp.bfloat16, "float16": np.float16}


def architecture(cfg: models.AnyConfig, model_type: str | None = None) -> tuple[str, dict]:
    """(model_type, config.json) for a Config: the first of its family's architectures that can
    express it, or the one named.

    Raises: ValueError naming, for each of them, the field that it cannot express.
    """
    known = {k: a for k, a in convert.ARCHITECTURES.items() if a.family is type(cfg)}
    if model_type is not None and model_type not in known:
        raise ValueError(
            f"model_type={model_type!r}: a {config.kind(type(cfg))} model is one of {list(known)}"
        )
    reasons = []
    for kind in [model_type] if model_type else known:
        try:
            record = known[kind].write(cfg)
            _refuse_lost(kind, cfg, record)
            return kind, record
        except ValueError as error:
            reasons.append(f"  {kind}: {error}")
    listing = "\n".join(reasons) or "  no architecture of transformers is known for this family"
    raise ValueError(f"this model cannot be exported:\n{listing}")


# Fields of a Config that only training reads, and no config.json has to hold.
TRAINING = {"dropout"}


def _normal(cfg: Any) -> dict[str, Any]:
    """The fields of a Config, of equivalent values the same one: an import gives the pattern, the
    width, the scalar and the context in one form."""
    values = vars(rope_parameters.within_original(cfg)).copy()
    if "pattern" in values:  # of any length that repeats to the same layers
        values["pattern"] = cfg.kinds
    if values.get("ffn", 0) is None:
        values["ffn"] = cfg.width
    if "query_scalar" in values and cfg.query_scalar is None:
        values["query_scalar"] = values.get("head", cfg.embed // cfg.heads)
    if isinstance(values.get("scaling"), rope.Ntk):  # written as the base that it amounts to
        del values["theta"], values["scaling"]
    return {k: v for k, v in values.items() if k not in TRAINING}


def _refuse_lost(kind: str, cfg: models.AnyConfig, record: dict[str, Any]) -> None:
    """Raises: ValueError naming a field of the Config that an import of this config.json would not
    give back: whoever adds a field to a Config need not remember exports."""
    again = _normal(read.understood(Fields(record, kind), kind))
    for name, value in _normal(cfg).items():
        if value != again[name]:
            raise ValueError(
                f"model.{name}={value!r} has no counterpart in this config.json, which is read as "
                f"{again[name]!r}"
            )


def weights(
    folder: str | os.PathLike[str],
    kind: str,
    cfg: models.AnyConfig,
    params: param.Tree,
    dtype: str = "float32",
    limit: int = 5 * 10**9,
) -> list[str]:
    """Writes the weights of a Config as safetensors of at most `limit` bytes each; returns the
    files' names. No more than one row's tensors are in memory along with the weights. Those of a
    reward model (with "score" among them) are written as a classifier's.

    Raises: ValueError, before anything is written, for a weight that the architecture has no tensor
    for, an unknown dtype, and numbers that it does not hold.
    """
    if dtype not in DTYPES:
        raise ValueError(f"dtype: {dtype!r} given; there is {list(DTYPES)}")
    table, spec = convert.ARCHITECTURES[kind].names(cfg), models.spec(cfg)
    if "score" in params:
        table = classifier.table(table)
        spec = classifier.spec(spec, value_head.spec(models.build(cfg)))
    flat = param.flatten(spec)
    planned = read.jobs(table, flat)
    lost = sorted(flat.keys() - set().union(*(job.ours for job in planned)))
    if lost:
        raise ValueError(f"{kind} has no tensor for {lost}")
    arrays = param.flatten(params)

    def tensors(job: read.Job) -> list[np.ndarray]:
        parts = [arrays[path] for path in job.ours]
        parts = [p if job.layer is None else p[job.layer] for p in parts]
        return job.row.write([_host(p) for p in parts], job.params)

    most = float(jnp.finfo(DTYPES[dtype]).max)
    wide = {path for path, array in arrays.items() if _largest(array) > most}
    groups = []
    for job in planned:
        if wide & {*job.ours}:  # refused with the tensor's name
            for name, array in zip(job.theirs, tensors(job), strict=True):
                tensor_files.cast(array, DTYPES[dtype], name)
        shapes = job.row.shapes(job.params)
        items = [tensor_files.Item(n, tuple(s)) for n, s in zip(job.theirs, shapes, strict=True)]
        groups.append((items, job))
    return tensor_files.write(folder, groups, tensors, np.dtype(DTYPES[dtype]), limit)


def _largest(array: Any) -> float:
    """The largest magnitude of finite numbers."""
    xp: Any = jnp if isinstance(array, jax.Array) else np
    return float(xp.max(xp.where(xp.isfinite(array), xp.abs(array), 0)))


def _host(x: Any) -> np.ndarray:
    return np.asarray(jax.device_get(x))


def configs(
    folder: str | os.PathLike[str], record: dict[str, Any], generation: dict[str, Any], dtype: str
) -> None:
    """Write config.json and generation_config.json; the special ids are in both."""
    # an id left out would be their class's default, which may be beyond the vocabulary
    ids = dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"))
    ids |= {k: v for k, v in generation.items() if k.endswith("_token_id")}
    # a decoder that starts from an id is the config's own business
    complete = {**ids, **record, "dtype": dtype}
    for name, value in (("config.json", complete), ("generation_config.json", generation)):
        pathlib.Path(folder, name).write_text(json.dumps(value, indent=2) + "\n", "utf-8")
