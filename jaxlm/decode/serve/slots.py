"""Continuous batching as pure functions: B slots of which each holds one request, at its own place.

    prefill    a request's prompt, chunk by chunk, into a cache of one row; its first token
    insert     that row into a slot
    decode     up to N tokens for every slot
    page       a chunk's entries, which `paste` and `append` put into another row: prefixes are
               shared

A request's entries begin at slot 0 of its row of the cache, whatever the other rows hold, and a
chunk of its prompt is computed in a program that depends on the chunk's number alone. So its tokens
and log-probabilities are the same bits alone or among others, in any slot, and with a prefix that
was computed before or not.
"""

import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxlm.core import param
from jaxlm.decode import sampling_loop
from jaxlm.decode.sampling_loop import Rows, State
from jaxlm.decode.serve.capacities import Capacity
from jaxlm.models.model import Cache, Model
from jaxlm.ops import penalties
from jaxlm.ops.attention import At

Entries = tuple[dict[str, jax.Array], ...]


class Prefilled(NamedTuple):
    """R prompts or their beginnings in a cache of R rows: the cache, in each row of which as many
    entries are filled as it has tokens, and the logits float32[R, V] after the last of them."""

    cache: Cache
    raw: jax.Array


class News(NamedTuple):
    """Additions to B slots: tokens int32[B, N], log_probs and support_log_probs float32[B, N], of
    which a slot's first (lengths - those known before) are there; lengths and finish int32[B] as in
    Generation; top, its arrays [B, N, K], or None."""

    tokens: jax.Array
    log_probs: jax.Array
    support_log_probs: jax.Array
    lengths: jax.Array
    finish: jax.Array
    top: sampling_loop.Top | None


@functools.partial(jax.jit, static_argnums=(0, 1))
def begin(
    model: Model, room: int, params: param.Tree, tokens: jax.Array, count: jax.Array
) -> Prefilled:
    """The first chunk of R prompts, tokens int32[R, C] of which `count` int32[R] are there, in a
    cache of `room` entries a row. A row without tokens is padding."""
    cache = sampling_loop.empty(model, len(tokens))
    done = _read(model, params, cache, tokens, count)
    return done._replace(cache=sampling_loop.grow(model, done.cache, room))


@functools.partial(jax.jit, static_argnums=(0, 1))
def go_on(
    model: Model,
    room: int,
    params: param.Tree,
    cache: Cache,
    tokens: jax.Array,
    count: jax.Array,
) -> Prefilled:
    """One more chunk, int32[R, C], after those in the cache, which is grown to `room` entries."""
    return _read(model, params, sampling_loop.grow(model, cache, room), tokens, count)


def _read(model, params, cache, tokens, count):
    places = jnp.arange(tokens.shape[1], dtype=jnp.int32)[None]  # [1,C]
    there, filled = places < count[:, None], cache.filled + jnp.zeros_like(count)  # [R,C], [R]
    at = At(there.astype(jnp.int32), jnp.where(there, filled[:, None] + places, 0))
    x, new, _ = model.hidden(params, tokens, at, cache)
    last = jnp.take_along_axis(x, jnp.maximum(count - 1, 0)[:, None, None], 1)[:, 0]  # [R,D]
    raw = model.unembed(model.head(params), last)
    # what is written next begins after the tokens that are there
    return Prefilled(new._replace(filled=filled + count), raw)


@functools.partial(jax.jit, static_argnums=(0, 1))
def page(model: Model, size: int, cache: Cache, first: jax.Array) -> Entries:
    """The entries of `size` slots of a cache of one row, from slot `first` on; of a ring, those
    that were written last."""
    slots = cache.at.segments.shape[1]

    def cut(p: param.Param, x: jax.Array) -> jax.Array:
        axis = p.axes.index("seq")
        if x.shape[axis] < slots:
            return jnp.take(x, (first + jnp.arange(size)) % x.shape[axis], axis=axis)
        return jax.lax.dynamic_slice_in_dim(x, first, size, axis)

    return param.map(cut, model.cache(1, 1), cache.layers)


@functools.partial(jax.jit, static_argnums=(0, 1))
def paste(model: Model, room: int, page: Entries) -> Cache:
    """A cache of one row with `room` slots that begins with a page."""
    spec = model.cache(1, 1)
    sizes = jax.tree.leaves(param.map(lambda p, x: x.shape[p.axes.index("seq")], spec, page))
    count = int(sizes[0])
    at = At(jnp.ones((1, count), jnp.int32), jnp.arange(count, dtype=jnp.int32)[None])
    return sampling_loop.grow(model, Cache(page, at, jnp.full(1, count, jnp.int32)), room)


