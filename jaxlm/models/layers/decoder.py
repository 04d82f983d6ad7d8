"""A decoder-only language model around a family's block: embed -> stack -> norm -> unembed."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from jaxlm.core import param, precision
from jaxlm.models.layers import stack
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
            memory = None if cache is None else (entries, cache.at)
            return block(of_kind[kind], w, x, rows, memory, keys)

        def last(x: jax.Array) -> jax.Array:
            return norm(params["norm"], x) if "norm" in params else x

        weights = stack.with_constants(params["stack"], constants)
        rows = at if source is None else (at, source)
        if cache is None:
            x, stats = stack.apply(weights, x, layer, plan, rows, spec["stack"], key)
            return Hidden(last(x), None, stats)
        x, new = stack.remember(weights, x, layer, rows, cache)
        return Hidden(last(x), _append(cache, new, at, x, empty(1, 1)))

    def unembed(head: param.Tree, x: jax.Array) -> jax.Array:
        return logits(stack.gathered(head, spec, plan), x, softcap, scale)

    def empty(batch: int, slots: int) -> tuple[dict[str, param.Param], ...]:
        return tuple(layer.cache(batch, slots) for layer in layers)

    return Model(cfg, spec, hidden, head, unembed, empty, context)


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


def _append(
    cache: Cache,
    new: list[dict[str, jax.Array]],
    at: At,
    x: jax.Array,
    spec: tuple[dict[str, param.Param], ...],
) -> Cache:
    """The cache after writing T new slots after the filled ones; each write is in place. A cache
    without slots (prefill) takes the size and dtype of what is written.

    Raises: ValueError for more tokens than slots.
    """
    slots, width = cache.at.segments.shape[1], at.segments.shape[1]
    if not slots:
        return Cache(tuple(new), At(at.segments, at.positions), cache.filled + width)
    if slots < width:
        raise ValueError(f"cache: {width} tokens do not fit in {slots} slots")
    room = slots - width
    # `first` is cache.filled, as there is room. But to compute it x must be known, and so every
    # read of the old cache is over: XLA would else copy the cache, to be free to write it sooner.
    first = jnp.minimum(cache.filled, room + (x[0, 0, 0] > 0))

    def put(old: jax.Array, fresh: jax.Array, axis: int) -> jax.Array:
        return jax.lax.dynamic_update_slice_in_dim(old, fresh.astype(old.dtype), first, axis)

    layers = []
    for old, fresh, params in zip(cache.layers, new, spec, strict=True):
        # T of S slots, along the axis that counts them: [B, K, S, H] of keys and values
        layers.append({n: put(old[n], fresh[n], params[n].axes.index("seq")) for n in old})
    seen = At(*(put(a, b, 1) for a, b in zip(cache.at[:2], at[:2], strict=True)))
    return Cache(tuple(layers), seen, cache.filled + width)
