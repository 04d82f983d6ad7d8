"""Softmax attention: packed rows, grouped key/value heads, a cache read before it is written.

Two kernels compute the same thing. "xla" forms all scores [B,K,G,T,S]. "blockwise" walks over
blocks of queries, leaves out the keys no query of the block may see, and keeps only the
log-sum-exp for its backward pass.
"""

import functools
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp

Kernel = Literal["xla", "blockwise"]

# What is added to the scaled scores, from how far ahead of the query the key is: ALiBi, T5's
# buckets. int32[B,T,S] -> float32, broadcast to [B,N,T,S].
Bias = Callable[[jax.Array], jax.Array]


class At(NamedTuple):
    """Where each token stands.

    segments int32[B,T]: the document, 0 for padding or an empty slot. positions int32[B,T] within
    it. shared bool[B,T], or None for none: tokens that all of their segment see, whatever the
    mask (the prefix of a prefix-LM; Longformer's global tokens, which without a causal mask also
    see all of their segment).
    """

    segments: jax.Array
    positions: jax.Array
    shared: jax.Array | None = None


class _Rule(NamedTuple):
    """Everything about a score that is not an array; static in the compiled program."""

    causal: bool
    window: int | None
    softcap: float | None
    scale: float


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

    kernel "blockwise" reads the order of the row as the order of time: with causal or a window,
    keys are the queries' own row, and each segment is contiguous with rising positions.

    Raises: ValueError for shapes that do not fit, an unknown kernel, or blockwise where the keys
    are not the queries' row.
    """
    rule = _rule(q, k, v, causal, window, softcap, scale)
    if kernel == "xla":
        return _whole(q, k, v, q_at, k_at, rule, bias, sinks)
    if kernel != "blockwise":
        raise ValueError(f"kernel must be 'xla' or 'blockwise', got {kernel!r}")
    if (causal or window is not None) and q.shape[1] != k.shape[1]:
        raise ValueError(
            "kernel 'blockwise' with causal or window needs queries and keys of one row, got "
            f"T={q.shape[1]} queries and S={k.shape[1]} keys; kernel 'xla' does this"
        )
    if bias is not None or sinks is not None or q_at.shared is not None:
        raise ValueError(
            "kernel 'blockwise' knows no bias, sinks or shared tokens; kernel 'xla' does"
        )
    return _blockwise(rule, q, k, v, q_at, k_at)


def attend_cached(
    q: jax.Array,
    k_new: jax.Array,
    v_new: jax.Array,
    q_at: At,
    k_cache: jax.Array,
    v_cache: jax.Array,
    k_at: At,
    *,
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
    A cache lies head by head, the order in which the products read it; any other is transposed,
    that is copied, at every call.

    Raises: ValueError for shapes that do not fit.
    """
    rule = _rule(q, k_new, v_new, True, window, softcap, scale)
    _rule(q, *(jnp.swapaxes(a, 1, 2) for a in (k_cache, v_cache)), True, window, softcap, scale)
    slots, f32 = k_cache.shape[2], {"preferred_element_type": jnp.float32}
    grouped = _group(q, k_new.shape[2])
    batch, kv = k_cache.shape[:2]
    heads = jnp.moveaxis(grouped, 1, 3).reshape(batch, kv, -1, q.shape[-1])  # [B,K,G*T,H]
    old = jax.lax.dot_general(heads, k_cache, (((3,), (3,)), ((0, 1), (0, 1))), **f32)
    old = _bent(old.reshape(batch, kv, -1, q.shape[1], slots), rule)
    # one softmax over both parts: only scores are joined, never keys
    scores = jnp.concatenate([old, _scores(grouped, k_new, rule)], axis=-1)
    if bias is not None:
        ahead = jnp.concatenate([_ahead(q_at, at) for at in (k_at, q_at)], axis=-1)
        scores = scores + _grouped_heads(bias(ahead), kv)
    allowed = [_allowed(q_at, at, rule) for at in (k_at, q_at)]
    allowed = jnp.concatenate(allowed, axis=-1)[:, None, None]
    p = _softmax(scores, allowed, sinks)
    p_old, p_new = p[..., :slots], p[..., slots:]
    p_old = p_old.astype(v_cache.dtype).reshape(batch, kv, -1, slots)
    out = jax.lax.dot_general(p_old, v_cache, (((3,), (2,)), ((0, 1), (0, 1))), **f32)
    out = out.reshape(batch, kv, -1, q.shape[1], v_new.shape[3])
    out = jnp.moveaxis(out, 3, 1) + _mix(p_new, v_new)  # [B,T,K,G,H']
    return out.reshape(*q.shape[:3], -1).astype(q.dtype)


