"""The loop of speculative decoding: pure functions, one program, as in `sampling_loop`.

A pass drafts L tokens for every row, runs the model over the last token and the drafts, and
lengthens each row by the drafts that are accepted and one token more. Rejected slots of the cache
are marked as empty, and overwritten by the next pass: rolling a row back is a length.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxlm.decode import sampling_loop
from jaxlm.decode.sampling_loop import RUNNING, Rows, State
from jaxlm.decode.search import branches
from jaxlm.decode.speculate import (
    draft_length,
    draft_model,
    drafts,
    multi_token_heads,
    prompt_lookup,
    verification,
)
from jaxlm.decode.speculate.drafts import Proposer, Weights
from jaxlm.models.layers import cache_kinds
from jaxlm.models.model import Model
from jaxlm.ops import penalties, sampling
from jaxlm.ops.attention import At


class Method(NamedTuple):
    """Way to draft, the same for all rows of a program.

    draft: a model without its spec, "lookup" or "mtp". lengths: drafts of a pass, rising; each is
    compiled. costs: of a pass with so many, as `draft_length.best` reads them. ngram: of lookup.
    """

    draft: Model | str
    lengths: tuple[int, ...]
    costs: tuple[float, ...]
    ngram: int = 3


class Tally(NamedTuple):
    """Counts of each row, int32[B]: passes of the model over it, tokens that were drafted for it
    and verified, those that were accepted, and tokens that the passes gave it."""

    passes: jax.Array
    drafted: jax.Array
    accepted: jax.Array
    tokens: jax.Array


class Progress(NamedTuple):
    """The loop between two passes: the State of plain decoding, what the proposer remembers, the
    tokens int32[B] to draft next, and what has been counted."""

    state: State
    memory: Any
    length: jax.Array
    recent: draft_length.Recent
    tally: Tally


def proposer(method: Method, model: Model) -> Proposer:
    """The Proposer of a method."""
    longest = method.lengths[-1]
    if isinstance(method.draft, Model):
        return draft_model.proposer(method.draft, longest)
    if method.draft == "mtp":
        return multi_token_heads.proposer(model, longest)
    return prompt_lookup.proposer(method.ngram, longest)


def start(
    model: Model,
    method: Method,
    weights: Weights,
    tokens: jax.Array,
    at: At,
    rows: Rows,
    max_new: int,
) -> Progress:
    """The Progress after prefill, the first token of each row sampled: arguments as
    `sampling_loop.generate` has them."""
    weights = weights._replace(model=sampling_loop.unstacked(weights.model))
    width, slots = tokens.shape[1], max_new + method.lengths[-1]
    models = [m for m in (model, method.draft) if isinstance(m, Model)]
    if any(cache_kinds.has_rings(m, width + slots) for m in models):
        tokens, at = sampling_loop.to_the_right(tokens, at)
    prompt = branches.prefill(model, weights.model, tokens, at, 0)
    read = drafts.Read(tokens, at, prompt.x, rows.origin)
    segment, raw, position = jnp.max(at.segments, axis=1), prompt.raw, prompt.position
    if rows.origin is not None:
        parts = (tokens, at, segment, raw, position)
        tokens, at, segment, raw, position = jax.tree.map(lambda x: x[rows.origin], parts)
    cache = drafts.roomy(model, prompt.cache, rows.origin, width + slots, width)
    there = at.segments > 0
    state = sampling_loop.begun(cache, raw, tokens, there, position, segment, rows, max_new)
    if state.text is None:  # drafts are looked up in it, rules or not
        text = penalties.begun(tokens, there, rows.limit, max_new)
        state = state._replace(text=penalties.extended(text, state.last, state.out.lengths > 0))
    memory, most = proposer(method, model).begin(weights, read, state, slots)
    none = jnp.zeros(len(rows.limit), jnp.int32)
    tally = Tally(none, none, none, none)
    progress = Progress(state, memory, none, draft_length.begun(len(none)), tally)
    return progress._replace(length=_next(method, progress, rows, most))


def advance(
    model: Model, method: Method, weights: Weights, progress: Progress, rows: Rows, passes: int
) -> Progress:
    """The Progress up to `passes` passes on; each gives every running row one token or more."""
    weights = weights._replace(model=sampling_loop.unstacked(weights.model))
    lengths, last = jnp.array(method.lengths), progress.state.step + passes

    def going(p: Progress) -> jax.Array:
        return (p.state.step < last) & jnp.any(p.state.out.finish == RUNNING)

    def longest(p: Progress) -> jax.Array:
        """The least length that suits every row."""
        wanted = jnp.max(jnp.where(p.state.out.finish == RUNNING, p.length, 0))
        return jnp.min(jnp.where(lengths >= wanted, lengths, method.lengths[-1]))

    def body(p: Progress) -> Progress:
        # a loop for each length in place of a branch, through which a cache would be copied
        for length in method.lengths:

            def here(p: Progress, length: int = length) -> jax.Array:
                return going(p) & (longest(p) == length)

            def step(p: Progress, length: int = length) -> Progress:
                return _pass(model, method, weights, p, rows, length)

            p = jax.lax.while_loop(here, step, p)
        return p

    return jax.lax.while_loop(going, body, progress)


def _pass(
    model: Model, method: Method, weights: Weights, p: Progress, rows: Rows, length: int
) -> Progress:
    """The Progress after `length` tokens were drafted, or fewer in rows that want fewer."""
    state, source = p.state, proposer(method, model)
    offered = jnp.where(state.out.finish == RUNNING, p.length, 0)
    drafted, memory = source.propose(weights, p.memory, state, rows, length)
    tokens = jnp.concatenate([state.last[:, None], drafted], axis=1)  # [B, L+1]
    index = jnp.arange(length + 1)
    at = drafts.place(state, state.position[:, None] + index, index <= offered[:, None])
    x, cache, _ = model.hidden(weights.model, tokens, at, state.cache)
    assert cache is not None
    raw = model.unembed(model.head(weights.model), x)  # [B, L+1, V]
    logits = processed(raw, state, drafted, rows.controls)
    chosen, accepted = verification.verify(
        logits,
        drafted,
        offered,
        rows.keys,
        state.position + 1,
        rows.controls.temperature == 0,
    )
    after = sampling_loop.recorded(state, raw, logits, chosen, accepted + 1, rows)
    number = after.out.lengths - state.out.lengths
    cache = drafts.before(cache, after.position, state.cache.filled + number)
    after = after._replace(cache=cache)
    memory, most = source.settle(memory, after, drafts.Verified(x, chosen, number))
    tally = Tally(number > 0, offered, jnp.where(number > 0, accepted, 0), number)
    new = Progress(
        after,
        memory,
        p.length,
        draft_length.seen(p.recent, accepted, offered),
        Tally(*(old + n for old, n in zip(p.tally, tally, strict=True))),
    )
    return new._replace(length=_next(method, new, rows, most))


def processed(
    raw: jax.Array, state: State, tokens: jax.Array, controls: sampling.Controls
) -> jax.Array:
    """Logits float32[B, L + 1, V] after all processors: of the token after the text, and of those
    after the first one, two, ... of drafted tokens int32[B, L]."""
    batch, width, vocab = raw.shape
    seen = [state.seen]
    for i in range(width - 1):
        seen.append(seen[-1] | (tokens[:, i, None] == jnp.arange(vocab)))

    def each(x: jax.Array) -> jax.Array:
        return jnp.repeat(x, width, axis=0)  # [B * (L+1), ...]

    text = None
    if controls.rules is not None:
        assert state.text is not None
        ahead = jnp.tile(jnp.arange(width, dtype=jnp.int32), batch)
        every = penalties.extended(state.text, tokens, jnp.ones(tokens.shape, bool))
        text = penalties.Text(*(each(x) for x in state.text))
        text = text._replace(
            tokens=each(every.tokens), length=text.length + ahead, left=text.left - ahead
        )
    flat = jax.tree.map(each, controls)
    prior = jnp.stack(seen, axis=1).reshape(-1, vocab)
    return sampling.process(raw.reshape(-1, vocab), prior, flat, text).reshape(raw.shape)


def _next(method: Method, p: Progress, rows: Rows, most: jax.Array) -> jax.Array:
    """int32[B]: how many tokens to draft next, of `most` int32[B] that can be. A row that may
    become longer by n draws the last of them itself."""
    room = rows.limit - p.state.out.lengths - 1
    most = jnp.maximum(jnp.minimum(most, room), 0)
    running = p.state.out.finish == RUNNING
    most = jnp.where(running, most, -1)
    length = draft_length.best(p.recent, most, method.lengths, method.costs)
    return jnp.where(running, jnp.minimum(length, most), 0)
