"""The interface of what drafts tokens, and what several kinds of it share."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxlm.core import param
from jaxlm.decode import sampling_loop
from jaxlm.decode.sampling_loop import Rows, State
from jaxlm.models.layers import cache_kinds
from jaxlm.models.model import Cache, Model
from jaxlm.ops import penalties, sampling
from jaxlm.ops.attention import At


class Weights(NamedTuple):
    """Weights of the model, and those of the model that drafts; None where there is none."""

    model: param.Tree
    draft: param.Tree | None = None


class Read(NamedTuple):
    """Prompts after prefill: tokens int32[B, P] at `at`, the model's x [B, P, D], and the prompt
    int32[R] that each row continues, None where row r continues prompt r."""

    tokens: jax.Array
    at: At
    x: jax.Array
    origin: jax.Array | None


class Verified(NamedTuple):
    """Result of a pass over the drafts: the model's x [B, T, D] at the token before them and at
    each, the T tokens int32[B, T] chosen after those places, and the number of them int32[B] by
    which each row became longer."""

    x: jax.Array
    tokens: jax.Array
    number: jax.Array


class Proposer(NamedTuple):
    """A way to draft. `memory` is what it keeps between two passes, by rows.

    begin(weights, read, state, slots) -> (memory, with room for `slots` tokens after a prompt; how
        many tokens each row can draft next int32[B]).
    propose(weights, memory, state, rows, length) -> (tokens int32[B, length] that may follow,
        memory).
    settle(memory, state, verified) -> as `begin`, after a pass whose result is `state`.

    state.text is never None.
    """

    begin: Callable[[Weights, Read, State, int], tuple[Any, jax.Array]]
    propose: Callable[[Weights, Any, State, Rows, int], tuple[jax.Array, Any]]
    settle: Callable[[Any, State, Verified], tuple[Any, jax.Array]]


def drawn(
    step: Callable[[jax.Array, jax.Array, Any], tuple[jax.Array, Any]],
    raw: jax.Array,
    carry: Any,
    state: State,
    rows: Rows,
    length: int,
) -> tuple[jax.Array, Any]:
    """Tokens int32[B, length], each drawn from the processed logits of a model that reads the one
    before, by the noise with which the token at its place is drawn (`verification`).

    raw float32[B, V]: logits of the first. step(token int32[B], i, carry) -> (logits after the i-th
    drafted token, carry). Every processor reads the drafted prefix.
    """
    controls, assumed = rows.controls, state.out.finish == sampling_loop.RUNNING
    greedy = controls.temperature == 0
    row = jnp.arange(len(greedy))

    def draw(raw: jax.Array, i: jax.Array | int, seen: jax.Array, text: penalties.Text):
        x = sampling.process(raw, seen, controls, text)
        token = sampling.sample(x, rows.keys, state.position + 1 + i, greedy)
        return token, seen.at[row, token].set(True), penalties.extended(text, token, assumed)

    def body(left: tuple, i: jax.Array) -> tuple[tuple, jax.Array]:
        raw, seen, text, carry = left
        token, seen, text = draw(raw, i, seen, text)
        raw, carry = step(token, i, carry)
        return (raw, seen, text, carry), token

    assert state.text is not None
    left = (raw, state.seen, state.text, carry)
    left, first = jax.lax.scan(body, left, jnp.arange(length - 1, dtype=jnp.int32))
    raw, seen, text, carry = left
    last, *_ = draw(raw, length - 1, seen, text)  # nothing is read after the last one
    return jnp.concatenate([first, last[None]]).T, carry


def none(rows: int) -> jax.Array:
    """No tokens."""
    return jnp.zeros((rows, 0), jnp.int32)


def place(state: State, position: jax.Array, there: jax.Array | bool = True) -> At:
    """The At of tokens at position int32[B, T] where there bool[B, T], in the rows that run;
    padding elsewhere."""
    there = there & (state.out.finish == sampling_loop.RUNNING)[:, None]
    there = jnp.broadcast_to(there, position.shape)
    return At(jnp.where(there, state.segment[:, None], 0), jnp.where(there, position, 0))


def before(cache: Cache, position: jax.Array, filled: jax.Array) -> Cache:
    """The cache without what is at position int32[B] or later; the next slot to write is filled
    int32[B]."""
    segments = jnp.where(cache.at.positions < position[:, None], cache.at.segments, 0)
    return Cache(cache.layers, At(segments, cache.at.positions), filled)


def roomy(model: Model, cache: Cache, origin: jax.Array | None, slots: int, start: int) -> Cache:
    """The cache of prompts for the rows of `origin`, `slots` slots in all; each row goes on to
    write at slot `start`."""
    cache = cache if origin is None else sampling_loop.repeated(model, cache, origin)
    cache = sampling_loop.grow(model, cache, cache_kinds.slots(model, slots))
    return cache._replace(filled=jnp.full(len(cache.at.segments), start, jnp.int32))
