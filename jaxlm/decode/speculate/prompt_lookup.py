"""Drafts without a model: what followed the latest n-gram when it occurred before.

Saxena 2023, "Prompt Lookup Decoding"; the longest n-gram up to a size is taken where it occurred
last, and a repetition that reaches the end of the text is taken to go on.
"""

import jax
import jax.numpy as jnp

from jaxlm.decode.sampling_loop import Rows, State
from jaxlm.decode.speculate.drafts import Proposer, Read, Verified, Weights
from jaxlm.ops import penalties


def proposer(size: int, longest: int) -> Proposer:
    """Drafts of at most `longest` tokens after the latest n-gram of at most `size`. The memory is
    the tokens to draft next, int32[B, longest]."""

    def begin(weights: Weights, read: Read, state: State, slots: int) -> tuple:
        return look_up(state)

    def propose(
        weights: Weights, memory: jax.Array, state: State, rows: Rows, length: int
    ) -> tuple[jax.Array, jax.Array]:
        return memory[:, :length], memory

    def settle(memory: jax.Array, state: State, verified: Verified) -> tuple[jax.Array, jax.Array]:
        return look_up(state)

    def look_up(state: State) -> tuple[jax.Array, jax.Array]:
        assert state.text is not None
        tokens, there = found(state.text, size, longest)
        return tokens, jnp.where(there, longest, 0)

    return Proposer(begin, propose, settle)


def found(text: penalties.Text, size: int, longest: int) -> tuple[jax.Array, jax.Array]:
    """(tokens int32[B, longest] that followed, whether any n-gram occurred before bool[B]): of the
    columns in which most of the last `size` tokens are as at the end, the latest."""
    tokens, end = text.tokens, text.length[:, None]
    column = jnp.arange(tokens.shape[1])
    run = jnp.ones(tokens.shape, bool)
    matched = jnp.zeros(tokens.shape, jnp.int32)
    for back in range(size):
        last = jnp.take_along_axis(tokens, jnp.maximum(end - 1 - back, 0), axis=1)
        inside = (column >= back) & (end > back)
        run = run & inside & (jnp.roll(tokens, back, axis=1) == last)
        matched = matched + run
    matched = jnp.where(column < end - 1, matched, 0)  # [B,W]
    longest_match = jnp.max(matched, axis=1, keepdims=True)
    best = jnp.max(jnp.where(matched == longest_match, column, 0), axis=1, keepdims=True)
    period = jnp.maximum(end - 1 - best, 1)
    place = best + 1 + jnp.arange(longest) % period  # [B,longest]
    place = jnp.minimum(place, tokens.shape[1] - 1)
    return jnp.take_along_axis(tokens, place, axis=1), longest_match[:, 0] > 0
