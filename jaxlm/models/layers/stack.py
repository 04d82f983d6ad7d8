"""Layers: a list of segments, each a tuple of layer kinds, repeated.

    LLaMA        [(32, ("global",))]
    Gemma 3 27B  [(10, 5 * ("local",) + ("global",)), (1, 2 * ("local",))]

Weights of a segment are stacked over its repeats, so that training scans over them:

    params["stack"] = {"0": {"0_local": {... [10, ...]}, ..., "5_global": {...}}, "1": {...}}

The kinds are in the keys, so the tree itself determines which blocks run; `unstacked` gives the
same tree with one segment per repeat, which decoding uses (scanning while decoding would copy every
layer's weights at every token).
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from jaxlm.core import param
from jaxlm.models.model import Cache
from jaxlm.ops import linear
from jaxlm.parallel import pipeline_parallel
from jaxlm.parallel.plan import Plan

Segments = list[tuple[int, tuple[str, ...]]]
# One layer's part of the cache, or its statistics.
Entries = dict[str, jax.Array]
# block(kind, w, x, rows, memory, keys) -> (x, new cache entries; without a memory statistics or {})
Block = Callable[
    [str, Any, jax.Array, Any, Entries | None, jax.Array | None], tuple[jax.Array, Entries]
]


class Layer(NamedTuple):
    """The facts of one layer, which its block, its cache and the cost functions read.

    kind: the name of its block, which is in the weights' paths too.
    pair: FLOPs of one query-key pair in all heads: 2 for each element of q.k and of p.v.
    cache: (rows, slots) -> the spec of its part of the cache.
    window: keys that a query sees on a side, itself included; None: all of them.
    over: whether these are the keys of its own past or, of an encoder, those around it.
    cross: whether there is a second attention of the same size, over a source.
    active: experts that a token goes to; 1 in a dense layer.
    """

    kind: str
    pair: int
    cache: Callable[[int, int], dict[str, param.Param]]
    window: int | None = None
    over: Literal["past", "around"] = "past"
    cross: bool = False
    active: int = 1


REMAT = {
    "none": jax.checkpoint_policies.everything_saveable,
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
    "full": jax.checkpoint_policies.nothing_saveable,
}


def policy(plan: Plan) -> Any:
    """The `jax.checkpoint` policy of a layer: what it keeps, on the device or on the host."""
    if not plan.keep and not plan.offload:
        return REMAT[plan.remat]
    return jax.checkpoint_policies.save_and_offload_only_these_names(
        names_which_can_be_saved=[*plan.keep],
        names_which_can_be_offloaded=[*plan.offload],
        offload_src="device",
        offload_dst="pinned_host",
    )


def names(spec: param.Tree) -> list[str]:
    """Names by which a plan may keep outputs of a model's layers: those of matrices that contract
    their input, "attention", and "layer", what the layers read."""
    weights = param.flatten({name: spec[name] for name in ("encoder", "stack") if name in spec})
    matrices = {path.rpartition("/")[2] for path, p in weights.items() if p.inputs}
    return [*sorted(matrices - {"router"}), "attention", "layer"] if matrices else []


def segments(kinds: Sequence[str]) -> Segments:
    """The fewest segments of layers of these kinds, in order: first the longest run that repeats a
    pattern, shorter patterns first, then what is left.

        dense moe moe moe         [(1, ("dense",)), (3, ("moe",))]
        local*5 global, 2 times   [(2, ("local",) * 5 + ("global",))]
    """
    result: Segments = []
    rest = tuple(kinds)
    while rest:
        reps = [(_repeated(rest, size), size) for size in range(1, len(rest) + 1)]
        # most layers in one scan; of equals the shortest pattern
        count, size = max(reps, key=lambda r: (r[0] * r[1] if r[0] > 1 else r[1] == 1, -r[1]))
        result.append((count, rest[:size]))
        rest = rest[count * size :]
    return result


def _repeated(kinds: tuple[str, ...], size: int) -> int:
    """Number of times that the first `size` kinds are repeated at the start."""
    count = 1
    while kinds[count * size : (count + 1) * size] == kinds[:size]:
        count += 1
    return count


def spec(layers: Sequence[Layer], weights: Callable[[str], param.Tree]) -> param.Tree:
    """The spec of all layers, from the weights of one layer of each kind."""
    tree: param.Tree = {}
    for i, (n, kinds) in enumerate(segments([layer.kind for layer in layers])):
        named = {f"{j}_{kind}": weights(kind) for j, kind in enumerate(kinds)}
        tree[f"{i}"] = param.stacked(n, named)
    return tree


def kinds(stack: param.Tree) -> list[str]:
    """The kind of every layer of a stack (weights or spec), in order of execution."""
    return [kind(name) for _, name, _ in places(stack)]


def kind(name: str) -> str:
    """The kind in a layer's name: "moe" of "2_moe"."""
    return name.partition("_")[2]


