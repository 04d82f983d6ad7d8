"""Bytes per device of a training step and of a cache, under a plan, without the devices.

Weights, gradients and optimiser state are exact: shapes from the spec, cut by the sharding rules on
an abstract mesh. Activations follow the formula in `activations`, which XLA's fusion and buffer
reuse move by some ten per cent either way, and by a third at most: docs/memory.md compares.
"""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import NamedSharding

from jaxlm import models
from jaxlm.core import param
from jaxlm.models import flax_modules
from jaxlm.models.layers import cache_kinds, stack
from jaxlm.models.model import Model
from jaxlm.ops.quant.cache_entries import Numbers
from jaxlm.parallel import rules
from jaxlm.parallel.plan import Plan
from jaxlm.scaling.cost import flops

Mesh = jax.sharding.AbstractMesh
# Share of the estimated activations and logits that XLA surely holds: its analysis is never below
# 0.9 of an estimate in docs/memory.md, so a run that is refused at this share would not fit.
SURE = 2 / 3


@dataclasses.dataclass(frozen=True)
class Memory:
    """Bytes per device."""

    weights: int
    """The float32 weights that are trained."""
    optimiser: int
    """Moments and counters."""
    gradients: int
    """float32; twice under accumulation, where a sum and a summand are held."""
    activations: int
    """Arrays that the forward pass keeps for the backward pass, and one layer's recomputation."""
    logits: int
    """The cross-entropy's chunk: logits and their gradient in float32."""
    frozen: int = 0
    """Weights that are read only: a reference's, a teacher's, those under adapters."""

    @property
    def total(self) -> int:
        """All parts."""
        return sum(getattr(self, f.name) for f in dataclasses.fields(self))

    @property
    def least(self) -> int:
        """Bytes below which the step cannot run: the exact parts, and what is sure of the rest."""
        rest = self.activations + self.logits
        return self.total - rest + int(SURE * rest)


def training(
    cfg: models.AnyConfig,
    plan: Plan,
    *,
    batch: int,
    seq: int,
    tx: optax.GradientTransformation,
    dtype: Any,
    targets: int | None = None,
    trained: param.Tree | None = None,
    frozen: int = 0,
) -> Memory:
    """Bytes per device of one step on `batch` rows of `seq` tokens, activations in `dtype`.

    targets: of an encoder-decoder, the target tokens of a row; None is as many as source tokens.
    trained: the spec of what is trained, None for the whole model. frozen: bytes of other weights.

    Raises: ValueError naming the weight or the batch that does not divide over the plan's mesh.
    """
    spec, on = models.spec(cfg), mesh(plan)
    trained = spec if trained is None else trained
    more = "data" if plan.zero else None
    weights = spec_bytes(trained, on, jnp.float32)
    added = spec_bytes(trained, on, jnp.float32, "data" if plan.zero == 2 else None)
    parts = plan.microbatches if plan.pipe == 1 else plan.multiple
    if batch % parts:
        raise ValueError(f"data.batch: {batch} rows given; a multiple of {parts} is needed: {plan}")
    rows = batch // plan.microbatches
    return Memory(
        weights=weights,
        optimiser=optimiser(tx, trained, on, more),
        gradients=weights + (added if plan.microbatches > 1 else 0),
        activations=activations(cfg, plan, rows, seq, dtype, targets),
        logits=_logits(cfg.vocab, plan, rows, targets or seq),
        frozen=frozen,
    )


def mesh(plan: Plan) -> Mesh:
    """The plan's mesh without devices: shapes can be cut on it, nothing can run."""
    return Mesh(plan.shape, tuple(plan.axes))


def spec_bytes(spec: param.Tree, on: Mesh, dtype: Any, more: str | None = None) -> int:
    """Bytes per device of a spec's arrays, split over one `more` mesh axis where that divides.

    Raises: ValueError naming a weight that does not divide.
    """
    return sum(
        jnp.dtype(p.dtype or dtype).itemsize
        * _elements(p.axes, p.shape, on, f"weight {path}", more)
        for path, p in param.flatten(spec).items()
    )


