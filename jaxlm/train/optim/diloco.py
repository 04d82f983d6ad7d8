"""DiLoCo: replicas that train apart and agree every H steps (Douillard et al. 2023, algorithm 1).

Each replica takes its share of a batch's rows and updates weights of its own with an optimiser of
its own. After every H steps the mean of what they have moved is the gradient of an outer optimiser,
SGD with Nesterov's momentum, and all go on from its weights. Devices of different replicas exchange
that mean alone: 4 N / H bytes a step of N weights, in place of 4 N.
"""

import dataclasses
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxlm.core import check, param
from jaxlm.objectives.objective import Objective
from jaxlm.parallel.plan import Plan
from jaxlm.train import step
from jaxlm.train.optim import optimizer


@dataclasses.dataclass(frozen=True)
class Replicas:
    """Replicas that train apart by DiLoCo. The defaults are the paper's, for 8 of 150M weights."""

    replicas: int = 8
    """Copies of the model; each takes its share of every batch's rows."""
    every: int = 30
    """Steps from one agreement to the next."""
    outer_lr: float = 0.7
    """Learning rate of the outer optimiser; at 1 without momentum weights are averaged."""
    outer_momentum: float = 0.9
    """Nesterov momentum of the outer optimiser."""


class State(NamedTuple):
    """The optimiser's part of a `step.State` whose params are the weights last agreed on.

    params: each replica's weights [K, ...]. inner: each one's `optimizer.State` [K, ...]. outer:
    optax's state of the outer optimiser. average: None; DiLoCo keeps no average of its own.
    """

    params: param.Tree
    inner: optimizer.State
    outer: Any
    average: None = None


def problems(
    cfg: Replicas | None, plan: Plan, steps: int, eval_every: int | None, optim: optimizer.Optim
) -> Iterator[str]:
    """A line for every field of a run that does not fit its replicas, or the lack of them."""
    if cfg is None:
        yield from check.changed("plan", plan, "replica", why="with diloco=None")
        return
    yield from check.outside("diloco", cfg, "replicas", "every", least=1)
    yield from check.outside("diloco", cfg, "outer_lr", above=0)
    yield from check.outside("diloco", cfg, "outer_momentum", least=0, below=1)
    if cfg.replicas < 1 or cfg.every < 1:
        return
    fits = f"a divisor of diloco.replicas={cfg.replicas}"
    yield from check.problem("plan.replica", plan.replica, cfg.replicas % plan.replica == 0, fits)
    for name, value in (("steps", steps), ("eval_every", eval_every)):
        fits = f"a multiple of diloco.every={cfg.every}, after which the replicas agree"
        yield from check.problem(name, value, (value or 0) % cfg.every == 0, fits)
    why = "with diloco, whose weights are an average already"
    yield from check.changed("optim", optim, "ema", why=why)
    ok = plan.compute != "float16"
    yield from check.problem("plan.compute", plan.compute, ok, "bfloat16 or float32 with diloco")


def transform(tx: optimizer.Transform, cfg: Replicas) -> optimizer.Transform:
    """The replicas' optimisers as one, as far as its state goes: updates are the step's."""

    def init(params: param.Tree) -> State:
        # every leaf [replicas, ...]
        copies = jax.tree.map(lambda p: jnp.broadcast_to(p, (cfg.replicas, *p.shape)), params)
        inner: Any = jax.vmap(tx.init)(copies)
        return State(copies, inner, _outer(cfg).init(params))

    return optimizer.Transform(init, tx.update)  # ty: ignore[invalid-argument-type]


def make(objective: Objective, tx: optimizer.Transform, plan: Plan, cfg: Replicas) -> step.Step:
    """The compiled step, as `step.make`. tx: what `transform` gives."""
    shardings = step.shard(objective, tx, plan)
    combined = body(objective, tx, plan, cfg)
    return jax.jit(combined, donate_argnums=0, out_shardings=(shardings, plan.replicated))


def body(objective: Objective, tx: optimizer.Transform, plan: Plan, cfg: Replicas) -> step.Step:
    """The step as a plain function: every replica's own, and after every H of them an agreement.

    Replica k draws from fold_in(key, k). Of its metrics `weight` and `skipped` are sums over the
    replicas, all others means by weight.
    """
    inner_step = step.body(objective, tx, plan)
    axis = "replica" if plan.replica > 1 else None

    def replica(own: step.State, batch: Any) -> tuple[param.Tree, Any, step.Metrics]:
        new, measured = inner_step(own, batch)
        return new.params, new.opt, measured

    def combined(state: step.State, batch: Any) -> tuple[step.State, step.Metrics]:
        key, each = jax.random.wrap_key_data(state.key), jnp.arange(cfg.replicas)
        keys = jax.vmap(lambda k: jax.random.key_data(jax.random.fold_in(key, k)))(each)
        own = step.State(state.step, state.opt.params, state.opt.inner, state.frozen, keys)
        parts = jax.tree.map(lambda x: _dealt(x, plan, cfg.replicas), batch)  # [replicas, B', ...]
        axes: Any = (None, 0, 0, None, 0)
        apart = jax.vmap(replica, in_axes=(step.State(*axes), 0), spmd_axis_name=axis)
        params, inner, measured = apart(own, parts)
        number = state.step + 1
        params, copies, outer = jax.lax.cond(
            number % cfg.every == 0,
            lambda: _agreed(cfg, state.params, params, state.opt.outer),
            lambda: (state.params, params, state.opt.outer),
        )
        opt = State(copies, inner, outer)
        return step.State(number, params, opt, state.frozen, state.key), _joined(measured)

    return combined


def _outer(cfg: Replicas) -> optax.GradientTransformation:
    return optax.sgd(cfg.outer_lr, momentum=cfg.outer_momentum or None, nesterov=True)


def _dealt(x: jax.Array, plan: Plan, replicas: int) -> jax.Array:
    """[B, ...] -> [K, B / K, ...]: neighbouring rows to a replica, which is where they are."""
    parts = x.reshape(replicas, x.shape[0] // replicas, *x.shape[1:])
    rest = " seq" if x.ndim == 2 else " whole" * (x.ndim - 1)
    return plan.constrain(parts, f"replica batch{rest}")


def _agreed(
    cfg: Replicas, agreed: param.Tree, params: param.Tree, state: Any
) -> tuple[param.Tree, param.Tree, Any]:
    """(the new weights, a copy for every replica [K, ...], the outer optimiser's state)."""
    mean = jax.tree.map(lambda p: p.mean(0), params)
    moved = jax.tree.map(jnp.subtract, agreed, mean)
    updates, state = _outer(cfg).update(moved, state, agreed)
    # agreed + updates, from the mean: at a rate of 1 without momentum it is the mean to the bit
    new = jax.tree.map(lambda m, d, u: m + (d + u), mean, moved, updates)
    copies = jax.tree.map(lambda w, p: jnp.broadcast_to(w, p.shape), new, params)
    return new, copies, state


def _joined(measured: step.Metrics) -> step.Metrics:
    weight = measured["weight"]
    share = weight / jnp.maximum(weight.sum(), 1)
    sums = ("weight", "skipped")
    return {n: x.sum() if n in sums else (share * x).sum() for n, x in measured.items()}
