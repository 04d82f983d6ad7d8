"""Small numbers packed into bytes, and matrices as rows of one output each."""

import functools
import math

import jax
import jax.numpy as jnp


def pack(codes: jax.Array, bits: int) -> jax.Array:
    """uint8[..., n * bits / 8] of numbers below 2^bits, uint8[..., n]: byte i holds, from its low
    bits on, number i of each of 8 / bits equal parts of the n, so that unpacking moves none.
    bits is 8, 4 or 2, and n a whole number of bytes."""
    parts = jnp.split(codes, 8 // bits, axis=-1)
    return functools.reduce(jnp.bitwise_or, (x << (bits * i) for i, x in enumerate(parts)))


def unpack(packed: jax.Array, bits: int) -> jax.Array:
    """The numbers uint8[..., n] that `pack` put into bytes."""
    mask = 2**bits - 1
    return jnp.concatenate([(packed >> shift) & mask for shift in range(0, 8, bits)], axis=-1)


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
