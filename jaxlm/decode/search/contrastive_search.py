"""Contrastive search: likely tokens that do not make the text repeat itself. Su et al. 2022
(arXiv:2202.06417), equation 5.

At each step the k likeliest tokens v are tried, each by a forward pass, and the one is taken with
the largest

    (1 - alpha) p(v | text) - alpha max over tokens j of the text of cos(h_v, h_j)

h is a token's hidden state after the model's last norm, which the logits are computed from (as in
transformers, where it was the last of `hidden_states`); the text is the prompt, without padding,
and all that was generated. The candidates are branches of one row (`branches`), and the pass that
tries a token gives the logits after it too: k tokens wide, one pass a token.

Per step are copied: the keys and values of the chosen candidate, one slot of each layer, to the
first of the slots that the candidates took; the next candidates are written after it. Nothing else
of the cache moves.
"""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxlm.core import check, param
from jaxlm.decode import sampling_loop
from jaxlm.decode.search import branches
from jaxlm.models.model import Cache, Model
from jaxlm.ops import sampling
from jaxlm.ops.attention import At


@dataclasses.dataclass(frozen=True)
class Contrastive:
    """Settings of contrastive search, named and meant as in transformers' GenerationConfig."""

    max_new: int = 128
    """Tokens to generate at most."""
    penalty_alpha: float = 0.6
    """Weight of the similarity to earlier tokens against the probability; 0 is greedy."""
    top_k: int = 4
    """The likeliest tokens that are tried at each step; 1 is greedy."""
    stop_tokens: tuple[int, ...] = ()
    """Token ids that end the text; the one that did is the last generated token."""

    def __post_init__(self) -> None:
        check.within("contrastive", self, "max_new", "top_k", least=1)
        check.within("contrastive", self, "penalty_alpha", least=0, most=1)


class Rule(NamedTuple):
    """stop int32[N]: tokens that end a text, -1 in unused places; limit int32: tokens at most;
    float32 alpha."""

    stop: jax.Array
    limit: jax.Array
    alpha: jax.Array


class Contrasted(NamedTuple):
    """One text of each of B rows, zero beyond its length.

    tokens int32[B, T], lengths int32[B], finish int32[B] as in `sampling_loop.Generation`;
    log_probs float32[B, T] under the model's softmax; similarity float32[B, T]: the largest cosine
    of each token's hidden state with those before it. finite bool[B]: whether all logits were.
    """

    tokens: jax.Array
    lengths: jax.Array
    log_probs: jax.Array
    similarity: jax.Array
    finish: jax.Array
    finite: jax.Array


class _State(NamedTuple):
    """The search after `step` tokens, all of them in the cache. raw float32[B, V]: logits of the
    next. units float32[B, S, D]: hidden states of the text, of length 1, by slot; seen bool[B, S]:
    the slots of the text."""

    cache: Cache
    raw: jax.Array
    units: jax.Array
    seen: jax.Array
    out: Contrasted
    step: jax.Array


