"""Softmax attention: packed rows, grouped key/value heads, a cache read before it is written.

Several kernels compute the same thing, each as far as it goes (docs/attention.md has the table).
"xla", here, forms all scores [B,K,G,T,S] and supports everything. "blockwise" walks over blocks of
queries and leaves out the keys no query of the block may see. "cudnn" and "splash" are libraries'
kernels for NVIDIA GPUs and for TPUs.
"""

import functools
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp

from jaxlm.core import precision, target
from jaxlm.ops import masks
from jaxlm.ops.kernels import blockwise, cudnn, splash
from jaxlm.ops.quant import cache_entries

Kernel = Literal["xla", "blockwise", "cudnn", "splash"]

# The one platform a library's kernel runs on; the others run everywhere.
PLATFORMS: dict[str, str] = {"cudnn": "gpu", "splash": "tpu"}

At = masks.At
Bias = masks.Bias


def runs_here(kernel: Kernel) -> bool:
    """Whether programs are compiled for a platform that has the kernel."""
    return PLATFORMS.get(kernel, target.platform()) == target.platform()


def check_platform(kernel: Kernel) -> None:
    """Nothing, where programs are compiled for a platform that has the kernel.

    Raises: ValueError naming the kernel and both platforms.
    """
    if not runs_here(kernel):
        raise ValueError(
            f"attention kernel {kernel!r} runs on {PLATFORMS[kernel]} only, and this process "
            f"computes on {target.platform()}; 'xla' and 'blockwise' run everywhere"
        )


def attend(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    q_at: At,
    k_at: At,
    *,
    causal: bool = True,
    window: int | None = None,
    softcap: float | None = None,
    scale: float | None = None,
    bias: Bias | None = None,
    sinks: jax.Array | None = None,
    kernel: Kernel = "xla",
) -> jax.Array:
    """Attention of q over k, v: [B,T,N,H'] in q.dtype, with the softmax in float32.

    q [B,T,N,H]; k [B,S,K,H], v [B,S,K,H'] with N = K * G, query head n reading key head n // G. A
    query sees the keys of its own non-zero segment, at most at its own position if causal, and if
    there is a window only keys nearer than `window` positions, its own among them; and the shared
    tokens of its segment (`At`). A query that sees nothing gives 0 and gets no gradient. scale
    multiplies q.k and is H ** -0.5 where None; then softcap c bends scores to c * tanh(score / c)
    (Gemma 2), and bias(key position - query position) is added. sinks float32[N] are scores of a
    key without a value: they take part in the softmax's sum alone (GPT-OSS).

    kernels "blockwise" and "splash" read the order of the row as the order of time: with causal or
    a window, keys are the queries' own row, and each segment is contiguous with rising positions.

    Raises: ValueError for shapes that do not fit, an unknown kernel, a kernel that this platform
    does not have, or anything the kernel does not support, by name.
    """
    if kernel not in ("xla", "blockwise", "cudnn", "splash"):
        raise ValueError(f"kernel must be 'xla', 'blockwise', 'cudnn' or 'splash', got {kernel!r}")
    rule = masks.rule(q, k, v, causal, window, softcap, scale)
    if kernel == "xla":
        return _whole(q, k, v, q_at, k_at, rule, bias, sinks)
    check_platform(kernel)
    run = {"blockwise": blockwise.attend, "cudnn": cudnn.attend, "splash": splash.attend}[kernel]
    return run(q, k, v, q_at, k_at, rule, bias, sinks)


BLOCK = 128  # slots

Held = jax.Array | cache_entries.Stored


