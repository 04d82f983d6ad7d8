"""Cross-entropy that never holds the logits of the whole batch."""

import functools
from collections.abc import Callable
from typing import Any

import chex
import jax
import jax.numpy as jnp

from jaxlm.core import precision

Params = Any
LogitsFn = Callable[[Params, jax.Array], jax.Array]


def cross_entropy(
    logits_fn: LogitsFn,
    params: Params,
    x: jax.Array,
    targets: jax.Array,
    weight: jax.Array,
    *,
    chunk: int,
    z_loss: float = 0.0,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """(sum of weight * (nll + z_loss * logZ^2), {"nll", "z", "correct"} sums), float32 scalars.

    logits_fn(params, x [B,C,D]) -> float32 logits [B,C,V] holds head, bias and cap; it reads traced
    values through its arguments only. x [B,T,D]; targets int32[B,T]; weight [B,T], 0 = ignored.
    "z" is the sum of weight * logZ^2 (Chowdhery et al. 2022, section 5), "correct" that of weight
    where the target has the largest logit. The sums carry no gradient, weight gets none.

    About `chunk` tokens are done at a time, in columns from all over the batch so that every shard
    of its rows or of their sequences works on every chunk; at least one column (B tokens), at most
    all. The gradients are computed with the values, chunk by chunk, so that no logits are kept
    or computed twice.

    Raises: ValueError if chunk is not positive or the shapes differ.
    """
    _check(x, targets, weight, chunk)
    return _cross_entropy(logits_fn, chunk, float(z_loss), params, x, targets, weight)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def _cross_entropy(logits_fn, chunk, z_loss, params, x, targets, weight):
    def step(total, piece):
        h, target, w = piece
        sums, _ = _value_and_slope(logits_fn(params, h), target, w, z_loss)
        return jax.tree.map(jnp.add, total, sums), None

    pieces = _pieces((x, targets, weight), chunk)
    total, _ = _scan(step, _zero_sums(), pieces)
    return _result(total, z_loss)


def _forward(logits_fn, chunk, z_loss, params, x, targets, weight):
    def step(carry, piece):
        total, dparams = carry
        h, target, w = piece
        logits, pull = jax.vjp(logits_fn, params, h)
        sums, slope = _value_and_slope(logits, target, w, z_loss)
        dp, dh = pull(slope)
        return (jax.tree.map(jnp.add, total, sums), jax.tree.map(jnp.add, dparams, dp)), dh

    start = (_zero_sums(), jax.tree.map(jnp.zeros_like, params))
    (total, dparams), dx = _scan(step, start, _pieces((x, targets, weight), chunk))
    return _result(total, z_loss), (dparams, _rejoined(dx, x.shape[1]), weight)


def _backward(logits_fn, chunk, z_loss, saved, cotangent):
    dparams, dx, weight = saved
    g = cotangent[0]
    scaled = jax.tree.map(lambda leaf: (leaf * g).astype(leaf.dtype), (dparams, dx))
    return *scaled, None, jnp.zeros_like(weight)


_cross_entropy.defvjp(_forward, _backward)


def token_logprobs(
    logits_fn: LogitsFn, params: Params, x: jax.Array, targets: jax.Array, chunk: int
) -> jax.Array:
    """log p(target) for every token, float32[B,T], differentiable in params and x.

    Arguments as for `cross_entropy`. Each chunk's logits are recomputed in the backward pass.

    Raises: ValueError if chunk is not positive or the shapes differ.
    """
    _check(x, targets, targets, chunk)

    def piece_logprobs(params, h, target):
        logits = logits_fn(params, h)
        return at_target(logits, target) - jax.nn.logsumexp(logits, axis=-1)

    return per_token(piece_logprobs, params, (x, targets), chunk)


def per_token(
    f: Callable[..., Any], params: Params, arrays: tuple[jax.Array, ...], chunk: int
) -> Any:
    """f of every token: a tree of [B,T,...] from arrays [B,T,...], differentiable in both.

    f(params, *pieces [B,C,...]) -> a tree of [B,C,...]. About `chunk` tokens are done at a time, as
    in `cross_entropy`; f of a chunk is recomputed in the backward pass.
    """
    run = jax.checkpoint(f)

    def step(carry, piece):
        return carry, run(params, *piece)

    _, out = _scan(step, None, _pieces(arrays, chunk))
    return jax.tree.map(lambda x: _rejoined(x, arrays[0].shape[1]), out)


def _check(x, targets, weight, chunk):
    if chunk < 1:
        raise ValueError(f"chunk must be at least 1 token, got {chunk}")
    refuse = {
        "custom_message": "x [B,T,D], targets [B,T], weight [B,T]",
        "exception_type": ValueError,
    }
    chex.assert_rank([targets, weight], 2, **refuse)
    chex.assert_equal_shape_prefix([x, targets, weight], 2, **refuse)


def _pieces(arrays, chunk):
    """Arrays [B,T,...] as [pieces,B,C,...]: of n pieces the first has columns 0, n, 2n, ...; past
    the last column are zeros."""
    batch, time = arrays[0].shape[:2]
    columns = min(time, max(1, chunk // batch))
    count = -(-time // columns)

    def cut(a):
        padding = [(0, 0), (0, count * columns - time)] + [(0, 0)] * (a.ndim - 2)
        a = jnp.pad(a, padding).reshape(batch, columns, count, *a.shape[2:])  # [B,C,pieces,...]
        return jnp.moveaxis(a, 2, 0)  # [pieces,B,C,...]

    return tuple(cut(a) for a in arrays)


def _rejoined(x, time):
    """Pieces [pieces,B,C,...] as [B,T,...] again."""
    x = jnp.moveaxis(x, 0, 2)  # [B,C,pieces,...]
    return x.reshape(x.shape[0], -1, *x.shape[3:])[:, :time]


def _scan(step, carry, pieces):
    """lax.scan, without the loop where there is one piece."""
    if pieces[0].shape[0] > 1:
        return jax.lax.scan(step, carry, pieces)
    carry, out = step(carry, jax.tree.map(lambda a: a[0], pieces))
    return carry, jax.tree.map(lambda a: a[None], out)


def _zero_sums():
    return {name: jnp.zeros((), precision.wide()) for name in ("nll", "z", "correct")}


def _result(total, z_loss):
    return total["nll"] + z_loss * total["z"], total


def at_target(logits: jax.Array, target: jax.Array) -> jax.Array:
    """The target's logit, [...], of logits [..., V]."""
    # compare and sum, not gather: with a sharded vocabulary each shard sums what it has
    return jnp.sum(jnp.where(_hit(logits, target), logits, 0.0), axis=-1)


def _hit(logits, target):
    return jax.lax.broadcasted_iota(jnp.int32, logits.shape, logits.ndim - 1) == target[..., None]


def _value_and_slope(logits, target, weight, z_loss):
    """The sums over tokens, and d(weight * (nll + z_loss * logZ^2)) / d logits [B,C,V]."""
    weight = weight.astype(precision.wide())
    peak = jnp.max(logits, axis=-1)  # [B,C]
    mass = jnp.exp(logits - peak[..., None])  # [B,C,V]
    total = jnp.sum(mass, axis=-1)  # [B,C]
    log_z = peak + jnp.log(total)
    ours = at_target(logits, target)
    sums = {
        "nll": jnp.sum(weight * (log_z - ours)),
        "z": jnp.sum(weight * log_z**2),
        "correct": jnp.sum(weight * (ours >= peak)),
    }
    pull = (weight * (1 + 2 * z_loss * log_z) / total)[..., None]  # [B,C,1]
    return sums, mass * pull - jnp.where(_hit(logits, target), weight[..., None], 0.0)
