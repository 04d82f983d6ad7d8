"""Attention over keys that other devices hold, inside `shard_map`: Ring Attention, Liu et al. 2023,
with rows dealt so that a causal mask leaves all devices the same work.

    forward    size visits, size - 1 rotations of (k, v, at): running maximum, sum and output
    backward   scores again from the log-sum-exp; the keys' gradients go round with them, and home

Who may see whom follows from segments and positions alone, never from the order of a row, so the
keys may be anywhere. Scores exist one block of queries and keys at a time, and blocks of which no
query may see a key are left out.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxlm.core import precision
from jaxlm.ops import masks

# Queries and keys of a block, at most.
BLOCK = 512


class Ring(NamedTuple):
    """The devices that keys go round, and the rule they are seen by; static in the program.

    axis: the mesh axis, of `size` devices; of 1, the keys that are here are all there are.
    """

    axis: str
    size: int
    rule: masks.Rule


# bias(ahead int32[B,T,S], *weights) -> the local heads' term [B,N,T,S]
Bias = Callable[..., jax.Array]


def attend(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    q_at: masks.At,
    k_at: masks.At,
    ring: Ring,
    bias: Bias | None = None,
    weights: tuple[jax.Array, ...] = (),
    sinks: jax.Array | None = None,
) -> jax.Array:
    """Attention [B,T,N,H'] of this device's queries over the keys of all devices of the ring.

    Arrays as in `attention.attend`, each this device's part of the sequence; weights are what bias
    reads and learns.
    """
    return _attend(ring, bias, q, k, v, q_at, k_at, sinks, weights)


def deal(x: Any, axis: str, size: int) -> Any:
    """Arrays [B,T,...] with both halves of every device's sequence dealt anew: of 2 * size halves
    in order, device i gets i and 2 * size - 1 - i, so that under a causal mask all have the same
    work. `undeal` takes them back."""
    return jax.tree.map(lambda a: _exchange(a, axis, *_routes(size)), x)


def undeal(x: jax.Array, axis: str, size: int) -> jax.Array:
    """The array as it was before `deal`."""
    back = []
    for route in _routes(size):
        back.append([(receiver, sender) for sender, receiver in route])
    return _exchange(x, axis, *back)


def _routes(size: int) -> list[list[tuple[int, int]]]:
    """Routes of the first and the second half of every device: [(from, to), ...] of each."""
    first, second = [], []
    for device in range(size):
        # halves 2 i and 2 i + 1 go to their owners: of 4 devices 0 1 2 3 3 2 1 0
        for route, half in ((first, 2 * device), (second, 2 * device + 1)):
            route.append((device, min(half, 2 * size - 1 - half)))
    return [first, second]


def _exchange(x, axis, first, second):
    half = x.shape[1] // 2
    parts = (
        jax.lax.ppermute(x[:, :half], axis, first),
        jax.lax.ppermute(x[:, half:], axis, second),
    )
    return jnp.concatenate(parts, axis=1)


class _Keys(NamedTuple):
    """Keys and values that go round, in blocks: k [n,B,K,S,H], v [n,B,K,S,H'], at [n,B,S]."""

    k: jax.Array
    v: jax.Array
    at: masks.At


class _Rows(NamedTuple):
    """Blocks of queries: q [n,B,K,G,T,H], at [n,B,T]."""

    q: jax.Array
    at: masks.At


class _State(NamedTuple):
    """Per query: the largest score so far, the sum of exp(score - peak) [...,T,1] and the sum of
    values times it [...,T,H']."""

    peak: jax.Array
    total: jax.Array
    out: jax.Array


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _attend(ring, bias, q, k, v, q_at, k_at, sinks, weights):
    return _forward(ring, bias, q, k, v, q_at, k_at, sinks, weights)[0]


def _forward(ring, bias, q, k, v, q_at, k_at, sinks, weights):
    rows, keys = _rows(q, q_at, k.shape[2]), _keys(k, v, k_at)
    # All but q, k and v is known before them: without the barrier, autodiff would compute the masks
    # of all pairs of blocks ahead of the layers, and keep them.
    known = (rows, keys, _start(rows, v.shape[3], sinks))
    rows, keys, state = jax.lax.optimization_barrier(known)
    visit = functools.partial(_visit, ring.rule, bias, weights, rows)

    def turn(carry, _):
        state, keys = carry
        return (visit(state, keys), _rotate(keys, ring)), None

    (state, keys), _ = jax.lax.scan(turn, (state, keys), None, ring.size - 1)
    state = visit(state, keys)
    total = masks.nonzero(state.total)
    out = _rows_back(state.out / total, q)
    log = jnp.where(jnp.isfinite(state.peak), state.peak, 0.0) + jnp.log(total)  # [n,B,K,G,T,1]
    return out, (q, k, v, q_at, k_at, sinks, weights, out, log)


def _backward(ring, bias, saved, g):
    q, k, v, q_at, k_at, sinks, weights, out, log = saved
    rows, keys, dtype = _rows(q, q_at, k.shape[2]), _keys(k, v, k_at), precision.wide()
    g_rows = _rows(g, q_at, k.shape[2]).q
    inner = jnp.sum(_rows(out, q_at, k.shape[2]).q.astype(dtype) * g_rows, -1, keepdims=True)
    visit = functools.partial(_visit_back, ring.rule, bias, weights, rows, (g_rows, log, inner))
    dq = jnp.zeros(rows.q.shape, dtype)
    grads = tuple(jnp.zeros(x.shape, dtype) for x in keys[:2])
    dweights = jax.tree.map(jnp.zeros_like, weights)

    def turn(carry, _):
        dq, grads, dweights, keys = carry
        dq, grads, dweights = visit(dq, grads, dweights, keys)
        return (dq, _rotate(grads, ring), dweights, _rotate(keys, ring)), None

    carry = (dq, grads, dweights, keys)
    (dq, grads, dweights, keys), _ = jax.lax.scan(turn, carry, None, ring.size - 1)
    dq, grads, dweights = visit(dq, grads, dweights, keys)
    dk, dv = (_keys_back(x, like) for x, like in zip(_rotate(grads, ring), (k, v), strict=True))
    dsinks = None
    if sinks is not None:  # a sink's probability is lost to a key whose value is 0
        p = jnp.exp(_per_head(sinks, k.shape[2]) - log)  # [n,B,K,G,T,1]
        dsinks = -jnp.sum(p * inner, axis=(0, 1, 4, 5)).reshape(sinks.shape).astype(sinks.dtype)
    return _rows_back(dq, q), dk, dv, None, None, dsinks, dweights


_attend.defvjp(_forward, _backward)


def _rotate(x: Any, ring: Ring) -> Any:
    """The arrays that the device before this one holds."""
    if ring.size == 1:
        return x
    route = [(i, (i + 1) % ring.size) for i in range(ring.size)]
    return jax.tree.map(lambda a: jax.lax.ppermute(a, ring.axis, route), x)


def _visit(rule, bias, weights, rows, state, keys):
    """The state after the queries have met these keys."""

    def each(_, at):
        rows, state = at

        def meet(state, keys):
            seen = _seen(rows.at, keys.at, rule)

            def update(state):
                scores = _scores(rule, bias, weights, rows, keys)[1]
                here = jnp.max(jnp.where(seen, scores, -jnp.inf), axis=-1, keepdims=True)
                peak = jnp.maximum(state.peak, here)
                finite = jnp.where(jnp.isfinite(peak), peak, 0.0)
                kept = jnp.exp(state.peak - finite)  # 0 where nothing was seen before
                mass = masks.mass(scores, seen, finite)  # [B,K,G,T,S]
                total = state.total * kept + jnp.sum(mass, axis=-1, keepdims=True)
                added = _dot(mass.astype(keys.v.dtype), keys.v, (4,), (2,))
                return _State(peak, total, state.out * kept + added)

            return jax.lax.cond(jnp.any(seen), update, lambda state: state, state), None

        return None, jax.lax.scan(meet, state, keys)[0]

    return jax.lax.scan(each, None, (rows, state))[1]


def _visit_back(rule, bias, weights, rows, saved, dq, grads, dweights, keys):
    """dq, (dk, dv) and dweights, each with what these queries and these keys add to it."""

    def each(carry, at):
        rows, g, log, inner, dq = at

        def meet(carry, at):
            keys, dk, dv = at
            seen = _seen(rows.at, keys.at, rule)

            def update(dq, dweights, dk, dv):
                plain, scores, pull = _scores(rule, bias, weights, rows, keys)
                p = masks.mass(scores, seen, log)  # [B,K,G,T,S]
                ds = p * (_dot(g, keys.v, (4,), (3,)) - inner)
                if weights:
                    dweights = jax.tree.map(jnp.add, dweights, pull(ds))
                if rule.softcap is not None:
                    ds = ds * (1 - jnp.square(plain / rule.softcap))
                ds = ds.astype(rows.q.dtype)
                dq = dq + _dot(ds, keys.k, (4,), (2,)) * rule.scale
                dk = dk + _dot(ds, rows.q, (2, 3), (2, 3)) * rule.scale
                return dq, dweights, dk, dv + _dot(p.astype(g.dtype), g, (2, 3), (2, 3))

            args = (*carry, dk, dv)
            *carry, dk, dv = jax.lax.cond(jnp.any(seen), update, lambda *args: args, *args)
            return tuple(carry), (dk, dv)

        dweights, grads = carry
        (dq, dweights), grads = jax.lax.scan(meet, (dq, dweights), (keys, *grads))
        return (dweights, grads), dq

    (dweights, grads), dq = jax.lax.scan(each, (dweights, grads), (rows, *saved, dq))
    return dq, grads, dweights


def _scores(rule, bias, weights, rows, keys):
    """Scores [B,K,G,T,S] of a block: bent; with the bias too; and the function from the gradient
    of the latter to that of the bias's weights."""
    plain = masks.bent(_dot(rows.q, keys.k, (4,), (3,)), rule)
    if bias is None:
        return plain, plain, None
    ahead = masks.ahead(rows.at, keys.at)
    added, pull = jax.vjp(lambda *weights: bias(ahead, *weights), *weights)

    def back(ds):
        whole = ds.reshape(ds.shape[0], -1, *ds.shape[3:])  # [B,N,T,S]
        return pull(whole.astype(added.dtype))

    return plain, plain + masks.grouped_heads(added, keys.k.shape[1]), back


def _seen(q_at, k_at, rule):
    return masks.allowed(q_at, k_at, rule)[:, None, None]  # [B,1,1,T,S]


def _start(rows: _Rows, width: int, sinks: jax.Array | None) -> _State:
    shape, dtype = rows.q.shape[:-1], precision.wide()  # [n,B,K,G,T]
    out = jnp.zeros((*shape, width), dtype)
    if sinks is None:
        return _State(jnp.full((*shape, 1), -jnp.inf, dtype), jnp.zeros((*shape, 1), dtype), out)
    peak = jnp.broadcast_to(_per_head(sinks, shape[2]), (*shape, 1))  # [n,B,K,G,T,1]
    return _State(peak, jnp.ones((*shape, 1), dtype), out)


def _per_head(sinks, kv):
    """sinks [N] as [K,G,1,1]."""
    return sinks.astype(precision.wide()).reshape(kv, -1, 1, 1)


def block(length: int) -> int:
    """Tokens a block: the largest divisor of a sequence that is no more than BLOCK."""
    return next(n for n in range(min(length, BLOCK), 0, -1) if length % n == 0)


def _cut(x: jax.Array) -> jax.Array:
    """[B,T,...] as blocks [n,B,T/n,...]."""
    size = block(x.shape[1])
    return jnp.moveaxis(x.reshape(x.shape[0], -1, size, *x.shape[2:]), 1, 0)


def _rows(q: jax.Array, at: masks.At, kv: int) -> _Rows:
    return _Rows(jnp.moveaxis(_cut(masks.group(q, kv)), 2, 4), jax.tree.map(_cut, at))


def _keys(k: jax.Array, v: jax.Array, at: masks.At) -> _Keys:
    return _Keys(*(jnp.swapaxes(_cut(x), 2, 3) for x in (k, v)), jax.tree.map(_cut, at))


def _rows_back(x: jax.Array, like: jax.Array) -> jax.Array:
    """Blocks [n,B,K,G,T,H] as [B,n*T,N,H] in like's dtype."""
    whole = jnp.moveaxis(x, 4, 2)  # [n,B,T,K,G,H]
    whole = jnp.moveaxis(whole, 0, 1).reshape(*like.shape[:3], x.shape[-1])
    return whole.astype(like.dtype)


def _keys_back(x: jax.Array, like: jax.Array) -> jax.Array:
    """Blocks [n,B,K,S,H] as [B,n*S,K,H] in like's dtype."""
    whole = jnp.moveaxis(jnp.swapaxes(x, 2, 3), 0, 1)  # [B,n,S,K,H]
    return whole.reshape(like.shape).astype(like.dtype)


def _dot(a: jax.Array, b: jax.Array, *contract: tuple[int, ...]) -> jax.Array:
    """a [B,K,...] times b [B,K,...] over the contracted axes."""
    numbers: Any = (contract, ((0, 1), (0, 1)))
    return jax.lax.dot_general(a, b, numbers, preferred_element_type=precision.wide())
