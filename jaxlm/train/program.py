"""Program of a Run: its model, objective and optimiser, put together. Nothing is compiled here."""

import os
from typing import Any

import jax.numpy as jnp

from jaxlm import models, objectives
from jaxlm.core import config, param
from jaxlm.data import tokenizers
from jaxlm.models.layers import value_head
from jaxlm.models.model import Model
from jaxlm.objectives import lora
from jaxlm.objectives.objective import Frozen, Objective
from jaxlm.parallel.plan import Plan
from jaxlm.train import step
from jaxlm.train.optim import diloco, mup, optimizer
from jaxlm.train.run import directory
from jaxlm.train.run.run import Run

# The fact of a checkpoint that its matrices are in few bits.
PACKED = "packed"


def packed(folder: str | os.PathLike[str]) -> dict[str, Any] | None:
    """Record of a run directory's matrices in few bits, by its newest checkpoint: "name" of their
    format, "source" that they were made from, "layout" (`packed_weights.layout`); None where they
    are arrays."""
    facts = directory.proof(folder)
    return None if facts is None else facts.get(PACKED)


def build(run: Run, plan: Plan) -> tuple[Model, Objective]:
    """The model of a run under a plan, and what is trained of it, and for what."""
    model = models.build(run.model, plan)
    objective = objectives.build(run.objective, model, plan, _teacher(run, plan))
    if run.mup is not None:
        small = models.spec(mup.base(run.model, run.mup))
        objective = objective._replace(spec=mup.spec(objective.spec, small, run.optim.name))
    if run.adapter is not None:
        few = None if run.start is None else packed(run.start)
        objective = lora.adapt(objective, model, run.adapter, few and few["layout"])
    return model, objective


def training(run: Run) -> tuple[Model, Objective]:
    """`build` under the run's own plan, with what only its training reads: the reward model among
    the frozen weights."""
    model, objective = build(run, run.plan)
    judge = reward_model(run, run.plan)
    if judge is not None:
        assert run.rollout is not None
        spec = judge.spec | {"score": value_head.spec(judge)}
        frozen = objective.frozen | {"reward": Frozen(spec, run.rollout.reward_model)}
        objective = objective._replace(frozen=frozen)
    return model, objective


def optimiser(run: Run, spec: param.Tree) -> optimizer.Transform:
    """The optimiser of a run for these weights, those of its replicas where it has such."""
    tx = optimizer.build(run.optim, spec, run.steps, run.plan.dtype == jnp.float16)
    return tx if run.diloco is None else diloco.transform(tx, run.diloco)


def update(run: Run, objective: Objective, tx: optimizer.Transform) -> step.Step:
    """The compiled step of a run with its `optimiser`."""
    if run.diloco is None:
        return step.make(objective, tx, run.plan)
    return diloco.make(objective, tx, run.plan, run.diloco)


def reward_model(run: Run, plan: Plan) -> Model | None:
    """The model that scores a run's rollouts, under its plan; None if none does. Its weights are
    the frozen ones called "reward".

    Raises: ValueError for a run directory that holds no reward model, or one that reads other
    tokens or shorter texts.
    """
    if run.rollout is None or run.rollout.reward_model is None:
        return None
    name = run.rollout.reward_model
    try:
        judge = directory.trained(name)
    except (FileNotFoundError, ValueError) as error:
        raise ValueError(f"rollout.reward_model: {error}") from error
    kind = config.kind(type(judge.objective))
    if kind != "reward":
        raise ValueError(
            f"rollout.reward_model: {name} has objective {kind}; a run with objective reward is "
            "needed"
        )
    theirs, ours = (tokenizers.load(r.data.tokenizer).hash for r in (judge, run))
    if theirs != ours:
        raise ValueError(
            f"rollout.reward_model: {name} reads tokenizer {judge.data.tokenizer!r}, this run "
            f"{run.data.tokenizer!r}; they must be the same"
        )
    model = models.build(judge.model, plan)
    longest = run.data.seq + run.rollout.max_new
    if model.context is not None and longest > model.context:
        raise ValueError(
            f"rollout.reward_model: {name} reads {model.context} positions, and data.seq + "
            f"rollout.max_new is {longest}"
        )
    return model


def _teacher(run: Run, plan: Plan) -> Model | None:
    """The model of the run that a distillation learns from; its weights are read by `start`."""
    if not isinstance(run.objective, objectives.distill.Config):
        return None
    try:
        teacher = directory.trained(run.objective.teacher)
    except (FileNotFoundError, ValueError) as error:
        raise ValueError(f"objective.teacher: {error}") from error
    theirs, ours = (tokenizers.load(r.data.tokenizer).hash for r in (teacher, run))
    if theirs != ours:
        raise ValueError(
            f"objective.teacher: {run.objective.teacher} reads tokenizer "
            f"{teacher.data.tokenizer!r}, this run {run.data.tokenizer!r}; they must be the same"
        )
    return models.build(teacher.model, plan)
