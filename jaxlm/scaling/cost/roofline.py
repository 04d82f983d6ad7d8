"""Seconds of a training step on a chip, from its FLOPs and bytes: no device, no compiler.

    seconds = max(products + scores + memory + bubble, links) + network

    products  FLOPs with the weights, recomputed ones too, at a share of the chip's peak
    scores    FLOPs of attention, at that share of the part of the matrix unit that a head fills
    memory    bytes that operands, results and weights move, at a share of HBM's bandwidth: what
              makes small matrices slow
    bubble    the turns of a pipeline in which a stage waits
    links     bytes a device sends, at a share of its links' bandwidth; they hide under the rest
    network   bytes a device sends to other slices, at the rate that published runs reach

The three shares are the constants of `RATES`, the same for all chips: experiments/preflight fits
them to published step times and scores them on others.
"""

import math
from typing import NamedTuple

from jaxlm import models
from jaxlm.core import param
from jaxlm.models.layers import stack
from jaxlm.models.layers.stack import Layer
from jaxlm.parallel.plan import Plan
from jaxlm.parallel.topology import Chip
from jaxlm.scaling.cost import flops

# Products of a head's scores: 2 in the forward pass; 3 for queries, 4 for keys and values back.
FORWARD, BACKWARD = 1.0, 3.5
# Bytes that the optimiser reads and writes of a weight: it, two moments and the gradient.
UPDATE = 28
# Sublayers whose outputs the backward pass of a layer never reads.
LAST = "down"


class Rates(NamedTuple):
    """Shares of a chip's peaks that programs reach."""

    products: float
    memory: float
    links: float


# experiments/preflight: the first two fitted to the step times of 15 published runs; the third is
# the share that published all-gathers of TPU v6e and 7x reach. Published programs have XLA flags
# that overlap collectives with compute, so links hide under the rest.
RATES = Rates(products=0.91, memory=0.33, links=0.5)


class Work(NamedTuple):
    """Work of a device in a step: FLOPs with weights; FLOPs of attention as if its heads filled
    the matrix unit; bytes to and from HBM; bytes sent over links, by mesh axis; the time that it
    waits in a pipeline, as a share of the time that it computes; bytes sent to other slices, by
    mesh axis."""

    products: float
    scores: float
    memory: float
    links: dict[str, float]
    waits: float = 0.0
    network: dict[str, float] = {}


class Seconds(NamedTuple):
    """The parts of a step's time: those of compute add up, links hide under them, and the network
    between slices comes on top."""

    products: float
    scores: float
    memory: float
    bubble: float
    links: float
    network: float = 0.0

    @property
    def total(self) -> float:
        """The step."""
        return (
            max(self.products + self.scores + self.memory + self.bubble, self.links) + self.network
        )

    @property
    def binds(self) -> str:
        """The name of the part that decides: a smaller one would make the step shorter."""
        parts = self._asdict()
        if self.links + self.network >= self.total:  # compute hides under them
            parts = {"links": self.links, "network": self.network}
        else:
            del parts["links"]
        return max(parts, key=lambda name: parts[name])


def seconds(work: Work, chip: Chip, rates: Rates, dimensions: int = 1) -> Seconds:
    """The time of `work`. dimensions: of the torus; bytes are sent both ways along each."""
    compute = (
        work.products / (rates.products * chip.flops),
        work.scores / (rates.products * chip.flops),
        work.memory / (rates.memory * chip.bandwidth),
    )
    links = sum(work.links.values()) / (rates.links * 2 * dimensions * chip.link)
    network = sum(work.network.values()) / chip.network
    return Seconds(*compute, work.waits * sum(compute), links, network)


def recomputed(cfg: models.AnyConfig, plan: Plan) -> frozenset[str] | None:
    """Weights, by name, and "scores", that a layer computes again under `plan.remat`, but for those
    whose outputs the plan keeps: None is all."""
    if plan.remat != "full":
        return frozenset({"scores"} if plan.remat == "dots" else ())
    kept = {*plan.keep, *plan.offload} - {"layer", "attention"}
    names = {*stack.names(models.spec(cfg)), "router", "scores"} - {"layer", "attention", LAST}
    return frozenset(names - kept) if kept else None


def work(
    cfg: models.AnyConfig,
    plan: Plan,
    *,
    batch: int,
    seq: int,
    mxu: int,
    again: frozenset[str] | None,
) -> Work:
    """The Work of a step on `batch` rows of `seq` tokens, on each of the plan's devices.

    mxu: the side of the chip's matrix unit. again: as `recomputed` says.
    """
    spec, kinds = models.spec(cfg), flops.of_kind(cfg)
    tokens = batch * seq / plan.devices
    products = scores = moved = staged = 0.0
    for name in flops.STACKS:
        for number, segment in spec.get(name, {}).items():
            for place, layer in segment.items():
                count = _leading(layer)
                own = _layer(layer, kinds[stack.kind(place)], seq, mxu, again)
                products += count * own.products * tokens
                staged += _inside(spec, name, number, plan) * own.products * tokens
                scores += count * own.scores * tokens
                moved += count * own.memory * tokens
    head = flops.per_token(cfg, seq).head
    products += flops.TRAINING * head * tokens
    moved += 3 * (2 * 4 * cfg.vocab) * tokens / plan.tensor  # logits in float32, three times
    weights = param.count(spec)
    parts = plan.fsdp * plan.expert * plan.context * plan.tensor * plan.pipe
    stored = weights / parts
    present = _present(spec, plan)
    moved += UPDATE * stored + 2 * 2 * 4 * present * plan.microbatches
    waits = plan.bubble / (1 - plan.bubble) * staged / products
    sent = links(cfg, plan, batch, seq)
    network = {axis: share * sent[axis] for axis, share in _between(plan).items() if axis in sent}
    inside = {axis: size - network.get(axis, 0.0) for axis, size in sent.items()}
    inside = {axis: size for axis, size in inside.items() if size}
    return Work(products, scores, moved, inside, waits, network)


