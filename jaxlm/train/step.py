"""One step for every objective: accumulate sums over micro-batches, divide once, update."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import NamedSharding, PartitionSpec

from jaxlm.core import param, precision
from jaxlm.objectives.objective import Objective
from jaxlm.parallel import devices
from jaxlm.parallel.plan import Plan
from jaxlm.train.optim import optimizer

Metrics = dict[str, jax.Array]


class State(NamedTuple):
    """All that training carries. Restoring it and the data order restores the run bit for bit.

    step: int32 scalar, updates done. params: float32 weights. opt: the optimiser's state.
    frozen: reference, teacher or reward weights, read and never differentiated; {} if none.
    key: uint32[2], the run's random key as plain data (`jax.random.wrap_key_data` types it); step
    s uses fold_in(key, s).
    """

    step: jax.Array
    params: param.Tree
    opt: Any
    frozen: param.Tree
    key: jax.Array


Step = Callable[[State, Any], tuple[State, Metrics]]


def init(objective: Objective, tx: optimizer.Transform, plan: Plan, seed: int) -> State:
    """A fresh State on the plan's mesh, created in place: no device ever holds more than its part.
    The values depend on the seed alone. `frozen` is {}: `initial_weights.frozen` fills it."""
    return initializer(objective, tx, plan)(jax.random.key_data(jax.random.key(seed)))


def initializer(objective: Objective, tx: optimizer.Transform, plan: Plan) -> Callable[..., State]:
    """The compiled function from a key's data, uint32[2], to a fresh State: runs of other seeds
    find the program compiled."""
    shardings = shard(objective, tx, plan)._replace(frozen={})

    def make(key: jax.Array) -> State:
        first = jax.random.fold_in(jax.random.wrap_key_data(key), 0)
        return _fresh(param.init(objective.spec, first), tx, key)

    return jax.jit(make, out_shardings=shardings, compiler_options=devices.compile_once())


def begin(
    objective: Objective, tx: optimizer.Transform, plan: Plan, seed: int, params: param.Tree
) -> State:
    """A fresh State with given weights, whose memory it takes over; `frozen` is {} as in `init`."""
    return beginner(objective, tx, plan)(params, jax.random.key_data(jax.random.key(seed)))


def beginner(objective: Objective, tx: optimizer.Transform, plan: Plan) -> Callable[..., State]:
    """The compiled function from given weights and a key's data to a fresh State."""
    return jax.jit(
        lambda params, key: _fresh(params, tx, key),
        out_shardings=shard(objective, tx, plan)._replace(frozen={}),
        donate_argnums=0,
        compiler_options=devices.compile_once(),
    )


def _fresh(params: param.Tree, tx: optimizer.Transform, key: jax.Array) -> State:
    return State(jnp.zeros((), jnp.int32), params, tx.init(params), {}, key)


def abstract(objective: Objective, tx: optimizer.Transform, plan: Plan) -> State:
    """The State's shapes, dtypes and shardings, for restoring and compiling without memory."""
    key = jax.random.key_data(jax.random.key(0))
    shapes = jax.eval_shape(lambda p: _fresh(p, tx, key), param.abstract(objective.spec))
    shapes = shapes._replace(frozen={n: part.abstract() for n, part in objective.frozen.items()})
    return jax.tree.map(
        lambda s, where: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=where),
        shapes,
        shard(objective, tx, plan),
    )


def shard(objective: Objective, tx: optimizer.Transform, plan: Plan) -> State:
    """The State's NamedShardings: optimiser moments, known by the paths they end in, are placed by
    `Plan.shard_state`, of replicas along `replica`; what has another shape has a copy everywhere.

    Raises: ValueError naming a weight whose dimension does not divide over the mesh.
    """
    where = plan.shard_params(objective.spec)
    places = {
        path: (p.shape, place)
        for (path, p), place in zip(
            param.flatten(objective.spec).items(), jax.tree.leaves(plan.shard_state(objective.spec))
        )
    }

    def lies(keys: tuple, leaf: jax.ShapeDtypeStruct) -> NamedSharding:
        # the moment of embed/table is at inner/0/mu/embed/table
        tails = (param.path_of(keys[i:]) for i in range(len(keys)))
        shape, place = next((places[t] for t in tails if t in places), (None, plan.replicated))
        if leaf.shape[1:] == shape:
            return NamedSharding(plan.mesh, PartitionSpec("replica", *place.spec))
        return place if leaf.shape == shape else plan.replicated

    shapes = jax.eval_shape(tx.init, param.abstract(objective.spec))
    opt = jax.tree_util.tree_map_with_path(lies, shapes)
    frozen = {name: plan.shard_params(part.places) for name, part in objective.frozen.items()}
    state: Any = (plan.replicated, where, opt, frozen, plan.replicated)
    return State(*state)


