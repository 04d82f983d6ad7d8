"""A jaxlm Model over any Flax module, `nnx` or `linen`, that computes logits from tokens.

    model = from_flax.model(module, vocab=256, reads=("mask",))
    params = from_flax.weights(module)       # the module's own buffers
    module = from_flax.restored(module, params)

The weights are a nested dict under "module". A module without a KV cache is decoded by
recomputation: the cache holds tokens, and every new token costs a forward pass over all slots.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen, nnx

from jaxlm.core import check, joint, param
from jaxlm.models.flax_modules import recompute
from jaxlm.models.layers import stack
from jaxlm.models.model import Cache, Hidden, Model
from jaxlm.ops.attention import At
from jaxlm.parallel.plan import Plan

READS = ("mask", "segment_ids", "positions", "deterministic")
"""What a module's call may take along with tokens [B, T]: mask bool[B, 1, T, T], True where a query
sees a key; segment_ids int32[B, T], 0 for padding; positions int32[B, T] within each document;
deterministic, False where dropout is on."""

# Variables that are no weights and that a model may have: linen sows intermediates.
_PASSING = {"params", "intermediates"}


class Lazy(NamedTuple):
    """An nnx module that does not exist yet: make(rngs=nnx.Rngs(key), **arguments)."""

    make: Callable[..., nnx.Module]
    arguments: Mapping[str, Any]

    def drawn(self, key: jax.Array) -> nnx.Module:
        """The module with the weights that this random key gives, axis names in its metadata: the
        plan decides where they are, not a mesh that Flax looks for."""
        with nnx.use_eager_sharding(False):
            return self.make(rngs=nnx.Rngs(key), **self.arguments)


@dataclasses.dataclass(frozen=True)
class Settings:
    """The `cfg` of a model over a module that no Config names."""

    KIND = "flax"
    vocab: int
    context: int | None


class _Parts(NamedTuple):
    """A module as functions of its weights.

    shapes: {path: ShapeDtypeStruct}. names: {path: axis names or Nones}. draw(key) -> {path:
    array}. logits(weights {path: array}, tokens, keywords, key) -> [B, T, V].
    """

    shapes: dict[str, jax.ShapeDtypeStruct]
    names: dict[str, tuple[str | None, ...]]
    draw: Callable[[jax.Array], dict[str, jax.Array]]
    logits: Callable[..., jax.Array]


def model(
    module: nnx.Module | linen.Module | Lazy,
    *,
    vocab: int,
    context: int | None = None,
    reads: tuple[str, ...] = (),
    documents: Literal["apart", "joined"] = "apart",
    axes: tuple[tuple[str, str], ...] = (),
    plan: Plan = Plan(),
    cfg: Any = None,
) -> Model:
    """The Model of a causal module whose call maps tokens int32[B, T] to logits [B, T, vocab].

    Fields are those of `flax_modules.Config`; cfg is what the Model carries, None for `Settings`.
    Initial weights are drawn by the module; an nnx module that exists keeps its own. Its logits are
    the Model's hidden states, so that `unembed` only casts. Where the plan computes in bfloat16 or
    float16, weights are cast before the call. The plan rematerialises the module as a whole.

    Raises: ValueError for unknown `reads`, documents that cannot be kept apart, weights that are
    not float32, variables other than weights and random keys, a plan with settings for jaxlm's own
    layers; when traced, for logits of another shape.
    """
    _check(reads, documents, plan)
    parts = _linen(module, reads) if isinstance(module, linen.Module) else _nnx(module)
    names = {a: b for a, b in axes}
    spec = {path: _weight(path, shape, parts, names, vocab) for path, shape in parts.shapes.items()}

    logits = _forward(parts, reads, vocab, plan)

    def hidden(
        params: param.Tree,
        tokens: jax.Array,
        at: At,
        cache: Cache | None = None,
        key: jax.Array | None = None,
    ) -> Hidden:
        if cache is None:
            return Hidden(recompute.in_order(logits, params, tokens, at, key), None)
        cache, first = recompute.append(cache, tokens, at)
        everything = cache.layers[0]["tokens"].astype(jnp.int32)  # [B, S]
        out = recompute.in_order(logits, params, everything, cache.at, None)
        return Hidden(jax.lax.dynamic_slice_in_dim(out, first, tokens.shape[1], 1), cache)

    return Model(
        Settings(vocab, context) if cfg is None else cfg,
        {"module": param.nested(spec)},
        hidden,
        head=lambda params: {},
        unembed=lambda head, x: x.astype(jnp.float32),
        cache=recompute.slots,
        context=context,
    )


def _forward(
    parts: _Parts, reads: tuple[str, ...], vocab: int, plan: Plan
) -> Callable[..., jax.Array]:
    """(params, tokens, at, key) -> logits [B, T, V] of rows that end in padding."""

    def logits(params: param.Tree, tokens: jax.Array, at: At, key: jax.Array | None) -> jax.Array:
        flat = param.flatten(params["module"])
        if other := [path for path, w in flat.items() if not isinstance(w, jax.Array)]:
            raise ValueError(
                f"weight {other[0]} is an adapter's or quantised; jaxlm's own layers read such "
                "weights, a Flax module does not: adapter=None is right"
            )
        if plan.dtype != jnp.float32:
            flat = {path: w.astype(plan.dtype) for path, w in flat.items()}
        out = parts.logits(flat, tokens, _keywords(reads, at, key), key)
        if out.shape != (*tokens.shape, vocab):
            raise ValueError(
                f"vocab: {vocab} given, and the module returned {out.shape} for tokens "
                f"{tokens.shape}; logits [batch, seq, vocab] are needed"
            )
        return plan.constrain(out, "batch seq vocab")

    if plan.remat == "none":
        return logits
    return jax.checkpoint(logits, policy=stack.policy(plan))


def weights(module: nnx.Module | Mapping[str, Any]) -> param.Tree:
    """The weights of an nnx module, or of linen variables {"params": ...}, as the Model takes them:
    the same buffers, with their shardings; metadata stays with the module and in the spec."""
    if isinstance(module, nnx.Module):
        flat = {_path(keys): v.get_value() for keys, v in _variables(module)}
    else:
        flat = {_path(keys): _unboxed(leaf) for keys, leaf in _leaves(module["params"])}
    return {"module": param.nested(flat)}


def restored(module: nnx.Module | Mapping[str, Any], params: param.Tree) -> Any:
    """The inverse of `weights`: the nnx module, or linen variables with the boxes of those given,
    over the buffers of params. The module given is left as it is.

    Raises: ValueError naming a weight that only one of the two has, or whose shape differs.
    """
    flat = param.flatten(params["module"])
    _match(param.flatten(weights(module)["module"]), flat)
    if isinstance(module, nnx.Module):
        graph, state, rest = nnx.split(module, nnx.Param, ...)
        return nnx.merge(graph, _state(nnx.to_flat_state(state), flat), rest)
    leaves, structure = jax.tree.flatten(module["params"], is_leaf=_boxed)
    paths = [_path(keys) for keys, _ in _leaves(module["params"])]
    new = [
        box.replace_boxed(flat[path]) if _boxed(box) else flat[path]
        for box, path in zip(leaves, paths, strict=True)
    ]
    return {**module, "params": jax.tree.unflatten(structure, new)}


# --- nnx ------------------------------------------------------------------------------------------


def _nnx(module: nnx.Module | Lazy) -> _Parts:
    if isinstance(module, Lazy):
        lazy = module
        template = nnx.eval_shape(lambda: lazy.drawn(jax.random.key(0)))
    else:
        template = module
    graph, state, rest = nnx.split(template, nnx.Param, ...)
    variables = nnx.to_flat_state(state)
    others = nnx.to_flat_state(rest)
    for keys, v in others:
        if not isinstance(v, nnx.RngState):
            raise ValueError(
                f"module: {_path(keys)} is a {type(v).__name__}; weights (nnx.Param) and random "
                "keys alone are carried by training, so batch statistics and caches cannot be"
            )

    def draw(key: jax.Array) -> dict[str, jax.Array]:
        source = module.drawn(key) if isinstance(module, Lazy) else module
        return {_path(keys): jnp.array(v.get_value()) for keys, v in _variables(source)}

    def logits(flat: dict, tokens: jax.Array, keywords: dict, key: jax.Array | None) -> jax.Array:
        streams = [(keys, v.replace(_fresh(v, key, i))) for i, (keys, v) in enumerate(others)]
        m = nnx.merge(graph, _state(variables, flat), nnx.from_flat_state(streams))
        m.eval() if key is None else m.train()
        return m(tokens, **keywords)

    return _Parts(
        {_path(keys): jax.ShapeDtypeStruct(v.shape, v.dtype) for keys, v in variables},
        {_path(keys): tuple(v.get_metadata("out_sharding", None) or ()) for keys, v in variables},
        draw,
        logits,
    )


def _variables(module: nnx.Module) -> Any:
    """[(path, nnx.Param), ...] of a module's weights."""
    return nnx.to_flat_state(nnx.state(module, nnx.Param))


