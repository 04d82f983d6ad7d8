"""Entries of a cache in 8 bits (`ops.quant.cache_entries`): keys and values, or latents, each
token's and each head's with scales of its own.

A layer's entries then are codes under the names that the numbers had, and their scales beside them,
"k" and "k_scale". The names and dtypes of a cache say what it holds, so that a layer reads and
writes it without a setting. New tokens are seen as they will be stored, so that chunks of any size
give the same numbers.
"""

import dataclasses
from typing import get_args

import jax

from jaxlm.core import param
from jaxlm.ops.quant import cache_entries
from jaxlm.ops.quant.cache_entries import Numbers, Stored

Entries = dict[str, jax.Array]
# What a layer's entries are followed by where their scales are.
SCALE = "_scale"


def spec(layer: dict[str, param.Param], numbers: Numbers) -> dict[str, param.Param]:
    """The spec of a layer's entries with codes in place of numbers, [..., H], and the scales
    [..., P] of each of their vectors."""
    tree = {}
    for name, p in layer.items():
        tree[name] = dataclasses.replace(p, dtype=cache_entries.DTYPES[numbers])
        shape = (*p.shape[:-1], cache_entries.groups(p.shape[-1]))
        axes = (*p.axes[:-1], "group")
        tree[name + SCALE] = param.Param(shape, axes, p.init, dtype="bfloat16")
    return tree


def append(old: Entries, new: Entries) -> Entries:
    """New entries, vectors [..., H] by name, as the layer's old ones are stored."""
    kind = _numbers(old)
    if kind is None:
        return new
    entries = {}
    for name, x in new.items():
        entries[name], entries[name + SCALE] = cache_entries.encode(x, kind)
    return entries


def read(entries: Entries, name: str, like: jax.Array) -> jax.Array:
    """The vectors of entries as everyone who reads the cache sees them, in the dtype of `like`."""
    part = held(entries, name)
    return part if isinstance(part, jax.Array) else cache_entries.decode(part).astype(like.dtype)


def held(entries: Entries, name: str) -> jax.Array | Stored:
    """Entries of one name, [..., H]: an array, or codes and their scales."""
    scales = entries.get(name + SCALE)
    return entries[name] if scales is None else Stored(entries[name], scales)


def _numbers(entries: Entries) -> Numbers | None:
    dtypes = {str(x.dtype) for x in entries.values()}
    kinds = (name for name in get_args(Numbers) if cache_entries.DTYPES[name] in dtypes)
    return next(kinds, None)
