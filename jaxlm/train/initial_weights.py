"""Weights that a run begins from, or reads frozen: those of other run directories."""

import os
import pathlib
from typing import Any

import jax

from jaxlm import models
from jaxlm.core import config, param
from jaxlm.core.remote import staging
from jaxlm.data import pretraining, tokenizers
from jaxlm.data.tokenizers import tokenizer as interface
from jaxlm.models import packed_weights
from jaxlm.objectives.objective import Frozen, Objective
from jaxlm.train import program, step, trained_weights
from jaxlm.train.optim import optimizer
from jaxlm.train.run import directory
from jaxlm.train.run import run as runs
from jaxlm.train.run.run import Run

# Model fields that may differ between a run and the one it starts from: how far positions reach,
# and what acts in training alone. All else that is no weight would make the weights another model.
CHANGEABLE = ("context", "scaling", "theta", "local_theta", "window", "dropout", "capacity")


def check(run: Run) -> list[str]:
    """Warnings about a run's start, in words.

    Raises: ValueError, before weights are read, if `start` is no run directory, or its weights are
    not those of the run's model, naming the first that differs; the same of a critic's.
    """
    warnings = [] if run.start is None else _check_model(run, run.start)
    _check_parts(run)
    return warnings


def _check_model(run: Run, name: str) -> list[str]:
    try:
        folder = staging.local(name)
        begun = directory.trained(folder)
        _check_packed(run, folder)
    except (FileNotFoundError, ValueError) as error:
        raise ValueError(f"start: {error}") from error
    theirs, ours = _weights(begun), _weights(run)
    for path in dict.fromkeys((*ours, *theirs)):
        if theirs.get(path) != ours.get(path):
            raise ValueError(
                f"start: weight {path} is {_shape(theirs.get(path))} in {name}, and "
                f"{_shape(ours.get(path))} in this run's model; the models must have the same "
                "weights"
            )
    changes = config.differences(*(config.to_dict(r)["model"] for r in (begun, run)))
    for path, there, here in changes:
        if path.partition(".")[0] not in CHANGEABLE:
            raise ValueError(
                f"model.{path}: {here!r} given, and the weights of {name} were trained with "
                f"{there!r}: they would compute something else; of a model's fields that are no "
                f"shapes only {', '.join(CHANGEABLE)} may differ from those of `start`"
            )
    warnings = [f"model.{path}: {there} -> {here}" for path, there, here in changes]
    theirs, ours = directory.tokenizer(folder, begun), tokenizers.load(run.data.tokenizer)
    if theirs.hash != ours.hash:
        _check_tokenizers(name, begun, run, theirs, ours)
        warnings.append(f"data.tokenizer: {begun.data.tokenizer} -> {run.data.tokenizer}")
    layouts = [r.data.template for r in (begun, run) if not isinstance(r.data, pretraining.Data)]
    if len(layouts) == 2 and layouts[0] != layouts[1]:
        warnings.append(f"data.template: {layouts[0]} -> {layouts[1]}")
    warnings = [f"not as in {name}: {text}" for text in warnings]
    if ours.vocab > run.model.vocab:
        warnings += interface.mismatch(ours, run.model.vocab)
    return warnings


def _check_packed(run: Run, folder: pathlib.Path) -> None:
    """Raises: ValueError for matrices in few bits that are to move, or on several devices."""
    few = program.packed(folder)
    if few is None:
        return
    if run.adapter is None:
        raise ValueError(
            f"{folder} holds matrices in {few['name']}, which no gradient moves; train adapters on "
            f"them (Run.adapter), or start from {few['source']}, which they were made from"
        )
    if run.plan.devices > 1:
        raise ValueError(
            f"{folder} holds matrices in {few['name']}, which one device reads; the plan has "
            f"{run.plan.devices}"
        )


def _check_tokenizers(
    name: str, begun: Run, run: Run, theirs: interface.Tokenizer, ours: interface.Tokenizer
) -> None:
    """Raises: ValueError unless every id that the weights know spells the same in both: tokens may
    have been added."""
    common = range(min(theirs.vocab, ours.vocab))
    other = next((i for i in common if theirs.decode_bytes([i]) != ours.decode_bytes([i])), None)
    if other is None and ours.vocab >= theirs.vocab:
        return
    difference = f"only {ours.vocab} of its {theirs.vocab} ids"
    if other is not None:
        difference = (
            f"id {other} as {ours.decode_bytes([other])!r}, not {theirs.decode_bytes([other])!r}"
        )
    raise ValueError(
        f"data.tokenizer: {run.data.tokenizer!r} given, and the weights of {name} were trained "
        f"with {begun.data.tokenizer!r} (hash {theirs.hash[:12]}); this one has {difference}: "
        "name that one, or one that only adds tokens to it"
    )


def _check_parts(run: Run) -> None:
    _, objective = program.training(run)
    for name, part in objective.begun.items():
        try:
            begun = directory.trained(part.run)
            trained_weights.refuse_packed(part.run, "trained")
            theirs = models.spec(begun.model)
        except (FileNotFoundError, ValueError) as error:
            raise ValueError(f"the {name}'s weights, from {part.run}: {error}") from error
        read = [tokenizers.load(r.data.tokenizer).hash for r in (begun, run)]
        if read[0] != read[1]:
            raise ValueError(
                f"the {name}'s weights, from {part.run}, read tokenizer {begun.data.tokenizer!r}, "
                f"this run {run.data.tokenizer!r}; they must be the same"
            )
        ours = {key: p for key, p in objective.spec[name].items() if key not in part.renamed}
        _check_shapes(name, part.run, ours, theirs)


