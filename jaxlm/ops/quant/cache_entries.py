"""Keys and values in 8 bits: each token's, head by head, with a scale for every 64 elements.

    int8   the largest magnitude of a group is 127, rounded to the nearest integer
    fp8    E4M3 (Micikevicius et al. 2022), the largest magnitude is 448

Scales are bfloat16, and a group is divided by its scale as that is stored: the rounding of the
scale moves no element by more than half a step. Every token has its own, since the largest
magnitude of a text grows with its length, and what is far below it would be rounded away. Groups of
64 keep a latent and the rotary key along with it apart (`layers.mla`).
"""

from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp

Numbers = Literal["int8", "fp8"]
GROUP = 64  # elements, at most
LARGEST = {"int8": 127.0, "fp8": 448.0}
# codes of E4M3 are kept as integers: XLA would widen a whole float8 array before it slices it
DTYPES = {"int8": "int8", "fp8": "uint8"}


class Stored(NamedTuple):
    """Vectors as they are stored: codes int8 or uint8[..., H], scales bfloat16[..., P]."""

    codes: jax.Array
    scales: jax.Array


def groups(size: int) -> int:
    """The number P of equal groups of a vector of `size` elements."""
    return next(p for p in range(1, size + 1) if size % p == 0 and size // p <= GROUP)


def encode(x: jax.Array, numbers: Numbers) -> Stored:
    """Vectors x [..., H], rounded to the nearest. A group that is not finite is so throughout."""
    x = x.astype(jnp.float32)
    grouped = x.reshape(*x.shape[:-1], groups(x.shape[-1]), -1)  # [..., P, H / P]
    scales = (jnp.max(jnp.abs(grouped), axis=-1) / LARGEST[numbers]).astype(jnp.bfloat16)
    # of zeros, and of what is too small to be divided by
    small = scales < jnp.finfo(jnp.bfloat16).tiny
    scales = jnp.where(small, jnp.ones((), jnp.bfloat16), scales)
    units = (grouped / scales[..., None].astype(jnp.float32)).reshape(x.shape)
    units = jnp.clip(units, -LARGEST[numbers], LARGEST[numbers])
    if numbers == "int8":
        return Stored(jnp.round(units).astype(jnp.int8), scales)
    return Stored(jax.lax.bitcast_convert_type(units.astype(jnp.float8_e4m3fn), jnp.uint8), scales)


def decode(stored: Stored) -> jax.Array:
    """The vectors float32[..., H]."""
    units = _units(stored.codes)
    grouped = units.reshape(*stored.scales.shape, -1)  # [..., P, H / P]
    return (grouped * stored.scales[..., None].astype(jnp.float32)).reshape(units.shape)


def _units(codes: jax.Array) -> jax.Array:
    if codes.dtype == jnp.int8:
        return codes.astype(jnp.float32)
    # E4M3's fields are in the places of float16's, whose exponents begin 8 lower
    wide = codes.astype(jnp.uint16)
    bits = ((wide & 0x7F) << 7) | ((wide & 0x80) << 8)
    return jax.lax.bitcast_convert_type(bits, jnp.float16).astype(jnp.float32) * 256.0
