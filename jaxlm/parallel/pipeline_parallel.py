"""A pipeline over the mesh axis `pipe`, in one program: each stage is a run of layers on its own
devices, and parts of a batch's rows pass from one stage to the next (Huang et al. 2019).

    turn      0   1   2   3   4        2 stages, 4 parts; x: a bubble
    stage 0   a   b   c   d   x
    stage 1   x   a   b   c   d

All stages are one function under vmap, whose axis is split over `pipe`; what they hand on is a roll
of that axis by one, and the backward pass is what autodiff makes of the scan over turns. With R
rounds a stage has R runs, of which stage s computes run r of S r + s: all parts pass through all
stages R times (Narayanan et al. 2021, section 2.2), and wait for their next round at stage 0.

A bubble's input is 0 and its output is replaced, so that nothing in it reaches a sum or a gradient.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxlm.parallel.plan import Plan

# run(weights [n, ...], x [B, T, D], rows) -> (x, sums [n, ...]): n layers in order, and what each
# sums over the rows. rows: a tree of arrays [B, ...], those of x.
Run = Callable[[Any, jax.Array, Any], tuple[jax.Array, Any]]


def apply(run: Run, plan: Plan, weights: Any, x: jax.Array, rows: Any) -> tuple[jax.Array, Any]:
    """run(weights, x, rows), with the n layers split over the stages and the rows into parts.

    Raises: ValueError where n does not divide into runs of layers, or B into parts.
    """
    stages, parts, rounds = plan.pipe, plan.parts, plan.pipe_rounds
    first = jnp.arange(stages) == 0
    weights = jax.tree.map(lambda w: _runs(w, plan), weights)
    rows, waiting = (jax.tree.map(lambda a: _parts(a, plan), tree) for tree in (rows, x))
    bubble = jnp.asarray(jnp.nan if plan.poison else 0, x.dtype)
    waiting = jnp.where(_wide(first, waiting), waiting, bubble)

    def stage(weights: Any, x: jax.Array, rows: Any, at: jax.Array) -> tuple[jax.Array, Any]:
        turn, part = at // parts, at % parts
        rows = _at(rows, part)
        return run(_at(weights, turn) if rounds > 1 else weights, x, rows)

    def turn(carry: tuple[jax.Array, jax.Array], number: jax.Array) -> tuple:
        state, waiting = carry
        at = number - jnp.arange(stages)  # of the stage's turns
        there = (at >= 0) & (at < parts * rounds)
        x = jnp.where(_wide(first, state), waiting[:, number % parts], state)
        x = jnp.where(_wide(there, x), x, 0)
        each = jax.vmap(stage, spmd_axis_name="pipe")
        x, sums = each(weights, x, rows, jnp.clip(at, 0, parts * rounds - 1))
        x = jnp.where(_wide(there, x), x, bubble)
        sums = jax.tree.map(lambda s: jnp.where(_wide(there, s), s, 0), sums)
        state = plan.constrain(_handed_on(x), "stage rows seq embed")
        # what left the last stage waits at the first, for its next round or for all to be done
        left = (number - stages + 1) % parts
        new = jnp.where(number >= stages - 1, state, waiting[:, left])
        waiting = jax.lax.dynamic_update_index_in_dim(waiting, new, left, 1)
        return (state, waiting), sums

    state = jnp.full_like(waiting[:, 0], bubble)
    (_, waiting), sums = jax.lax.scan(turn, (state, waiting), jnp.arange(plan.turns))
    # not waiting[0], for which every stage's is gathered
    x = jnp.sum(jnp.where(_wide(first, waiting), waiting, 0), axis=0)
    return _whole(x, plan), jax.tree.map(lambda s: _layers(s, plan), sums)


@jax.custom_vjp
def _handed_on(x: jax.Array) -> jax.Array:
    """x [S, ...], each stage's at the next. Autodiff's gradient is a sum of two padded slices, each
    of which would be sent by itself."""
    return jnp.roll(x, 1, axis=0)


_handed_on.defvjp(lambda x: (_handed_on(x), None), lambda _, g: (jnp.roll(g, -1, axis=0),))


def spread(run: Run, plan: Plan, weights: Any, x: jax.Array, rows: Any) -> tuple[jax.Array, Any]:
    """run(weights, x, rows) outside of the pipeline: the devices of each stage compute their own
    rows in all layers, of which they gather the weights. Without one it is that call."""
    if plan.pipe == 1:
        return run(weights, x, rows)
    x, rows = jax.tree.map(lambda a: _apart(a, plan), (x, rows))
    x = plan.constrain(x, "stage rows seq embed")
    x, sums = jax.vmap(run, in_axes=(None, 0, 0), spmd_axis_name="pipe")(weights, x, rows)
    return _together(x, plan), jax.tree.map(lambda s: jnp.sum(s, axis=0), sums)


def _wide(chosen: jax.Array, x: jax.Array) -> jax.Array:
    """bool[S] in the form that chooses among x [S, ...]."""
    return chosen.reshape(-1, *(1 for _ in x.shape[1:]))


def _at(tree: Any, index: jax.Array) -> Any:
    return jax.tree.map(lambda a: jax.lax.dynamic_index_in_dim(a, index, 0, False), tree)


def _split(x: jax.Array, plan: Plan) -> jax.Array:
    """x, its first dimension held to `pipe` and the others as the compiler likes."""
    free = (jax.sharding.PartitionSpec.UNCONSTRAINED for _ in x.shape[1:])
    place = jax.sharding.NamedSharding(plan.mesh, jax.sharding.PartitionSpec("pipe", *free))
    return jax.lax.with_sharding_constraint(x, place)


def _runs(w: jax.Array, plan: Plan) -> jax.Array:
    """[n, ...] -> [S, n / S, ...], and [S, R, n / (S R), ...] with R rounds: a stage's layers."""
    if plan.pipe_rounds == 1:
        return _split(w.reshape(plan.pipe, -1, *w.shape[1:]), plan)
    w = w.reshape(plan.pipe_rounds, plan.pipe, -1, *w.shape[1:])
    return _split(jnp.swapaxes(w, 0, 1), plan)


