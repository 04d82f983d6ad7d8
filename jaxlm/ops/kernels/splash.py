"""Attention by JAX's splash kernel for TPUs (jax.experimental.pallas.ops.tpu.splash_attention)."""

import jax
import jax.numpy as jnp

from jaxlm.ops import masks

LANES = 128  # the kernel's blocks are multiples of a TPU's vector lanes


def attend(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    q_at: masks.At,
    k_at: masks.At,
    rule: masks.Rule,
    bias: masks.Bias | None,
    sinks: jax.Array | None,
    interpret: bool = False,
) -> jax.Array:
    """Attention [B,T,N,H'], as `attention.attend` has it; rows are padded to multiples of 128.

    The mask is made from the order of the row, and segments are compared. interpret computes the
    kernel step by step on any platform, slowly: for tests.

    Raises: ValueError for a bias or shared tokens, and for causal or a window where the keys are
    not the queries' row.
    """
    from jax.experimental.pallas.ops.tpu import splash_attention  # a quarter of a second

    length, keys = q.shape[1], k.shape[1]
    if (rule.causal or rule.window is not None) and length != keys:
        raise ValueError(
            "kernel 'splash' with causal or window needs queries and keys of one row, got "
            f"T={length} queries and S={keys} keys; kernel 'xla' does this"
        )
    if bias is not None:
        raise ValueError("kernel 'splash' does not support bias; use 'xla' or 'blockwise'")
    if q_at.shared is not None or k_at.shared is not None:
        raise ValueError("kernel 'splash' does not support shared tokens; use 'xla'")
    # it scales nothing itself; rounded to q's dtype again, which is exact for powers of two
    q = (q.astype(jnp.float32) * rule.scale).astype(q.dtype)
    run = _kernel(q.shape[2], _whole_blocks(length), _whole_blocks(keys), rule, interpret)
    heads = [_padded(jnp.swapaxes(x, 1, 2), 2) for x in (q, k, v)]  # [B,N,T,H]
    rows = (_padded(at.segments, 1) for at in (q_at, k_at))
    out = jax.vmap(run, in_axes=(0, 0, 0, 0, None))(
        *heads, splash_attention.SegmentIds(*rows), sinks
    )
    out = jnp.swapaxes(out[:, :, :length], 1, 2)  # [B,T,N,H]
    # padding is a segment like others to the kernel, and a row that sees nothing sees everything
    query, key = q_at.segments[:, :, None], k_at.segments[:, None, :]
    sees = jnp.any((query == key) & (query != 0), axis=-1)
    return jnp.where(sees[:, :, None, None], out, 0)


def _kernel(heads: int, length: int, keys: int, rule: masks.Rule, interpret: bool):
    """The library's kernel for one row, of q [N,T,H], k and v [K,S,H]."""
    from jax.experimental.pallas.ops.tpu import splash_attention

    shape, window = (length, keys), rule.window
    if window is not None:
        mask = splash_attention.LocalMask(shape, (window - 1, 0 if rule.causal else window - 1), 0)
    elif rule.causal:
        mask = splash_attention.CausalMask(shape)
    else:
        mask = splash_attention.FullMask(shape)
    t, s = _block(length), _block(keys)
    return splash_attention.make_splash_mha_single_device(
        splash_attention.MultiHeadMask([mask] * heads),
        block_sizes=splash_attention.BlockSizes(
            block_q=t,
            block_kv=s,
            block_q_dkv=t,
            block_kv_dkv=s,
            block_q_dq=t,
            block_kv_dq=s,
        ),
        attn_logits_soft_cap=rule.softcap,
        interpret=interpret,
    )


def _whole_blocks(length: int) -> int:
    return -(-length // LANES) * LANES


def _block(length: int) -> int:
    """The largest block of at most 512 that divides a padded row."""
    return next(size for size in (512, 384, 256, LANES) if length % size == 0)


def _padded(x: jax.Array, axis: int) -> jax.Array:
    """x with zeros (segment 0, for segments) up to whole blocks along an axis."""
    short = _whole_blocks(x.shape[axis]) - x.shape[axis]
    return jnp.pad(x, [(0, short if i == axis else 0) for i in range(x.ndim)])
