"""A decoder-only language model around a family's block: embed -> stack -> norm -> unembed."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxlm.core import param
from jaxlm.models import stack
from jaxlm.models.model import Cache, Hidden, Model
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
        return Hidden(x, None if cache is None else _append(cache, new, at))

    def head(params: param.Tree) -> param.Tree:
        name = "unembed" if "unembed" in params else "embed"
        return {name: params[name]}

    def unembed(head: param.Tree, x: jax.Array) -> jax.Array:
        table = head["unembed"] if "unembed" in head else head["embed"]["table"].T
        logits = jnp.matmul(x, table.astype(x.dtype), preferred_element_type=jnp.float32)
        return logits if softcap is None else softcap * jnp.tanh(logits / softcap)

    def empty(batch: int, slots: int) -> tuple[dict[str, param.Param], ...]:
        return tuple(memory(kind, batch, slots) for kind in stack.layers(spec["stack"]))

    return Model(cfg, spec, hidden, head, unembed, empty, context)


def _append(cache: Cache, new: list[dict[str, jax.Array]], at: At) -> Cache:
    """The cache after writing T new slots behind the filled ones; each write is in place."""

    def put(old: jax.Array, fresh: jax.Array) -> jax.Array:
        zero = jnp.zeros((), jnp.int32)
        where = (zero, cache.filled, *[zero] * (old.ndim - 2))
        return jax.lax.dynamic_update_slice(old, fresh.astype(old.dtype), where)

    layers = tuple(
        {name: put(old[name], fresh[name]) for name in old}
        for old, fresh in zip(cache.layers, new, strict=True)
    )
    seen = At(*(put(a, b) for a, b in zip(cache.at, at, strict=True)))
    return Cache(layers, seen, cache.filled + at.segments.shape[1])
