"""Settings of a run that makes its own batches: responses of the policy to prompts, their scores,
and how often they are learnt from. collection.py makes the batches."""

import dataclasses
import math
from collections.abc import Iterator
from typing import Any

from jaxlm.core import check
from jaxlm.data.records import prompts
from jaxlm.objectives import distill
from jaxlm.objectives.rl import grpo
from jaxlm.parallel.plan import Plan
from jaxlm.train.rl import reward_functions


@dataclasses.dataclass(frozen=True)
class Rollout:
    """An iteration: data.batch prompts, `samples` responses to each, and epochs * minibatches steps
    that learn from them before the next."""

    samples: int = 4
    """Responses to each prompt; a group, where an objective compares within groups."""
    max_new: int = 64
    """Tokens of a response at most, its end among them."""
    slots: int | None = None
    """Responses that are decoded at a time: one that ends makes room for another. None decodes all
    of an iteration together, until the last has ended."""
    epochs: int = 1
    """Times each response is learnt from."""
    minibatches: int = 1
    """Steps of an epoch; each learns from data.batch * samples / minibatches responses."""
    rewards: tuple[str, ...] = ()
    """Reward functions by name, "file.py:function" or "module:function" (built-in ones are listed
    in train/rl/reward_functions.py); a response's score is their weighted sum."""
    weights: tuple[float, ...] = ()
    """A factor for each reward function; () is 1 for all."""
    reward_model: str | None = None
    """A run directory of objective reward, whose score is added; None adds none."""
    reward_model_weight: float = 1.0
    """A factor for the reward model's score."""
    reward_seconds: float = 60.0
    """Seconds that one call of a reward function of your own may take."""
    reward_retries: int = 1
    """Times that a failed call is repeated, before it is made for each sample alone."""
    resample: int = 0
    """Further rounds of prompts, at most, in place of groups whose scores are all equal, from which
    nothing is learnt (dynamic sampling of Yu et al. 2025, DAPO); 0 keeps all groups."""
    eval_temperature: float = 1.0
    """Temperature of responses to held-out prompts, one each; 0 takes the likeliest tokens."""
    save: int = 8
    """Responses saved to samples/ at a time, with their scores; 0 saves none."""
    save_every: int = 10
    """Iterations from one such save to the next."""

    @property
    def steps(self) -> int:
        """Steps of an iteration."""
        return self.epochs * self.minibatches


def problems(rollout: Rollout, data: prompts.Prompts, objective: Any, plan: Plan) -> Iterator[str]:
    """Problems of a run's rollout, a line for each field that does not fit."""
    names = ("samples", "max_new", "epochs", "minibatches", "save_every")
    wrong = [*check.outside("rollout", rollout, *names, least=1)]
    yield from wrong
    names = ("reward_retries", "resample", "save", "eval_temperature")
    yield from check.outside("rollout", rollout, *names, least=0)
    yield from check.outside("rollout", rollout, "reward_seconds", above=0)
    if rollout.slots is not None:
        yield from check.outside("rollout", rollout, "slots", least=1)
        fits = "None with a plan of several devices: its rows are where their prompts are"
        yield from check.problem("rollout.slots", rollout.slots, plan.devices == 1, fits)
    weight = rollout.reward_model_weight
    yield from check.problem(
        "rollout.reward_model_weight", weight, math.isfinite(weight), "a finite number"
    )
    why = "with a rollout, whose responses grow a token at a time"
    yield from check.changed("plan", plan, "pipe", "context", "sequence", why=why)
    if isinstance(objective, distill.Config):
        yield from _taught(rollout, objective)
    else:
        ok = bool(rollout.rewards) or rollout.reward_model is not None
        fits = "functions such as 'exact' or 'file.py:function', with rollout.reward_model=None"
        yield from check.problem("rollout.rewards", rollout.rewards, ok, fits)
        yield from reward_functions.problems("rollout", rollout.rewards, rollout.weights)
        yield from _groups(rollout, objective)
    if not wrong:
        yield from _rows(rollout, data, plan)


def _taught(rollout: Rollout, objective: distill.Config) -> Iterator[str]:
    names = ("epochs", "minibatches", "rewards", "weights", "reward_model", "resample")
    why = "with objective distill, whose responses are compared with a teacher's, once"
    yield from check.changed("rollout", rollout, *names, why=why)
    fits = "'frozen' with a rollout, whose responses are new at every step"
    yield from check.problem("objective.read", objective.read, objective.read == "frozen", fits)
    fits = "0 with a rollout, whose targets are the student's own"
    yield from check.problem("objective.hard", objective.hard, not objective.hard, fits)


def _rows(rollout: Rollout, data: prompts.Prompts, plan: Plan) -> Iterator[str]:
    rows = data.batch * rollout.samples
    parts = rollout.minibatches * plan.multiple
    if data.batch >= 1 and rows % parts:
        yield (
            f"rollout.minibatches: {rollout.minibatches} given, but data.batch={data.batch} x "
            f"rollout.samples={rollout.samples} responses do not divide into that many x "
            f"plan.microbatches={plan.microbatches} x {plan.row_parts} parts of the rows ({plan}); "
            f"choose a multiple of {parts} responses"
        )
    yield from check.changed("data", data, "workers", why="with prompts: this process reads them")


def _groups(rollout: Rollout, objective: Any) -> Iterator[str]:
    if rollout.samples != 1:
        return
    why = "with rollout.samples=1: it replaces groups of responses whose scores are equal"
    yield from check.changed("rollout", rollout, "resample", why=why)
    if isinstance(objective, grpo.Config):
        ok = grpo.VARIANTS[objective.variant].advantage == "whitened"
        fits = f"at least 2: {objective.variant} compares the responses to a prompt"
        yield from check.problem("rollout.samples", 1, ok, fits)
