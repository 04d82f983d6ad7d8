"""Any jaxlm model as an `nnx.Module`, for code that expects one."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import NamedSharding

from jaxlm.core import batch, param
from jaxlm.models import model as models
from jaxlm.models.model import Model
from jaxlm.parallel import rules


class LanguageModel(nnx.Module):
    """A jaxlm Model with weights: an nnx.Module whose call returns logits.

    weights: the params, each an nnx.Param over the same buffer, whose metadata names its axes
    (`out_sharding`) and the mesh axes that they are split over (`sharding_rules`).
    """

    def __init__(self, model: Model, params: param.Tree) -> None:
        spec = param.flatten(model.spec)
        arrays = param.flatten(params)
        for path in sorted(spec.keys() ^ arrays.keys()):
            raise ValueError(f"params: weight {path} is in one of params and the model's spec")
        for path, w in arrays.items():
            if not isinstance(w, jax.Array | jax.ShapeDtypeStruct):
                raise ValueError(f"params: weight {path} is a {type(w).__name__}, not an array")
        self.model = nnx.static(model._replace(spec=None))
        self.weights = nnx.data(param.map(_variable, model.spec, params))

    def __call__(
        self,
        tokens: jax.Array,
        segments: jax.Array | None = None,
        positions: jax.Array | None = None,
        source: jax.Array | None = None,
        key: jax.Array | None = None,
    ) -> jax.Array:
        """float32[B, T, V] logits of tokens int32[B, T].

        segments, positions int32[B, T] of packed documents; None is one document a row. source
        int32[B, S] is what an encoder-decoder reads, one document a row. `key` turns dropout on.

        Raises: ValueError for a source where there is no encoder-decoder, and none where there is.
        """
        whole = _whole(tokens)
        segments = whole[0] if segments is None else segments
        positions = whole[1] if positions is None else positions
        zeros = jnp.zeros(tokens.shape, jnp.float32)
        rows: Any = batch.Batch(tokens, tokens, zeros, segments, positions)
        if source is not None:
            rows = batch.Pairs(*rows, source, *_whole(source))
        params = weights(self)
        x = models.read(self.model, params, rows, key).x
        return self.model.unembed(self.model.head(params), x)


def module(model: Model, params: param.Tree) -> LanguageModel:
    """The model with these weights as an nnx.Module: the same buffers, shardings kept.

    nnx.state, split, merge and nnx.Optimizer work on it. `weights` is the inverse.

    Raises: ValueError for params that are not those of `model.spec`.
    """
    return LanguageModel(model, params)


def weights(module: LanguageModel) -> param.Tree:
    """The params that an nnx.Module made by `module` holds now: the same buffers."""
    return jax.tree.map(
        lambda v: v.get_value(), module.weights, is_leaf=lambda v: isinstance(v, nnx.Variable)
    )


def _variable(p: param.Param, w: jax.Array) -> nnx.Param:
    return nnx.Param(w, out_sharding=p.axes, sharding_rules=_split(p, w), eager_sharding=False)


def _split(p: param.Param, w: jax.Array) -> tuple[tuple[str, tuple[str, ...]], ...]:
    """The mesh axes of each of a weight's axes: those that split it, or, of one that is on no mesh,
    by the rules, where an axis to the left goes first."""
    if isinstance(w.sharding, NamedSharding):
        spec = (*w.sharding.spec, *(None for _ in p.axes))
        entries = [(entry,) if isinstance(entry, str) else entry or () for entry in spec]
        return tuple(zip(p.axes, entries))
    taken: set[str] = set()
    split = []
    for axis in p.axes:
        split.append((axis, tuple(name for name in rules.RULES[axis] if name not in taken)))
        taken.update(split[-1][1])
    return tuple(split)


def _whole(tokens: jax.Array) -> tuple[jax.Array, jax.Array]:
    """(segments, positions) of rows of one document each."""
    steps = jnp.arange(tokens.shape[1], dtype=jnp.int32)
    return jnp.ones(tokens.shape, jnp.int32), jnp.broadcast_to(steps, tokens.shape)
