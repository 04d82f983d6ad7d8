"""Continuous batching of rows that are all there at the beginning, as one compiled program: the
rollouts of a policy.

    prefill    all rows at once; the first token of each
    loop       a row that has ended makes room for one that waits, and all slots get a token

A row draws with its own key and position, and so gets the tokens that `sampling_loop.generate`
gives it; its log-probabilities are those up to the rounding of products over fewer rows.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxlm.core import param
from jaxlm.decode import sampling_loop
from jaxlm.decode.sampling_loop import LENGTH, RUNNING, Generation, Rows, State
from jaxlm.decode.serve import slots
from jaxlm.models.model import Cache, Model
from jaxlm.ops.attention import At


class _Loop(NamedTuple):
    """state: of S slots. owner int32[S]: the row in each, N in one that is free. taken: rows of the
    queue that have had a slot, int32 scalar. out: of all N rows, those that have left their slots
    complete."""

    state: State
    owner: jax.Array
    taken: jax.Array
    out: Generation


def generate(
    model: Model,
    params: param.Tree,
    tokens: jax.Array,
    at: At,
    rows: Rows,
    max_new: int,
    count: int,
) -> Generation:
    """`sampling_loop.generate` of N rows, at most `count` of them decoded at a time. The cache has
    room for the prompts of all rows, and for the new tokens of `count`."""
    params = sampling_loop.unstacked(params)
    read = sampling_loop.prefilled(model, params, tokens, at, rows, max_new)
    total = len(read.last)
    going = read.out.finish == RUNNING
    queue = jnp.argsort(~going, stable=True).astype(jnp.int32)  # rows that go on come first
    waiting = jnp.sum(going)
    room = tokens.shape[1] + max_new - 1

    def needs(loop: _Loop) -> jax.Array:
        """bool[S]: slots whose row has ended, or which a row may take."""
        stopped = loop.state.out.finish != RUNNING
        return stopped & ((loop.owner < total) | (loop.taken < waiting))

    def exchange(loop: _Loop) -> _Loop:
        slot = jnp.argmax(needs(loop))
        ended = jax.tree.map(lambda x: x[slot], loop.state.out)
        out = jax.tree.map(
            lambda x, row: x.at[loop.owner[slot]].set(row, mode="drop"), loop.out, ended
        )
        there = loop.taken < waiting
        row = queue[jnp.minimum(loop.taken, total - 1)]
        state = _put(model, loop.state, slot, read, row, there)
        owner = loop.owner.at[slot].set(jnp.where(there, row, total))
        return _Loop(state, owner, loop.taken + there, out)

    def decode(loop: _Loop) -> _Loop:
        loop = jax.lax.while_loop(lambda loop: jnp.any(needs(loop)), exchange, loop)
        mine = jnp.minimum(loop.owner, total - 1)
        settings = jax.tree.map(lambda x: x[mine], rows._replace(origin=None))
        running = jnp.any(loop.state.out.finish == RUNNING)

        def one(state: State) -> State:
            return sampling_loop.step(model, params, state, settings)

        state = jax.lax.cond(running, one, lambda state: state, loop.state)
        return loop._replace(state=state)

    static = model._replace(spec=None)
    empty = slots.widened(static, room, slots.free(static, min(count, total), read))
    owner = jnp.full(min(count, total), total, jnp.int32)
    loop = _Loop(empty, owner, jnp.zeros((), jnp.int32), read.out)
    return jax.lax.while_loop(lambda loop: jnp.any(needs(loop) | _busy(loop)), decode, loop).out


def _busy(loop: _Loop) -> jax.Array:
    """bool[S]: slots with a row that goes on."""
    return loop.state.out.finish == RUNNING


def _put(
    model: Model, state: State, slot: jax.Array, read: State, row: jax.Array, there: jax.Array
) -> State:
    """The State with a row of `read` in a slot, or with a row that has ended if it is not
    `there`. Entries beyond the prompt's are left as they were, and marked as empty."""
    spec, width = model.cache(1, 1), state.cache.at.segments.shape[1]

    def put(x: jax.Array, new: jax.Array, axis: int = 0) -> jax.Array:
        one = jax.lax.dynamic_slice_in_dim(new, row, 1, axis).astype(x.dtype)
        start = [slot if i == axis else 0 for i in range(x.ndim)]
        return jax.lax.dynamic_update_slice(x, one, start)

    layers = param.map(
        lambda p, x, new: put(x, new, p.axes.index("batch")),
        spec,
        state.cache.layers,
        read.cache.layers,
    )
    more = [(0, 0), (0, width - read.cache.at.segments.shape[1])]
    at = At(*(put(x, jnp.pad(new, more)) for x, new in zip(state.cache.at[:2], read.cache.at[:2])))
    filled = state.cache.filled.at[slot].set(read.cache.filled)
    rest = {name: getattr(state, name) for name in ("last", "position", "segment", "seen", "out")}
    old = {name: getattr(read, name) for name in rest}
    rest = jax.tree.map(put, rest, old)
    finish = rest["out"].finish.at[slot].set(jnp.where(there, RUNNING, LENGTH))
    rest["out"] = rest["out"]._replace(finish=finish)
    return state._replace(cache=Cache(layers, at, filled), **rest)
