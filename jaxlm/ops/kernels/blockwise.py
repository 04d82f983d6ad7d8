"""Attention in blocks of queries: keys that no query of a block may see are left out, and only the
log-sum-exp is kept for the backward pass, which is written by hand."""

import functools
from typing import Any

import jax
import jax.numpy as jnp

from jaxlm.core import precision
from jaxlm.ops import masks


def attend(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    q_at: masks.At,
    k_at: masks.At,
    rule: masks.Rule,
    bias: masks.Bias | None,
    sinks: jax.Array | None,
) -> jax.Array:
    """Attention [B,T,N,H'], as `attention.attend` has it. A bias has gradients like any other.

    Raises: ValueError for shared tokens, and for causal or a window where the keys are not the
    queries' row.
    """
    if (rule.causal or rule.window is not None) and q.shape[1] != k.shape[1]:
        raise ValueError(
            "kernel 'blockwise' with causal or window needs queries and keys of one row, got "
            f"T={q.shape[1]} queries and S={k.shape[1]} keys; kernel 'xla' does this"
        )
    if q_at.shared is not None or k_at.shared is not None:
        raise ValueError("kernel 'blockwise' does not support shared tokens; use 'xla'")
    biases, weights = _closed(bias, q, k, q_at, k_at, rule)
    return _blockwise(rule, biases, q, k, v, q_at, k_at, sinks, weights)


def _closed(bias, q, k, q_at, k_at, rule):
    """The bias of each block as a function of (ahead, *weights), and the weights it closes over.

    A function whose backward pass is written by hand may close over nothing that is learnt.
    """
    if bias is None:
        return None, ()
    heads = q.shape[2]

    def whole(ahead):
        return jnp.broadcast_to(bias(ahead), (ahead.shape[0], heads, *ahead.shape[1:]))

    functions, weights = [], []
    for block in _blocks(q.shape[1], k.shape[1], rule)[1]:
        function, weights = jax.closure_convert(whole, _ahead(q_at, k_at, *block))
        functions.append(function)
    return tuple(functions), tuple(weights)


def _blocks(length: int, keys: int, rule: masks.Rule) -> tuple[int, list[tuple[slice, slice]]]:
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


def _part(at: masks.At, which: slice) -> masks.At:
    return masks.At(at.segments[:, which], at.positions[:, which])


def _ahead(q_at, k_at, rows: slice, keys: slice) -> jax.Array:
    return masks.ahead(_part(q_at, rows), _part(k_at, keys))


def _seen(q_at, k_at, rows: slice, keys: slice, rule: masks.Rule) -> jax.Array:
    """`masks.allowed` of one block, bool[B,1,1,T,S]."""
    return masks.allowed(_part(q_at, rows), _part(k_at, keys), rule)[:, None, None]


def _rows_first(q: jax.Array, kv: int) -> jax.Array:
    """q [B,T,N,H] as [B,K,G,T,H], the order in which products of a batch of heads read it."""
    return jnp.moveaxis(masks.group(q, kv), 1, 3)


def _rows_back(parts: list[jax.Array], like: jax.Array) -> jax.Array:
    """Blocks [B,...,T,H] joined along T, as [B,T,N,H] in like's dtype."""
    whole = jnp.moveaxis(jnp.concatenate(parts, axis=-2), -2, 1)  # [B,T,...,H]
    return whole.reshape(*like.shape[:3], whole.shape[-1]).astype(like.dtype)


def _dot(a: jax.Array, b: jax.Array, *contract: tuple[int, ...]) -> jax.Array:
    """a [B,K,...] times b [B,K,...] over the contracted axes, in float32."""
    numbers: Any = (contract, ((0, 1), (0, 1)))
    return jax.lax.dot_general(a, b, numbers, preferred_element_type=precision.wide())


def _per_head(sinks: jax.Array, kv: int) -> jax.Array:
    """sinks [N] as float32[K,G,1,1]."""
    return sinks.astype(precision.wide()).reshape(kv, -1, 1, 1)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _blockwise(rule, biases, q, k, v, q_at, k_at, sinks, weights):
    return _forward(rule, biases, q, k, v, q_at, k_at, sinks, weights)[0]


def _forward(rule, biases, q, k, v, q_at, k_at, sinks, weights):
    kv = k.shape[2]
    heads = _rows_first(q, kv)  # [B,K,G,T,H]
    k_heads, v_heads = jnp.swapaxes(k, 1, 2), jnp.swapaxes(v, 1, 2)
    outs, logs = [], []
    for i, (rows, keys) in enumerate(_blocks(q.shape[1], k.shape[1], rule)[1]):
        scores = masks.bent(_dot(heads[:, :, :, rows], k_heads[:, :, keys], (4,), (3,)), rule)
        if biases is not None:
            added = biases[i](_ahead(q_at, k_at, rows, keys), *weights)
            scores = scores + masks.grouped_heads(added, kv)
        allowed = _seen(q_at, k_at, rows, keys, rule)
        peak = masks.peak(scores, allowed)
        if sinks is not None:
            peak = jnp.maximum(peak, _per_head(sinks, kv))
        mass = masks.mass(scores, allowed, peak)  # [B,K,G,T,S]
        total = jnp.sum(mass, axis=-1, keepdims=True)  # [B,K,G,T,1]
        if sinks is not None:
            total = total + jnp.exp(_per_head(sinks, kv) - peak)
        total = masks.nonzero(total)
        outs.append(_dot(mass.astype(v.dtype), v_heads[:, :, keys], (4,), (2,)) / total)
        logs.append(peak + jnp.log(total))
    out = _rows_back(outs, q)
    saved = (q, k, v, q_at, k_at, sinks, weights, out, jnp.concatenate(logs, axis=3))
    return out, saved


