"""Attention on a mesh: each device has its own rows and heads and, with `plan.context`, its own
part of every sequence."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from jaxlm.ops import masks
from jaxlm.ops.attention import At
from jaxlm.ops.kernels import ring
from jaxlm.parallel import rules
from jaxlm.parallel.plan import Plan


def attend(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    at: At,
    plan: Plan,
    *,
    causal: bool,
    window: int | None,
    softcap: float | None,
    scale: float | None,
    bias: masks.Bias | None,
    sinks: jax.Array | None,
) -> jax.Array:
    """Attention [B,T,N,H'] as `ops.attention.attend` has it, of q [B,T,N,H] over the keys of its
    own row, with T split over `context`.

    Under a causal mask the halves of each device's sequence are dealt so that all devices have the
    same work, if T divides by 2 * context; otherwise each keeps its own.

    Raises: ValueError where rows, T, heads or kv do not divide over the mesh.
    """
    rule = masks.rule(q, k, v, causal, window, softcap, scale)
    size, ringed = plan.context, plan.context_keys == "ring"
    local = ring.Ring("context", size if ringed else 1, rule)
    dealt = ringed and causal and q.shape[1] % (2 * size) == 0
    convert, weights = _closed(bias, q, plan)

    def run(q, k, v, at, sinks, weights):
        if dealt:
            q, k, v, at = ring.deal((q, k, v, at), "context", size)
        k_at = at
        if not ringed:
            k, v, k_at = jax.tree.map(
                lambda x: jax.lax.all_gather(x, "context", axis=1, tiled=True), (k, v, at)
            )
        y = ring.attend(q, k, v, at, k_at, local, convert, weights, sinks)
        return ring.undeal(y, "context", size) if dealt else y

    return _split(run, plan, q, k, v, at, sinks, weights)


def per_device(run: Callable[..., jax.Array], plan: Plan) -> Callable[..., jax.Array]:
    """run(q, k, v, at, at, sinks=) that computes each device's rows and heads on that device.

    For a kernel that the partitioner cannot cut, as it cuts XLA's own operations.

    Raises: ValueError (the function) where rows, heads or kv do not divide over the mesh.
    """

    def local(q, k, v, at, sinks, weights):
        return run(q, k, v, at, at, sinks=sinks)

    def split(q, k, v, q_at, k_at, *, sinks=None):
        return _split(local, plan, q, k, v, q_at, sinks, ())

    return split


def _split(run: Callable[..., jax.Array], plan: Plan, q, k, v, at, sinks, weights) -> jax.Array:
    """run(q, k, v, at, sinks, weights) on each device's part of them; all of weights."""
    names = {
        "q": ("rows", "seq", "heads", "head"),
        "k": ("rows", "seq", "kv", "head"),
        "at": ("rows", "seq"),
        "sinks": ("heads",),
    }

    def places(name: str, tree: Any) -> Any:
        return jax.tree.map(lambda x: rules.partition(names[name], x.shape, plan.mesh, name), tree)

    arrays = (places("q", q), places("k", k), places("k", v), places("at", at))
    return jax.shard_map(
        run,
        mesh=plan.mesh,
        in_specs=(*arrays, places("sinks", sinks), tuple(PartitionSpec() for _ in weights)),
        out_specs=arrays[0],
        check_vma=False,  # a library's kernel does not say over which axes its outputs vary
    )(q, k, v, at, sinks, weights)


def _closed(
    bias: masks.Bias | None, q: jax.Array, plan: Plan
) -> tuple[Callable[..., jax.Array] | None, tuple[Any, ...]]:
    """The bias of this device's heads as a function of (ahead, *weights), and the weights.

    A function whose backward pass is written by hand may close over nothing that is learnt.
    """
    if bias is None:
        return None, ()
    rows, heads = q.shape[0] // plan.block_parts, q.shape[2]
    local = q.shape[1] // plan.context
    block = ring.block(local)
    keys = ring.block(local if plan.context_keys == "ring" else q.shape[1])

    def all_heads(ahead: jax.Array) -> jax.Array:
        added = bias(ahead)
        return jnp.broadcast_to(added, (ahead.shape[0], heads, *ahead.shape[1:]))

    function, weights = jax.closure_convert(all_heads, jnp.zeros((rows, block, keys), jnp.int32))

    def own(ahead: jax.Array, *weights: jax.Array) -> jax.Array:
        part = heads // plan.tensor
        first = jax.lax.axis_index("tensor") * part
        return jax.lax.dynamic_slice_in_dim(function(ahead, *weights), first, part, axis=1)

    return own, tuple(weights)