def _between(plan: Plan) -> dict[str, float]:
    """Shares of the bytes over each mesh axis that go to other slices: of the n - 1 hops of a ring
    through k of them, k - 1."""
    parts = zip(plan.axes, plan.across, strict=True)
    return {axis: (k - 1) / (getattr(plan, axis) - 1) for axis, k in parts if k > 1}


def _inside(spec: param.Tree, name: str, segment: str, plan: Plan) -> int:
    """The repeats of a stack's segment that are in a pipeline."""
    stages = stack.staged(spec[name], plan) if name in ("encoder", "stack") else None
    return stages[1] if stages is not None and stages[0] == segment else 0


def _leading(layer: param.Tree) -> int:
    return next(iter(param.flatten(layer).values())).shape[0]


def _layer(
    layer: param.Tree, kind: Layer, seq: int, mxu: int, again: frozenset[str] | None
) -> Work:
    """The Work of one layer for one token."""
    products = moved = 0.0
    fill, width = 1.0, 0
    for path, p in param.flatten(layer).items():
        shape, axes = p.shape[p.copies :], p.axes[p.copies :]
        name = path.rpartition("/")[2]
        if not p.inputs:
            continue
        into, out = math.prod(shape[: p.inputs]), math.prod(shape[p.inputs :])
        copies = [n for a, n in zip(p.axes[1 : p.copies], p.shape[1 : p.copies]) if a != "expert"]
        routed = "expert" in p.axes[: p.copies]
        times = (kind.active if routed else 1) * math.prod(copies)
        passes = flops.TRAINING + (name != LAST if again is None else name in again)
        products += passes * 2 * into * out * times
        # a routed token is copied to its expert and back
        moved += (passes * 2 * (into + out) + routed * passes * 2 * (into + out)) * times
        if axes[-1] == "head":
            fill = min(fill, shape[-1] / (math.ceil(shape[-1] / mxu) * mxu))
        width = max(width, *(n for a, n in zip(axes, shape) if a == "embed"), 0)
    passes = FORWARD + BACKWARD + (again is None or "scores" in again)
    forward = kind.pair * flops.visible_keys(seq, kind.window)
    if kind.over == "around":
        forward = kind.pair * (2 * flops.visible_keys(seq, kind.window) - 1)
    # norms, residuals and their gradients: about eight reads and writes a sublayer, two sublayers
    moved += 16 * 2 * width * (flops.TRAINING + (again is None)) / 2
    return Work(products, forward * passes / fill, moved, {})


def _present(spec: param.Tree, plan: Plan) -> float:
    """Weights that a device multiplies with: gathered, but for what tensor and expert split, and
    those of other stages."""
    total = 0.0
    for path, p in param.flatten(spec).items():
        experts = "expert" in p.axes[: p.copies]
        size = math.prod(p.shape) / (plan.expert if experts else 1)
        name, _, rest = path.partition("/")
        if name in ("encoder", "stack"):
            inside = _inside(spec, name, rest.partition("/")[0], plan) / p.shape[0]
            size *= 1 - inside + inside / plan.pipe
        total += size
    return total / plan.tensor


def links(cfg: models.AnyConfig, plan: Plan, batch: int, seq: int) -> dict[str, float]:
    """Bytes that a device sends in a step, by mesh axis, in the least that the layout allows.

    Weights are gathered in bfloat16 for the forward and again for the backward pass, and gradients
    scattered in bfloat16 or, by `plan.reduce`, float32, for every micro-batch, and those of the
    output matrix for every chunk of the loss; gradients are summed over `data` in float32.
    """
    spec = models.spec(cfg)
    tokens = batch * seq / (plan.row_parts * plan.context)
    layers = sum(_leading(x) for s in spec["stack"].values() for x in s.values())
    residual = layers * 2 * spec["embed"]["table"].shape[1] * tokens
    again = plan.remat == "full"
    gradient = 4 if plan.reduce == "float32" else 2
    stored = plan.fsdp * plan.context
    held = param.count(spec) / (stored * plan.expert * plan.tensor * plan.pipe)
    # of a turn of a pipeline, a part's rows forward and their gradient back
    turn = 2 * 2 * spec["embed"]["table"].shape[1] * batch * seq
    turn /= plan.block_parts * plan.parts * plan.context
    head = spec["unembed"] if "unembed" in spec else spec["embed"]["table"]
    chunks = max(1, tokens / plan.microbatches // plan.loss_chunk)
    present = _present(spec, plan) + (chunks - 1) * math.prod(head.shape) / plan.tensor
    sent = {
        "data": 2 * 4 * held * _ring(plan.data),
        "fsdp": (2 * 2 + gradient) * present * _ring(stored) * plan.microbatches,
        "expert": (2 + again) * 2 * residual * (plan.expert - 1),
        "context": layers * (3 + again) * 2 * _keys(spec) * tokens * (plan.context - 1),
        "pipe": plan.turns * turn if plan.pipe > 1 else 0.0,
        "tensor": (4 + 2 * again) * 2 * residual * _ring(plan.tensor),
    }
    return {axis: size for axis, size in sent.items() if size}


def _ring(n: int) -> float:
    """The share of an array that a device sends when a ring of n gathers it."""
    return (n - 1) / n


def _keys(spec: param.Tree) -> int:
    """Elements of a token's keys and values in a layer, at most."""
    flat = param.flatten(spec["stack"])
    own = [math.prod(p.shape[-2:]) for path, p in flat.items() if path.endswith("attn/k")]
    return 2 * max(own, default=0)