def places(stack: param.Tree) -> list[tuple[str, str, int]]:
    """(segment, name in it, index on the `layer` axis) of every layer, in order of execution."""
    return [
        (str(segment), name, i)
        for segment in sorted(stack, key=int)
        for i in range(_repeats(stack[segment]))
        for name in _ordered_names(stack[segment])
    ]


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
    rows: Any,
    spec: param.Tree,
    key: jax.Array | None = None,
) -> tuple[jax.Array, Entries]:
    """x [B, T, D] after every layer, and the layers' statistics {name: [layers that have it, ...]}.

    rows: all other arrays [B, ...] that blocks read, a tree. spec: the stack's. key: every layer
    gets keys [B] of its own. Segments are scanned, `plan.unroll` layers an iteration, and
    rematerialised as in the plan; `plan.pipe` makes a pipeline of the longest, see `staged`.
    """
    numbers = jnp.arange(x.shape[0])
    stages = staged(stack, plan)
    # by kind: a stack's layers may be apart, which a spec's are not
    of_kind = {kind(place): layer for part in spec.values() for place, layer in part.items()}
    first, stats = 0, []
    for name in sorted(stack, key=int):
        segment, names = stack[name], _ordered_names(stack[name])
        n, width = _repeats(segment), len(names)
        weights = (segment, first + width * jnp.arange(n))
        run = functools.partial(_run, names, block, plan, of_kind, key)
        for part, how in _pieces(n, str(name), stages):
            some = weights if part == slice(0, n) else jax.tree.map(lambda w, p=part: w[p], weights)
            if how is None:
                x, outputs = run(some, x, (rows, numbers))
            else:
                x, outputs = how(run, plan, some, x, (rows, numbers))
            # of each layer of the pattern [n, ...]: in order of execution, layer after layer
            count = part.stop - part.start
            stats += [jax.tree.map(lambda s, i=i: s[i], o) for i in range(count) for o in outputs]
        first += n * width
    return x, _joined(stats)


def staged(stack: param.Tree, plan: Plan) -> tuple[str, int] | None:
    """(segment, how many of its repeats are in a pipeline) of a stack (weights or spec); None
    without one.

    All stages compute the same function, so they are runs of equal layers: of the segment with the
    most layers, as many repeats as divide into the stages. Every other layer is computed outside of
    the pipeline, where `pipe` splits the rows instead.

    Raises: ValueError for more stages than repeats.
    """
    if plan.pipe == 1:
        return None
    name = max(stack, key=lambda i: _repeats(stack[i]) * len(stack[i]))
    n, runs = _repeats(stack[name]), plan.pipe * plan.pipe_rounds
    if n < runs:
        rounds = f" with plan.pipe_rounds={plan.pipe_rounds}" if plan.pipe_rounds > 1 else ""
        raise ValueError(
            f"plan.pipe: {plan.pipe} given{rounds}; the longest run of layers repeats a pattern of "
            f"{len(stack[name])} {n} times, which is at most {max(1, n // plan.pipe_rounds)} stages"
        )
    return name, n // runs * runs


def check(spec: param.Tree, plan: Plan) -> None:
    """Raises: ValueError where a model's spec has a stack too short for the plan's stages, no
    layers that are known, or none of the outputs that the plan keeps by name."""
    known = names(spec)
    for field, given in (("keep", plan.keep), ("offload", plan.offload)):
        if not {*given} <= {*known}:
            raise ValueError(f"plan.{field}: {given!r} given; it must be names of {known}")
    if plan.pipe > 1 and "stack" not in spec:
        raise ValueError(
            f"plan.pipe: {plan.pipe} given; it must be 1 with a module, whose layers are not known"
        )
    for name in ("encoder", "stack"):
        if name in spec:
            staged(spec[name], plan)


def _pieces(n: int, name: str, stages: tuple[str, int] | None) -> list[tuple[slice, Any]]:
    """The repeats of a segment that are computed together, and how: None is as on one device."""
    if stages is None:
        return [(slice(0, n), None)]
    cut = stages[1] if name == stages[0] else 0
    pieces = [(slice(0, cut), pipeline_parallel.apply), (slice(cut, n), pipeline_parallel.spread)]
    return [(part, how) for part, how in pieces if part.start < part.stop]


