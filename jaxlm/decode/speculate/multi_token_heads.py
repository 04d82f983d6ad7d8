"""Drafts of the model's own multi-token prediction. DeepSeek-AI 2024 (DeepSeek-V3), section 2.2:
depth 1 reads the model's x at a place and the token after it, and predicts the one after that.

Its own x takes the place of the model's for the next draft, so that one depth drafts any number of
tokens, as it is used with the released weights; further depths are not read.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxlm.decode import sampling_loop
from jaxlm.decode.sampling_loop import Rows, State
from jaxlm.decode.speculate import drafts
from jaxlm.decode.speculate.drafts import Proposer, Read, Verified, Weights
from jaxlm.models.model import Cache, Model
from jaxlm.ops.attention import At
from jaxlm.ops.losses import shift


class Memory(NamedTuple):
    """cache: of the places before `first`. x [B, K, D] of the model and the tokens int32[B, K]
    after each: count int32[B] places that are still to be read, from position first int32[B] on."""

    cache: Cache
    x: jax.Array
    tokens: jax.Array
    count: jax.Array
    first: jax.Array


def proposer(model: Model, longest: int) -> Proposer:
    """Drafts of at most `longest` tokens. Places of which the model has computed x since are read
    anew, with that in place of what was drafted from."""
    depth = model.further
    assert depth is not None

    def begin(weights: Weights, read: Read, state: State, slots: int) -> tuple:
        after, there = shift.later(read.tokens, read.at.segments, 1)
        at = At(jnp.where(there, read.at.segments, 0), read.at.positions)
        empty = sampling_loop.empty(depth, len(after))
        out = depth.hidden(weights.model, after, at, empty, source=read.x)
        assert out.cache is not None
        width = after.shape[1]
        # a pass writes all places that may be pending, of which some are padding
        cache = drafts.roomy(depth, out.cache, read.origin, width + slots + longest, width)
        end = jnp.argmax(jnp.where(read.at.segments > 0, read.at.positions, -1), axis=1)
        x = jnp.take_along_axis(read.x, end[:, None, None], axis=1)
        x = x if read.origin is None else x[read.origin]
        pending = jnp.zeros((len(x), longest), jnp.int32)
        tokens = jnp.concatenate([state.last[:, None], pending], axis=1)
        x = jnp.pad(x, ((0, 0), (0, longest), (0, 0)))
        memory = Memory(cache, x, tokens, jnp.ones_like(state.last), state.position - 1)
        return memory, jnp.full_like(state.last, longest)

    def propose(
        weights: Weights, memory: Memory, state: State, rows: Rows, length: int
    ) -> tuple[jax.Array, Memory]:
        head = model.head(weights.model)
        filled = memory.cache.filled + memory.count

        def read(tokens, position, there, x, cache) -> tuple:
            at = drafts.place(state, position, there)
            out = depth.hidden(weights.model, tokens, at, cache, source=x)
            return out.x, out.cache

        def step(token: jax.Array, i: jax.Array, carry: tuple) -> tuple:
            x, cache = read(token[:, None], (state.position + i)[:, None], True, *carry)
            return model.unembed(head, x[:, 0]), (x, cache)

        index = jnp.arange(longest + 1)
        known = drafts.before(memory.cache, memory.first, memory.cache.filled)
        there = index < memory.count[:, None]
        x, cache = read(memory.tokens, memory.first[:, None] + index, there, memory.x, known)
        cache = cache._replace(filled=filled)
        kept = memory._replace(cache=cache, first=memory.first + memory.count)
        x = jnp.take_along_axis(x, (memory.count - 1)[:, None, None], axis=1)  # [B,1,D]
        raw = model.unembed(head, x[:, 0])
        if not length:
            return drafts.none(len(raw)), kept
        drawn, (_, cache) = drafts.drawn(step, raw, (x, cache), state, rows, length)
        return drawn, kept._replace(cache=cache._replace(filled=filled))

    return Proposer(begin, propose, functools.partial(_settled, longest))


def _settled(
    longest: int, memory: Memory, state: State, verified: Verified
) -> tuple[Memory, jax.Array]:
    """The Memory after a pass, and int32[B]: how many tokens can be drafted next."""
    room = longest + 1 - verified.tokens.shape[1]
    memory = memory._replace(
        x=jnp.pad(verified.x, ((0, 0), (0, room), (0, 0))),
        tokens=jnp.pad(verified.tokens, ((0, 0), (0, room))),
        count=verified.number,
    )
    return memory, jnp.full_like(verified.number, longest)
