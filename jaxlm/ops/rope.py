"""Rotary position embedding. Su et al. 2021, in the half-split layout of LLaMA checkpoints."""

import jax
import jax.numpy as jnp
import numpy as np


def frequencies(head_dim: int, theta: float) -> jax.Array:
    """Angle per position, float32[H/2]: theta ** (-2i/H) for the i-th pair.

    Raises: ValueError if head_dim is odd or theta is not positive.
    """
    if head_dim % 2:
        raise ValueError(f"head_dim must be even for rotary positions, got {head_dim}")
    if theta <= 0:
        raise ValueError(f"theta must be positive, got {theta}")
    # float64 on the host, rounded once: every backend then sees the same 32-bit angles
    return jnp.asarray(theta ** (-np.arange(0, head_dim, 2) / head_dim), jnp.float32)


def apply(x: jax.Array, positions: jax.Array, freqs: jax.Array) -> jax.Array:
    """x with each pair (i, i + H/2) turned by positions * freqs[i], [B,T,N,H] in x.dtype.

    x [B,T,N,H]; positions int32[B,T]; freqs float32[H/2]. The rotation is done in float32. The
    dot product of two rotated vectors depends on the difference of their positions alone.

    Raises: ValueError if freqs does not hold H/2 angles.
    """
    if x.shape[-1] != 2 * freqs.shape[0]:
        raise ValueError(f"freqs must hold H/2 = {x.shape[-1] / 2} angles, got {freqs.shape[0]}")
    angle = positions[:, :, None, None].astype(jnp.float32) * freqs
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    a, b = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1).astype(x.dtype)