def _rule(q, k, v, causal, window, softcap, scale) -> _Rule:
    if k.shape[:3] != v.shape[:3] or k.shape[0] != q.shape[0] or k.shape[3] != q.shape[3]:
        raise ValueError(
            f"q [B,T,N,H], k [B,S,K,H], v [B,S,K,H'] do not fit: {q.shape}, {k.shape}, {v.shape}"
        )
    if q.shape[2] % k.shape[2]:
        raise ValueError(f"heads must be a multiple of kv, got {q.shape[2]} and {k.shape[2]}")
    if window is not None and window < 1:
        raise ValueError(f"window must be at least 1 key, got {window}")
    if softcap is not None and softcap <= 0:
        raise ValueError(f"softcap must be positive, got {softcap}")
    return _Rule(causal, window, softcap, q.shape[-1] ** -0.5 if scale is None else scale)


def _allowed(q_at: At, k_at: At, rule: _Rule) -> jax.Array:
    """Whether a query may see a key, bool[B,T,S]."""
    query, key = q_at.segments[:, :, None], k_at.segments[:, None, :]
    together, ahead = (query == key) & (query != 0), _ahead(q_at, k_at)
    near = jnp.ones_like(together)
    if rule.causal:
        near &= ahead <= 0
    if rule.window is not None:
        near &= jnp.abs(ahead) < rule.window
    if k_at.shared is not None:
        near |= k_at.shared[:, None, :]
    if q_at.shared is not None and not rule.causal:
        near |= q_at.shared[:, :, None]
    return together & near


def _ahead(q_at: At, k_at: At) -> jax.Array:
    """How many positions a key is ahead of a query, int32[B,T,S]; negative for the past."""
    return k_at.positions[:, None, :] - q_at.positions[:, :, None]


def _grouped_heads(x: jax.Array, kv: int) -> jax.Array:
    """[..., N, T, S] as [..., K, G, T, S]; an array without heads as it broadcasts."""
    if x.ndim < 3 or x.shape[-3] == 1:
        return x[..., None, :, :] if x.ndim >= 3 else x
    return x.reshape(*x.shape[:-3], kv, -1, *x.shape[-2:])


def _group(q: jax.Array, kv: int) -> jax.Array:
    """q [B,T,N,H] as [B,T,K,G,H]: G query heads share a key head, which is never repeated."""
    return q.reshape(*q.shape[:2], kv, -1, q.shape[-1])


def _scores(q: jax.Array, k: jax.Array, rule: _Rule) -> jax.Array:
    """Scaled and capped scores, float32[B,K,G,T,S], of grouped q [B,T,K,G,H]."""
    return _bent(jnp.einsum("BTKGH,BSKH->BKGTS", q, k, preferred_element_type=jnp.float32), rule)


def _bent(products: jax.Array, rule: _Rule) -> jax.Array:
    s = products * rule.scale
    return s if rule.softcap is None else rule.softcap * jnp.tanh(s / rule.softcap)


def _mix(p: jax.Array, v: jax.Array) -> jax.Array:
    """Values weighted by p [B,K,G,T,S], float32[B,T,K,G,H]."""
    return jnp.einsum("BKGTS,BSKH->BTKGH", p.astype(v.dtype), v, preferred_element_type=jnp.float32)