def optimiser(
    tx: optax.GradientTransformation, spec: param.Tree, on: Mesh, more: str | None = None
) -> int:
    """Bytes per device of an optimiser's state: a moment is stored where its weight is, split over
    one `more` mesh axis where that divides."""

    weights = param.flatten(spec)

    def held(keys: tuple, leaf: jax.ShapeDtypeStruct) -> int:
        # the moment of embed/table is at inner/0/mu/embed/table
        tails = (param.path_of(keys[i:]) for i in range(len(keys)))
        p = next((weights[t] for t in tails if t in weights), None)
        if p is None or p.shape not in (leaf.shape, leaf.shape[1:]):
            return _nbytes(leaf)
        replicas = 1 if p.shape == leaf.shape else leaf.shape[0] // on.shape["replica"]
        each = _elements(p.axes, p.shape, on, "optimiser state", more)
        return leaf.dtype.itemsize * replicas * each

    shapes = jax.eval_shape(tx.init, param.abstract(spec))
    return sum(jax.tree.leaves(jax.tree_util.tree_map_with_path(held, shapes)))


def cache(
    cfg: models.AnyConfig,
    plan: Plan,
    *,
    batch: int,
    slots: int,
    dtype: Any,
    rings: bool = False,
    numbers: Numbers | None = None,
) -> int:
    """Bytes per device of the decoding cache of `batch` rows of `slots` tokens.

    Keys and values: 2 x layers x kv x head elements per token. Of an encoder-decoder as many again
    for those of a source of `slots` tokens, in `dtype`. An encoder has none: 0. rings: layers with
    a window hold that many tokens, in blocks, as sampling and serving have them (a rollout holds
    all). numbers: of entries in 8 bits, a scale for each 64 of them counted.

    Raises: ValueError for numbers of a model without a KV cache.
    """
    model = models.build(cfg, plan)
    if model.kind == "encoder":
        return 0

    def size(model: Model) -> int:
        spec = {str(i): layer for i, layer in enumerate(model.cache(batch, slots))}
        return spec_bytes(spec, mesh(plan), dtype)

    own = cache_kinds.windowed(model) if rings else model
    source = size(model) if model.kind == "encoder_decoder" else 0
    return size(cache_kinds.quantised(own, numbers)) + source


def activations(
    cfg: models.AnyConfig,
    plan: Plan,
    rows: int,
    seq: int,
    dtype: Any,
    targets: int | None = None,
) -> int:
    """Bytes per device kept for the backward pass of `rows` x `seq` tokens.

    Per layer and token, with widths from the weights' axis names and `size` bytes an element:

        none  of each norm, those of queries, keys and latents too, its input and its normalised
              input in float32, and its output: (8 + size) x its width; of the matrices q, k, v,
              up, gate their outputs, of o and down their inputs, and three of the nonlinearity's
              ffn wide terms: size each
        dots  size x the outputs of all matrices; the last one's place is taken by the residual
              stream, since it is only added to it
        full  size x embed, the residual stream, once a repeat of the layers' pattern; and size x
              the outputs that `plan.keep` names

    and attention's own: with kernel xla three float32 scores per head and key, with blockwise or
    over `context` one float32 per head. `dots` and `full` recompute a repeat of the pattern
    at a time: of its layers the outputs of all products and attention's own are held, of one also
    the rest of `none`.
    Around the layers are the last hidden state and its gradient, 2 x size x embed. Of an
    encoder-decoder the encoder's layers have `seq` tokens and the decoder's have `targets`. A
    token's experts count each for itself, with the token's copy among their inputs and outputs; a
    layer's experts are gathered where a mesh has them in parts, and the gradient of one matrix.
    A stage of a pipeline keeps its layers' of every turn, bubbles too, and three residual streams
    of all its rows, in which they wait.

    Of a Flax module, whose layers are not known, the logits of the whole batch and their gradient.
    """
    spec, on = models.spec(cfg), mesh(plan)
    if isinstance(cfg, flax_modules.Config):
        return 2 * 4 * _width(("vocab",), (cfg.vocab,), on, rows, seq)
    kinds = flops.of_kind(cfg)
    size = jnp.dtype(dtype).itemsize
    embed = _width(("embed",), spec["embed"]["table"].shape[1:], on, rows, seq)
    own = targets or seq
    kept = 2 * size * embed * own // seq
    for name, length in (("encoder", seq), ("stack", own), ("ahead", own)):
        stages = stack.staged(spec[name], plan) if name in spec and name != "ahead" else None
        for index, segment in spec.get(name, {}).items():
            repeats = jax.tree.leaves(segment, is_leaf=param.is_param)[0].shape[0]
            inside = stages[1] if stages is not None and stages[0] == index else 0
            # of every turn, a part's rows, which are on the devices of one stage
            turns = inside // (plan.pipe * plan.pipe_rounds) * plan.turns
            part = rows * plan.pipe // plan.parts
            for n, these in ((repeats - inside, rows), (turns, part)):
                if n:
                    each, recomputed = _repeat(segment, kinds, plan, on, these, length, size)
                    kept += n * each + recomputed
        if stages is not None:
            width = spec["embed"]["table"].shape[1:]
            kept += 3 * size * _width(("embed",), width, on, rows * plan.pipe, length)
    return kept


