"""Multi-head attention as families call it: one function for training, prefill and decoding."""

import jax
import jax.numpy as jnp

from jaxlm.core import param
from jaxlm.ops import attention
from jaxlm.ops.attention import At
from jaxlm.parallel.plan import Plan

# What a block is given of the cache: its layer's entries and where every slot stands; None when
# training.
Memory = tuple[dict[str, jax.Array], At] | None


def attend(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    at: At,
    memory: Memory,
    plan: Plan,
    *,
    window: int | None = None,
    softcap: float | None = None,
) -> tuple[jax.Array, dict[str, jax.Array] | None]:
    """Causal attention [B, T, N, H] of q [B, T, N, H] over k, v [B, T, K, H] and, with a memory,
    over its slots too; and the entries to append to the cache (None when training).

    The old slots and the new keys meet in one softmax, so nothing is written before it is read.
    """
    entries = {"k": jnp.swapaxes(k, 1, 2), "v": jnp.swapaxes(v, 1, 2)}
    if memory is None or not memory[1].segments.shape[1]:  # nothing is remembered yet
        q = plan.constrain(q, "batch seq heads head")
        y = attention.attend(q, k, v, at, at, window=window, softcap=softcap, kernel=plan.attention)
        return y, None if memory is None else entries
    old, slots = memory
    y = attention.attend_cached(
        q, k, v, at, old["k"], old["v"], slots, window=window, softcap=softcap
    )
    return y, entries


def cache(batch: int, slots: int, kv: int, head: int) -> dict[str, param.Param]:
    """The cache spec of one layer: keys and values [B, K, S, H]."""
    p = param.shaper(batch=batch, seq=slots, kv=kv, head=head)
    return {name: p("batch kv seq head", init=param.zeros) for name in ("k", "v")}
