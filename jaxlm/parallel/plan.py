"""The Plan: how a model is executed. It never changes what is computed, only where and in what
order; the mathematics is in each family's Config."""

import dataclasses
import functools
import math
from collections.abc import Iterator, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import NamedSharding, PartitionSpec

from jaxlm.core import check, param, precision, target
from jaxlm.parallel import rules, topology

# The mesh axes that lie across slices, as far as each divides: they pass the least.
ACROSS = ("replica", "data", "pipe")


@dataclasses.dataclass(frozen=True)
class Plan:
    """Execution of a run: mesh, precision, memory and kernels."""

    replica: int = 1
    """Devices over which the replicas of `Run.diloco` are placed; they seldom send anything."""
    data: int = 1
    """Devices over which the batch is split and the weights are copied."""
    pipe: int = 1
    """Devices over which the layers are split; each part is a stage of a pipeline, through which
    parts of a micro-batch pass one after the other."""
    pipe_parts: int | None = None
    """Parts of a micro-batch in the pipeline; None is twice as many as stages."""
    pipe_rounds: int = 1
    """Times a part passes through all stages, each of which then holds as many runs of layers: a
    shorter wait at both ends for more traffic."""
    fsdp: int = 1
    """Devices over which the batch and the weights are both split."""
    expert: int = 1
    """Devices over which the batch is split, and experts are placed; other weights as by fsdp."""
    context: int = 1
    """Devices over which every row's sequence is split; weights are stored as by fsdp."""
    tensor: int = 1
    """Devices over which heads, feed-forward and vocabulary are split."""
    slices: int = 1
    """Slices of a pod, or nodes, between which the network is slower than in one: the mesh's first
    axes, replica, data and then pipe, are laid across them."""
    zero: Literal[0, 1, 2] = 0
    """Parts of the training state that `data`, which copies the weights, splits: 0 none, 1 the
    optimiser's state (ZeRO stage 1), 2 also the sum of micro-batches' gradients (stage 2). Stage 3
    is fsdp."""
    sequence: bool = False
    """Whether the residual stream's positions are split over `tensor`, too, between the products
    that are split over it."""
    context_keys: Literal["ring", "gathered"] = "ring"
    """Route of the keys of other `context` devices to the queries: round a ring, or every
    device gathers all of them."""
    microbatches: int = 1
    """Parts each step's batch is cut into; gradients are summed exactly, then divided once."""
    compute: Literal["platform", "float64", "float32", "bfloat16", "float16"] = "platform"
    """Dtype of activations. `platform` is bfloat16 on TPU and GPU and float32 on CPU. Weights and
    optimiser state are float32; float16 trains with dynamic loss scaling. float64, weights too, is
    for comparisons: it requires JAX_ENABLE_X64=1."""
    reduce: Literal["compute", "float32"] = "compute"
    """Dtype in which gradients of matrices and biases are summed over devices: that of the
    activations, or float32, in twice the bytes of bfloat16."""
    remat: Literal["none", "dots", "full"] = "none"
    """Recomputed per layer in the backward pass: nothing, all but matrix products, everything."""
    keep: tuple[str, ...] = ()
    """Outputs that remat="full" keeps all the same: of matrices by their weights' names ("q", "k",
    "v", "o", "gate", "up", "down"), and "attention"."""
    offload: tuple[str, ...] = ()
    """Outputs that remat="full" keeps in the host's memory; "layer" is what each layer reads, which
    is on the device otherwise."""
    unroll: int = 1
    """Layers per iteration of the scan over layers; at least the number of layers means no scan."""
    attention: Literal["xla", "blockwise", "cudnn", "splash"] = "xla"
    """Training attention kernel: the whole score matrix; blocks that keep only log-sum-exp; cuDNN's
    for NVIDIA GPUs; splash for TPUs. Each refuses what it does not support: docs/attention.md. On a
    CPU blockwise is the faster one from rows of some 128 tokens."""
    loss_chunk: int = 4096
    """Tokens of each device per chunk of the cross-entropy; bounds the float32 logits it holds at
    once. Every chunk gathers the output matrix and sums its gradient."""
    poison: bool = False
    """Whether what nothing may read, such as a pipeline's bubbles, is NaN instead of 0: for tests,
    in which a leak then shows."""

    def __post_init__(self) -> None:
        check.refuse("", self.problems())

    def problems(self) -> Iterator[str]:
        """A line for every field whose value does not fit."""
        counts = ("slices", "pipe_parts", "pipe_rounds", "microbatches", "unroll", "loss_chunk")
        counts = (*rules.AXES, *counts)
        wrong = [*check.outside("plan", self, *counts, least=1)]
        yield from wrong
        yield from check.choices("plan", self)
        needs = {"sequence": "tensor", "zero": "data", "pipe_parts": "pipe", "pipe_rounds": "pipe"}
        for name, axis in needs.items():
            if getattr(self, axis) == 1:
                yield from check.changed("plan", self, name, why=f"with plan.{axis}=1")
        if self.compute == "float64":
            yield from check.changed("plan", self, "reduce", why="with plan.compute='float64'")
        if self.remat != "full":
            why = f"with plan.remat={self.remat!r}; 'full' has a choice"
            yield from check.changed("plan", self, "keep", "offload", why=why)
        both = sorted({*self.keep} & {*self.offload})
        yield from check.problem(
            "plan.keep", self.keep, not both, f"without {both}, of plan.offload"
        )
        if self.pipe_rounds > 1 and not wrong:
            ok, fits = (
                self.parts >= self.pipe,
                f"at least plan.pipe={self.pipe} with plan.pipe_rounds",
            )
            yield from check.problem("plan.pipe_parts", self.pipe_parts, ok, fits)
        if not wrong and math.prod(self.across) != self.slices:
            fits = (
                "a divisor of "
                + " x ".join(f"plan.{name}={getattr(self, name)}" for name in ACROSS)
                + ", which lie across them"
            )
            yield from check.problem("plan.slices", self.slices, False, fits)
        if self.context > 1:
            ok = self.attention in ("xla", "blockwise")
            fits = "'xla' or 'blockwise' with plan.context, which computes it block by block"
            yield from check.problem("plan.attention", self.attention, ok, fits)
        else:
            yield from check.changed("plan", self, "context_keys", why="with plan.context=1")

    @property
    def devices(self) -> int:
        """Devices the mesh needs."""
        return math.prod(self.shape)

    @property
    def axes(self) -> dict[str, int]:
        """The mesh's axes and their sizes: `rules.AXES`, and `fsdp` as two where it is wide."""
        sizes: dict[str, int] = {}
        for name in rules.AXES:
            sizes[name] = getattr(self, name)
            if name == "fsdp" and (first := rules.outer(self.fsdp)) < self.fsdp:
                sizes |= {name: first, rules.INNER: self.fsdp // first}
        return sizes

    @property
    def shape(self) -> tuple[int, ...]:
        """Sizes of the mesh axes."""
        return tuple(self.axes.values())

    @property
    def wide(self) -> bool:
        """Whether weights are stored over so many devices that they are gathered step by step."""
        return math.prod(self.axes.get(name, 1) for name in rules.STORED) >= rules.WIDE

    @property
    def across(self) -> tuple[int, ...]:
        """Parts of each mesh axis in different slices; their product is `slices` if that fits."""
        left, parts = self.slices, dict.fromkeys(self.axes, 1)
        for name in ACROSS:
            parts[name] = math.gcd(getattr(self, name), left)
            left //= parts[name]
        return tuple(parts.values())

    @property
    def alone(self) -> "Plan":
        """The plan of one device, with this one's precision, memory and kernel, its batch whole."""
        kept = (
            "compute",
            "reduce",
            "remat",
            "keep",
            "offload",
            "unroll",
            "attention",
            "loss_chunk",
            "poison",
        )
        return Plan(**{name: getattr(self, name) for name in kept})

    @property
    def row_parts(self) -> int:
        """Parts into which the devices split the rows of a batch."""
        return self.replica * math.prod(self.axes.get(name, 1) for name in rules.BATCH)

    @property
    def block_parts(self) -> int:
        """Parts into which the devices split the rows in a block: stages of a pipeline have rows
        of their own at a time."""
        return math.prod(self.axes.get(name, 1) for name in rules.ROWS)

    @property
    def multiple(self) -> int:
        """The rows of a batch are a multiple of this number: of micro-batches, their parts in a
        pipeline, and what the devices split."""
        return self.microbatches * self.block_parts * math.lcm(self.pipe, self.parts)

    @property
    def loss_tokens(self) -> int:
        """Tokens of a batch per chunk of the cross-entropy: `loss_chunk` of every device."""
        return self.loss_chunk * self.row_parts // self.replica * self.context

    @property
    def parts(self) -> int:
        """Parts of a micro-batch in the pipeline, 1 where there is none."""
        if self.pipe == 1:
            return 1
        return 2 * self.pipe if self.pipe_parts is None else self.pipe_parts

    @property
    def turns(self) -> int:
        """Turns of the pipeline in a pass: at each, every stage computes one of its runs of layers
        for one part."""
        return self.parts * self.pipe_rounds + self.pipe - 1

    @property
    def bubble(self) -> float:
        """Share of a stage's turns in which it has nothing to compute: (S - 1) / (M R + S - 1) of
        S stages, M parts and R rounds (Narayanan et al. 2021, section 2.2)."""
        return (self.pipe - 1) / self.turns

    def __str__(self) -> str:
        """The mesh in words: "data=2 x fsdp=4", "one device"."""
        sizes = {name: getattr(self, name) for name in rules.AXES}
        return " x ".join(f"{name}={n}" for name, n in sizes.items() if n > 1) or "one device"

    @property
    def dtype(self) -> Any:
        """The activations' dtype on this platform.

        Raises: ValueError for float64 where JAX has no 64-bit types.
        """
        if self.compute == "float64" and precision.wide() != jnp.float64:
            raise ValueError("plan.compute: 'float64' given; it requires JAX_ENABLE_X64=1")
        if self.compute == "platform":
            return jnp.float32 if target.platform() == "cpu" else jnp.bfloat16
        return jnp.dtype(self.compute)

    @property
    def mesh(self) -> jax.sharding.Mesh:
        """The device mesh of `axes`.

        Raises: ValueError when this machine has fewer devices than the plan names.
        """
        return _mesh(self, target.devices())

    def shard_params(self, spec: param.Tree) -> param.Tree:
        """NamedShardings for a spec. Raises: ValueError naming a weight that does not divide."""
        flat = {
            path: rules.sharding(p.axes, p.shape, self.mesh, f"weight {path}")
            for path, p in param.flatten(spec).items()
        }
        structure = jax.tree.structure(spec, is_leaf=param.is_param)
        return jax.tree.unflatten(structure, list(flat.values()))

    def shard_state(self, spec: param.Tree) -> param.Tree:
        """NamedShardings of what training keeps of every weight but itself, moments and gradients:
        those of the weights, split over `data`, too, with zero. Raises: as `shard_params`."""
        if not self.zero:
            return self.shard_params(spec)

        def place(weight: NamedSharding, p: param.Param) -> NamedSharding:
            return NamedSharding(self.mesh, rules.further(weight.spec, p.shape, self.mesh, "data"))

        return jax.tree.map(place, self.shard_params(spec), spec)

    def shard_batch(self, batch: Any) -> Any:
        """NamedShardings for a batch: leaves [B, ...] are split by rows, and along the axis where
        batch.tokens [B, ..., T] has its sequence.

        Raises: ValueError for rows or a sequence that do not divide over the mesh.
        """
        last = len(batch.tokens.shape) - 1  # 1, but for rows of several responses each

        def place(x: Any) -> NamedSharding:
            rest = ["seq" if i == last else "whole" for i in range(1, len(x.shape))]
            return rules.sharding(("global_batch", *rest), x.shape, self.mesh, "data.batch")

        return jax.tree.map(place, batch)

    @property
    def replicated(self) -> NamedSharding:
        """The sharding of scalars and small state: a copy everywhere."""
        return NamedSharding(self.mesh, PartitionSpec())

    def gather(self, w: jax.Array, axes: str, layer: bool = False) -> jax.Array:
        """The weight w with its stored parts (`rules.STORED`) brought together:
        gather(w, "vocab embed").

        This is what every use of a weight begins with. The partitioner finds it by itself for
        products, but not for look-ups, where it would split x as the table is split and then copy
        all of x to every device to split it by rows. layer: whether w is of a layer, of which the
        stages of a pipeline have their own.
        """
        names = tuple(axes.split())
        # what `pipe` and `expert` split otherwise stays where it is
        kept = {"pipe", *names} if layer else {*names}
        stored = [n for n in rules.STORED if self.axes.get(n, 1) > 1 and n not in kept]
        if not stored:
            return w
        places = tuple(
            rules.sharding(
                names, w.shape, self.mesh, f"weight {axes!r}", [*(kept & {"pipe"}), *stored[end:]]
            )
            for end in range(len(stored), -1, -1)
        )
        if not self.wide:
            return jax.lax.with_sharding_constraint(w, places[-1])
        return w if places[0] == places[-1] else _gathered(places, w)

    def constrain(self, x: jax.Array, axes: str) -> jax.Array:
        """x, held to the rules' sharding for these axis names: constrain(x, "batch seq embed")."""
        if self.devices == 1:
            return x
        names = tuple(axes.split())
        if self.sequence and names[-2:] == ("seq", "embed"):
            names = (*names[:-2], "residual", "embed")
        # `embed` would take it, where neither the batch nor a stage does
        whole = ("pipe",) if names[0] == "rows" else ()
        return jax.lax.with_sharding_constraint(
            x, rules.sharding(names, x.shape, self.mesh, f"activation {axes!r}", whole)
        )


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _gathered(places: tuple[NamedSharding, ...], w: jax.Array) -> jax.Array:
    """w, stored as the first of the places, in the last: one mesh axis of its parts after the other
    is brought together and, of its gradient, summed and split in the opposite order."""
    for place in places[1:]:
        w = jax.lax.with_sharding_constraint(w, place)
    return w


def _gathered_forward(places, w):
    return _gathered(places, w), None


def _gathered_backward(places, _, g):
    # the stored dimension in front: of a last one XLA sums the whole, and splits it afterwards
    at = next(i for i, entry in enumerate(places[0].spec) if entry != places[-1].spec[i])
    g = jnp.moveaxis(g, at, 0)
    for place in reversed(places[:-1]):
        first, rest = place.spec[at], (*place.spec[:at], *place.spec[at + 1 :])
        front = NamedSharding(place.mesh, PartitionSpec(first, *rest))
        g = jax.lax.with_sharding_constraint(g, front)
    return (jnp.moveaxis(g, 0, at),)


_gathered.defvjp(_gathered_forward, _gathered_backward)


@functools.lru_cache
def _mesh(plan: Plan, have: tuple[Any, ...]) -> jax.sharding.Mesh:
    need = plan.devices
    if need > len(have):
        raise ValueError(
            f"plan: {plan} needs {need} devices; {len(have)} {have[0].platform} device(s) here"
        )
    kinds = (jax.sharding.AxisType.Auto,) * len(plan.axes)
    return jax.sharding.Mesh(_placed(plan, have[:need]), tuple(plan.axes), kinds)


def _placed(plan: Plan, devices: Sequence[Any]) -> np.ndarray:
    """The devices as an array of the mesh's shape.

    Raises: ValueError where they are not of as many equal slices as the plan has.
    """
    # keys go round `context`: neighbours on a TPU's torus, where it has such rings
    rings = plan.context > 1 == plan.tensor and plan.slices == 1
    closed = topology.rings(devices, plan.context) if rings else None
    if closed is not None:
        return closed.reshape(plan.shape)
    # not jax.make_mesh: for some shapes of some TPUs it has no layout, with axes whole on a torus
    layout = functools.partial(mesh_utils.create_device_mesh, allow_split_physical_axes=True)
    if plan.slices == 1:
        return layout(plan.shape, devices)
    slices: dict[int, list[Any]] = {}
    for i, device in enumerate(devices):  # a CPU's are in order of their processes
        number = i * plan.slices // len(devices)
        number = device.slice_index if hasattr(device, "slice_index") else number
        slices.setdefault(number, []).append(device)
    sizes = [len(part) for part in slices.values()]
    if sizes != plan.slices * [len(devices) // plan.slices]:
        raise ValueError(f"plan.slices: {plan.slices} given; the devices are of slices of {sizes}")
    inner = tuple(n // parts for n, parts in zip(plan.shape, plan.across, strict=True))
    blocks = np.stack([layout(inner, slices[number]) for number in sorted(slices)])
    count = len(inner)
    order = [axis for i in range(count) for axis in (i, count + i)]
    return blocks.reshape(*plan.across, *inner).transpose(order).reshape(plan.shape)