def _repeat(
    segment: param.Tree, kinds: Any, plan: Plan, on: Mesh, rows: int, seq: int, size: int
) -> tuple[int, int]:
    """Bytes per device that one repeat of a segment's pattern of layers keeps, and that it holds
    while it is recomputed: see `activations`."""
    kept, products, rest = 0, 0, 0
    for place, layer in segment.items():
        active = kinds[stack.kind(place)].active
        widths = (dict(zip(p.axes, p.shape)).get("embed") for p in param.flatten(layer).values())
        width = next(width for width in widths if width)
        embed = _width(("embed",), (width,), on, rows, seq, plan)
        outputs, inner = _products(layer, on, rows, seq, active)
        norms = max(2 * embed, _norms(layer, on, rows, seq, plan))
        scores = _scores(layer, plan, on, rows, seq)
        single = (8 + size) * norms + size * inner + scores
        named = _named(layer, plan.keep, on, rows, seq, active)
        kept += {"none": single, "dots": size * outputs, "full": size * named}[plan.remat]
        products += size * outputs + scores
        rest = max(rest, single - size * outputs - scores)
    experts = max(_experts(layer, on, size) for layer in segment.values())
    if plan.remat == "none":
        return kept, experts
    if plan.remat == "full" and "layer" not in plan.offload:
        kept += size * embed  # what the pattern's first layer reads
    return kept, products + rest + experts


def _experts(layer: param.Tree, on: Mesh, size: int) -> int:
    """Bytes per device of a layer's experts where a mesh gathers them: all matrices, and the
    gradient of one before it is split."""
    apart = [axis for axis in rules.STORED if axis != "expert"]
    if all(on.shape.get(axis, 1) == 1 for axis in apart):
        return 0
    each = [0]
    for path, p in param.flatten(layer).items():
        if p.inputs and "expert" in p.axes[: p.copies]:
            axes, shape = p.axes[p.axes[0] == "layer" :], p.shape[p.axes[0] == "layer" :]
            place = rules.partition(axes, shape, on, f"weight {path}", apart)
            each.append(size * math.prod(NamedSharding(on, place).shard_shape(shape)))
    return sum(each) + max(each)


def _named(
    layer: param.Tree, keep: tuple[str, ...], on: Mesh, rows: int, seq: int, active: int
) -> int:
    """Elements per device of one layer's outputs that a plan keeps by name."""
    weights = param.flatten(layer)
    leaf = {path: path.rpartition("/")[2] for path in weights}
    named = {path: p for path, p in weights.items() if leaf[path] in keep}
    total = _products(named, on, rows, seq, active)[0]
    for path, p in weights.items():
        if leaf[path] == "o" and "attention" in keep:  # it reads what attention gives
            cut = p.copies + p.inputs
            total += _width(p.axes[p.copies : cut], p.shape[p.copies : cut], on, rows, seq)
    return total


