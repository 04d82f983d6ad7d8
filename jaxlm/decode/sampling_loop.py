"""The sampling loop: pure functions from weights, prompts and per-row settings to a Generation.

    generate = start (prefill, first token) + advance (a while loop over one preallocated cache)

All of it runs under jit, alone or inside a larger program (a rollout). A caller that must look at
the text meanwhile (streaming, stop strings) calls `advance` for a few tokens at a time; the result
is the same. Nothing in the loop depends on the host.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxlm.core import param
from jaxlm.models.layers import cache_kinds, ring_cache, stack
from jaxlm.models.model import Cache, Model
from jaxlm.ops import penalties, sampling
from jaxlm.ops.attention import At

# Why a row ended: codes of Generation.finish.
RUNNING, STOP_TOKEN, STOP_STRING, LENGTH = range(4)


class Rows(NamedTuple):
    """Settings of each of B rows.

    controls: the processors' settings. keys: random keys [B]; the token at position p of a row is
    drawn with fold_in(key, p). stop int32[B, K]: tokens that end the row, -1 in unused places.
    limit int32[B]: tokens to generate at most; a row at 0 only fills the batch. origin int32[B]:
    the prompt that each row continues, of which several may continue one; None where row r
    continues prompt r.
    """

    controls: sampling.Controls
    keys: jax.Array
    stop: jax.Array
    limit: jax.Array
    origin: jax.Array | None = None


class Generation(NamedTuple):
    """Sampled tokens: B rows, left-aligned, zero beyond each row's length.

    tokens int32[B, max_new]: a stop token is the last of its row.
    lengths int32[B]: tokens of each row.
    log_probs float32[B, max_new]: under the model's own softmax (temperature 1, no processors).
    support_log_probs float32[B, max_new]: under the distribution that was sampled from, after all
        processors; 0 for greedy rows, which had no choice; NaN where rules left no token at all.
        Importance ratios need one or the other on both sides, never a mixture.
    finish int32[B]: RUNNING, STOP_TOKEN, STOP_STRING or LENGTH.
    """

    tokens: jax.Array
    lengths: jax.Array
    log_probs: jax.Array
    support_log_probs: jax.Array
    finish: jax.Array


class Top(NamedTuple):
    """The K likeliest tokens of each place under the model's own softmax, the likeliest first, of
    equals the lower id: tokens int32[B, max_new, K] and log_probs float32[B, max_new, K]."""

    tokens: jax.Array
    log_probs: jax.Array


class State(NamedTuple):
    """The loop between two tokens. `last` [B] is sampled and recorded, but not yet in the cache.

    position int32[B] and segment int32[B] are those of `last`; seen bool[B, V] holds the tokens of
    prompt and generation; step is the number of tokens generated, int32 scalar. text: what rules
    read, None without rules. top: None where nobody asks for it.
    """

    cache: Cache
    last: jax.Array
    position: jax.Array
    segment: jax.Array
    seen: jax.Array
    step: jax.Array
    out: Generation
    text: penalties.Text | None = None
    top: Top | None = None


def generate(
    model: Model, params: param.Tree, tokens: jax.Array, at: At, rows: Rows, max_new: int
) -> Generation:
    """At most max_new tokens after each prompt; ends early when every row has stopped.

    tokens int32[B, P] at `at`: each row's prompt is one segment with rising positions, anywhere
    among padding (segment 0). `rows` as in `Rows`; with an origin, there may be fewer prompts.
    """
    params = unstacked(params)
    state = start(model, params, tokens, at, rows, max_new)
    return advance(model, params, state, rows, max_new).out


def unstacked_already(params: param.Tree) -> bool:
    """Whether every segment of the stack is one repeat, or there is no stack (a Flax module)."""
    return "stack" not in params or all(w.shape[0] == 1 for w in jax.tree.leaves(params["stack"]))


def unstacked(params: param.Tree) -> param.Tree:
    """The weights with every layer's apart. The loop reads them as they are, where stacked ones
    would be sliced, that is copied, at every token."""
    if unstacked_already(params):
        return params
    return params | {"stack": stack.unstacked(params["stack"])}


def start(
    model: Model, params: param.Tree, tokens: jax.Array, at: At, rows: Rows, max_new: int
) -> State:
    """The State after prefill, the first token of each row sampled."""
    slots = cache_kinds.slots(model, tokens.shape[1] + max_new - 1)
    if cache_kinds.has_rings(model, slots):
        tokens, at = to_the_right(tokens, at)
    state = prefilled(model, params, tokens, at, rows, max_new)
    return state._replace(cache=grow(model, state.cache, slots))


def to_the_right(tokens: jax.Array, at: At) -> tuple[jax.Array, At]:
    """The rows int32[B, P] with all padding before their tokens: the last slots, which a ring
    keeps, are then each row's last tokens."""
    order = jnp.argsort(at.segments > 0, axis=1, stable=True)
    moved = [jnp.take_along_axis(x, order, axis=1) for x in (tokens, *at[:2])]
    return moved[0], At(*moved[1:])


