"""Settings of a run that makes its own batches: responses of the policy to prompts, their scores,
and how often they are learnt from. collection.py makes the batches."""

import dataclasses
from collections.abc import Iterator
from typing import Any

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
    """Problems of a run's rollout, in words that name the field."""
    least = {"samples": 1, "max_new": 1, "epochs": 1, "minibatches": 1, "save_every": 1}
    least |= {"reward_retries": 0, "resample": 0, "save": 0, "eval_temperature": 0}
    for name, bound in least.items():
        given = getattr(rollout, name)
        if not given >= bound:
            yield f"rollout.{name}: {given} given; at least {bound} is needed"
            return
    if isinstance(objective, distill.Config):
        yield from _taught(rollout, objective)
        yield from _numbers(rollout, data, plan)
        return
    if not rollout.reward_seconds > 0:
        yield f"rollout.reward_seconds: {rollout.reward_seconds} given; it must be above 0"
    if not rollout.rewards and rollout.reward_model is None:
        yield (
            "rollout.rewards: none given, and rollout.reward_model=None; name a function, such as "
            "'exact' or 'file.py:function', or a reward model's run directory"
        )
    for text in reward_functions.problems(rollout.rewards, rollout.weights):
        yield f"rollout.rewards: {text}"
    yield from _numbers(rollout, data, plan)
    yield from _groups(rollout, objective)


def _taught(rollout: Rollout, objective: distill.Config) -> Iterator[str]:
    plain = Rollout()
    for name in ("epochs", "minibatches", "rewards", "weights", "reward_model", "resample"):
        if getattr(rollout, name) != getattr(plain, name):
            yield (
                f"rollout.{name}: {getattr(rollout, name)!r} given with objective distill, whose "
                f"responses are compared with a teacher's, once; use {getattr(plain, name)!r}"
            )
    if objective.read != "frozen":
        yield (
            f"objective.read: {objective.read!r} given with a rollout, whose responses are new at "
            "every step; use 'frozen'"
        )
    if objective.hard:
        yield (
            f"objective.hard: {objective.hard} given with a rollout, whose targets are the "
            "student's own; use 0"
        )


def _numbers(rollout: Rollout, data: prompts.Prompts, plan: Plan) -> Iterator[str]:
    rows = data.batch * rollout.samples
    parts = rollout.minibatches * plan.microbatches * plan.data * plan.fsdp
    if rows % parts:
        yield (
            f"rollout.minibatches: {rollout.minibatches} given, but data.batch={data.batch} x "
            f"rollout.samples={rollout.samples} responses do not divide into that many x "
            f"plan.microbatches={plan.microbatches} x plan.data={plan.data} x "
            f"plan.fsdp={plan.fsdp}; choose a multiple of {parts} responses"
        )
    if data.workers:
        yield f"data.workers: {data.workers} given; prompts are read in this process; use 0"


def _groups(rollout: Rollout, objective: Any) -> Iterator[str]:
    if rollout.samples > 1:
        return
    if rollout.resample:
        yield (
            f"rollout.resample: {rollout.resample} given with rollout.samples=1; it replaces "
            "groups of at least 2 responses whose scores are equal"
        )
    group = isinstance(objective, grpo.Config)
    if group and grpo.VARIANTS[objective.variant].advantage != "whitened":
        yield (
            f"rollout.samples: 1 given, but {objective.variant} compares the responses to a "
            "prompt; at least 2 are needed"
        )
