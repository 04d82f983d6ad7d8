"""Beam search: the likeliest continuations of a prompt that a bounded search finds.

At each step every beam is extended by every token, and the W extensions of the highest sum of
log-probabilities are kept. One that ends is scored

    score = sum of log-probabilities / (number of generated tokens) ** length_penalty

and is kept if it is among the W best of its prompt. The generated tokens are those after the
prompt, the stop token among them: neither prompt nor padding is counted. So does transformers since
4.50 (`_beam_search`, read in 5.24), whose choices these are: among the extensions only the first W
may end a text, ties go to the earlier beam and the smaller token id, and `early_stopping` decides
when no better text is expected.

Diverse groups: Vijayakumar et al. 2018 (arXiv:1610.02424), algorithm 1 with the Hamming diversity.
Groups choose one after another; a token that beams of earlier groups go on with at this step costs
`diversity_penalty` for each of them, and these costs stay in the sum. Each group has its own pool;
one that is done costs the others nothing.

Per step are copied: the tokens, log-probabilities and path of each beam, 12 bytes for each token
it may have, and once more 8 for those that ended. No key and no value is: beams are branches of one
row of the cache (`branches`), and the path holds which slots a beam sees. The cache holds a prompt
once, and num_beams slots for each step.
"""

import dataclasses
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp

from jaxlm.core import check, param
from jaxlm.decode import sampling_loop
from jaxlm.decode.search import branches
from jaxlm.models.model import Cache, Model
from jaxlm.ops.attention import At


@dataclasses.dataclass(frozen=True)
class Beams:
    """Settings of beam search, named and meant as in transformers' GenerationConfig."""

    max_new: int = 128
    """Tokens to generate at most."""
    num_beams: int = 4
    """Continuations that are followed at once, of all groups together; 1 is greedy."""
    num_return_sequences: int = 1
    """Texts that are returned for a prompt, best first."""
    length_penalty: float = 1.0
    """The sum of log-probabilities is divided by length to this power: above 0 favours long texts,
    below 0 short ones."""
    early_stopping: bool | Literal["never"] = False
    """When a prompt is done, with num_beams texts that ended: True at once; False when the best
    beam would not be better if it ended now; "never" when it could not be at any length."""
    num_beam_groups: int = 1
    """Groups of equal size that are to differ."""
    diversity_penalty: float = 0.0
    """Cost in nats of a token for each beam of an earlier group that has it at the same step."""
    stop_tokens: tuple[int, ...] = ()
    """Token ids that end the text; the one that did is the last generated token."""

    def __post_init__(self) -> None:
        counts = ("max_new", "num_beams", "num_return_sequences", "num_beam_groups")
        check.within("beams", self, *counts, least=1)
        check.within("beams", self, "length_penalty", above=float("-inf"))
        ok = self.early_stopping is True or self.early_stopping in (False, "never")
        check.field("beams.early_stopping", self.early_stopping, ok, "True, False or 'never'")
        most = f"at most beams.num_beams={self.num_beams}"
        n = self.num_return_sequences
        check.field("beams.num_return_sequences", n, n <= self.num_beams, most)
        groups = self.num_beam_groups
        ok = self.num_beams % groups == 0
        check.field("beams.num_beam_groups", groups, ok, f"a divisor of {self.num_beams} beams")
        if groups > 1:
            check.within("beams", self, "diversity_penalty", above=0)
        else:
            alone = "0 with one group: it holds between groups"
            penalty = self.diversity_penalty
            check.field("beams.diversity_penalty", penalty, penalty == 0, alone)


class Shape(NamedTuple):
    """The settings that a program is compiled for: groups, beams of each, texts to return, and when
    a prompt is done (`Beams.early_stopping`)."""

    groups: int
    beams: int
    best: int
    early: bool | Literal["never"]


class Rule(NamedTuple):
    """The settings that a compiled program reads: stop int32[N], tokens that end a text, -1 in
    unused places; limit int32: tokens at most; float32 length_penalty and diversity_penalty."""

    stop: jax.Array
    limit: jax.Array
    length_penalty: jax.Array
    diversity_penalty: jax.Array


class Found(NamedTuple):
    """Texts, best first: M of each of B rows, zero beyond each one's length.

    tokens int32[B, M, T]: a stop token is the last. lengths int32[B, M]: 0 where there are fewer
    texts. log_probs float32[B, M, T] under the model's softmax. scores float32[B, M]: what they
    are ordered by, with groups after the costs of diversity; -inf where there is none. finish
    int32[B, M]: STOP_TOKEN or LENGTH of `sampling_loop`. finite bool[B]: whether all logits were.
    steps int32: tokens that were tried after the prompt, until every row was done.
    """

    tokens: jax.Array
    lengths: jax.Array
    log_probs: jax.Array
    scores: jax.Array
    finish: jax.Array
    finite: jax.Array
    steps: jax.Array


