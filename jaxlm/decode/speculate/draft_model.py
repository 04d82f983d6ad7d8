"""Drafts of a smaller model with the same vocabulary, which has a cache of its own."""

import jax
import jax.numpy as jnp

from jaxlm.decode import sampling_loop
from jaxlm.decode.sampling_loop import Rows, State
from jaxlm.decode.search import branches
from jaxlm.decode.speculate import drafts
from jaxlm.decode.speculate.drafts import Proposer, Read, Verified, Weights
from jaxlm.models.model import Cache, Model


def proposer(model: Model, longest: int) -> Proposer:
    """Drafts of the model whose weights are `Weights.draft`, at most `longest` tokens.

    Its cache holds the text up to two tokens before the next one. Every pass begins with those two,
    of which the first may be there already: how many drafts were accepted then does not matter.
    """

    def begin(weights: Weights, read: Read, state: State, slots: int) -> tuple:
        assert weights.draft is not None
        params = sampling_loop.unstacked(weights.draft)
        cache = branches.prefill(model, params, read.tokens, read.at, 0).cache
        width = read.tokens.shape[1]
        # the last token of a prompt is at the last slot, or that is padding
        cache = drafts.roomy(model, cache, read.origin, width + slots, width - 1)
        return cache, jnp.full_like(state.last, longest)

    def propose(
        weights: Weights, cache: Cache, state: State, rows: Rows, length: int
    ) -> tuple[jax.Array, Cache]:
        assert weights.draft is not None and state.text is not None
        params, filled = sampling_loop.unstacked(weights.draft), cache.filled
        head = model.head(params)

        def read(tokens: jax.Array, position: jax.Array, cache: Cache) -> tuple:
            out = model.hidden(params, tokens, drafts.place(state, position), cache)
            return model.unembed(head, out.x[:, -1]), out.cache

        def step(token: jax.Array, i: jax.Array, cache: Cache) -> tuple:
            return read(token[:, None], (state.position + 1 + i)[:, None], cache)

        prior = jnp.maximum(state.text.length - 2, 0)[:, None]
        prior = jnp.take_along_axis(state.text.tokens, prior, axis=1)  # [B,1]
        pair = jnp.concatenate([prior, state.last[:, None]], axis=1)  # [B,2]
        places = state.position[:, None] + jnp.arange(-1, 1)
        raw, cache = read(pair, places, drafts.before(cache, state.position - 1, filled))
        if not length:
            return drafts.none(len(raw)), cache._replace(filled=filled)
        drawn, cache = drafts.drawn(step, raw, cache, state, rows, length)
        return drawn, cache._replace(filled=filled)

    def settle(cache: Cache, state: State, verified: Verified) -> tuple[Cache, jax.Array]:
        filled = cache.filled + verified.number
        return cache._replace(filled=filled), jnp.full_like(filled, longest)

    return Proposer(begin, propose, settle)