def _state(variables: Any, flat: dict[str, jax.Array]) -> nnx.State:
    """The State of these variables, metadata kept, with the arrays {path: array}."""
    return nnx.from_flat_state([(keys, v.replace(flat[_path(keys)])) for keys, v in variables])


def _fresh(v: Any, key: jax.Array | None, index: int) -> jax.Array:
    """A random stream's state in a forward pass: a key folded from the step's, a count of 0."""
    if not isinstance(v, nnx.RngKey):
        return jnp.zeros(v.shape, v.dtype)
    own = jax.random.fold_in(jax.random.key(0) if key is None else key, index)
    return jax.random.split(own, v.shape) if v.shape else own


# --- linen ----------------------------------------------------------------------------------------


def _linen(module: linen.Module, reads: tuple[str, ...]) -> _Parts:
    tokens = jnp.zeros((1, 1), jnp.int32)
    at = At(jnp.ones((1, 1), jnp.int32), tokens)

    def variables(key: jax.Array) -> Any:
        return module.init(key, tokens, **_keywords(reads, at, None))

    def abstract(key: jax.Array) -> Any:
        return jax.eval_shape(variables, key)

    shapes = abstract(jax.random.key(0))
    if other := sorted({*shapes} - _PASSING):
        raise ValueError(
            f"module: it has variables {other}; only 'params' are carried by training, so batch "
            "statistics and caches cannot be"
        )

    def draw(key: jax.Array) -> dict[str, jax.Array]:
        return {_path(keys): _unboxed(leaf) for keys, leaf in _leaves(variables(key)["params"])}

    def logits(flat: dict, tokens: jax.Array, keywords: dict, key: jax.Array | None) -> jax.Array:
        rngs = None if key is None else {"dropout": key}
        out = module.apply({"params": param.nested(flat)}, tokens, rngs=rngs, **keywords)
        assert isinstance(out, jax.Array)
        return out

    leaves = [(_path(keys), leaf) for keys, leaf in _leaves(shapes["params"])]
    return _Parts(
        {path: _unboxed(leaf) for path, leaf in leaves},
        {path: tuple(leaf.names) if _boxed(leaf) else () for path, leaf in leaves},
        draw,
        logits,
    )


