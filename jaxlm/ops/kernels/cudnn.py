"""Attention by cuDNN's fused kernel for NVIDIA GPUs, through `jax.nn.dot_product_attention`."""

from typing import Literal

import jax
import jax.numpy as jnp

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
    implementation: Literal["cudnn", "xla"] = "cudnn",
) -> jax.Array:
    """Attention [B,T,N,H], as `attention.attend` has it; the mask is an array [B,1,T,S].

    implementation "xla" has JAX compute the same call without cuDNN: for tests.

    Raises: ValueError for a soft-cap, a bias, sinks, values of another head size than keys, a dtype
    other than bfloat16 and float16, a head size or row length that cuDNN does not take.
    """
    _refuse(q, k, v, rule, bias, sinks)
    allowed = masks.allowed(q_at, k_at, rule)
    sees = jnp.any(allowed, axis=-1, keepdims=True)
    # where all scores are masked, its backward pass can overflow: such a query sees every key
    # instead, and its output is replaced, and with it every gradient
    seen = (allowed | ~sees)[:, None]
    out = jax.nn.dot_product_attention(
        q, k, v, mask=seen, scale=rule.scale, implementation=implementation
    )
    return jnp.where(sees[..., None], out, 0)


def _refuse(q, k, v, rule, bias, sinks) -> None:
    for name, given in (("softcap", rule.softcap), ("bias", bias), ("sinks", sinks)):
        if given is not None:
            raise ValueError(f"kernel 'cudnn' does not support {name}; use 'xla' or 'blockwise'")
    if q.dtype not in (jnp.bfloat16, jnp.float16):
        raise ValueError(
            f"kernel 'cudnn' computes in bfloat16 or float16, got {q.dtype}: set plan.compute"
        )
    if v.shape[-1] != q.shape[-1]:
        raise ValueError(
            f"kernel 'cudnn' needs values of the keys' head size, got {v.shape[-1]} and "
            f"{q.shape[-1]}; kernels 'xla', 'blockwise' and 'splash' do without"
        )
    if q.shape[-1] % 8 or q.shape[-1] > 256:
        raise ValueError(
            f"kernel 'cudnn' needs heads of a multiple of 8, at most 256, got {q.shape[-1]}"
        )
    if q.shape[1] % 2 or k.shape[1] % 2:
        raise ValueError(
            "kernel 'cudnn' needs rows of even length for its gradient, got "
            f"T={q.shape[1]} queries and S={k.shape[1]} keys"
        )
