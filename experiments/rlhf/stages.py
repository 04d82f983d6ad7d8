"""The stages of alignment in the enumerable world, by the library's own objectives and step.

Each stage is one compiled program, a scan over its steps, which all seeds share: seeds, weights,
reward tables and data are its arguments.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from experiments.rlhf import world as worlds
from experiments.rlhf.world import World
from jaxlm import models, objectives
from jaxlm.core import batch as batches
from jaxlm.core import param
from jaxlm.models import llama
from jaxlm.models.model import Model
from jaxlm.objectives.objective import Objective
from jaxlm.objectives.rl import grpo, ppo
from jaxlm.objectives.rl.policy_terms import Policy
from jaxlm.parallel.plan import Plan
from jaxlm.train import step
from jaxlm.train.optim import optimizer
from jaxlm.train.rl import policy_sampling

PLAN = Plan(unroll=2)


class Training(NamedTuple):
    """How long a stage learns, from how much at a time, how fast, and by which optimiser."""

    steps: int
    rows: int
    lr: float
    optimiser: optimizer.Name = "adamw"


class Stage(NamedTuple):
    """A stage: its objective, begin(seed, weights, frozen) -> State, and learn(State, *data) ->
    (State, metrics), one compiled program."""

    objective: Objective
    begin: Callable[[int, param.Tree, param.Tree], step.State]
    learn: Callable[..., tuple[step.State, step.Metrics]]


def model(world: World, embed: int, layers: int) -> Model:
    """A LLaMA-style model whose vocabulary is the world's."""
    head = 12 if embed % 12 == 0 else 8
    cfg = llama.Config(
        vocab=world.vocab, embed=embed, layers=layers, heads=embed // head, kv=embed // head,
        head=head, ffn=2 * embed, context=world.width,
    )  # fmt: skip
    return models.build(cfg, PLAN)


def optimiser(objective: Objective, training: Training, updates: int = 1) -> optimizer.Transform:
    """Adam or Muon without decay, the rate falling in a line to a fiftieth."""
    settings = optimizer.Optim(
        name=training.optimiser, lr=training.lr, schedule="linear", warmup=0, final=0.02, b2=0.999,
        weight_decay=0.0,
    )  # fmt: skip
    return optimizer.build(settings, objective.spec, training.steps * updates, fp16=False)


def supervised(cfg: Any, built: Model, training: Training) -> Stage:
    """The Stage of an objective that learns from batches [steps, ...] made before."""
    objective = objectives.build(cfg, built, PLAN)
    tx = optimiser(objective, training)
    update = step.make(objective, tx, PLAN)
    return Stage(
        objective,
        _beginner(objective, tx),
        jax.jit(lambda state, data: jax.lax.scan(update, state, data), donate_argnums=0),
    )


class Rollouts(NamedTuple):
    """How the responses of an iteration are judged and learnt from. group: responses to each prompt
    that are judged together. every: iterations of one call of `learn`."""

    group: int
    epochs: int
    minibatches: int
    every: int


def reinforced(
    cfg: ppo.Config | grpo.Config, built: Model, world: World, training: Training, way: Rollouts
) -> Stage:
    """The Stage of ppo or grpo: learn(state, reward table [prompts, N], key) samples, judges and
    learns `way.every` times of `training.steps` in all. Its metrics are those of the advantages,
    and the largest |log ratio| of each iteration's first step, [every] each."""
    objective = objectives.build(cfg, built, PLAN)
    if isinstance(cfg, ppo.Config):
        policy = ppo.policy(cfg, built, PLAN)
    else:
        policy = grpo.policy(cfg, built, PLAN, group=way.group, longest=world.length)
    updates = way.epochs * way.minibatches
    tx = optimiser(objective, training, updates)
    update = step.make(objective, tx, PLAN)
    sample = policy_sampling.program(built, objective, max_new=world.length, stop=(world.end,))
    ask = prompts(world, training.rows, way.group)

    def iteration(state: step.State, table: jax.Array, key: jax.Array) -> tuple:
        keys = jax.random.split(key)
        drawn = jax.random.key_data(keys[0])
        rows = sample(state.params, state.frozen, ask, drawn, policy.temperature)
        rows = rows._replace(score=scored(world, table, rows))
        rows, told = judged(policy, state, rows)
        order = jax.vmap(lambda k: jax.random.permutation(k, training.rows))(
            jax.random.split(keys[1], way.epochs)
        ).reshape(updates, -1)
        state, metrics = jax.lax.scan(update, state, jax.tree.map(lambda x: x[order], rows))
        return state, told | {"ratio_gap": metrics["ratio_gap"][0]}

    def learn(state: step.State, table: jax.Array, key: jax.Array) -> tuple:
        keys = jax.random.split(key, way.every)
        return jax.lax.scan(lambda state, k: iteration(state, table, k), state, keys)

    return Stage(objective, _beginner(objective, tx), jax.jit(learn, donate_argnums=0))


def judged(
    policy: Policy, state: Any, rows: batches.Rollout
) -> tuple[batches.Rollout, dict[str, jax.Array]]:
    """The Rollout to learn from, and metrics, of responses and their scores."""
    _, reference, value = policy.measure(state.params, state.frozen, rows)
    rows = rows._replace(reference=reference, value=value)
    advantage, returns, metrics = policy.advantages(rows, policy.kl_coefficient)
    learnt = rows._replace(advantage=advantage, returns=returns, score=None, finished=None)
    return learnt, metrics


def prompts(world: World, rows: int, group: int) -> batches.Prompts:
    """So many prompts, each `group` times in consecutive rows; all of them equally often."""
    row = jnp.arange(rows, dtype=jnp.int32)
    tokens = jnp.stack([jnp.full_like(row, world.end), row // group % world.prompts], 1)
    positions = jnp.broadcast_to(jnp.arange(2, dtype=jnp.int32), tokens.shape)
    return batches.Prompts(tokens, jnp.ones_like(tokens), positions, row)


def scored(world: World, table: jax.Array, rows: batches.Rollout) -> jax.Array:
    """float32[N]: what a table [prompts, completions] says of responses."""
    at = worlds.index(world, rows.tokens[:, 2:], rows.segments[:, 2:] > 0)
    return table[rows.tokens[:, 1], at].astype(jnp.float32)


def _beginner(objective: Objective, tx: optimizer.Transform) -> Callable[..., step.State]:
    """begin(seed, weights, frozen): what the weights lack, a head, is fresh, as in `Run.start`."""

    def begin(seed: jax.Array, weights: param.Tree, frozen: param.Tree) -> step.State:
        key = jax.random.key(seed)
        made = param.init(objective.spec, jax.random.fold_in(key, 0))
        params = made | {name: weights[name] for name in weights if name in made}
        zero = jnp.zeros((), jnp.int32)
        return step.State(zero, params, tx.init(params), frozen, jax.random.key_data(key))

    # what runs once need not be optimised, which would take longer
    return jax.jit(begin, compiler_options={"xla_backend_optimization_level": 1})
