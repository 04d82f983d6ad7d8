"""Continuous batching as pure functions: B slots of which each holds one request, at its own place.

    prefill    a request's prompt, chunk by chunk, into a cache of one row; its first token
    insert     that row into a slot
    decode     up to N tokens for every slot
    page       a chunk's entries, and `paste` to put them into another row: prefixes are shared

A request's entries begin at slot 0 of its row of the cache, whatever the other rows hold, and a
chunk of its prompt is computed in a program that depends on the chunk's number alone. So its tokens
and log-probabilities are the same bits alone or among others, in any slot, and with a prefix that
was computed before or not.
"""

import functools
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
    """A prompt or its beginning in a cache of one row: the cache, with as many filled slots as
    tokens, and the logits float32[1, V] after the last of them."""

    cache: Cache
    raw: jax.Array


@functools.partial(jax.jit, static_argnums=(0, 1))
def begin(
    model: Model, room: int, params: param.Tree, tokens: jax.Array, count: jax.Array
) -> Prefilled:
    """The first chunk, tokens int32[1, C] of which `count` are there, in a cache of `room`
    slots."""
    cache = sampling_loop.empty(model, 1)
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
    """One more chunk, int32[1, C], after those in the cache, which is grown to `room` slots."""
    return _read(model, params, sampling_loop.grow(model, cache, room), tokens, count)


def _read(model, params, cache, tokens, count):
    places = jnp.arange(tokens.shape[1], dtype=jnp.int32)[None]  # [1,C]
    there = places < count
    at = At(there.astype(jnp.int32), jnp.where(there, cache.filled + places, 0))
    x, new, _ = model.hidden(params, tokens, at, cache)
    last = jax.lax.dynamic_slice_in_dim(x[0], count - 1, 1)  # [1,D]
    raw = model.unembed(model.head(params), last)
    # what is written next begins after the tokens that are there
    return Prefilled(new._replace(filled=cache.filled + count), raw)


@functools.partial(jax.jit, static_argnums=(0, 1))
def page(model: Model, size: int, cache: Cache, first: jax.Array) -> Entries:
    """The entries of `size` slots of a cache of one row, from slot `first` on."""

    def cut(p: param.Param, x: jax.Array) -> jax.Array:
        return jax.lax.dynamic_slice_in_dim(x, first, size, p.axes.index("seq"))

    return param.map(cut, model.cache(1, 1), cache.layers)


@functools.partial(jax.jit, static_argnums=(0, 1))
def paste(model: Model, room: int, pages: tuple[Entries, ...]) -> Cache:
    """A cache of one row with `room` slots that begins with these pages, one after the other."""
    spec = model.cache(1, 1)

    def join(p: param.Param, *parts: jax.Array) -> jax.Array:
        return jnp.concatenate(parts, axis=p.axes.index("seq"))

    layers = param.map(join, spec, *pages)
    first = jax.tree.leaves(param.map(lambda p, x: x.shape[p.axes.index("seq")], spec, layers))
    count = int(first[0])
    at = At(jnp.ones((1, count), jnp.int32), jnp.arange(count, dtype=jnp.int32)[None])
    return sampling_loop.grow(model, Cache(layers, at, jnp.asarray(count, jnp.int32)), room)


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


@functools.partial(jax.jit, static_argnums=(0, 1))
def first_token(
    model: Model, columns: int, done: Prefilled, tokens: jax.Array, count: jax.Array, rows: Rows
) -> State:
    """The State of one row after its prompt, int32[1, P] of which `count` are there, with its
    first token sampled."""
    there = jnp.arange(tokens.shape[1]) < count
    return sampling_loop.begun(
        done.cache,
        done.raw,
        tokens,
        there[None],
        count[None] - 1,
        jnp.ones(1, jnp.int32),
        rows,
        columns,
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


@functools.partial(jax.jit, static_argnums=(0, 1), donate_argnums=2)
def insert(model: Model, room: int, state: State, slot: jax.Array, row: State) -> State:
    """The State, whose cache has `room` slots, with one row's State in a slot, in place."""
    row_cache = sampling_loop.grow(model, row.cache, room)

    def put(x: jax.Array, one: jax.Array, axis: int = 0) -> jax.Array:
        return jax.lax.dynamic_update_slice_in_dim(x, one.astype(x.dtype), slot, axis)

    layers = param.map(
        lambda p, x, one: put(x, one, p.axes.index("batch")),
        model.cache(1, 1),
        state.cache.layers,
        row_cache.layers,
    )
    at = At(*(put(x, one) for x, one in zip(state.cache.at[:2], row_cache.at[:2], strict=True)))
    filled = put(state.cache.filled, row_cache.filled[None])
    rest = jax.tree.map(put, _by_row(state), _by_row(row))
    return State(cache=Cache(layers, at, filled), step=state.step, **rest)


def _by_row(state: State) -> dict[str, Any]:
    """Fields of a State that are by row, [B, ...], but for the cache."""
    return {name: x for name, x in state._asdict().items() if name not in ("cache", "step")}


@functools.partial(jax.jit, static_argnums=(0, 1))
def widened(model: Model, room: int, state: State) -> State:
    """The State with a cache of `room` slots a row, or cut to them."""
    have = state.cache.at.segments.shape[1]
    if room >= have:
        return state._replace(cache=sampling_loop.grow(model, state.cache, room))

    def cut(x: jax.Array, axis: int) -> jax.Array:
        return jax.lax.slice_in_dim(x, 0, room, axis=axis)

    layers = param.map(
        lambda p, x: cut(x, p.axes.index("seq")), model.cache(1, 1), state.cache.layers
    )
    at = At(*(cut(x, 1) for x in state.cache.at[:2]))
    return state._replace(cache=state.cache._replace(layers=layers, at=at))


@functools.partial(jax.jit, static_argnums=(0, 1), donate_argnums=3)
def decode(model: Model, steps: int, params: param.Tree, state: State, rows: Rows) -> State:
    """The State up to `steps` tokens on."""
    state = state._replace(step=jnp.zeros((), jnp.int32))
    return sampling_loop.advance(model, params, state, rows, steps)


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

    entries = jax.eval_shape(one, params)
    each = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(entries))
    return each * capacity.slots * capacity.room
