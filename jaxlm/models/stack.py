"""Layers: a list of segments, each a tuple of layer kinds, repeated.

    LLaMA        [(32, ("global",))]
    Gemma 3 27B  [(10, 5 * ("local",) + ("global",)), (1, 2 * ("local",))]

Weights of a segment are stacked over its repeats, so that training scans over them:

    params["stack"] = {"0": {"0_local": {... [10, ...]}, ..., "5_global": {...}}, "1": {...}}

The kinds are in the keys, so the tree says by itself which blocks to run; `unstacked` gives the
same tree with one segment per repeat, which decoding uses (scanning while decoding would copy every
layer's weights at every token).
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxlm.core import param
from jaxlm.models.model import Cache
from jaxlm.parallel.plan import Plan

Segments = list[tuple[int, tuple[str, ...]]]
Layer = dict[str, jax.Array] | None
# block(kind, w, x, memory, key) -> (x, new cache entries of the layer or None)
Block = Callable[[str, Any, jax.Array, Layer, jax.Array | None], tuple[jax.Array, Layer]]

REMAT = {
    "none": jax.checkpoint_policies.everything_saveable,
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
    "full": jax.checkpoint_policies.nothing_saveable,
}


def spec(segments: Segments, layer: Callable[[str], param.Tree]) -> param.Tree:
    """The spec of all layers, from the spec of one layer of each kind."""
    return {
        f"{i}": {f"{j}_{kind}": param.stacked(n, layer(kind)) for j, kind in enumerate(kinds)}
        for i, (n, kinds) in enumerate(segments)
    }


def layers(stack: param.Tree) -> list[str]:
    """The kind of every layer of a stack (weights or spec), in order of execution."""
    kinds = []
    for segment in _ordered(stack):
        names = list(_ordered_names(segment))
        kinds += _repeats(segment) * [name.partition("_")[2] for name in names]
    return kinds


def unstacked(stack: param.Tree) -> param.Tree:
    """The same layers as segments of one repeat each (leaves [1, ...])."""
    flat: list[param.Tree] = []
    for segment in _ordered(stack):
        n = _repeats(segment)
        parts = jax.tree.map(lambda x, n=n: jax.lax.split(x, [1] * n), segment)
        flat += [
            jax.tree.map(lambda p, i=i: p[i], parts, is_leaf=lambda p: isinstance(p, tuple | list))
            for i in range(n)
        ]
    return {f"{i}": segment for i, segment in enumerate(flat)}


def apply(
    stack: param.Tree,
    x: jax.Array,
    block: Block,
    plan: Plan,
    cache: Cache | None = None,
    key: jax.Array | None = None,
) -> tuple[jax.Array, list[dict[str, jax.Array]]]:
    """x [B, T, D] after every layer, and each layer's new cache entries (empty when training).

    Without a cache, segments are scanned, `plan.unroll` layers an iteration, and rematerialised as
    the plan says. With one, layers run one by one and read their own part of it.
    """
    if cache is not None:
        return _remember(stack, x, block, cache)
    first = 0
    for segment in _ordered(stack):
        n, names = _repeats(segment), list(_ordered_names(segment))

        def body(x: jax.Array, at: tuple[param.Tree, jax.Array], names=names) -> tuple:
            w, index = at
            for j, name in enumerate(names):
                layer_key = None if key is None else jax.random.fold_in(key, index + j)
                x, _ = block(name.partition("_")[2], w[name], x, None, layer_key)
                x = plan.constrain(x, "batch seq embed")
            return x, None

        run: Callable[..., tuple] = body
        if plan.remat != "none":
            run = jax.checkpoint(body, policy=REMAT[plan.remat], prevent_cse=plan.unroll >= n)
        index = first + len(names) * jnp.arange(n)
        if plan.unroll >= n:
            for i, part in enumerate(_ordered(unstacked({"0": segment}))):
                x, _ = run(x, (_only(part), index[i]))
        else:
            x, _ = jax.lax.scan(run, x, (segment, index), unroll=plan.unroll)
        first += n * len(names)
    return x, []


def _remember(
    stack: param.Tree, x: jax.Array, block: Block, cache: Cache
) -> tuple[jax.Array, list[dict[str, jax.Array]]]:
    new: list[dict[str, jax.Array]] = []
    for segment in _ordered(unstacked(stack)):
        for name in _ordered_names(segment):
            w = _only(segment[name])
            x, entries = block(name.partition("_")[2], w, x, cache.layers[len(new)], None)
            assert entries is not None
            new.append(entries)
    return x, new


def _ordered(stack: param.Tree) -> list[param.Tree]:
    """Segments in order. jit sorts dict keys as text, so "10" comes before "2": sort by number."""
    return [stack[i] for i in sorted(stack, key=int)]


def _ordered_names(segment: param.Tree) -> list[str]:
    return sorted(segment, key=lambda name: int(name.partition("_")[0]))


def _only(segment: param.Tree) -> param.Tree:
    """The weights of a segment of one repeat, without the layer axis."""
    return jax.tree.map(lambda w: w.reshape(w.shape[1:]), segment)


def _repeats(segment: param.Tree) -> int:
    return jax.tree.leaves(segment, is_leaf=param.is_param)[0].shape[0]
