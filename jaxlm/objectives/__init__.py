"""Floor 3: objectives, one pure function of a batch each. To add one: a file, and a line here."""

import types
from types import ModuleType

from jaxlm.core import config
from jaxlm.data import kinds, pretraining
from jaxlm.data.corrupt import mask, span
from jaxlm.data.records import chats, preferences, prompts
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

# The kinds of data each reads, where it is not text.
READS: dict[str, tuple[type, ...]] = {
    "distill": (pretraining.Data, chats.Chats, prompts.Prompts),
    "dpo": (preferences.Preferences,),
    "grpo": (prompts.Prompts,),
    "ppo": (prompts.Prompts,),
    "reward": (preferences.Preferences,),
    "sft": (chats.Chats,),
}

# The type that each requires of data.corrupt.
CORRUPT: dict[str, type] = {"mlm": mask.Mask, "seq2seq": span.Span}


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


def problems(cfg: AnyConfig, model: Model, data: kinds.AnyData) -> list[str]:
    """Problems of a Run's objective, model and data in combination, [] if there are none."""
    given = next(name for name, module in OBJECTIVES.items() if type(cfg) is module.Config)
    reads = READS.get(given, (pretraining.Data,))
    if not isinstance(data, reads):
        return [
            f"data: {_written(type(data))} given with objective {given}, which reads "
            f"{' or '.join(_written(kind) for kind in reads)}"
        ]
    if isinstance(cfg, dpo.Config) and isinstance(data, preferences.Preferences):
        return dpo.problems(cfg, data)
    if isinstance(cfg, reward.Config) and isinstance(data, preferences.Preferences):
        reason = "'labelled' given with objective reward, which learns from comparisons"
        return [f"data.format: {reason}"] if data.format == "labelled" else []
    if not isinstance(data, pretraining.Data):
        return []
    stored = isinstance(cfg, distill.Config) and cfg.read == "stored"
    return _text_problems(given, model, data) + (_stored_problems(data) if stored else [])


def _text_problems(given: str, model: Model, data: pretraining.Data) -> list[str]:
    corrupt, right, wanted = data.corrupt, fitting(model), CORRUPT.get(given, types.NoneType)
    family = config.kind(type(model.cfg))
    found = []
    if given in PRETRAINING and given != right:
        found += [f"objective: {given} given with model {family}, which {right} trains"]
    if type(corrupt) is not wanted:
        found += [
            f"data.corrupt: {corrupt!r} given with objective {given}, which reads batches of "
            f"{_written(wanted)}"
        ]
    pairs = model.kind == "encoder_decoder" and isinstance(corrupt, span.Span)
    if pairs and corrupt.start != model.cfg.start:
        found += [
            f"data.corrupt.start: {corrupt.start} given, but the model's decoder starts with "
            f"model.start={model.cfg.start}"
        ]
    return found


def _stored_problems(data: pretraining.Data) -> list[str]:
    """Settings of the data that prevent storing a teacher's distributions row by row."""
    plain = pretraining.Data()
    return [
        f"data.{name}: {getattr(data, name)!r} given with objective.read='stored', which knows "
        f"whole rows only; {getattr(plain, name)!r} is right"
        for name in ("ramp", "curriculum", "infill")
        if getattr(data, name) != getattr(plain, name)
    ]


def _written(kind: type) -> str:
    return "None" if kind is types.NoneType else f"{kind.__module__}.{kind.__name__}()"