def search(
    model: Model,
    params: param.Tree,
    tokens: jax.Array,
    at: At,
    active: jax.Array,
    rule: Rule,
    top_k: int,
    room: int,
    source: At | None = None,
) -> Contrasted:
    """The continuation of each prompt by at most `room` tokens.

    tokens int32[B, P] at `at`, as in `sampling_loop.generate`; rows that are not active (bool[B])
    only fill the batch. source: as in `branches.step`. It ends when every row has.
    """
    params = sampling_loop.unstacked(params)
    batch = tokens.shape[0]
    prompt = branches.prefill(model, params, tokens, at, room - 1 + top_k)
    units = jnp.zeros((batch, prompt.seen.shape[1], prompt.x.shape[-1]), jnp.float32)
    units = jax.lax.dynamic_update_slice_in_dim(units, _unit(prompt.x), 0, 1)
    counts, long = jnp.zeros(batch, jnp.int32), jnp.zeros((batch, room), jnp.float32)
    finish = jnp.where(active, sampling_loop.RUNNING, sampling_loop.LENGTH).astype(jnp.int32)
    out = Contrasted(long.astype(jnp.int32), counts, long, long, finish, jnp.ones(batch, bool))
    state = _State(prompt.cache, prompt.raw, units, prompt.seen, out, jnp.zeros((), jnp.int32))

    def going(state: _State) -> jax.Array:
        return (state.step < room) & jnp.any(state.out.finish == sampling_loop.RUNNING)

    def body(state: _State) -> _State:
        running = state.out.finish == sampling_loop.RUNNING
        first, place = state.cache.filled, prompt.position + state.step + 1
        p, tried = jax.lax.top_k(jax.nn.softmax(state.raw), top_k)  # [B, k]
        seen = jnp.broadcast_to(state.seen[:, None], (batch, top_k, state.seen.shape[1]))
        x, cache = branches.step(model, params, tried, place, running, seen, state.cache, source)
        unit = _unit(x)  # [B, k, D]
        cosine = jnp.einsum("BKD,BSD->BKS", unit, state.units, precision="highest")
        similar = jnp.max(jnp.where(seen, cosine, -jnp.inf), axis=-1)  # [B, k]
        best = sampling.first_largest((1 - rule.alpha) * p - rule.alpha * similar)[:, None]
        token = jnp.take_along_axis(tried, best, 1)[:, 0]
        chosen = jnp.take_along_axis(x, best[:, :, None], 1)[:, 0]  # [B, D]
        out = _recorded(state, token, jnp.take_along_axis(similar, best, 1)[:, 0], running, rule)
        own = jnp.take_along_axis(unit, best[:, :, None], 1)  # [B, 1, D]
        return _State(
            _settled(model, cache, first, best, top_k),
            model.unembed(model.head(params), chosen),
            jax.lax.dynamic_update_slice_in_dim(state.units, own, first, 1),
            jax.lax.dynamic_update_slice_in_dim(state.seen, running[:, None], first, 1),
            out,
            state.step + 1,
        )

    return jax.lax.while_loop(going, body, state).out


def _unit(x: jax.Array) -> jax.Array:
    """float32 x [..., D] over its length."""
    x = x.astype(jnp.float32)
    return x / jnp.maximum(jnp.linalg.norm(x, axis=-1, keepdims=True), 1e-30)


def _settled(model: Model, cache: Cache, first: jax.Array, best: jax.Array, k: int) -> Cache:
    """The cache with candidate best int32[B, 1] of those in the k slots from `first` alone: it is
    moved to the first of them, and the others are written over next."""

    def move(p: param.Param, x: jax.Array) -> jax.Array:
        axis = p.axes.index("seq")
        tried = jax.lax.dynamic_slice_in_dim(x, first, k, axis)
        index = best.reshape(-1, *[1] * (x.ndim - 1))  # the batch is the first axis
        return jax.lax.dynamic_update_slice_in_dim(
            x, jnp.take_along_axis(tried, index, axis), first, axis
        )

    layers = param.map(move, model.cache(1, 1), cache.layers)
    return cache._replace(layers=layers, filled=first + 1)


def _recorded(
    state: _State, token: jax.Array, similar: jax.Array, running: jax.Array, rule: Rule
) -> Contrasted:
    """The tokens so far, with token int32[B] of the running rows."""
    out = state.out
    lengths = out.lengths + running
    stopped = jnp.any(token[:, None] == rule.stop, axis=1)
    reached = jnp.where(lengths >= rule.limit, sampling_loop.LENGTH, sampling_loop.RUNNING)
    finish = jnp.where(stopped, sampling_loop.STOP_TOKEN, reached)

    def put(old: jax.Array, column: jax.Array) -> jax.Array:
        column = jnp.where(running, column, 0).astype(old.dtype)
        return jax.lax.dynamic_update_index_in_dim(old, column, state.step, 1)

    sound = jnp.isfinite(jax.nn.logsumexp(state.raw, axis=-1)) | ~running
    return Contrasted(
        put(out.tokens, token),
        lengths,
        put(out.log_probs, sampling.log_prob(state.raw, token)),
        put(out.similarity, similar),
        jnp.where(running, finish, out.finish).astype(jnp.int32),
        out.finite & sound,
    )