def _peak(scores, allowed):
    """The largest allowed score of each row, or 0 where there is none; carries no gradient."""
    peak = jnp.max(jnp.where(allowed, scores, -jnp.inf), axis=-1, keepdims=True)
    return jax.lax.stop_gradient(jnp.where(jnp.isfinite(peak), peak, 0.0))


def _mass(scores, allowed, peak):
    return jnp.exp(jnp.where(allowed, scores, -jnp.inf) - peak)


def _nonzero(total):
    return jnp.where(total == 0, 1.0, total)


def _softmax(scores, allowed, sinks):
    """Probabilities [B,K,G,T,S] of scores; sinks [N] have a part in the sum, or None."""
    peak = _peak(scores, allowed)
    if sinks is None:
        mass = _mass(scores, allowed, peak)
        return mass / _nonzero(jnp.sum(mass, axis=-1, keepdims=True))
    sink = sinks.astype(jnp.float32).reshape(*scores.shape[1:3], 1, 1)
    peak = jnp.maximum(peak, jax.lax.stop_gradient(sink))
    mass = _mass(scores, allowed, peak)
    return mass / _nonzero(jnp.sum(mass, axis=-1, keepdims=True) + jnp.exp(sink - peak))


def _whole(q, k, v, q_at, k_at, rule, bias, sinks):
    allowed = _allowed(q_at, k_at, rule)[:, None, None]
    scores = _scores(_group(q, k.shape[2]), k, rule)
    if bias is not None:
        scores = scores + _grouped_heads(bias(_ahead(q_at, k_at)), k.shape[2])
    p = _softmax(scores, allowed, sinks)
    return _mix(p, v).reshape(*q.shape[:3], -1).astype(q.dtype)


