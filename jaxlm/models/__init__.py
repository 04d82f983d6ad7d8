"""Floor 2: model families. To add one: a file, and a line here."""

from types import ModuleType
from typing import Any

from jaxlm.models import bert, deepseek, flax_modules, gemma, gpt, llama, mistral, palm, qwen, t5
from jaxlm.models.model import Model
from jaxlm.parallel.plan import Plan

FAMILIES: dict[str, ModuleType] = {
    "bert": bert,
    "deepseek": deepseek,
    "gemma": gemma,
    "gpt": gpt,
    "llama": llama,
    "mistral": mistral,
    "palm": palm,
    "qwen": qwen,
    "t5": t5,
}

# Types of a Run's `model` field.
AnyConfig = (
    bert.Config
    | deepseek.Config
    | flax_modules.Config
    | gemma.Config
    | gpt.Config
    | llama.Config
    | mistral.Config
    | palm.Config
    | qwen.Config
    | t5.Config
)


def build(cfg: AnyConfig, plan: Plan = Plan()) -> Model:
    """The model of any family's Config, executed by the plan."""
    return family(cfg).build(cfg, plan)


def spec(cfg: AnyConfig) -> Any:
    """The weights' spec of any family's Config, without devices or memory."""
    return family(cfg).spec(cfg)


def family(cfg: AnyConfig) -> ModuleType:
    """The module a Config belongs to. Raises: ValueError for a class of no family."""
    for module in (*FAMILIES.values(), flax_modules):
        if type(cfg) is module.Config:
            return module
    raise ValueError(f"model: {type(cfg)} is no family's Config; families: {sorted(FAMILIES)}")


def presets() -> dict[str, AnyConfig]:
    """Every family's published sizes by name."""
    return {name: cfg for module in FAMILIES.values() for name, cfg in module.PRESETS.items()}
