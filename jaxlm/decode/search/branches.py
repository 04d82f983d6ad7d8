"""Branches: several continuations of one prompt in one row of the cache.

W branches of a row are W tokens of one forward pass. They share the keys of their prompt, which are
stored once, and each sees those of its own past alone: which slots these are is an array of bool
(`At.views`), so that a branch that goes on from another's past copies no key and no value.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxlm.core import param
from jaxlm.decode import sampling_loop
from jaxlm.models.model import Cache, Model
from jaxlm.ops.attention import At


class Prompt(NamedTuple):
    """B prompts after prefill.

    x [B, P, D]: after the last norm. raw float32[B, V]: logits of the next token. position int32[B]
    of the last token. seen bool[B, S]: the slots of the cache that hold the row's prompt.
    """

    x: jax.Array
    raw: jax.Array
    position: jax.Array
    cache: Cache
    seen: jax.Array


def prefill(model: Model, params: param.Tree, tokens: jax.Array, at: At, room: int) -> Prompt:
    """The Prompt of tokens int32[B, P] at `at` (as `sampling_loop.generate` has them), with `room`
    empty slots after them."""
    batch, width = tokens.shape
    x, cache, _ = model.hidden(params, tokens, at, sampling_loop.empty(model, batch))
    assert cache is not None
    end = jnp.argmax(jnp.where(at.segments > 0, at.positions, -1), axis=1)  # [B]
    raw = model.unembed(model.head(params), jnp.take_along_axis(x, end[:, None, None], 1)[:, 0])
    position = jnp.take_along_axis(at.positions, end[:, None], 1)[:, 0]
    seen = jnp.pad(at.segments > 0, ((0, 0), (0, room)))  # [B, S]
    return Prompt(x, raw, position, sampling_loop.grow(model, cache, width + room), seen)


def step(
    model: Model,
    params: param.Tree,
    tokens: jax.Array,
    position: jax.Array,
    running: jax.Array,
    seen: jax.Array,
    cache: Cache,
    source: At | None,
) -> tuple[jax.Array, Cache]:
    """x [B, W, D] after the last norm for one token of every branch, and the cache with W more
    slots.

    tokens int32[B, W] at position int32[B]; seen bool[B, W, S]: the slots that each of them sees.
    Rows that are not running (bool[B]) are padding. source: the places of an encoder-decoder's
    sources, whose keys are in the weights (`encoder_decoder.conditioned`); else None.
    """
    # branches are segments, so that tokens of one pass do not see each other
    own = jnp.where(running[:, None], jnp.arange(1, tokens.shape[1] + 1), 0)  # [B, W]
    place = jnp.broadcast_to(jnp.where(running, position, 0)[:, None], own.shape)
    read = {}
    if source is not None:
        views = jnp.where(source.segments[:, None] > 0, own[:, :, None], 0)  # [B, W, S of source]
        read = {"source": (None, At(views, source.positions))}
    at = At(own, place, views=jnp.where(seen, own[:, :, None], 0))
    out = model.hidden(params, tokens, at, cache, **read)
    assert out.cache is not None
    return out.x, out.cache