@functools.partial(jax.jit, static_argnums=0, donate_argnums=1)
def append(model: Model, cache: Cache, page: Entries) -> Cache:
    """The cache of one row with a page after what is in it, in place."""
    first = cache.filled[0]

    def put(x: jax.Array, new: jax.Array, axis: int) -> jax.Array:
        return jax.lax.dynamic_update_slice_in_dim(x, new, first, axis)

    spec = model.cache(1, 1)
    layers = param.map(lambda p, x, n: put(x, n, p.axes.index("seq")), spec, cache.layers, page)
    sizes = jax.tree.leaves(param.map(lambda p, x: x.shape[p.axes.index("seq")], spec, page))
    count = int(sizes[0])
    places = first + jnp.arange(count, dtype=jnp.int32)[None]
    at = At(*map(put, cache.at[:2], (jnp.ones_like(places), places), (1, 1)))
    return Cache(layers, at, cache.filled + count)


@functools.partial(jax.jit, static_argnums=(0, 1))
def free(model: Model, batch: int, row: State) -> State:
    """The State of `batch` slots of which none is taken, each as large as the row's."""

    def widen(x: jax.Array, axis: int = 0) -> jax.Array:
        return jnp.zeros([batch if i == axis else n for i, n in enumerate(x.shape)], x.dtype)

    layers = param.map(
        lambda p, x: widen(x, p.axes.index("batch")), model.cache(1, 1), row.cache.layers
    )
    at = At(*(widen(x) for x in row.cache.at[:2]))
    cache = Cache(layers, at, jnp.zeros(batch, jnp.int32))
    rest = jax.tree.map(widen, _by_row(row))
    full = jnp.full(batch, sampling_loop.LENGTH, jnp.int32)
    rest["out"] = rest["out"]._replace(finish=full)
    return State(cache=cache, step=jnp.zeros((), jnp.int32), **rest)


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def first_token(
    model: Model,
    columns: int,
    top: int,
    done: Prefilled,
    tokens: jax.Array,
    count: jax.Array,
    rows: Rows,
) -> State:
    """The State of R rows after their prompts, int32[R, P] of which `count` int32[R] are there,
    with the first token of each sampled and, where top > 0, that many of the likeliest recorded."""
    there = jnp.arange(tokens.shape[1]) < count[:, None]
    ones = jnp.ones_like(count)
    return sampling_loop.begun(
        done.cache, done.raw, tokens, there, count - 1, ones, rows, columns, top
    )


@functools.partial(jax.jit, static_argnums=0)
def with_text(width: int, state: State) -> State:
    """The State with a Text of `width` tokens a row, which rules read."""
    batch = len(state.last)
    if state.text is None:
        none = jnp.zeros(batch, jnp.int32)
        tokens = jnp.zeros((batch, width), jnp.int32)
        return state._replace(text=penalties.Text(tokens, none, none, none))
    tokens = state.text.tokens[:, :width]  # no text is longer than a slot
    tokens = jnp.pad(tokens, ((0, 0), (0, width - tokens.shape[1])))
    return state._replace(text=state.text._replace(tokens=tokens))


@functools.partial(jax.jit, static_argnums=(0, 1))
def with_top(width: int, top: int, state: State) -> State:
    """The State that records the `top` likeliest tokens of `width` places a row."""
    if state.top is not None:
        return state
    return state._replace(top=sampling_loop.unrecorded(len(state.last), width, top))


@functools.partial(jax.jit, static_argnums=(0, 1), donate_argnums=2)
def insert(model: Model, room: int, state: State, index: jax.Array, rows: State) -> State:
    """The State, whose cache has `room` entries a row, with R rows in the slots of index int32[R],
    in place; a row at -1 is left out."""
    spec, cache = model.cache(1, 1), resized(model, rows.cache, room)

    def put(x: jax.Array, new: jax.Array, axis: int = 0) -> jax.Array:
        for r in range(len(index)):
            slot = jnp.maximum(index[r], 0)
            row = jax.lax.slice_in_dim(new, r, r + 1, axis=axis).astype(x.dtype)
            if len(index) > 1:
                old = jax.lax.dynamic_slice_in_dim(x, slot, 1, axis)
                row = jnp.where(index[r] < 0, old, row)
            x = jax.lax.dynamic_update_slice_in_dim(x, row, slot, axis)
        return x

    layers = param.map(
        lambda p, x, new: put(x, new, p.axes.index("batch")),
        spec,
        state.cache.layers,
        cache.layers,
    )
    at = At(*(put(x, new) for x, new in zip(state.cache.at[:2], cache.at[:2], strict=True)))
    filled = put(state.cache.filled, cache.filled)
    rest = jax.tree.map(put, _by_row(state), _by_row(rows))
    return State(cache=Cache(layers, at, filled), step=state.step, **rest)