def attend_cached(
    q: jax.Array,
    k_new: jax.Array,
    v_new: jax.Array,
    q_at: At,
    k_cache: Held,
    v_cache: Held,
    k_at: At,
    *,
    first: jax.Array | None = None,
    window: int | None = None,
    softcap: float | None = None,
    scale: float | None = None,
    bias: Bias | None = None,
    sinks: jax.Array | None = None,
) -> jax.Array:
    """Causal attention of new tokens over a cache and over themselves, [B,T,N,H'] in q.dtype.

    Equal to `attend` over the cache followed by the new keys, but the cache is read as it was and
    written afterwards: a write before the read makes XLA copy the cache. q [B,T,N,H], k_new
    [B,T,K,H], v_new [B,T,K,H'] at q_at; k_cache [B,K,S,H], v_cache [B,K,S,H'] at k_at, where
    segment 0 marks an empty slot.
    A cache is stored head by head, the order in which the products read it; any other layout would
    be transposed, that is copied, at every call. One in 8 bits is widened block by block, in a
    loop, so that no more than a block is held in full (all, where slots are no whole blocks).
    first: the block of slots that is added up first, int32 or int32[B] (`layers.ring_cache`); None
    for block 0.

    Raises: ValueError for shapes that do not fit.
    """
    rule = masks.rule(q, k_new, v_new, True, window, softcap, scale)
    held = [_codes(x) for x in (k_cache, v_cache)]
    old = (jnp.swapaxes(x, 1, 2) for x in held)  # [B,S,K,H], [B,S,K,H']
    masks.rule(q, *old, True, window, softcap, scale)
    batch, kv, slots = held[0].shape[:3]
    grouped = masks.group(q, k_new.shape[2])  # [B,T,K,G,H]
    heads = jnp.moveaxis(grouped, 1, 3).reshape(batch, kv, -1, q.shape[-1])  # [B,K,G*T,H]
    old = _scores_cached(heads, k_cache)
    old = masks.bent(old.reshape(batch, kv, -1, q.shape[1], slots), rule)  # [B,K,G,T,S]
    # one softmax over both parts, neither keys nor scores are joined
    scores = [old, _scores(grouped, k_new, rule)]  # [B,K,G,T,S], [B,K,G,T,T]
    if bias is not None:
        biases = [masks.grouped_heads(bias(masks.ahead(q_at, at)), kv) for at in (k_at, q_at)]
        scores = [s + b for s, b in zip(scores, biases)]
    seen = k_at if q_at.views is None else k_at._replace(segments=q_at.views)
    allowed = [masks.allowed(q_at, at, rule)[:, None, None] for at in (seen, q_at)]
    p_old, p_new = _softmax(scores, allowed, sinks, [_total(first), _total(None)])
    p_old = p_old.astype(_dtype(v_cache, v_new)).reshape(batch, kv, -1, slots)  # [B,K,G*T,S]
    out = _mix_cached(p_old, v_cache, first)  # [B,K,G*T,H']
    out = out.reshape(batch, kv, -1, q.shape[1], v_new.shape[3])  # [B,K,G,T,H']
    out = jnp.moveaxis(out, 3, 1) + _mix(p_new, v_new)  # [B,T,K,G,H']
    return out.reshape(*q.shape[:3], -1).astype(q.dtype)  # [B,T,N,H']


def _codes(x: Held) -> jax.Array:
    return x.codes if isinstance(x, cache_entries.Stored) else x


def _dtype(x: Held, new: jax.Array) -> Any:
    """The dtype of products with a cache: what it is stored in, or that of new entries."""
    return new.dtype if isinstance(x, cache_entries.Stored) else x.dtype


def _scores_cached(q: jax.Array, k: Held) -> jax.Array:
    """Products float32[B,K,G*T,S] of q [B,K,G*T,H] and keys [B,K,S,H]."""

    def products(k: jax.Array) -> jax.Array:
        dims = (((3,), (3,)), ((0, 1), (0, 1)))
        return jax.lax.dot_general(q, k, dims, preferred_element_type=precision.wide())

    if isinstance(k, jax.Array):
        return products(k)
    parts = _each_block(lambda block, _: products(block.astype(q.dtype)), k, ())
    return jnp.moveaxis(parts, 0, 3).reshape(*q.shape[:3], -1)


def _each_block(f, x: cache_entries.Stored, given) -> jax.Array:
    """f(block of vectors float32[B,K,BLOCK,H], part of `given` [blocks, ...]) of every block of
    slots of x, [blocks, ...]."""
    blocks = _blocks(x.codes.shape[2])
    size = x.codes.shape[2] // blocks

    def one(at: tuple) -> jax.Array:
        number, part = at
        block = (jax.lax.dynamic_slice_in_dim(y, number * size, size, 2) for y in x)
        return f(cache_entries.decode(cache_entries.Stored(*block)), part)

    return jax.lax.map(one, (jnp.arange(blocks), given))


def _mix_cached(p: jax.Array, v: Held, first: jax.Array | None) -> jax.Array:
    """Values [B,K,S,H'] weighted by p [B,K,G*T,S], float32[B,K,G*T,H']. In blocks of slots, added
    in order from block `first` on: empty slots at the end then change no bit, however many."""
    kind = {"preferred_element_type": precision.wide()}
    blocks = _blocks(p.shape[3])
    if blocks == 1 and isinstance(v, jax.Array):
        return jax.lax.dot_general(p, v, (((3,), (2,)), ((0, 1), (0, 1))), **kind)
    p = jnp.moveaxis(p.reshape(*p.shape[:3], blocks, -1), 3, 2)  # [B,K,blocks,G*T,BLOCK]
    if isinstance(v, cache_entries.Stored):

        def mixed(v: jax.Array, p: jax.Array) -> jax.Array:
            dims = (((3,), (2,)), ((0, 1), (0, 1)))
            return jax.lax.dot_general(p, v.astype(p.dtype), dims, **kind)

        parts = _each_block(mixed, v, jnp.moveaxis(p, 2, 0))
        return _added(jnp.moveaxis(parts, 0, 2), first, 2)
    v = v.reshape(*v.shape[:2], blocks, BLOCK, v.shape[3])  # [B,K,blocks,BLOCK,H']
    parts = jax.lax.dot_general(p, v, (((4,), (3,)), ((0, 1, 2), (0, 1, 2))), **kind)
    return _added(parts, first, 2)