class _Pool(NamedTuple):
    """The best texts of one group that have ended, best first; scores are -inf in free places.
    Arrays are [B, W] and [B, W, T]."""

    scores: jax.Array
    tokens: jax.Array
    log_probs: jax.Array
    lengths: jax.Array
    finish: jax.Array


class _Group(NamedTuple):
    """The beams of one group, best first, and its pool.

    total float32[B, W]: sums of log-probabilities, less the costs of diversity; -inf for a beam
    that does not exist. tokens int32[B, W, T], log_probs float32[B, W, T]. path int32[B, W, T]: the
    place among all beams at which the token of each step is in the cache, -1 where it is not.
    done bool[B].
    """

    total: jax.Array
    tokens: jax.Array
    log_probs: jax.Array
    path: jax.Array
    pool: _Pool
    done: jax.Array


class _State(NamedTuple):
    """The search when `step` tokens are in every beam; the last of them is not in the cache yet."""

    cache: Cache
    groups: tuple[_Group, ...]
    finite: jax.Array
    step: jax.Array


def search(
    model: Model,
    params: param.Tree,
    tokens: jax.Array,
    at: At,
    active: jax.Array,
    rule: Rule,
    shape: Shape,
    room: int,
    source: At | None = None,
) -> Found:
    """The best continuations of at most `room` tokens of each prompt.

    tokens int32[B, P] at `at`, as in `sampling_loop.generate`; rows that are not active (bool[B])
    only fill the batch. source: as in `branches.step`. It ends when every row is done.
    """
    params = sampling_loop.unstacked(params)
    batch, width = tokens.shape
    beams = shape.groups * shape.beams
    slots = max(room - 1, 1)  # of each beam: its last token is in none
    prompt = branches.prefill(model, params, tokens, at, beams * slots)
    groups = tuple(_begin(active, shape.beams, room) for _ in range(shape.groups))
    state = _State(prompt.cache, groups, jnp.ones(batch, bool), jnp.zeros((), jnp.int32))
    state = _choose(state, jnp.repeat(prompt.raw[:, None], beams, 1), rule, shape)

    def going(state: _State) -> jax.Array:
        return (state.step < room) & ~jnp.all(_done(state))

    def body(state: _State) -> _State:
        path = jnp.concatenate([g.path for g in state.groups], axis=1)[..., :slots]
        # [B, W, T - 1, W]: slot c of step t is seen by the beams whose path leads there
        mine = path[..., None] == jnp.arange(beams)
        before = jnp.repeat(prompt.seen[:, None, :width], beams, 1)  # [B, W, P]
        seen = jnp.concatenate([before, mine.reshape(batch, beams, -1)], axis=-1)  # [B, W, S]
        written = jnp.concatenate([g.tokens for g in state.groups], axis=1)
        last = jax.lax.dynamic_index_in_dim(written, state.step - 1, 2, keepdims=False)  # [B, W]
        place, running = prompt.position + state.step, ~_done(state)
        x, cache = branches.step(model, params, last, place, running, seen, state.cache, source)
        raw = model.unembed(model.head(params), x)  # [B, W, V]
        return _choose(state._replace(cache=cache), raw, rule, shape)

    state = jax.lax.while_loop(going, body, state)
    every = jax.tree.map(lambda *x: jnp.concatenate(x, 1), *(g.pool for g in state.groups))
    best = _picked(every, jax.lax.top_k(every.scores, shape.best)[1])
    found = best.tokens, best.lengths, best.log_probs, best.scores, best.finish
    return Found(*found, state.finite, state.step)


def _done(state: _State) -> jax.Array:
    """bool[B]: whether all groups of a row are done."""
    return jnp.all(jnp.stack([g.done for g in state.groups]), axis=0)


def _begin(active: jax.Array, beams: int, room: int) -> _Group:
    """A group of one empty beam a row."""
    batch = active.shape[0]
    none, counts = (
        jnp.full((batch, beams), -jnp.inf, jnp.float32),
        jnp.zeros((batch, beams), jnp.int32),
    )
    long = jnp.zeros((batch, beams, room), jnp.float32)
    tokens = long.astype(jnp.int32)
    pool = _Pool(none, tokens, long, counts, counts)
    return _Group(none.at[:, 0].set(0.0), tokens, long, tokens - 1, pool, ~active)


