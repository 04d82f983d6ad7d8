"""A decoder-only language model around a family's block: embed -> stack -> norm -> unembed."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from jaxlm.core import param, precision
from jaxlm.models.layers import kv_cache, mha, ring_cache, stack
from jaxlm.models.model import Cache, Hidden, Model
from jaxlm.ops import linear
from jaxlm.ops.attention import At
from jaxlm.parallel.plan import Plan

# A family's block: (layer, w, x [B, T, D], at, memory, keys [B]) -> (x, mha.Out), for any rows.
FamilyBlock = Callable[..., tuple[jax.Array, dict[str, jax.Array]]]


def build(
    cfg: Any,
    spec: param.Tree,
    plan: Plan,
    *,
    layers: Sequence[stack.Layer],
    embed: Callable[[param.Tree, jax.Array, At, jax.Array | None], jax.Array],
    block: FamilyBlock,
    norm: Callable[[param.Tree, jax.Array], jax.Array],
    context: int | None,
    softcap: float | None = None,
    scale: float | None = None,
    constants: Callable[[int], param.Tree] | None = None,
) -> Model:
    """A Model from a family's parts.

    layers: of the spec's stack, in order. embed(params["embed"], tokens, at, key) -> x [B, T, D];
    norm(params["norm"], x), where the spec has it; constants(layer, from 0) -> scalars its block
    reads. `hidden` also takes perturb(x [B, T, D]) -> x, embeddings, and source, arrays that the
    block gets as (at, source). Logits are scaled, then softcap c makes c * tanh(logits / c).
    """
    of_kind = {layer.kind: layer for layer in layers}

    def hidden(
        params: param.Tree,
        tokens: jax.Array,
        at: At,
        cache: Cache | None = None,
        key: jax.Array | None = None,
        perturb: Callable[[jax.Array], jax.Array] = lambda x: x,
        source: Any = None,
    ) -> Hidden:
        x = perturb(embed(params["embed"], tokens, at, key).astype(plan.dtype))
        x = plan.constrain(x, "batch seq embed")

        def layer(kind: str, w: Any, x: jax.Array, rows: Any, entries: Any, keys: Any) -> tuple:
            memory = _memory(of_kind[kind], entries, cache, at)
            return block(of_kind[kind], w, x, rows, memory, keys)

        def last(x: jax.Array) -> jax.Array:
            return norm(params["norm"], x) if "norm" in params else x

        weights = stack.with_constants(params["stack"], constants)
        rows = at if source is None else (at, source)
        if cache is None:
            x, stats = stack.apply(weights, x, layer, plan, rows, spec["stack"], key)
            return Hidden(last(x), None, stats)
        x, new = stack.remember(weights, x, layer, rows, cache)
        return Hidden(last(x), kv_cache.append(cache, new, at, x, empty(1, 1)))

    def unembed(head: param.Tree, x: jax.Array) -> jax.Array:
        return logits(stack.gathered(head, spec, plan), x, softcap, scale)

    def empty(batch: int, slots: int) -> tuple[dict[str, param.Param], ...]:
        return tuple(layer.cache(batch, slots) for layer in layers)

    windows = tuple(layer.window for layer in layers)
    return Model(cfg, spec, hidden, head, unembed, empty, context, windows=windows)


def _memory(
    layer: stack.Layer, entries: dict[str, jax.Array], cache: Cache | None, at: At
) -> mha.Memory:
    """The part of the cache that a layer reads for new tokens at `at`; None without one."""
    if cache is None:
        return None
    n = kv_cache.slots(entries, layer.cache(1, 1))
    ring_cache.check(layer.window, n, cache.at.segments.shape[1], at)
    return mha.Slots(entries, *ring_cache.read(cache.at, cache.filled, n))


def head(params: param.Tree) -> param.Tree:
    """The weights `logits` reads: the output matrix, or the embedding table where it is tied."""
    out = {"unembed": params["unembed"]} if "unembed" in params else {}
    out = out or {"embed": {"table": params["embed"]["table"]}}
    return out | {name: params[name] for name in ("unembed_bias",) if name in params}


def logits(
    head: param.Tree, x: jax.Array, softcap: float | None = None, scale: float | None = None
) -> jax.Array:
    """float32[..., V] logits of x [..., D], scaled and then capped, as in `build`."""
    if "unembed" in head:
        z = linear.einsum("...D,DV->...V", x, head["unembed"], precision.wide())
    else:
        z = linear.einsum("...D,VD->...V", x, head["embed"]["table"], precision.wide())
    if "unembed_bias" in head:
        z = z + head["unembed_bias"]
    z = z if scale is None else z * scale
    return z if softcap is None else softcap * jnp.tanh(z / softcap)
