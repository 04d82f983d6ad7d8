"""Drafted tokens, and the interface of what drafts them."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxlm.core import param
from jaxlm.decode import sampling_loop
from jaxlm.decode.sampling_loop import Rows, State
from jaxlm.decode.speculate.verification import DRAFT, at_place
from jaxlm.models.layers import cache_kinds
from jaxlm.models.model import Cache, Model
from jaxlm.ops import penalties, sampling
from jaxlm.ops.attention import At


class Weights(NamedTuple):
    """Weights of the model, and those of the model that drafts; None where there is none."""

    model: param.Tree
    draft: param.Tree | None = None


class Drafts(NamedTuple):
    """Tokens int32[B, L] that may follow, and the distribution float32[B, L, V] that each was drawn
    from; None where each was certain."""

    tokens: jax.Array
    law: jax.Array | None


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
    propose(weights, memory, state, rows, length) -> (Drafts of `length` tokens, memory).
    settle(memory, state, verified) -> as `begin`, after a pass whose result is `state`.

    state.text is never None.
    """

    begin: Callable[[Weights, Read, State, int], tuple[Any, jax.Array]]
    propose: Callable[[Weights, Any, State, Rows, int], tuple[Drafts, Any]]
    settle: Callable[[Any, State, Verified], tuple[Any, jax.Array]]


def drawn(
    step: Callable[[jax.Array, jax.Array, Any], tuple[jax.Array, Any]],
    raw: jax.Array,
    carry: Any,
    state: State,
    rows: Rows,
    length: int,
) -> tuple[Drafts, Any]:
    """`length` tokens, each drawn from the processed logits of a model that reads the one before.

    raw float32[B, V]: logits of the first. step(token int32[B], i, carry) -> (logits after the i-th
    drafted token, carry). Every processor reads the drafted prefix.
    """
    controls, assumed = rows.controls, state.out.finish == sampling_loop.RUNNING
    greedy = controls.temperature == 0
    row = jnp.arange(len(greedy))

    def draw(raw: jax.Array, i: jax.Array | int, seen: jax.Array, text: penalties.Text):
        x = sampling.process(raw, seen, controls, text)
        keys, role = at_place(rows.keys, state.position + 1 + i), jnp.full(len(row), DRAFT)
        token = sampling.sample(x, keys, role, greedy)
        law = jax.lax.cond(jnp.all(greedy), jnp.zeros_like, jax.nn.softmax, x)
        seen = seen.at[row, token].set(True)
        return Drafts(token, law), seen, penalties.extended(text, token, assumed)

    def body(left: tuple, i: jax.Array) -> tuple[tuple, Drafts]:
        raw, seen, text, carry = left
        draft, seen, text = draw(raw, i, seen, text)
        raw, carry = step(draft.tokens, i, carry)
        return (raw, seen, text, carry), draft

    assert state.text is not None
    left = (raw, state.seen, state.text, carry)
    left, first = jax.lax.scan(body, left, jnp.arange(length - 1, dtype=jnp.int32))
    raw, seen, text, carry = left
    last, *_ = draw(raw, length - 1, seen, text)  # nothing is read after the last one

    def whole(a: jax.Array, b: jax.Array) -> jax.Array:
        return jnp.moveaxis(jnp.concatenate([a, b[None]]), 0, 1)  # [B, length, ...]

    return jax.tree.map(whole, first, last), carry


def none(rows: int, vocab: int) -> Drafts:
    """No tokens."""
    return Drafts(jnp.zeros((rows, 0), jnp.int32), jnp.zeros((rows, 0, vocab)))


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