def _norms(layer: param.Tree, on: Mesh, rows: int, seq: int, plan: Plan) -> int:
    """Elements per device that one layer's norms read: the widths of their scales, by shape."""
    weights = param.flatten(layer)
    total = 0
    for path, p in weights.items():
        axes, shape = p.axes[p.copies :], p.shape[p.copies :]
        if p.inputs or path.endswith(("bias", "sinks")):
            continue
        if axes == ("head",):  # one scale for all heads of `q` or `k`
            matrix = weights[path.removesuffix("_norm")]
            axes, shape = matrix.axes[-2:], matrix.shape[-2:]
        total += _width(axes, shape, on, rows, seq, plan if axes == ("embed",) else None)
    return total


def _products(layer: param.Tree, on: Mesh, rows: int, seq: int, active: int) -> tuple[int, int]:
    """Elements per device of the outputs of one layer's matrices; and of what sublayers keep
    inside: their inner outputs and inputs, and three terms of the nonlinearity."""
    outputs, inner = 0, 0
    for p in param.flatten(layer).values():
        if not p.inputs:
            continue
        begin, cut = p.copies, p.copies + p.inputs
        into = _width(p.axes[begin:cut], p.shape[begin:cut], on, rows, seq)
        # latent attention's matrices are one for each head, which all heads multiply
        heads = [i for i in range(begin) if p.axes[i] == "heads"]
        out = [*heads, *range(cut, len(p.axes))]
        out = _width(tuple(p.axes[i] for i in out), tuple(p.shape[i] for i in out), on, rows, seq)
        routed = "expert" in p.axes[:begin]
        times = active if routed else 1
        outputs += times * out
        inner += 0 if p.axes[cut:] == ("embed",) else times * out
        inner += 0 if p.axes[begin:cut] == ("embed",) else times * into
        inner += 3 * times * into if p.axes[begin:cut] == ("ffn",) else 0
        # gate and up share one sorted copy of x, and down's output is sorted back
        inner += 2 * times * out if routed and p.axes[cut:] == ("embed",) else 0
    return outputs, inner


def _scores(layer: param.Tree, plan: Plan, on: Mesh, rows: int, seq: int) -> int:
    """Bytes per device that one layer's attention keeps along with its inputs and output."""
    heads = sum(
        _width(("heads",), (p.shape[-2],), on, rows, seq)
        for path, p in param.flatten(layer).items()
        if path in ("attn/q", "cross/q", "layer/attn/q")
    )
    return 4 * heads * (3 * seq if plan.attention == "xla" and plan.context == 1 else 1)


def _logits(vocab: int, plan: Plan, rows: int, seq: int) -> int:
    """Bytes per device of one chunk's logits and of their gradient."""
    tokens = rows * min(seq, max(1, plan.loss_tokens // rows))
    each = _elements(("batch", "vocab"), (tokens, vocab), mesh(plan), "logits")
    return 2 * 4 * each // plan.context


def _width(
    axes: tuple[str, ...],
    shape: tuple[int, ...],
    on: Mesh,
    rows: int,
    seq: int,
    residual: Plan | None = None,
) -> int:
    """Elements per device of an activation [rows, seq, *shape]; residual: the plan, of one that is
    split as the residual stream is."""
    time = "residual" if residual is not None and residual.sequence else "seq"
    return _elements(("batch", time, *axes), (rows, seq, *shape), on, "data.batch")


def _elements(
    axes: tuple[str, ...], shape: tuple[int, ...], on: Mesh, name: str, more: str | None = None
) -> int:
    place = rules.partition(axes, shape, on, name)
    if more is not None:
        place = rules.further(place, shape, on, more)
    return math.prod(NamedSharding(on, place).shard_shape(shape))


def _nbytes(x: Any) -> int:
    return x.size * x.dtype.itemsize
