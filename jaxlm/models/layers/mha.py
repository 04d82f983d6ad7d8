"""Multi-head attention as families call it: one function for training, prefill and decoding."""

import functools
from collections.abc import Callable
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp

from jaxlm.core import param
from jaxlm.ops import attention
from jaxlm.ops.attention import At
from jaxlm.parallel import rules
from jaxlm.parallel.plan import Plan

# The part of the cache that a block reads: its layer's entries and the place of every slot; None
# when training.
Memory = tuple[dict[str, jax.Array], At] | None

# Second output of a block, after x: with a memory, the entries to append to the cache; without, the
# layer's statistics (a mixture of experts has some, a dense layer none: {}).
Out = dict[str, jax.Array]


class Reach(NamedTuple):
    """Cost of one layer's attention: window, the keys a query sees on a side (None: all), pair,
    the FLOPs of one query-key pair in all heads: 2 for each element of q.k and of p.v; and over,
    which keys these are: those of its own past, those around it (an encoder's), or of an
    encoder-decoder the source's."""

    window: int | None
    pair: int
    over: Literal["past", "around", "source"] = "past"


def reach(window: int | None, heads: int, head: int) -> Reach:
    """The Reach of a layer whose keys and values have one size."""
    return Reach(window, 4 * heads * head)


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
        raise ValueError("a model that reads both ways has no cache")
    if memory is not None and at.shared is not None and window is not None:
        raise ValueError("shared tokens and a window cannot be decoded with a cache")
    entries = {"k": jnp.swapaxes(k, 1, 2), "v": jnp.swapaxes(v, 1, 2)}  # [B, K, T, H]
    if memory is None or not memory[1].segments.shape[1]:  # nothing is remembered yet
        q = plan.constrain(q, "batch seq heads head")
        run = functools.partial(attention.attend, causal=causal, kernel=plan.attention, **bends)
        if plan.attention == "splash" and plan.devices > 1:
            run = per_device(run, plan)
        return run(q, k, v, at, at, sinks=sinks), {} if memory is None else entries
    old, slots = memory
    y = attention.attend_cached(q, k, v, at, old["k"], old["v"], slots, sinks=sinks, **bends)
    return y, entries


def per_device(run: Callable[..., jax.Array], plan: Plan) -> Callable[..., jax.Array]:
    """run(q, k, v, at, at, sinks=) that computes each device's rows and heads on that device.

    For a kernel that the partitioner cannot cut, as it cuts XLA's own operations.

    Raises: ValueError (the function) where rows, heads or kv do not divide over the mesh.
    """

    def split(q, k, v, q_at, k_at, *, sinks=None):
        names = {
            "q": ("batch", "seq", "heads", "head"),
            "k": ("batch", "seq", "kv", "head"),
            "at": ("batch", "seq"),
            "sinks": ("heads",),
        }
        arrays = (("q", q), ("k", k), ("k", v), ("at", q_at), ("at", k_at), ("sinks", sinks))
        places = tuple(
            jax.tree.map(lambda x, n=n: rules.partition(names[n], x.shape, plan.mesh, n), tree)
            for n, tree in arrays
        )
        return jax.shard_map(
            lambda q, k, v, q_at, k_at, sinks: run(q, k, v, q_at, k_at, sinks=sinks),
            mesh=plan.mesh,
            in_specs=places,
            out_specs=places[0],
            check_vma=False,  # the kernel does not say over which axes its outputs vary
        )(q, k, v, q_at, k_at, sinks)

    return split


def cache(batch: int, slots: int, kv: int, head: int) -> dict[str, param.Param]:
    """The cache spec of one layer: keys and values [B, K, S, H]."""
    p = param.shaper(batch=batch, seq=slots, kv=kv, head=head)
    return {name: p("batch kv seq head", init=param.zeros) for name in ("k", "v")}