def _backward(rule, biases, saved, g):
    q, k, v, q_at, k_at, sinks, weights, out, log_total = saved
    heads, g_heads = (_rows_first(a, k.shape[2]) for a in (q, g))  # [B,K,G,T,H]
    k_heads, v_heads = jnp.swapaxes(k, 1, 2), jnp.swapaxes(v, 1, 2)
    inner = _rows_first(_inner(out, g), k.shape[2])  # [B,K,G,T,1]
    size, blocks = _blocks(q.shape[1], k.shape[1], rule)
    dq, dk, dv, dweights = [], [], [], jax.tree.map(jnp.zeros_like, weights)
    # everything is [B,K,S,G,T], keys first: two of the three products that follow then read p and
    # ds as they are stored, and only that of dq a transpose
    for i, (rows, keys) in enumerate(blocks):
        q_rows, g_rows = heads[:, :, :, rows], g_heads[:, :, :, rows]
        scores = masks.bent(_dot(k_heads[:, :, keys], q_rows, (3,), (4,)), rule)  # [B,K,S,G,T]
        seen = jnp.moveaxis(_seen(q_at, k_at, rows, keys, rule), -1, 2)  # [B,1,S,1,T]
        # [B,K,1,G,T]
        log_rows, inner_rows = (a[:, :, None, :, rows, 0] for a in (log_total, inner))
        biased = scores
        if biases is not None:
            added, pull = jax.vjp(
                functools.partial(biases[i], _ahead(q_at, k_at, rows, keys)), *weights
            )
            biased = scores + jnp.moveaxis(masks.grouped_heads(added, k.shape[2]), -1, 2)
        p = masks.mass(biased, seen, log_rows)
        ds = p * (_dot(v_heads[:, :, keys], g_rows, (3,), (4,)) - inner_rows)
        if weights:
            given = pull(jnp.moveaxis(ds, 2, -1).reshape(added.shape).astype(added.dtype))
            dweights = tuple(a + b for a, b in zip(dweights, given, strict=True))
        if rule.softcap is not None:
            ds = ds * (1 - jnp.square(scores / rule.softcap))
        ds = ds.astype(q.dtype)
        dq.append(_dot(ds, k_heads[:, :, keys], (2,), (2,)) * rule.scale)  # [B,K,G,T,H]
        dk.append((keys, _dot(ds, q_rows, (3, 4), (2, 3)) * rule.scale))  # [B,K,S,H]
        dv.append((keys, _dot(p.astype(g.dtype), g_rows, (3, 4), (2, 3))))
    dk, dv = _sum_blocks(dk, size, k), _sum_blocks(dv, size, v)
    return _rows_back(dq, q), dk, dv, None, None, _of_sinks(sinks, log_total, inner), dweights


def _of_sinks(sinks, log_total, inner):
    """The gradient of sinks [N]: a sink's probability is lost to a key whose value is 0."""
    if sinks is None:
        return None
    p = jnp.exp(_per_head(sinks, inner.shape[1]) - log_total)  # [B,K,G,T,1]
    return -jnp.sum(p * inner, axis=(0, 3, 4)).reshape(sinks.shape).astype(sinks.dtype)


def _inner(out: jax.Array, g: jax.Array) -> jax.Array:
    """The sum of p * dp over keys, float32[B,T,N,1]: the product of output and cotangent."""
    heads, head = out.shape[2:]
    product = (out.astype(precision.wide()) * g).reshape(*out.shape[:2], -1)  # [B,T,N*H]
    # a product with ones for each head: on CPU ten times as fast as a sum of its few elements
    ones = jnp.repeat(jnp.eye(heads, dtype=precision.wide()), head, axis=0)  # [N*H,N]
    return jnp.matmul(product, ones, precision=jax.lax.Precision.HIGHEST)[..., None]


_blockwise.defvjp(_forward, _backward)


def _sum_blocks(parts: list[tuple[slice, jax.Array]], size: int, like: jax.Array) -> jax.Array:
    """Sum of what each block of queries gave to its keys, [B,S,K,H]."""
    out: list[Any] = []
    for start in range(0, like.shape[1], size):
        have = [(keys.start, part) for keys, part in parts if keys.start <= start < keys.stop]
        out.append(sum(part[:, :, start - at : start - at + size] for at, part in have))
    return _rows_back(out, like)
