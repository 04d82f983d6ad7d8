"""A decoder-only language model around a family's block: embed -> stack -> norm -> unembed."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxlm.core import param
from jaxlm.models import stack
from jaxlm.models.model import Cache, Hidden, Model
from jaxlm.ops import linear
from jaxlm.ops.attention import At
from jaxlm.parallel.plan import Plan

# A family's block: (kind, w, x [B,T,D], at, memory, key) -> (x, new cache entries or None).
FamilyBlock = Callable[..., tuple[jax.Array, dict[str, jax.Array] | None]]


def build(
    cfg: Any,
    spec: param.Tree,
    plan: Plan,
    *,
    embed: Callable[[param.Tree, jax.Array, At, jax.Array | None], jax.Array],
    block: FamilyBlock,
    norm: Callable[[param.Tree, jax.Array], jax.Array],
    memory: Callable[[str, int, int], dict[str, param.Param]],
    softcap: float | None,
    context: int | None,
) -> Model:
    """A Model from a family's parts.

    embed(params["embed"], tokens, at, key) -> x [B, T, D]; norm(params["norm"], x), called only
    where the spec has that weight; memory(kind, batch, slots) -> the cache spec of one layer.
    """

    def hidden(
        params: param.Tree,
        tokens: jax.Array,
        at: At,
        cache: Cache | None = None,
        key: jax.Array | None = None,
    ) -> Hidden:
        x = embed(params["embed"], tokens, at, key).astype(plan.dtype)
        x = plan.constrain(x, "batch seq embed")

        def layer(kind: str, w: Any, x: jax.Array, entries: Any, layer_key: Any) -> tuple:
            seen = None if cache is None else (entries, cache.at)
            return block(kind, w, x, at, seen, layer_key)

        x, new = stack.apply(params["stack"], x, layer, plan, cache, key)
        if "norm" in params:
            x = norm(params["norm"], x)
        return Hidden(x, None if cache is None else _append(cache, new, at, x, empty(1, 1)))

    def head(params: param.Tree) -> param.Tree:
        name = "unembed" if "unembed" in params else "embed"
        return {name: params[name]}

    def unembed(head: param.Tree, x: jax.Array) -> jax.Array:
        if "unembed" in head:
            logits = linear.einsum("...D,DV->...V", x, head["unembed"], jnp.float32)
        else:
            logits = linear.einsum("...D,VD->...V", x, head["embed"]["table"], jnp.float32)
        return logits if softcap is None else softcap * jnp.tanh(logits / softcap)

    def empty(batch: int, slots: int) -> tuple[dict[str, param.Param], ...]:
        return tuple(memory(kind, batch, slots) for kind in stack.layers(spec["stack"]))

    return Model(cfg, spec, hidden, head, unembed, empty, context)


def _append(
    cache: Cache,
    new: list[dict[str, jax.Array]],
    at: At,
    x: jax.Array,
    spec: tuple[dict[str, param.Param], ...],
) -> Cache:
    """The cache after writing T new slots behind the filled ones; each write is in place. A cache
    without slots (prefill) takes the size and dtype of what is written.

    Raises: ValueError for more tokens than slots.
    """
    slots, width = cache.at.segments.shape[1], at.segments.shape[1]
    if not slots:
        return Cache(tuple(new), at, cache.filled + width)
    if slots < width:
        raise ValueError(f"cache: {width} tokens do not fit in {slots} slots")
    room = slots - width
    # `first` is cache.filled, as there is room. But to compute it x must be known, and so every
    # read of the old cache is over: XLA would else copy the cache, to be free to write it sooner.
    first = jnp.minimum(cache.filled, room + (x[0, 0, 0] > 0))

    def put(old: jax.Array, fresh: jax.Array, axis: int) -> jax.Array:
        return jax.lax.dynamic_update_slice_in_dim(old, fresh.astype(old.dtype), first, axis)

    layers = tuple(
        {name: put(old[name], fresh[name], p[name].axes.index("seq")) for name in old}
        for old, fresh, p in zip(cache.layers, new, spec, strict=True)
    )
    seen = At(*(put(a, b, 1) for a, b in zip(cache.at, at, strict=True)))
    return Cache(layers, seen, cache.filled + width)
