"""Every field of transformers' configs, changed one at a time on a tiny model: what it computes,
and what an import of the same files computes. Needs torch and transformers."""

import contextlib
import dataclasses
import json
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
import torch
import transformers
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from jaxlm import models
from jaxlm.convert import read
from jaxlm.models import model as model_
from jaxlm.ops.attention import At
from tests.convert import cases, oracle

Record = dict[str, Any]
T = 24


class Sample(NamedTuple):
    """A model of transformers: its tensors' shapes, float32[1, T, V] logits, names it read."""

    shapes: dict[str, tuple[int, ...]]
    logits: np.ndarray
    reads: frozenset[str]


def declared(kind: str) -> dict[str, Any]:
    """{field: default} of the config class of a model_type, its parent's among them."""
    return {
        f.name: None if f.default is dataclasses.MISSING else f.default
        for f in dataclasses.fields(CONFIG_MAPPING[kind])
    }


@contextlib.contextmanager
def reading(names: set[str]) -> Iterator[None]:
    """Adds to `names` whatever is read of a config meanwhile, whether it is there or not."""
    base = transformers.PreTrainedConfig
    plain = base.__getattribute__

    def spy(self: Any, name: str) -> Any:
        names.add(plain(self, "attribute_map").get(name, name))
        return plain(self, name)

    base.__getattribute__ = spy
    try:
        yield
    finally:
        base.__getattribute__ = plain


def build(case: str, record: Mapping[str, Any]) -> tuple[Any, frozenset[str]]:
    """(the model of a config.json, what it read of its config); weights drawn by their names."""
    record = dict(record)
    kind, architecture = record.pop("model_type"), record.pop("architectures")[0]
    config = CONFIG_MAPPING[kind].from_dict(record)
    config._attn_implementation = oracle.ATTENTION.get(kind, "eager")
    names: set[str] = set()
    with reading(names):
        model = getattr(transformers, architecture)(config).eval()
    seen: set[int] = set()
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if tensor.is_floating_point() and tensor.data_ptr() not in seen:
                seen.add(tensor.data_ptr())
                tensor.copy_(torch.from_numpy(cases.draw(case, name, tuple(tensor.shape))))
    return model, frozenset(names)


def sample(case: str, record: Mapping[str, Any], ids: np.ndarray) -> tuple[Any, Sample]:
    """The model of a config.json and what it computes."""
    model, read_ = build(case, record)
    names: set[str] = set()
    with reading(names):
        logits = oracle.logits(model, ids)
    shapes = {n: tuple(t.shape) for n, t in model.state_dict().items()}
    return model, Sample(shapes, logits, read_ | names)


def imported(model: Any, record: Mapping[str, Any], folder: pathlib.Path, ids: np.ndarray):
    """(Config, float32[1, T, V]) of what an import of the model with this config.json computes."""
    model.save_pretrained(folder)
    (folder / "config.json").write_text(json.dumps(record))
    cfg, params = read.load(folder)
    return cfg, ours(cfg, params, ids)


def ours(cfg: Any, params: Any, ids: np.ndarray) -> np.ndarray:
    """float32[B, T, V] of our model; an encoder-decoder's decoder reads what its encoder reads."""
    built = models.build(cfg)
    at = At(np.ones_like(ids), np.tile(np.arange(ids.shape[1], dtype=np.int32), (len(ids), 1)))

    @jax.jit
    def run(params: Any) -> jax.Array:
        if built.kind != "encoder_decoder":
            return model_.logits(built, params, ids, at)
        source = (built.encode(params, ids, at), at)
        return built.unembed(built.head(params), built.hidden(params, ids, at, source=source).x)

    return np.asarray(run(params))


def config(record: Mapping[str, Any]) -> Any:
    """The config object of a config.json."""
    rest = {k: v for k, v in record.items() if k not in ("model_type", "architectures")}
    return CONFIG_MAPPING[record["model_type"]].from_dict(rest)


def value(record: Mapping[str, Any], name: str) -> Any:
    """What a field is in transformers' config; None where it has none."""
    cfg = config(record)
    return getattr(cfg, name) if hasattr(cfg, name) else None


def tried(case: str, record: Mapping[str, Any], ids: np.ndarray) -> tuple[Any, Sample] | None:
    """`sample`; None for a config.json that transformers does not run."""
    try:
        return sample(case, record, ids)
    except Exception:  # theirs raise whatever their own code meets
        return None
