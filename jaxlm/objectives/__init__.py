"""Floor 3: objectives, one pure function of a batch each. To add one: a file, and a line here."""

from types import ModuleType

from jaxlm.models.model import Model
from jaxlm.objectives import clm, distill, mlm, seq2seq, sft
from jaxlm.objectives.objective import Objective
from jaxlm.objectives.preference import dpo, reward
from jaxlm.objectives.rl import grpo, ppo
from jaxlm.parallel.plan import Plan

OBJECTIVES: dict[str, ModuleType] = {
    "clm": clm,
    "distill": distill,
    "dpo": dpo,
    "grpo": grpo,
    "mlm": mlm,
    "ppo": ppo,
    "reward": reward,
    "seq2seq": seq2seq,
    "sft": sft,
}

# Types of a Run's `objective` field.
AnyConfig = (
    clm.Config
    | distill.Config
    | dpo.Config
    | grpo.Config
    | mlm.Config
    | ppo.Config
    | reward.Config
    | seq2seq.Config
    | sft.Config
)

# Those of which each model has the one that pretrains it (`fitting`).
PRETRAINING = ("clm", "mlm", "seq2seq")


def build(
    cfg: AnyConfig, model: Model, plan: Plan = Plan(), teacher: Model | None = None
) -> Objective:
    """The objective of any Config, over this model; of distill, with this teacher.

    Raises: ValueError for an unknown class, or what the objective and the models are no match for.
    """
    if isinstance(cfg, distill.Config):
        if teacher is None:
            raise ValueError(f"objective.teacher: the model of {cfg.teacher} must be given")
        return distill.build(cfg, model, plan, teacher)
    for module in OBJECTIVES.values():
        if type(cfg) is module.Config:
            return module.build(cfg, model, plan)
    raise ValueError(f"objective: {type(cfg)} is unknown; objectives: {sorted(OBJECTIVES)}")


def fitting(model: Model) -> str:
    """The name of the objective that pretrains a model of this kind."""
    return {"decoder": "clm", "encoder": "mlm", "encoder_decoder": "seq2seq"}[model.kind]