def make(objective: Objective, tx: optimizer.Transform, plan: Plan) -> Step:
    """The compiled step: (State, batch) -> (State, metrics). The state's memory is reused.

    metrics are float32 scalars: `loss` and every scalar sum of the objective divided by the step's
    weight; `weight` itself; what the optimiser (`grad_norm`, `lr`, ...) and the objective report.
    A step whose weight is 0 is counted as `skipped`: its loss is 0, and nothing moves but `step`.

    Raises: ValueError when the batch does not divide into the plan's micro-batches and devices.
    """
    places = (shard(objective, tx, plan), plan.replicated)
    return jax.jit(body(objective, tx, plan), donate_argnums=0, out_shardings=places)


def body(objective: Objective, tx: optimizer.Transform, plan: Plan) -> Step:
    """The step as a plain function, for a larger program to compile."""

    def step(state: State, batch: Any) -> tuple[State, Metrics]:
        key = jax.random.fold_in(jax.random.wrap_key_data(state.key), state.step + 1)
        scale = optimizer.loss_scale(state.opt)
        total, weight, sums, grads = accumulate(objective, plan, scale, state, batch, key)
        learnt = weight > 0  # an empty batch moves nothing, not by momentum or decay either
        by = jnp.where(learnt, weight, 1.0)
        grads = _scattered(jax.tree.map(lambda g: g / (by * scale), grads), objective, plan)
        updates, new = tx.update(grads, state.opt, state.params, learnt=learnt)
        opt: Any = new
        params = optax.apply_updates(state.params, updates)
        if objective.adjust is not None:  # a skipped step moves nothing
            done = opt.count > state.opt.count
            params = optax.tree.where(done, objective.adjust(params, sums), params)
        metrics = {"loss": total / by, "weight": weight, **optimizer.report(opt)}
        metrics |= {name: total / by for name, total in sums.items() if not total.ndim}
        metrics |= {} if objective.report is None else objective.report(sums)
        return State(state.step + 1, params, opt, state.frozen, state.key), metrics

    return step


def accumulate(
    objective: Objective, plan: Plan, scale: jax.Array, state: State, batch: Any, key: jax.Array
) -> tuple[jax.Array, jax.Array, dict[str, jax.Array], param.Tree]:
    """(loss sum, weight, {name: sum}, gradient of scale * loss sum), micro-batches in float32."""

    @jax.jit(inline=True)  # traced once for the shapes of its sums and for the loop
    def grad(state: State, scale: jax.Array, part: Any, key: jax.Array) -> Any:
        def scaled(params: param.Tree) -> tuple[jax.Array, Any]:
            total, weight, sums = objective.loss(params, state.frozen, part, key)
            return scale * total, (total, weight, sums)

        with precision.summing_gradients(plan.reduce):
            (_, out), grads = jax.value_and_grad(scaled, has_aux=True)(state.params)
        return (*out, grads)

    if plan.microbatches == 1:
        return grad(state, scale, batch, key)
    parts = jax.tree.map(lambda x: _cut(x, plan), batch)

    def add(carry: Any, at: tuple[Any, jax.Array]) -> tuple[Any, None]:
        part, index = at
        more = grad(state, scale, part, jax.random.fold_in(key, index))
        *sums, grads = optax.tree.add(carry, more)
        return (*sums, _scattered(grads, objective, plan) if plan.zero == 2 else grads), None

    shapes = jax.eval_shape(grad, state, scale, jax.tree.map(lambda x: x[0], parts), key)
    zero = jax.tree.map(jnp.zeros_like, shapes)
    return jax.lax.scan(add, zero, (parts, jnp.arange(plan.microbatches)))[0]


def _scattered(grads: param.Tree, objective: Objective, plan: Plan) -> param.Tree:
    """Gradients split as the optimiser's state is; what they are without `plan.zero`."""
    if not plan.zero:
        return grads
    return jax.lax.with_sharding_constraint(grads, plan.shard_state(objective.spec))


def _cut(x: jax.Array, plan: Plan) -> jax.Array:
    """[B, ...] -> [M, B / M, ...]. Micro-batch m takes every M-th row, so that rows stay on the
    devices they are on."""
    rows, m = x.shape[0], plan.microbatches
    if rows % plan.multiple:
        parts = f"plan.microbatches={m} x {plan.multiple // m} parts of the rows by {plan}"
        raise ValueError(f"data.batch: {rows} rows do not divide into {parts}")
    parts = jnp.swapaxes(x.reshape(rows // m, m, *x.shape[1:]), 0, 1)
    return plan.constrain(parts, "whole batch" + " seq" * (x.ndim - 1))
