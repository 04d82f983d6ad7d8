"""What a Run trains: its model and objective, put together. Nothing is compiled here."""

from jaxlm import models, objectives
from jaxlm.models.model import Model
from jaxlm.objectives.objective import Objective
from jaxlm.parallel.plan import Plan
from jaxlm.train.run import Run


def build(run: Run, plan: Plan) -> tuple[Model, Objective]:
    """The model of a run under a plan, and what is trained of it, and for what."""
    model = models.build(run.model, plan)
    return model, objectives.build(run.objective, model, plan)