def _choose(state: _State, raw: jax.Array, rule: Rule, shape: Shape) -> _State:
    """The State with one more token in every beam, chosen by logits float32[B, W, V] of all beams:
    group after group, each paying for the tokens of those before it."""
    batch, _, vocab = raw.shape
    log_probs = jax.nn.log_softmax(raw.astype(jnp.float32))
    sound = jnp.all(jnp.isfinite(jax.nn.logsumexp(raw, axis=-1)), axis=1) | _done(state)
    taken, groups = jnp.zeros((batch, vocab), jnp.float32), []
    for number, group in enumerate(state.groups):
        mine = slice(number * shape.beams, (number + 1) * shape.beams)
        cost, counted = rule.diversity_penalty * taken, ~group.done
        group = _extended(group, number, log_probs[:, mine], cost, state.step, rule, shape)
        groups.append(group)
        if number + 1 < shape.groups:
            last = jax.lax.dynamic_index_in_dim(group.tokens, state.step, 2, keepdims=False)
            counted = counted[:, None] & (group.total > -jnp.inf)  # [B, W]
            taken = taken.at[jnp.arange(batch)[:, None], last].add(counted)
    return state._replace(groups=tuple(groups), finite=state.finite & sound, step=state.step + 1)


def _extended(
    group: _Group,
    number: int,
    log_probs: jax.Array,
    cost: jax.Array,
    step: jax.Array,
    rule: Rule,
    shape: Shape,
) -> _Group:
    """The group after one more token. log_probs float32[B, W, V]; cost float32[B, V] of tokens."""
    batch, beams, vocab = log_probs.shape
    sums = group.total[:, :, None] + log_probs - cost[:, None]
    # enough that beams are left if every stop token is likelier than all other tokens
    kept = min((1 + rule.stop.shape[0]) * beams, beams * vocab)
    total, flat = jax.lax.top_k(sums.reshape(batch, -1), kept)  # [B, C]
    parent, token = flat // vocab, flat % vocab
    gained = jnp.take_along_axis(log_probs.reshape(batch, -1), flat, 1)
    stopped = jnp.any(token[..., None] == rule.stop, axis=-1)
    ended = stopped | (step + 1 >= rule.limit)

    def after(chosen: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Tokens and log-probabilities [B, W, T] of extensions int32[B, W]."""
        whose = jnp.take_along_axis(parent, chosen, 1)
        old = _picked((group.tokens, group.log_probs), whose)
        new = (jnp.take_along_axis(x, chosen, 1) for x in (token, gained))
        tokens, log_probs = (
            jax.lax.dynamic_update_index_in_dim(a, b, step, 2) for a, b in zip(old, new)
        )
        return tokens, log_probs

    first = jnp.broadcast_to(jnp.arange(beams), (batch, beams))
    scores = total / (step + 1).astype(jnp.float32) ** rule.length_penalty
    fresh = jnp.where(ended & ~group.done[:, None], scores, -jnp.inf)[:, :beams]
    lengths = jnp.full((batch, beams), step + 1)
    why = jnp.where(stopped, sampling_loop.STOP_TOKEN, sampling_loop.LENGTH)[:, :beams]
    why = why.astype(jnp.int32)
    pool = _merged(group.pool, _Pool(fresh, *after(first), lengths, why))

    # those that go on, in order
    running, chosen = jax.lax.top_k(jnp.where(ended, -jnp.inf, total), beams)
    path = _picked(group.path, jnp.take_along_axis(parent, chosen, 1))
    place = number * beams + jnp.take_along_axis(parent, chosen, 1)  # of the token before this one
    path = jnp.where(step > 0, jax.lax.dynamic_update_index_in_dim(path, place, step - 1, 2), path)
    done = group.done | _is_done(pool, running[:, 0], step + 1, rule, shape)
    return _Group(running, *after(chosen), path, pool, done)


def _merged(old: _Pool, new: _Pool) -> _Pool:
    """The best of both, as many as the old has places."""
    both = jax.tree.map(lambda a, b: jnp.concatenate([a, b], 1), old, new)
    return _picked(both, jax.lax.top_k(both.scores, old.scores.shape[1])[1])


def _is_done(
    pool: _Pool, best: jax.Array, length: jax.Array, rule: Rule, shape: Shape
) -> jax.Array:
    """bool[B]: whether no better text is expected, where the best beam, of this length, has the sum
    of log-probabilities float32[B]."""
    full = jnp.all(pool.scores > -jnp.inf, axis=1)
    none = best == -jnp.inf
    if shape.early is True:
        return full | none
    if shape.early == "never":  # sums are negative: the larger the divisor, the better
        length = jnp.where(rule.length_penalty > 0, rule.limit, length)
    possible = best / length.astype(jnp.float32) ** rule.length_penalty
    return full & ~(possible > jnp.min(pool.scores, axis=1)) | none


def _picked(tree, index: jax.Array):
    """The entries int32[B, M] of arrays [B, W, ...]."""

    def pick(x: jax.Array) -> jax.Array:
        return jnp.take_along_axis(x, index.reshape(*index.shape, *[1] * (x.ndim - 2)), 1)

    return jax.tree.map(pick, tree)
