"""Floor 3: objectives, one pure function of a batch each. To add one: a file, and a line here."""

from types import ModuleType

from jaxlm.models.model import Model
from jaxlm.objectives import clm
from jaxlm.objectives.objective import Objective
from jaxlm.parallel.plan import Plan

OBJECTIVES: dict[str, ModuleType] = {"clm": clm}

# What a Run's `objective` field may be.
AnyConfig = clm.Config


def build(cfg: AnyConfig, model: Model, plan: Plan = Plan()) -> Objective:
    """The objective of any Config, over this model. Raises: ValueError for an unknown class."""
    for module in OBJECTIVES.values():
        if type(cfg) is module.Config:
            return module.build(cfg, model, plan)
    raise ValueError(f"objective: {type(cfg)} is unknown; objectives: {sorted(OBJECTIVES)}")
