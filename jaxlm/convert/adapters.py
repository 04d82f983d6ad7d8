"""Conversion of adapter run directories: to peft's files, from them, and to plain weights."""

import dataclasses
import os
import pathlib

import jax
import numpy as np

from jaxlm.convert import peft, pretrained, write
from jaxlm.core import atomic, param
from jaxlm.core.remote import hub, staging
from jaxlm.data import tokenizers
from jaxlm.objectives import lora as adapter
from jaxlm.train import trained_weights
from jaxlm.train.run import directory
from jaxlm.train.run import run as runs
from jaxlm.train.run.run import Run


def export(
    source: str | os.PathLike[str],
    target: str | os.PathLike[str],
    *,
    base: str | None = None,
    model_type: str | None = None,
    which: trained_weights.Which = "last",
) -> list[str]:
    """Writes the adapters of a run as peft's files; returns the names of the modules they adapt.

    base: the name of the model underneath in their config (`jaxlm export` of the run's `start`
    makes it). model_type: as for `pretrained.export_run`.

    Raises: FileExistsError for a target that is not empty; ValueError for a run without adapters,
    and for weights that peft has no module for.
    """
    source, target = staging.local(source), pathlib.Path(target)
    pretrained.refuse_existing(target)
    run = directory.load(source)
    if run.adapter is None:
        raise ValueError(f"{source} has no adapters; `jaxlm export` writes its weights")
    kind, _ = write.architecture(run.model, model_type or _kind(run))
    trained = trained_weights.trained(source, which)
    with atomic.folder(target) as folder:
        return peft.write(folder, kind, run.model, run.adapter, trained[adapter.ADAPTER], base)


def merge(
    source: str | os.PathLike[str],
    target: str | os.PathLike[str],
    which: trained_weights.Which = "last",
) -> Run:
    """The Run of a new run directory with the weights that adapters and their base make together,
    at step 0 and finished: it needs neither any more.

    Raises: FileExistsError for a target that is not empty; ValueError for a run without adapters.
    """
    source, target = staging.local(source), pathlib.Path(target)
    pretrained.refuse_existing(target)
    if directory.load(source).adapter is None:
        raise ValueError(f"{source} has no adapters: its weights are complete already")
    saved = trained_weights.load(source, which)
    run = standalone(dataclasses.replace(saved.run, adapter=None, start=None), target)
    facts = {"merged": str(source), "model_type": _kind(saved.run), "val": None}
    _commit(target, run, saved.params, facts, trained_weights.generation(source))
    return run


def import_adapter(
    source: str | os.PathLike[str], base: str | os.PathLike[str], target: str | os.PathLike[str]
) -> Run:
    """The Run of a new run directory with peft's adapters on the weights of another, at step 0 and
    finished: it is sampled, evaluated, merged and exported as any other, and a run may start from
    it.

    Raises: FileExistsError for a target that is not empty; else as `peft.load`.
    """
    target, weights = pathlib.Path(target), staging.local(base)
    pretrained.refuse_existing(target)
    source, origin = hub.fetched(source)
    below = trained_weights.load(weights)
    was = pretrained.was(weights)
    kind, _ = write.architecture(below.run.model, was)
    lora, adapters = peft.load(source, kind, below.run.model)
    run = standalone(dataclasses.replace(below.run, adapter=lora, start=str(base)), target)
    start = {"folder": str(base), "step": below.step, "run": runs.digest(below.run)}
    heads = {n: w for n, w in below.params.items() if n not in below.model.spec}
    params = {adapter.ADAPTER: jax.tree.map(np.asarray, adapters)} | heads
    facts = {**origin, "model_type": was, "val": None, "start": start}
    _commit(target, run, params, facts, trained_weights.generation(weights))
    return run


def standalone(run: Run, target: str | os.PathLike[str]) -> Run:
    """The Run of a new directory, which holds one set of weights: of an average, the average."""
    target, optim = pathlib.Path(target), dataclasses.replace(run.optim, ema=None)
    return dataclasses.replace(run, optim=optim, name=target.name, out=str(target.parent))


def _kind(run: Run) -> str | None:
    """The model_type that a run's base was imported as; None for one trained here."""
    return None if run.start is None else pretrained.was(run.start)


def _commit(
    target: pathlib.Path, run: Run, params: param.Tree, facts: dict, generation: dict
) -> None:
    """Make the run directory, complete or not at all."""
    tokenizer = tokenizers.load(run.data.tokenizer)
    with atomic.folder(target) as folder:
        pretrained.fill(folder, target, run, params, facts, generation, tokenizer.hash)