def prefilled(
    model: Model, params: param.Tree, tokens: jax.Array, at: At, rows: Rows, max_new: int
) -> State:
    """`start` with a cache that has no slots but those of the prompts."""
    x, cache, _ = model.hidden(params, tokens, at, empty(model, len(tokens)))
    assert cache is not None
    # a row's end is its highest position, wherever its padding is
    end = jnp.argmax(jnp.where(at.segments > 0, at.positions, -1), axis=1)
    raw = model.unembed(model.head(params), jnp.take_along_axis(x, end[:, None, None], 1)[:, 0])
    if rows.origin is not None:
        cache = repeated(model, cache, rows.origin)
        tokens, at, end, raw = jax.tree.map(lambda x: x[rows.origin], (tokens, at, end, raw))
    return begun(
        cache,
        raw,
        tokens,
        at.segments > 0,
        jnp.take_along_axis(at.positions, end[:, None], 1)[:, 0],
        jnp.take_along_axis(at.segments, end[:, None], 1)[:, 0],
        rows,
        max_new,
    )


def begun(
    cache: Cache,
    raw: jax.Array,
    tokens: jax.Array,
    there: jax.Array,
    position: jax.Array,
    segment: jax.Array,
    rows: Rows,
    max_new: int,
    top: int = 0,
) -> State:
    """The State with the first token of each row sampled from logits raw float32[B, V].

    tokens int32[B, P]: the prompts, where `there` bool[B, P]. position, segment int32[B]: of the
    last token of each. The State has room for max_new tokens, and records the `top` likeliest.
    """
    batch = tokens.shape[0]
    seen = jnp.zeros((batch, raw.shape[-1]), bool)
    seen = seen.at[jnp.arange(batch)[:, None], tokens].max(there)
    zeros = jnp.zeros((batch, max_new))
    ruled = rows.controls.rules is not None
    text = penalties.begun(tokens, there, rows.limit, max_new) if ruled else None
    state = State(
        cache,
        jnp.zeros(batch, jnp.int32),
        position,
        segment,
        seen,
        jnp.zeros((), jnp.int32),
        Generation(
            zeros.astype(jnp.int32),
            jnp.zeros(batch, jnp.int32),
            zeros,
            zeros,
            jnp.where(rows.limit > 0, RUNNING, LENGTH).astype(jnp.int32),
        ),
        text,
        unrecorded(batch, max_new, top) if top else None,
    )
    return _record(state, raw, rows)


def unrecorded(batch: int, max_new: int, top: int) -> Top:
    """The Top of places that have no token yet: zeros."""
    shape = (batch, max_new, top)
    return Top(jnp.zeros(shape, jnp.int32), jnp.zeros(shape))


def advance(model: Model, params: param.Tree, state: State, rows: Rows, steps: int) -> State:
    """The State up to `steps` tokens on; no further than the room that `start` made, and not at
    all once every row has stopped."""
    last = jnp.minimum(state.step + steps, state.out.tokens.shape[1])

    def going(state: State) -> jax.Array:
        return (state.step < last) & jnp.any(state.out.finish == RUNNING)

    return jax.lax.while_loop(going, lambda state: step(model, params, state, rows), state)


def step(model: Model, params: param.Tree, state: State, rows: Rows) -> State:
    """The State a token on, in rows that have not stopped."""
    running = state.out.finish == RUNNING
    # a stopped row becomes padding: no attention, and no position beyond the model's
    at = At(
        jnp.where(running, state.segment, 0)[:, None],
        jnp.where(running, state.position, 0)[:, None],
    )
    x, cache, _ = model.hidden(params, state.last[:, None], at, state.cache)
    assert cache is not None
    if cache.filled.ndim:  # one that waits to go on keeps what a ring holds of it
        cache = cache._replace(filled=jnp.where(running, cache.filled, state.cache.filled))
    raw = model.unembed(model.head(params), x[:, 0])
    return _record(state._replace(cache=cache), raw, rows)


def empty(model: Model, batch: int) -> Cache:
    """A Cache without slots; it takes the size and dtype of what is first written to it."""

    def leaf(p: param.Param) -> jax.Array:
        shape = [0 if axis == "seq" else n for n, axis in zip(p.shape, p.axes, strict=True)]
        return jnp.zeros(shape, p.dtype)

    none = jnp.zeros((batch, 0), jnp.int32)
    layers = param.map(leaf, model.cache(batch, 1))
    return Cache(layers, At(none, none), jnp.zeros((), jnp.int32))