def _blocks(length: int, keys: int, rule: _Rule) -> tuple[int, list[tuple[slice, slice]]]:
    """Block size, and [(queries, keys some of them may see by row order), ...] on its multiples."""
    # 64 was best for rows of 256 on CPU; at most 16 blocks, so that the program stays small
    size = max(64, -(-length // 16))
    out = []
    for start in range(0, length, size):
        stop = min(start + size, length)
        first, last = 0, stop if rule.causal else keys
        if rule.window is not None:
            first = max(0, start - rule.window + 1) // size * size
            last = min(last, -(-(stop + rule.window - 1) // size) * size)
        out.append((slice(start, stop), slice(first, last)))
    return size, out


def _seen(q_at: At, k_at: At, rows: slice, keys: slice, rule: _Rule) -> jax.Array:
    """`_allowed` of one block, bool[B,1,1,T,S]."""
    q_at, k_at = (At(*(a[:, part] for a in at[:2])) for at, part in ((q_at, rows), (k_at, keys)))
    return _allowed(q_at, k_at, rule)[:, None, None]


def _rows_first(q: jax.Array, kv: int) -> jax.Array:
    """q [B,T,N,H] as [B,K,G,T,H], the order in which products of a batch of heads read it."""
    return jnp.moveaxis(_group(q, kv), 1, 3)


def _rows_back(parts: list[jax.Array], like: jax.Array) -> jax.Array:
    """Blocks [B,...,T,H] joined along T, as [B,T,N,H]."""
    whole = jnp.concatenate(parts, axis=-2)
    return jnp.moveaxis(whole, -2, 1).reshape(like.shape).astype(like.dtype)


def _dot(a: jax.Array, b: jax.Array, *contract: tuple[int, ...]) -> jax.Array:
    """a [B,K,...] times b [B,K,...] over the contracted axes, in float32."""
    numbers: Any = (contract, ((0, 1), (0, 1)))
    return jax.lax.dot_general(a, b, numbers, preferred_element_type=jnp.float32)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _blockwise(rule, q, k, v, q_at, k_at):
    return _blockwise_forward(rule, q, k, v, q_at, k_at)[0]


def _blockwise_forward(rule, q, k, v, q_at, k_at):
    heads = _rows_first(q, k.shape[2])
    k_heads, v_heads = jnp.swapaxes(k, 1, 2), jnp.swapaxes(v, 1, 2)
    outs, logs = [], []
    for rows, keys in _blocks(q.shape[1], k.shape[1], rule)[1]:
        scores = _bent(_dot(heads[:, :, :, rows], k_heads[:, :, keys], (4,), (3,)), rule)
        allowed = _seen(q_at, k_at, rows, keys, rule)
        peak = _peak(scores, allowed)
        mass = _mass(scores, allowed, peak)
        total = _nonzero(jnp.sum(mass, axis=-1, keepdims=True))
        outs.append(_dot(mass.astype(v.dtype), v_heads[:, :, keys], (4,), (2,)) / total)
        logs.append(peak + jnp.log(total))
    out = _rows_back(outs, q)
    return out, (q, k, v, q_at, k_at, out, jnp.concatenate(logs, axis=3))


def _blockwise_backward(rule, saved, g):
    q, k, v, q_at, k_at, out, log_total = saved
    heads, g_heads = (_rows_first(a, k.shape[2]) for a in (q, g))
    k_heads, v_heads = jnp.swapaxes(k, 1, 2), jnp.swapaxes(v, 1, 2)
    inner = _rows_first(_inner(out, g), k.shape[2])
    size, blocks = _blocks(q.shape[1], k.shape[1], rule)
    dq, dk, dv = [], [], []
    # everything is [B,K,S,G,T], keys first: two of the three products that follow then read p and
    # ds as they lie, and only that of dq a transpose
    for rows, keys in blocks:
        q_rows, g_rows = heads[:, :, :, rows], g_heads[:, :, :, rows]
        scores = _bent(_dot(k_heads[:, :, keys], q_rows, (3,), (4,)), rule)
        seen = jnp.moveaxis(_seen(q_at, k_at, rows, keys, rule), -1, 2)
        log_rows, inner_rows = (a[:, :, None, :, rows, 0] for a in (log_total, inner))
        p = _mass(scores, seen, log_rows)
        ds = p * (_dot(v_heads[:, :, keys], g_rows, (3,), (4,)) - inner_rows)
        if rule.softcap is not None:
            ds = ds * (1 - jnp.square(scores / rule.softcap))
        ds = ds.astype(q.dtype)
        dq.append(_dot(ds, k_heads[:, :, keys], (2,), (2,)) * rule.scale)
        dk.append((keys, _dot(ds, q_rows, (3, 4), (2, 3)) * rule.scale))
        dv.append((keys, _dot(p.astype(g.dtype), g_rows, (3, 4), (2, 3))))
    return _rows_back(dq, q), _sum_blocks(dk, size, k), _sum_blocks(dv, size, v), None, None


def _inner(out: jax.Array, g: jax.Array) -> jax.Array:
    """The sum of p * dp over keys, float32[B,T,N,1]: the product of output and cotangent."""
    heads, head = out.shape[2:]
    product = (out.astype(jnp.float32) * g).reshape(*out.shape[:2], -1)
    # a product with ones for each head: on CPU ten times as fast as a sum of its few elements
    ones = jnp.repeat(jnp.eye(heads, dtype=jnp.float32), head, axis=0)
    return jnp.matmul(product, ones, precision=jax.lax.Precision.HIGHEST)[..., None]


_blockwise.defvjp(_blockwise_forward, _blockwise_backward)


def _sum_blocks(parts: list[tuple[slice, jax.Array]], size: int, like: jax.Array) -> jax.Array:
    """Sum of what each block of queries gave to its keys, [B,S,K,H]."""
    out: list[Any] = []
    for start in range(0, like.shape[1], size):
        have = [(keys.start, part) for keys, part in parts if keys.start <= start < keys.stop]
        out.append(sum(part[:, :, start - at : start - at + size] for at, part in have))
    return _rows_back(out, like)