def _leaves(params: Any) -> list[tuple[tuple, Any]]:
    """[(path, array or box), ...] of linen's nested dict."""
    leaves = jax.tree_util.tree_flatten_with_path(params, is_leaf=_boxed)[0]
    return [(tuple(k.key for k in keys), leaf) for keys, leaf in leaves]


def _boxed(leaf: Any) -> bool:
    """Whether a leaf carries axis names: nn.Partitioned and nn.LogicallyPartitioned."""
    return isinstance(leaf, linen.Partitioned)


def _unboxed(leaf: Any) -> Any:
    return leaf.value if _boxed(leaf) else leaf


# --- both -----------------------------------------------------------------------------------------


def _check(reads: tuple[str, ...], documents: str, plan: Plan) -> None:
    for name in reads:
        check.field("reads", name, name in READS, f"one of {list(READS)}")
    if documents == "apart" and not {"mask", "segment_ids"} & {*reads}:
        raise ValueError(
            "documents: 'apart' given, and the module reads neither mask nor segment_ids, so it "
            "cannot tell the documents of a row apart; add one to `reads`, or give 'joined', which "
            "reads a row as one text"
        )
    for name, plain in (("attention", "xla"), ("unroll", 1)):
        if getattr(plan, name) != plain:
            raise ValueError(
                f"plan.{name}: {getattr(plan, name)!r} given; a Flax module runs its own layers, "
                f"so {plain!r} is right"
            )


def _keywords(reads: tuple[str, ...], at: At, key: jax.Array | None) -> dict[str, Any]:
    same = at.segments[:, :, None] == at.segments[:, None, :]
    past = jnp.tril(jnp.ones((at.segments.shape[1],) * 2, bool))
    every = {
        "mask": (same & past)[:, None],  # [B, 1, T, T]
        "segment_ids": at.segments,
        "positions": at.positions,
        "deterministic": key is None,
    }
    return {name: every[name] for name in reads}


def _weight(
    path: str,
    shape: jax.ShapeDtypeStruct,
    parts: _Parts,
    renamed: dict[str, str],
    vocab: int,
) -> param.Param:
    """The Param of one weight: its axis names from the metadata, and where there are none "whole",
    which is never split, except of an embedding table, which Flax's layers call "embedding"."""
    if shape.dtype != jnp.float32:
        raise ValueError(
            f"module: weight {path} is {shape.dtype}; trained weights are float32 here: set "
            "param_dtype=jnp.float32 (dtype, that of activations, is free)"
        )
    name = path.rpartition("/")[2]
    names = parts.names[path] or (None,) * len(shape.shape)
    axes = tuple("whole" if n is None else renamed.get(n, n) for n in names)
    table = name == "embedding" and len(axes) == 2
    if table and set(axes) == {"whole"}:
        axes = ("vocab" if shape.shape[0] == vocab else "seq", "embed")
    # weight decay and Muon need to know which weights are matrices, not how they contract
    vector = table or len(axes) < 2 or name in ("bias", "scale")
    inputs = 0 if vector else len(axes) - 1
    return param.Param(shape.shape, axes, joint.Joint(parts.draw, path), inputs=inputs)


def _path(keys: tuple) -> str:
    """A weight's path; nnx numbers the members of lists."""
    return "/".join(str(k) for k in keys)


def _match(ours: dict[str, jax.Array], theirs: dict[str, jax.Array]) -> None:
    if alone := sorted(ours.keys() ^ theirs.keys()):
        raise ValueError(f"params: weight {alone[0]} is in one of module and params alone")
    for path, w in ours.items():
        if w.shape != theirs[path].shape:
            raise ValueError(
                f"params: weight {path} is {theirs[path].shape}; the module has {w.shape}"
            )
