"""Small numbers packed into bytes, and matrices as rows of one output each."""

import math

import jax
import jax.numpy as jnp


def pack(codes: jax.Array, bits: int) -> jax.Array:
    """uint8[..., n * bits / 8] of numbers below 2^bits, uint8[..., n]: the first of a byte in its
    low bits. bits is 8, 4 or 2, and n a whole number of bytes."""
    if bits == 8:
        return codes
    parts = codes.reshape(*codes.shape[:-1], -1, 8 // bits)  # [..., bytes, numbers a byte]
    return jnp.sum(parts << _shifts(bits), axis=-1, dtype=jnp.uint8)


def unpack(packed: jax.Array, bits: int) -> jax.Array:
    """The numbers uint8[..., n] that `pack` put into bytes."""
    if bits == 8:
        return packed
    parts = (packed[..., None] >> _shifts(bits)) & jnp.uint8(2**bits - 1)
    return parts.reshape(*packed.shape[:-1], -1)


def _shifts(bits: int) -> jax.Array:
    return jnp.arange(0, 8, bits, dtype=jnp.uint8)


def rows(w: jax.Array, copies: int, inputs: int) -> jax.Array:
    """float32[copies..., outputs, inputs] of a weight [copies..., inputs..., outputs...]."""
    last = jnp.moveaxis(w, range(copies, copies + inputs), range(-inputs, 0))
    size = math.prod(w.shape[copies : copies + inputs])
    return last.reshape(*w.shape[:copies], -1, size).astype(jnp.float32)


def matrix(rows: jax.Array, sizes: tuple[int, ...], inputs: int) -> jax.Array:
    """The weight [copies..., inputs..., outputs...] whose `rows` these are. sizes: [inputs...,
    outputs...]."""
    copies = rows.ndim - 2
    shape = (*rows.shape[:copies], *sizes[inputs:], *sizes[:inputs])
    return jnp.moveaxis(rows.reshape(shape), range(-inputs, 0), range(copies, copies + inputs))


def blocks(rows: jax.Array, size: int) -> jax.Array:
    """[..., n, size]: rows [..., n * size] in blocks; the last one is filled up with zeros."""
    rest = -rows.shape[-1] % size
    padded = jnp.pad(rows, [(0, 0)] * (rows.ndim - 1) + [(0, rest)])
    return padded.reshape(*rows.shape[:-1], -1, size)