def _added(parts: jax.Array, first: jax.Array | None, axis: int) -> jax.Array:
    """The sum over an axis of blocks, from block `first` on, round to the one before it."""
    blocks = parts.shape[axis]
    if first is not None:
        order = (first[..., None] + jnp.arange(blocks)) % blocks  # [blocks] or [B, blocks]
        shape = [1] * parts.ndim
        shape[0], shape[axis] = order.size // blocks, blocks
        order = order.reshape(shape)
        parts = jnp.take_along_axis(parts, order, axis, mode="promise_in_bounds")
    each = (jax.lax.index_in_dim(parts, i, axis, keepdims=False) for i in range(blocks))
    return functools.reduce(jnp.add, each)


def _whole(q, k, v, q_at, k_at, rule, bias, sinks):
    allowed = masks.allowed(q_at, k_at, rule)[:, None, None]  # [B,1,1,T,S]
    scores = _scores(masks.group(q, k.shape[2]), k, rule)  # [B,K,G,T,S]
    if bias is not None:
        scores = scores + masks.grouped_heads(bias(masks.ahead(q_at, k_at)), k.shape[2])
    total = functools.partial(jnp.sum, axis=-1, keepdims=True)
    (p,) = _softmax([scores], [allowed], sinks, [total])
    return _mix(p, v).reshape(*q.shape[:3], -1).astype(q.dtype)  # [B,T,N,H']


def _scores(q: jax.Array, k: jax.Array, rule: masks.Rule) -> jax.Array:
    """Scaled and capped scores, float32[B,K,G,T,S], of grouped q [B,T,K,G,H]."""
    products = jnp.einsum("BTKGH,BSKH->BKGTS", q, k, preferred_element_type=precision.wide())
    return masks.bent(products, rule)


def _softmax(scores, allowed, sinks, totals):
    """Probabilities [B,K,G,T,S] of one or several parts of scores, each with its sum over S; sinks
    [N] have a part in the sum, or None."""
    masked = [jnp.where(a, s, -jnp.inf) for s, a in zip(scores, allowed, strict=True)]
    largest = [jnp.max(s, axis=-1, keepdims=True) for s in masked]
    peak = functools.reduce(jnp.maximum, largest)
    peak = jax.lax.stop_gradient(jnp.where(jnp.isfinite(peak), peak, 0.0))
    if sinks is not None:
        sink = sinks.astype(precision.wide()).reshape(*peak.shape[1:3], 1, 1)  # [K,G,1,1]
        peak = jnp.maximum(peak, jax.lax.stop_gradient(sink))
    mass = [jnp.exp(s - peak) for s in masked]
    whole = functools.reduce(jnp.add, [total(m) for total, m in zip(totals, mass, strict=True)])
    whole = whole if sinks is None else whole + jnp.exp(sink - peak)
    return [m / masks.nonzero(whole) for m in mass]


def _total(first: jax.Array | None) -> Callable[[jax.Array], jax.Array]:
    """The sum [B,K,G,T,1] over [B,K,G,T,S]. In blocks, added in order from block `first` on: XLA's
    own order of addition depends on S."""

    def total(mass: jax.Array) -> jax.Array:
        blocks = _blocks(mass.shape[-1])
        parts = jnp.sum(mass.reshape(*mass.shape[:-1], blocks, -1), axis=-1)  # [B,K,G,T,blocks]
        return _added(parts, first, 4)[..., None]

    return total


def _blocks(slots: int) -> int:
    """Number of blocks in which slots are added up."""
    return slots // BLOCK if slots % BLOCK == 0 and slots else 1


def _mix(p: jax.Array, v: jax.Array) -> jax.Array:
    """Values weighted by p [B,K,G,T,S], float32[B,T,K,G,H]."""
    return jnp.einsum(
        "BKGTS,BSKH->BTKGH", p.astype(v.dtype), v, preferred_element_type=precision.wide()
    )
