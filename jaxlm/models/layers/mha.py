"""Multi-head attention as families call it: its weights, its projections, and one function that
attends in training, prefill and decoding.

    q, k, v = project(w, h, at, rotary=...)     [B, T, N, H], [B, T, K, H]
    y, out = attend(q, k, v, at, memory, plan)  [B, T, N, H]
    x = x + output(w, y)                        [B, T, D]

Biases and norms of queries and keys are there where the weights have them.
"""

import functools
from collections.abc import Callable
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from jaxlm.core import param
from jaxlm.models.layers import quantised_cache, stack
from jaxlm.ops import attention, linear, rope
from jaxlm.ops.attention import At
from jaxlm.parallel import context_parallel
from jaxlm.parallel.plan import Plan


class Slots(NamedTuple):
    """The part of the cache that a block reads: its layer's entries, the place of every slot, and
    the block of slots to be added up first (`ring_cache.read`)."""

    entries: dict[str, jax.Array]
    at: At
    first: jax.Array | None = None


Memory = Slots | None  # None when training

# Second output of a block, after x: with a memory, the entries to append to the cache; without, the
# layer's statistics (a mixture of experts has some, a dense layer none: {}).
Out = dict[str, jax.Array]


def layer(
    kind: str,
    heads: int,
    kv: int,
    head: int,
    window: int | None = None,
    *,
    over: Literal["past", "around"] = "past",
    cross: bool = False,
    active: int = 1,
) -> stack.Layer:
    """The Layer whose keys and values have one size; its cache holds `kv` of each."""
    entries = functools.partial(cache, kv=kv, head=head)
    return stack.Layer(kind, 4 * heads * head, entries, window, over, cross, active)


def spec(
    p: Callable[..., param.Param],
    *,
    out: param.Init,
    init: param.Init | None = None,
    bias: bool = False,
    out_bias: bool = False,
    qk_norm: Literal["head", "heads head"] | None = None,
    scale: param.Init = param.ones,
) -> param.Tree:
    """The weights of one layer: q [D, N, H]; k, v [D, K, H]; o [N, H, D]; biases of q, k and v, of
    o; and the scales of a norm of queries and keys, one for all heads or one for each.

    p is a shaper of `embed`, `heads`, `kv` and `head`. out starts the matrix into the residual
    stream, init the others (by their fan-in if None), scale the scales.
    """
    tree = {
        "q": p("embed -> heads head", init=init),
        "k": p("embed -> kv head", init=init),
        "v": p("embed -> kv head", init=init),
        "o": p("heads head -> embed", init=out),
    }
    if bias:
        tree |= {
            "q_bias": p("heads head", init=param.zeros),
            "k_bias": p("kv head", init=param.zeros),
            "v_bias": p("kv head", init=param.zeros),
        }
    if out_bias:
        tree |= {"o_bias": p("embed", init=param.zeros)}
    if qk_norm is not None:
        tree |= {
            "q_norm": p(qk_norm, init=scale),
            "k_norm": p(qk_norm.replace("heads", "kv"), init=scale),
        }
    return tree


def project(
    w: param.Tree,
    h: jax.Array,
    at: At,
    *,
    norm: Callable[[jax.Array, jax.Array], jax.Array] | None = None,
    rotary: rope.Rotary | None = None,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Queries [B, T, N, H], keys and values [B, T, K, H] of h [B, T, D].

    norm(scale, x) normalises queries and keys where the layer has scales; rotary then rotates them
    by their positions, None rotates nothing.
    """
    q = linear.biased("BTD,DNH->BTNH", h, w, "q")
    k = linear.biased("BTD,DKH->BTKH", h, w, "k")
    v = linear.biased("BTD,DKH->BTKH", h, w, "v")
    if norm is not None and "q_norm" in w:
        q, k = norm(w["q_norm"], q), norm(w["k_norm"], k)
    if rotary is not None:
        q, k = rope.apply(q, at.positions, rotary), rope.apply(k, at.positions, rotary)
    return q, k, v


def output(w: param.Tree, y: jax.Array) -> jax.Array:
    """The layer's output [B, T, D] for attention's y [B, T, N, H]."""
    return linear.biased("BTNH,NHD->BTD", y, w, "o")


def attend(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    at: At,
    memory: Memory,
    plan: Plan,
    *,
    causal: bool = True,
    window: int | None = None,
    softcap: float | None = None,
    scale: float | None = None,
    bias: attention.Bias | None = None,
    sinks: jax.Array | None = None,
) -> tuple[jax.Array, Out]:
    """Attention [B, T, N, H] of q [B, T, N, H] over k, v [B, T, K, H] and, with a memory, over its
    slots too; and the entries to append to the cache ({} when training).

    The old slots and the new keys meet in one softmax, so nothing is written before it is read.
    The rest is as `ops.attention.attend` has it.

    Raises: ValueError for a memory without a causal mask, or with shared tokens and a window: the
    cache does not record which of its slots are shared.
    """
    bends = {"window": window, "softcap": softcap, "scale": scale, "bias": bias}
    if memory is not None and not causal:
        raise ValueError("bidirectional models have no KV cache")
    if memory is not None and at.shared is not None and window is not None:
        raise ValueError("shared tokens and a window cannot be decoded with a cache")
    entries = {}
    if memory is not None:
        swapped = {"k": jnp.swapaxes(k, 1, 2), "v": jnp.swapaxes(v, 1, 2)}  # [B, K, T, H]
        entries = quantised_cache.append(memory.entries, swapped)
        # new keys are seen as they will be stored, so that chunks of any size give the same
        k, v = (jnp.swapaxes(quantised_cache.read(entries, n, k), 1, 2) for n in ("k", "v"))
    if memory is None or not memory.at.segments.shape[1]:  # nothing is remembered yet
        q = plan.constrain(q, "rows seq heads head")
        y = _own(q, k, v, at, plan, causal, bends, sinks)
        return checkpoint_name(y, "attention"), entries
    old = (quantised_cache.held(memory.entries, n) for n in ("k", "v"))
    y = attention.attend_cached(
        q, k, v, at, *old, memory.at, first=memory.first, sinks=sinks, **bends
    )
    return y, entries


def _own(q, k, v, at, plan, causal, bends, sinks):
    """Attention over the row's own keys by the plan's kernel, [B, T, N, H]."""
    if plan.context > 1:
        return context_parallel.attend(q, k, v, at, plan, causal=causal, sinks=sinks, **bends)
    run = functools.partial(attention.attend, causal=causal, kernel=plan.attention, **bends)
    if plan.attention == "splash" and plan.devices > 1:
        run = context_parallel.per_device(run, plan)
    return run(q, k, v, at, at, sinks=sinks)


def cache(batch: int, slots: int, kv: int, head: int) -> dict[str, param.Param]:
    """The cache spec of one layer: keys and values [B, K, S, H]."""
    p = param.shaper(batch=batch, seq=slots, kv=kv, head=head)
    return {name: p("batch kv seq head", init=param.zeros) for name in ("k", "v")}
