"""The interface of a model: a config, a spec of its weights, and pure functions over them."""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax

from jaxlm.core import batch, param
from jaxlm.ops.attention import At

Params = param.Tree
Kind = Literal["decoder", "encoder", "encoder_decoder"]


class Cache(NamedTuple):
    """The memory of decoding. A slot is one time step of the batch, whatever each row holds there.

    layers: one dict per layer, in order; "k" and "v" [B, K, S, H] here. Which axis of a leaf holds
        the slots is in the spec: the one called "seq". A layer with fewer slots than `at` is a ring
        (`layers.ring_cache`).
    at: segments and positions int32[B, S]; segment 0 marks an empty slot or a row's padding.
    filled: int32 scalar, the next slot to write; or int32[B], that of each row.

    There is no padding side: rows of different lengths put padding anywhere, marked by segment 0,
    and attention looks only at segments and positions.
    """

    layers: tuple[dict[str, jax.Array], ...]
    at: At
    filled: jax.Array


class Hidden(NamedTuple):
    """The result of a forward pass: x [B, T, D] after the last norm, the cache if one came, and
    otherwise what the layers report: {name: array [layers that have it, ...]}, {} if nothing."""

    x: jax.Array
    cache: Cache | None
    stats: dict[str, jax.Array] = {}


class Model(NamedTuple):
    """A model family at one size, under one plan.

    hidden(params, tokens int32[B, T], at, cache=None, key=None) -> Hidden. One function serves
        training (no cache), prefill (T tokens into an empty cache) and decoding (T = 1). `key`
        turns dropout on in families that have it.
    head(params) -> the weights `unembed` reads, so that the loss differentiates only those.
    unembed(head, x [..., D]) -> logits float32[..., V].
    cache(batch, slots) -> an empty Cache spec: a tree of `Param` (`layers.cache_kinds`).
    context: the longest sequence the model's positions allow, None where any length runs.
    kind: a "decoder" sees only what is before a token, and continues texts; an "encoder" sees the
        whole segment, and has no cache; an "encoder_decoder" writes a target for a source.
    encode: of an encoder-decoder: encode(params, tokens int32[B, S], at, key=None) -> x [B, S, D];
        `hidden` then takes source=(x, at), what the decoder reads. None in all others.
    further: of a model with `ahead`: its depth 1 as a Model with a cache of its own (decoding).
        hidden(params, tokens, at, cache, source=x): x [B, T, D] at each place as `hidden` or
        `further` returned it, and the tokens after those places; the result is to unembed, for the
        tokens after these. None in all others.
    cross: of an encoder-decoder: cross(params, x [B, S, D]) -> the weights, the keys and values of
        x among them, so that `hidden` takes source=(None, at) and computes them no more
        (decoding). None in all others.
    windows: of each layer that has a cache, the keys that a token sees, itself included; None:
        all of them. () where none has a window.
    ahead: of a model that predicts more than the next token: ahead(params, x [B, T, D], tokens,
        at) -> ([x of depth 1, ...], statistics), each x [B, T, D] to unembed. None in all others.
    """

    cfg: Any
    spec: param.Tree
    hidden: Callable[..., Hidden]
    head: Callable[[Params], Params]
    unembed: Callable[[Params, jax.Array], jax.Array]
    cache: Callable[[int, int], tuple[dict[str, param.Param], ...]]
    context: int | None
    kind: Kind = "decoder"
    encode: Callable[..., jax.Array] | None = None
    ahead: Callable[..., tuple[list[jax.Array], dict[str, jax.Array]]] | None = None
    cross: Callable[[Params, jax.Array], Params] | None = None
    further: "Model | None" = None
    windows: tuple[int | None, ...] = ()


def logits(model: Model, params: Params, tokens: jax.Array, at: At) -> jax.Array:
    """float32[B, T, V] logits of tokens int32[B, T]: the whole forward pass in one call."""
    return model.unembed(model.head(params), model.hidden(params, tokens, at).x)


def read(
    model: Model, params: Params, rows: batch.Batch | batch.Pairs, key: jax.Array | None = None
) -> Hidden:
    """The Hidden at every target of a batch: of pairs, the decoder's after the encoder has read
    the sources; else the model's own. `key` turns dropout on.

    Raises: ValueError for pairs where there is no encoder-decoder, and for rows where there is.
    """
    at = At(rows.segments, rows.positions)
    if not isinstance(rows, batch.Pairs):
        if model.kind == "encoder_decoder":
            raise ValueError("an encoder-decoder reads pairs (batch.Pairs), not single rows")
        return model.hidden(params, rows.tokens, at, key=key)
    if model.encode is None:
        raise ValueError(f"pairs (batch.Pairs) require an encoder-decoder, not a {model.kind}")
    source_at = At(rows.source_segments, rows.source_positions)
    x = model.encode(params, rows.source, source_at, key=key)
    return model.hidden(params, rows.tokens, at, key=key, source=(x, source_at))