def repeated(model: Model, cache: Cache, origin: jax.Array) -> Cache:
    """The cache of rows int32[B] of its own: row r holds what row origin[r] does."""
    spec = model.cache(1, 1)
    layers = param.map(
        lambda p, x: jnp.take(x, origin, axis=p.axes.index("batch")), spec, cache.layers
    )
    return Cache(layers, At(*(x[origin] for x in cache.at[:2])), cache.filled)


def grow(model: Model, cache: Cache, slots: int) -> Cache:
    """The cache with empty slots (segment 0) appended, `slots` in all; a layer that becomes a ring
    with that keeps the last of the filled ones."""

    def pad(x: jax.Array, axis: int, slots: int) -> jax.Array:
        more = [(0, slots - n if i == axis else 0) for i, n in enumerate(x.shape)]
        return jnp.pad(x, more)

    def fit(p: param.Param, x: jax.Array) -> jax.Array:
        axis = p.axes.index("seq")
        if x.shape[axis] > p.shape[axis]:
            return ring_cache.gathered(x, cache.filled, p.shape[axis], axis)
        return pad(x, axis, p.shape[axis])

    layers = param.map(fit, model.cache(1, slots), cache.layers)
    return Cache(layers, At(*(pad(x, 1, slots) for x in cache.at[:2])), cache.filled)


def _record(state: State, raw: jax.Array, rows: Rows) -> State:
    """The State with one more token per running row, sampled from logits float32[B, V]."""
    x = sampling.process(raw, state.seen, rows.controls, state.text)
    greedy = rows.controls.temperature == 0
    token = sampling.sample(x, rows.keys, state.position + 1, greedy)
    one = jnp.ones_like(token)
    return recorded(state, raw[:, None], x[:, None], token[:, None], one, rows)


def _over(stopped: jax.Array, lengths: jax.Array, limit: jax.Array) -> jax.Array:
    """bool[B, T]: whether a row ended before its t-th new token. stopped bool[B, T]: at a stop
    token there; lengths, limit int32[B]: tokens before the new ones, and at most."""
    index = jnp.arange(stopped.shape[1])
    ends = stopped | (lengths[:, None] + index + 1 >= limit[:, None])
    return jnp.any(ends[:, None] & (index < index[:, None]), axis=-1)


def recorded(
    state: State, raw: jax.Array, x: jax.Array, tokens: jax.Array, count: jax.Array, rows: Rows
) -> State:
    """The State with more tokens in the running rows: the first count int32[B] of tokens
    int32[B, T], up to the one that ends its row.

    raw float32[B, T, V]: the model's logits at each place; x: those after all processors.
    """
    controls, out = rows.controls, state.out
    batch, width = tokens.shape
    index = jnp.arange(width)
    running = (out.finish == RUNNING)[:, None]  # [B,1]
    stopped = jnp.any(tokens[:, :, None] == rows.stop[:, None], axis=-1)  # [B,T]
    kept = running & (index < count[:, None]) & ~_over(stopped, out.lengths, rows.limit)
    tokens = jnp.where(kept, tokens, 0)
    number = jnp.sum(kept, axis=1, dtype=jnp.int32)  # [B]

    def each(x: jax.Array) -> jax.Array:
        flat = x.reshape(batch * width, -1)
        return sampling.log_prob(flat, tokens.reshape(-1)).reshape(batch, width)

    greedy = (controls.temperature == 0)[:, None]
    support = jax.lax.cond(
        jnp.all(greedy),
        lambda x: jnp.zeros((batch, width)),
        lambda x: jnp.where(greedy, 0.0, each(x)),
        x,
    )
    if controls.rules is not None:
        support = jnp.where(jnp.max(x, axis=-1) == -jnp.inf, jnp.nan, support)
    lengths = out.lengths + number
    finish = jnp.where(lengths >= rows.limit, LENGTH, RUNNING)
    finish = jnp.where(jnp.any(stopped & kept, axis=1), STOP_TOKEN, finish)
    # rows of one batch begin together, those of slots do not
    place = jnp.where(kept, out.lengths[:, None] + index, out.tokens.shape[1])
    row = jnp.arange(batch)[:, None]

    def put(old: jax.Array, columns: jax.Array) -> jax.Array:
        return old.at[row, place].set(columns.astype(old.dtype), mode="drop")

    top = state.top
    if top is not None:
        found = sampling.likeliest(raw, top.tokens.shape[2])
        top = Top(*map(put, top, found))
    last = jnp.take_along_axis(tokens, jnp.maximum(number - 1, 0)[:, None], axis=1)
    return state._replace(
        last=last[:, 0],
        position=state.position + number,
        seen=state.seen.at[row, tokens].max(kept),
        step=state.step + 1,
        out=Generation(
            put(out.tokens, tokens),
            lengths,
            put(out.log_probs, each(raw)),
            put(out.support_log_probs, support),
            jnp.where(running[:, 0], finish, out.finish).astype(jnp.int32),
        ),
        text=None if state.text is None else penalties.extended(state.text, tokens, kept),
        top=top,
    )
