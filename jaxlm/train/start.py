"""Weights that a new run begins from: those of another run directory (Run.start)."""

import json
import pathlib
from typing import Any

import jax

from jaxlm import models, objectives
from jaxlm.core import config, param
from jaxlm.data import tokenizers
from jaxlm.parallel.plan import Plan
from jaxlm.train import directory, saved
from jaxlm.train import run as runs
from jaxlm.train.run import Run


def check(run: Run) -> list[str]:
    """What is worth a warning about a run's start, in words.

    Raises: ValueError, before weights are read, if `start` is no run directory, or its weights are
    not those of the run's model, naming the first that differs.
    """
    if run.start is None:
        return []
    folder = pathlib.Path(run.start).expanduser()
    try:
        begun = directory.load(folder)
    except (FileNotFoundError, ValueError) as error:
        raise ValueError(f"start: {error}") from error
    theirs, ours = _weights(begun), _weights(run)
    for path in dict.fromkeys((*ours, *theirs)):
        if theirs.get(path) != ours.get(path):
            raise ValueError(
                f"start: weight {path} is {_told(theirs.get(path))} in {run.start}, and "
                f"{_told(ours.get(path))} in this run's model; the models must have the same "
                "weights"
            )
    models_ = (config.to_dict(r)["model"] for r in (begun, run))
    told = [f"model.{path}: {a} -> {b}" for path, a, b in config.differences(*models_)]
    hashes = [tokenizers.load(r.data.tokenizer).hash for r in (begun, run)]
    if hashes[0] != hashes[1]:
        told.append(f"data.tokenizer: {begun.data.tokenizer} -> {run.data.tokenizer}")
    return [f"otherwise than in {run.start}: {text}" for text in told]


def _weights(run: Run) -> dict[str, tuple[int, ...]]:
    objective = objectives.build(run.objective, models.build(run.model), Plan())
    return {path: p.shape for path, p in param.flatten(objective.spec).items()}


def _told(shape: tuple[int, ...] | None) -> str:
    return "absent" if shape is None else str(list(shape))


def weights(run: Run) -> tuple[param.Tree, dict[str, Any]]:
    """The weights a run begins from, placed as its plan says, and what to record about them.

    Raises: as `saved.load`.
    """
    assert run.start is not None
    found = saved.load(pathlib.Path(run.start).expanduser(), "last", run.plan)
    jax.block_until_ready(found.params)
    facts = {"folder": run.start, "step": found.step, "run": runs.digest(found.run)}
    return found.params, facts


def recorded(folder: pathlib.Path) -> dict[str, Any]:
    """What `weights` told when the run in this directory began; {} if it began from random ones."""
    file = folder / "env.json"
    return json.loads(file.read_text("utf-8")).get("start", {}) if file.is_file() else {}
