"""Normalisation over the last axis, with statistics in float32."""

import jax
import jax.numpy as jnp

from jaxlm.core import precision


def rms_norm(x: jax.Array, scale: jax.Array, eps: float, offset: float = 0.0) -> jax.Array:
    """x / rms(x) * (offset + scale), [..., D] in x.dtype. Zhang and Sennrich 2019, eq. 4.

    x [..., D] of any float dtype; scale [D]. The rms is over the last axis, eps inside the root.
    With offset 1 the weight is what the scale differs from 1 by, as Gemma has it: the sum is in
    float32, where bfloat16 would round a weight of 2^-9 away.
    """
    h = x.astype(precision.wide())
    inverse = jax.lax.rsqrt(jnp.mean(h * h, axis=-1, keepdims=True) + eps)
    factor = scale.astype(precision.wide())
    factor = factor if offset == 0 else offset + factor
    return (h * inverse * factor).astype(x.dtype)


def layer_norm(x: jax.Array, scale: jax.Array, bias: jax.Array | None, eps: float) -> jax.Array:
    """(x - mean) / std * scale + bias, [..., D] in x.dtype. Ba, Kiros and Hinton 2016.

    x [..., D] of any float dtype; scale [D]; bias [D], or None where the weight is absent.
    """
    h = x.astype(precision.wide())
    h = h - jnp.mean(h, axis=-1, keepdims=True)
    h = h * jax.lax.rsqrt(jnp.mean(h * h, axis=-1, keepdims=True) + eps)
    h = h * scale.astype(precision.wide())
    if bias is not None:
        h = h + bias.astype(precision.wide())
    return h.astype(x.dtype)
