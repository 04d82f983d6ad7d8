"""What a Run trains: its model and objective, put together. Nothing is compiled here."""

import pathlib

from jaxlm import models, objectives
from jaxlm.models.model import Model
from jaxlm.objectives import adapter
from jaxlm.objectives.objective import Objective
from jaxlm.parallel.plan import Plan
from jaxlm.train import directory
from jaxlm.train.run import Run


def build(run: Run, plan: Plan) -> tuple[Model, Objective]:
    """The model of a run under a plan, and what is trained of it, and for what."""
    model = models.build(run.model, plan)
    objective = objectives.build(run.objective, model, plan, _teacher(run, plan))
    if run.adapter is not None:
        objective = adapter.adapt(objective, model, run.adapter)
    return model, objective


def _teacher(run: Run, plan: Plan) -> Model | None:
    """The model of the run that a distillation learns from; its weights are read by `start`."""
    if not isinstance(run.objective, objectives.distill.Config):
        return None
    try:
        found = directory.load(pathlib.Path(run.objective.teacher).expanduser())
    except (FileNotFoundError, ValueError) as error:
        raise ValueError(f"objective.teacher: {error}") from error
    return models.build(found.model, plan)