def _run(
    names: list[str],
    block: Block,
    plan: Plan,
    of_kind: dict[str, param.Tree],
    key: jax.Array | None,
    weights: tuple[param.Tree, jax.Array],
    x: jax.Array,
    rows: tuple[Any, jax.Array],
) -> tuple[jax.Array, list[Entries]]:
    """x after the repeats of a segment (weights, numbers of their first layers), and the statistics
    of each layer of the pattern [n, ...]. rows: those of the blocks, and the rows' numbers."""
    segment, index = weights
    given, numbers = rows
    n = index.shape[0]

    def body(x: jax.Array, at: tuple[param.Tree, jax.Array]) -> tuple:
        w, index = at
        x = checkpoint_name(x, "layer")
        outputs = []
        for j, name in enumerate(names):
            keys = None
            if key is not None:  # of each row by itself, wherever it is
                fold = jax.vmap(jax.random.fold_in, (None, 0))
                keys = fold(jax.random.fold_in(key, index + j), numbers)
            whole = gathered(w[name], of_kind[kind(name)], plan, layer=True)
            x, out = block(kind(name), whole, x, given, None, keys)
            x = plan.constrain(x, "rows seq embed")
            outputs.append(out)
        return x, outputs

    run: Callable[..., tuple] = body
    if plan.remat != "none":
        run = jax.checkpoint(body, policy=policy(plan), prevent_cse=plan.unroll >= n)
    if plan.unroll < n:
        return jax.lax.scan(run, x, (segment, index), unroll=plan.unroll)
    every = []
    for i, part in enumerate(_ordered(unstacked({"0": segment}))):
        x, outputs = run(x, (_only(part), index[i]))
        every.append(outputs)
    return x, jax.tree.map(lambda *layers: jnp.stack(layers), *every)


def gathered(weights: param.Tree, spec: param.Tree, plan: Plan, layer: bool = False) -> param.Tree:
    """Weights as products read them, where the partitioner's own gathers do not do (`rules.WIDE`).

    layer: whether they are one layer's, of a spec of several. With remat="none" those are left to
    the partitioner: what is gathered here would be kept for the backward pass."""
    if not plan.wide or (layer and plan.remat == "none"):
        return weights
    axes = {path: p.axes[layer:] for path, p in param.flatten(spec).items()}

    def whole(keys: tuple, w: Any) -> Any:
        names = axes.get(param.path_of(keys))
        return w if names is None or linear.is_leaf(w) else plan.gather(w, " ".join(names), layer)

    return jax.tree_util.tree_map_with_path(whole, weights, is_leaf=linear.is_leaf)


def with_constants(stack: param.Tree, constants: Callable[[int], param.Tree] | None) -> param.Tree:
    """The stack with constants(number of the layer) along with every layer's weights.

    The numbers count layers in order of execution, from 0, in a stack and in an `unstacked` one.
    """
    if constants is None:
        return stack
    of = constants
    numbers: dict[tuple[str, str], list[int]] = {}
    for number, (segment, name, _) in enumerate(places(stack)):
        numbers.setdefault((segment, name), []).append(number)

    def layer(segment: str, name: str, weights: param.Tree) -> param.Tree:
        rows = [of(number) for number in numbers[segment, name]]
        added = jax.tree.map(lambda *parts: jnp.stack(parts), *rows)  # [repeats]
        return _merged(weights, added)

    return {
        segment: {name: layer(segment, name, w) for name, w in named.items()}
        for segment, named in stack.items()
    }


def _merged(a: param.Tree, b: param.Tree) -> param.Tree:
    """The leaves of two trees that share dicts and no leaf."""
    if not isinstance(b, dict):
        return b
    return a | {name: _merged(a.get(name, {}), part) for name, part in b.items()}


def _joined(stats: list[Entries]) -> Entries:
    """Each layer's statistics, one array a name over the layers that have it."""
    names = dict.fromkeys(name for layer in stats for name in layer)
    return {n: jnp.stack([layer[n] for layer in stats if n in layer]) for n in names}


def remember(
    stack: param.Tree, x: jax.Array, block: Block, rows: Any, cache: Cache
) -> tuple[jax.Array, list[Entries]]:
    """x [B, T, D] after every layer, and each layer's new cache entries: layers run one by one and
    read their own part of the cache."""
    new: list[Entries] = []
    for segment in _ordered(unstacked(stack)):
        for name in _ordered_names(segment):
            w = _only(segment[name])
            x, entries = block(kind(name), w, x, rows, cache.layers[len(new)], None)
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