def _layers(sums: jax.Array, plan: Plan) -> jax.Array:
    """[turns, S, n / (S R), ...] -> [n, ...]: summed over the parts."""
    stage = jnp.arange(plan.pipe)[:, None]
    start = plan.parts * jnp.arange(plan.pipe_rounds)[:, None, None]
    own = sums[start + stage + jnp.arange(plan.parts), stage]  # [R, S, M, n / (S R), ...]
    return jnp.sum(own, axis=2).reshape(-1, *sums.shape[3:])


def _groups(x: jax.Array, plan: Plan) -> jax.Array:
    """[B, ...] -> [data, rest, S, B / (data rest S), ...]: the rows of each device, those of a
    block's devices together."""
    x = x.reshape(plan.data, plan.pipe, plan.block_parts // plan.data, -1, *x.shape[1:])
    return jnp.swapaxes(x, 1, 2)


def _ungrouped(x: jax.Array) -> jax.Array:
    x = jnp.swapaxes(x, 1, 2)
    return x.reshape(-1, *x.shape[4:])


def _parts(x: jax.Array, plan: Plan) -> jax.Array:
    """[B, ...] -> [S, M, B / M, ...]: a part's rows are on all devices, and every stage has a copy
    of all parts, so that a gradient in them is summed over the stages once."""
    if x.shape[0] % (plan.block_parts * plan.parts):
        raise ValueError(
            f"data.batch: {x.shape[0]} rows of a micro-batch do not divide into plan.pipe_parts="
            f"{plan.parts} x {plan.block_parts} parts of the rows in a stage by {plan}"
        )
    rest = x.shape[1:]
    x = _groups(x, plan).reshape(plan.block_parts, -1, plan.parts, *rest)
    x = jnp.moveaxis(x, 2, 0).reshape(plan.parts, -1, *rest)
    return _split(jnp.broadcast_to(x, (plan.pipe, *x.shape)), plan)


def _whole(x: jax.Array, plan: Plan) -> jax.Array:
    """[M, B / M, ...] -> [B, ...]: the inverse of `_parts`."""
    rest = x.shape[2:]
    x = jnp.moveaxis(x.reshape(plan.parts, plan.block_parts, -1, *rest), 0, 2)
    shape = (plan.data, plan.block_parts // plan.data, plan.pipe, -1, *rest)
    return plan.constrain(_ungrouped(x.reshape(shape)), "batch seq embed")


def _apart(x: jax.Array, plan: Plan) -> jax.Array:
    """[B, ...] -> [S, B / S, ...]: the rows that the devices of each stage have."""
    x = jnp.moveaxis(_groups(x, plan), 2, 0)
    return x.reshape(plan.pipe, -1, *x.shape[4:])


def _together(x: jax.Array, plan: Plan) -> jax.Array:
    """The inverse of `_apart`."""
    shape = (plan.pipe, plan.data, plan.block_parts // plan.data, -1, *x.shape[2:])
    return plan.constrain(_ungrouped(jnp.moveaxis(x.reshape(shape), 0, 2)), "batch seq embed")