@functools.partial(jax.jit, static_argnums=0)
def lift(model: Model, state: State, slot: jax.Array, filled: jax.Array) -> State:
    """The State of one row, a slot's that has stopped, which goes on after `filled` entries of its
    cache."""

    def cut(x: jax.Array, axis: int = 0) -> jax.Array:
        return jax.lax.dynamic_slice_in_dim(x, slot, 1, axis)

    layers = param.map(
        lambda p, x: cut(x, p.axes.index("batch")), model.cache(1, 1), state.cache.layers
    )
    cache = Cache(layers, At(*(cut(x) for x in state.cache.at[:2])), filled[None])
    rest = jax.tree.map(cut, _by_row(state))
    running = jnp.full(1, sampling_loop.RUNNING, jnp.int32)
    out = rest["out"] = rest["out"]._replace(finish=running)
    # what the loop moves on in rows that have stopped, too
    rest["position"] = filled[None]
    rest["last"] = jnp.take_along_axis(out.tokens, out.lengths[:, None] - 1, axis=1)[:, 0]
    return State(cache=cache, step=jnp.zeros((), jnp.int32), **rest)


def _by_row(state: State) -> dict[str, Any]:
    """Fields of a State that are by row, [B, ...], but for the cache."""
    return {name: x for name, x in state._asdict().items() if name not in ("cache", "step")}


@functools.partial(jax.jit, static_argnums=(0, 1))
def widened(model: Model, room: int, state: State) -> State:
    """The State with a cache of `room` entries a row."""
    return state._replace(cache=resized(model, state.cache, room))


def resized(model: Model, cache: Cache, room: int) -> Cache:
    """The cache grown to `room` entries a row, or cut to them."""
    if room >= cache.at.segments.shape[1]:
        return sampling_loop.grow(model, cache, room)

    def cut(p: param.Param, x: jax.Array) -> jax.Array:
        axis = p.axes.index("seq")  # a ring that is longer than the room has not come round
        return jax.lax.slice_in_dim(x, 0, min(p.shape[axis], x.shape[axis]), axis=axis)

    layers = param.map(cut, model.cache(1, room), cache.layers)
    return Cache(layers, At(*(x[:, :room] for x in cache.at[:2])), cache.filled)


@functools.partial(jax.jit, static_argnums=(0, 1), donate_argnums=3)
def decode(
    model: Model, steps: int, params: param.Tree, state: State, rows: Rows, before: jax.Array
) -> tuple[State, News]:
    """(the State up to `steps` tokens on, its News after the `before` int32[B] tokens of each slot
    that are known; a slot that came in anew has one more than the steps)."""
    state = state._replace(step=jnp.zeros((), jnp.int32))
    state = sampling_loop.advance(model, params, state, rows, steps)
    return state, news(state, before, steps + 1)


def news(state: State, before: jax.Array, width: int) -> News:
    """`width` places of each slot after the `before` int32[B] first."""
    out, columns = state.out, state.out.tokens.shape[1]
    places = jnp.minimum(before[:, None] + jnp.arange(width), columns - 1)  # [B,N]

    def cut(x: jax.Array) -> jax.Array:
        return jnp.take_along_axis(x, places.reshape(*places.shape, *[1] * (x.ndim - 2)), axis=1)

    top = None if state.top is None else sampling_loop.Top(*map(cut, state.top))
    scores = cut(out.log_probs), cut(out.support_log_probs)
    return News(cut(out.tokens), *scores, out.lengths, out.finish, top)


@functools.partial(jax.jit, donate_argnums=0)
def end(state: State, slot: jax.Array) -> State:
    """The State in which the request of a slot is no longer decoded."""
    finish = state.out.finish.at[slot].set(sampling_loop.LENGTH)
    return state._replace(out=state.out._replace(finish=finish))


def cache_bytes(model: Model, params: param.Tree, capacity: Capacity) -> int:
    """Bytes of the cache of all slots when it is largest, in the dtype that the model writes."""
    token = jnp.zeros((1, 1), jnp.int32)
    at = At(jnp.ones_like(token), token)

    def one(params: param.Tree) -> Entries:
        cache = model.hidden(params, token, at, sampling_loop.empty(model, 1)).cache
        assert cache is not None
        return cache.layers

    written = jax.eval_shape(one, params)

    def lane(count: int, room: int) -> int:
        def size(p: param.Param, x: jax.ShapeDtypeStruct) -> int:
            return math.prod(p.shape) * x.dtype.itemsize

        return sum(jax.tree.leaves(param.map(size, model.cache(count, room), written)))

    total = lane(capacity.slots, capacity.room)
    if capacity.short_slots:
        total += lane(capacity.short_slots, capacity.short_room)
    return total
