"""Kinds of data that each objective reads, and problems of the two in combination."""

import types
from collections.abc import Iterator

from jaxlm import objectives
from jaxlm.core import check, config
from jaxlm.data import kinds, pretraining
from jaxlm.data.corrupt import mask, span
from jaxlm.data.records import chats, preferences, prompts
from jaxlm.models.model import Model
from jaxlm.objectives import distill
from jaxlm.objectives.preference import dpo, reward

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


def problems(cfg: objectives.AnyConfig, model: Model, data: kinds.AnyData) -> Iterator[str]:
    """Problems of a Run's objective, model and data in combination."""
    name = config.kind(type(cfg))
    reads = READS.get(name, (pretraining.Data,))
    if not isinstance(data, reads):
        yield (
            f"data: {_written(type(data))} given with objective {name}, which reads "
            f"{' or '.join(_written(kind) for kind in reads)}"
        )
    elif isinstance(data, preferences.Preferences):
        yield from _preference_problems(cfg, data)
    elif isinstance(data, pretraining.Data):
        yield from _text_problems(name, model, data)
        if isinstance(cfg, distill.Config) and cfg.read == "stored":
            why = "with objective.read='stored', which stores a distribution for each whole row"
            yield from check.changed("data", data, "ramp", "curriculum", "infill", "mix", why=why)


def _preference_problems(cfg: objectives.AnyConfig, data: preferences.Preferences) -> Iterator[str]:
    labelled = data.format == "labelled"
    if isinstance(cfg, dpo.Config) and labelled != (cfg.loss == "kto"):
        right = "read by kto" if labelled else "what kto learns from, with data.format='labelled'"
        yield (
            f"objective.loss: {cfg.loss} given with data.format={data.format!r}; labelled "
            f"responses are {right}"
        )
    if isinstance(cfg, reward.Config):
        fits = "one of comparisons with objective reward, which learns from them"
        yield from check.problem("data.format", data.format, not labelled, fits)


def _text_problems(name: str, model: Model, data: pretraining.Data) -> Iterator[str]:
    corrupt, pretrains = data.corrupt, objectives.fitting(model)
    wanted = CORRUPT.get(name, types.NoneType)
    if name in objectives.PRETRAINING and name != pretrains:
        family = config.kind(type(model.cfg))
        yield f"objective: {name} given with model {family}, which {pretrains} trains"
    if type(corrupt) is not wanted:
        yield (
            f"data.corrupt: {corrupt!r} given with objective {name}, which reads batches of "
            f"{_written(wanted)}"
        )
    pairs = model.kind == "encoder_decoder" and isinstance(corrupt, span.Span)
    if pairs:
        first = model.cfg.start
        fits = f"model.start={first}, with which the model's decoder starts"
        yield from check.problem("data.corrupt.start", corrupt.start, corrupt.start == first, fits)


def _written(kind: type) -> str:
    return "None" if kind is types.NoneType else f"{kind.__module__}.{kind.__name__}()"