def _weights(run: Run) -> dict[str, tuple[int, ...]]:
    """The shapes of the model's own weights, without an objective's heads."""
    return {path: p.shape for path, p in param.flatten(models.spec(run.model)).items()}


def _shape(shape: tuple[int, ...] | None) -> str:
    return "absent" if shape is None else str(list(shape))


def state(
    run: Run, objective: Objective, tx: optimizer.Transform
) -> tuple[step.State, dict[str, Any]]:
    """The State of step 0, and what is recorded about the source of its weights. Raises: as
    `weights`."""
    if run.start is None and not objective.begun:
        return step.init(objective, tx, run.plan, run.seed), {}
    params, facts = weights(run, objective)
    return step.begin(objective, tx, run.plan, run.seed, params), facts


def weights(run: Run, objective: Objective) -> tuple[param.Tree, dict[str, Any]]:
    """The weights a run begins from, placed by its plan, and what to record about them.

    Those of the objective that no other run has (a head) are fresh.

    Raises: as `trained_weights.load`.
    """
    params, facts = {}, {}
    if run.start is not None:
        params, facts = _loaded(run.start, run)
    for name, part in objective.begun.items():
        saved, origin = _loaded(part.run, run)
        spec = objective.spec[name]
        named = {key: saved.get(part.renamed.get(key, key)) for key in spec}
        named = {key: tree for key, tree in named.items() if tree is not None}
        params[name] = _completed(named, spec, run)
        facts[name] = origin
    return jax.block_until_ready(_completed(params, objective.spec, run)), facts


def _loaded(folder: str, run: Run) -> tuple[param.Tree, dict[str, Any]]:
    saved = trained_weights.load(folder, "last", run.plan)
    return saved.params, {"folder": folder, "step": saved.step, "run": runs.digest(saved.run)}


def _completed(params: param.Tree, spec: param.Tree, run: Run) -> param.Tree:
    """The weights of `spec`: those in params, and fresh ones for what is not there."""
    new = {name: part for name, part in spec.items() if name not in params}
    fresh = {}
    if new:
        shardings = run.plan.shard_params(new)
        key = jax.random.fold_in(jax.random.key(run.seed), 0)
        fresh = jax.jit(lambda: param.init(new, key), out_shardings=shardings)()
    return {name: fresh[name] if name in fresh else params[name] for name in spec}


def frozen(run: Run, objective: Objective, begun: dict[str, Any]) -> dict[str, param.Tree]:
    """The State's frozen weights, from their sources, placed by the run's plan: those of other
    runs, or what this run began from, also when it resumes. begun: what `weights` reported then.

    Raises: as `trained_weights.load`, naming the weights wanted.
    """
    return {name: _frozen(run, name, part, begun) for name, part in objective.frozen.items()}


def _frozen(run: Run, name: str, part: Frozen, begun: dict[str, Any]) -> param.Tree:
    weights = _read(run, name, part, begun)
    if part.stored is None:
        return weights
    places = run.plan.shard_params(part.stored.spec)
    if part.stored.make is None:
        return jax.block_until_ready(jax.device_put(weights, places))
    return jax.block_until_ready(jax.jit(part.stored.make, out_shardings=places)(weights))


def _read(run: Run, name: str, part: Frozen, begun: dict[str, Any]) -> param.Tree:
    folder = run.start if part.run is None else part.run
    if folder is None:
        key = jax.random.fold_in(jax.random.key(run.seed), 0)
        shardings = run.plan.shard_params(part.spec)
        return jax.jit(lambda: param.init(part.spec, key), out_shardings=shardings)()
    try:
        if part.stored is None or part.stored.make is not None:
            trained_weights.refuse_packed(folder, "read frozen by a run that trains")
        which = begun.get("step", "last") if part.run is None else "last"
        weights = trained_weights.load(folder, which, run.plan).params
    except (FileNotFoundError, ValueError) as error:
        raise ValueError(f"the {name}'s weights, from {folder}: {error}") from error
    _check_shapes(name, folder, part.spec, weights)
    return {key: weights[key] for key in part.spec}


def _check_shapes(name: str, folder: str, spec: param.Tree, weights: param.Tree) -> None:
    """Raises: ValueError for the first of the weights (or their spec) that is not as in spec."""
    theirs = {path: x.shape for path, x in packed_weights.flat(weights).items()}
    for path, p in param.flatten(spec).items():
        if theirs.get(path) != p.shape:
            raise ValueError(
                f"the {name}'s weight {path} is {_shape(theirs.get(path))} in {folder}, and "
                f"{_shape(p.shape)} is needed"
            )


def recorded(folder: str | os.PathLike[str]) -> dict[str, Any]:
    """Source of this directory's initial weights, as `weights` reported it; {} if random."""
    return trained_weights.begun(folder)
