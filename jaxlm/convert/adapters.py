"""Conversion of adapter run directories: to peft's files, from them, and to plain weights."""

import dataclasses
import json
import pathlib

import jax
import numpy as np

import jaxlm
from jaxlm.convert import peft, pretrained, tokenizer_files, write
from jaxlm.core import atomic, io, param
from jaxlm.data import tokenizers
from jaxlm.objectives import lora as adapter
from jaxlm.train import trained_weights
from jaxlm.train.run import checkpoint, directory
from jaxlm.train.run import run as runs
from jaxlm.train.run.directory import Result
from jaxlm.train.run.run import Run


def export(
    source: pathlib.Path,
    target: pathlib.Path,
    *,
    base: str | None = None,
    model_type: str | None = None,
    which: trained_weights.Which = "last",
) -> list[str]:
    """Writes the adapters of a run as peft's files; returns the names of the modules they adapt.

    base: what their config calls the model underneath (`jaxlm export` of the run's `start` makes
    it). model_type: as for `pretrained.export_run`.

    Raises: FileExistsError for a target that is not empty; ValueError for a run without adapters,
    and for what peft has no module for.
    """
    pretrained.refuse_existing(target)
    run = directory.load(source)
    if run.adapter is None:
        raise ValueError(f"{source} has no adapters; `jaxlm export` writes its weights")
    kind, _ = write.architecture(run.model, model_type or _kind(run))
    found = trained_weights.trained(source, which)
    with atomic.folder(target) as folder:
        return peft.write(folder, kind, run.model, run.adapter, found[adapter.ADAPTER], base)


def merge(source: pathlib.Path, target: pathlib.Path, which: trained_weights.Which = "last") -> Run:
    """The Run of a new run directory with the weights that adapters and their base make together,
    at step 0 and finished: it needs neither any more.

    Raises: FileExistsError for a target that is not empty; ValueError for a run without adapters.
    """
    pretrained.refuse_existing(target)
    if directory.load(source).adapter is None:
        raise ValueError(f"{source} has no adapters: its weights stand alone already")
    found = trained_weights.load(source, which)
    run = dataclasses.replace(
        found.run, adapter=None, start=None, name=target.name, out=str(target.parent)
    )
    facts = {"merged": str(source), "model_type": _kind(found.run), "val": None}
    _commit(target, run, found.params, facts, trained_weights.generation(source))
    return run


def import_adapter(source: pathlib.Path, base: pathlib.Path, target: pathlib.Path) -> Run:
    """The Run of a new run directory with peft's adapters on the weights of another, at step 0 and
    finished: it is sampled, evaluated, merged and exported as any other, and a run may start from
    it.

    Raises: FileExistsError for a target that is not empty; else as `peft.load`.
    """
    pretrained.refuse_existing(target)
    below = trained_weights.load(base)
    was = pretrained.was(base)
    kind, _ = write.architecture(below.run.model, was)
    lora, adapters = peft.load(source, kind, below.run.model)
    run = dataclasses.replace(
        below.run, adapter=lora, start=str(base), name=target.name, out=str(target.parent)
    )
    begun = {"folder": str(base), "step": below.step, "run": runs.digest(below.run)}
    heads = {n: w for n, w in below.params.items() if n not in below.model.spec}
    params = {adapter.ADAPTER: jax.tree.map(np.asarray, adapters)} | heads
    facts = {"imported": str(source), "model_type": was, "val": None, "start": begun}
    _commit(target, run, params, facts, trained_weights.generation(base))
    return run


def _kind(run: Run) -> str | None:
    """The model_type that a run's base was imported as; None for one trained here."""
    return None if run.start is None else pretrained.was(pathlib.Path(run.start).expanduser())


def _commit(
    target: pathlib.Path, run: Run, params: param.Tree, facts: dict, generation: dict
) -> None:
    """Make the run directory, whole or not at all."""
    with atomic.folder(target) as folder:
        (folder / "checkpoints").mkdir()
        start = facts.get("start", {})
        sealed = directory.identity(run, tokenizers.load(run.data.tokenizer).hash, start) | facts
        checkpoint.commit_weights(folder / "checkpoints", params, sealed)
        directory.record(folder, run)
        directory.finish(folder, Result(str(target), 0, run.steps, 0, None, 0))
        io.write(folder / "env.json", json.dumps({"jaxlm": jaxlm.__version__, **facts}) + "\n")
        if generation:
            io.write(folder / tokenizer_files.GENERATION, json.dumps(generation) + "\n")
