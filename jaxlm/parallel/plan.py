"""The Plan: how a model is executed. It never changes what is computed, only where and in what
order; the mathematics is in each family's Config."""

import dataclasses
import functools
import math
from collections.abc import Iterator
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax.experimental import mesh_utils
from jax.sharding import NamedSharding, PartitionSpec

from jaxlm.core import check, param, precision, target
from jaxlm.parallel import rules, topology


@dataclasses.dataclass(frozen=True)
class Plan:
    """Execution of a run: mesh, precision, memory and kernels."""

    data: int = 1
    """Devices over which the batch is split and the weights are copied."""
    fsdp: int = 1
    """Devices over which the batch and the weights are both split."""
    expert: int = 1
    """Devices over which the batch is split, and experts are placed; other weights as by fsdp."""
    context: int = 1
    """Devices over which every row's sequence is split; weights are stored as by fsdp."""
    tensor: int = 1
    """Devices over which heads, feed-forward and vocabulary are split."""
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
    remat: Literal["none", "dots", "full"] = "none"
    """Recomputed per layer in the backward pass: nothing, all but matrix products, everything."""
    unroll: int = 1
    """Layers per iteration of the scan over layers; at least the number of layers means no scan."""
    attention: Literal["xla", "blockwise", "cudnn", "splash"] = "xla"
    """Training attention kernel: the whole score matrix; blocks that keep only log-sum-exp; cuDNN's
    for NVIDIA GPUs; splash for TPUs. Each refuses what it does not support: docs/attention.md. On a
    CPU blockwise is the faster one from rows of some 128 tokens."""
    loss_chunk: int = 4096
    """Tokens of each device per chunk of the cross-entropy; bounds the float32 logits it holds at
    once. Every chunk gathers the output matrix and sums its gradient."""

    def __post_init__(self) -> None:
        check.refuse("", self.problems())

    def problems(self) -> Iterator[str]:
        """A line for every field whose value does not fit."""
        counts = (*rules.AXES, "microbatches", "unroll", "loss_chunk")
        yield from check.outside("plan", self, *counts, least=1)
        yield from check.choices("plan", self)
        for name, axis in (("sequence", "tensor"), ("zero", "data")):
            if getattr(self, axis) == 1:
                yield from check.changed("plan", self, name, why=f"with plan.{axis}=1")
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
    def shape(self) -> tuple[int, ...]:
        """Sizes of the mesh axes `rules.AXES`."""
        return tuple(getattr(self, name) for name in rules.AXES)

    @property
    def row_parts(self) -> int:
        """Parts into which the devices split the rows of a batch."""
        return math.prod(getattr(self, name) for name in rules.ROWS)

    @property
    def loss_tokens(self) -> int:
        """Tokens of a batch per chunk of the cross-entropy: `loss_chunk` of every device."""
        return self.loss_chunk * self.row_parts * self.context

    def __str__(self) -> str:
        """The mesh in words: "data=2 x fsdp=4", "one device"."""
        sizes = zip(rules.AXES, self.shape, strict=True)
        return " x ".join(f"{name}={n}" for name, n in sizes if n > 1) or "one device"

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
        """The device mesh of `rules.AXES`.

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
            return rules.sharding(("batch", *rest), x.shape, self.mesh, "data.batch")

        return jax.tree.map(place, batch)

    @property
    def replicated(self) -> NamedSharding:
        """The sharding of scalars and small state: a copy everywhere."""
        return NamedSharding(self.mesh, PartitionSpec())

    def gather(self, w: jax.Array, axes: str) -> jax.Array:
        """The weight w with its stored parts (`rules.STORED`) brought together:
        gather(w, "vocab embed").

        This is what every use of a weight begins with. The partitioner finds it by itself for
        products, but not for look-ups, where it would split x as the table is split and then copy
        all of x to every device to split it by rows.
        """
        if self.fsdp * self.expert * self.context == 1:
            return w
        names = tuple(axes.split())
        place = rules.sharding(names, w.shape, self.mesh, f"weight {axes!r}", whole=rules.STORED)
        return jax.lax.with_sharding_constraint(w, place)

    def constrain(self, x: jax.Array, axes: str) -> jax.Array:
        """x, held to the rules' sharding for these axis names: constrain(x, "batch seq embed")."""
        if self.devices == 1:
            return x
        names = tuple(axes.split())
        if self.sequence and names == ("batch", "seq", "embed"):
            names = ("batch", "residual", "embed")
        return jax.lax.with_sharding_constraint(
            x, rules.sharding(names, x.shape, self.mesh, f"activation {axes!r}")
        )


@functools.lru_cache
def _mesh(plan: Plan, have: tuple[Any, ...]) -> jax.sharding.Mesh:
    need = plan.devices
    if need > len(have):
        raise ValueError(
            f"plan: {plan} needs {need} devices; {len(have)} {have[0].platform} device(s) here"
        )
    kinds = (jax.sharding.AxisType.Auto,) * len(rules.AXES)
    # keys go round `context`: neighbours on a TPU's torus, where it has such rings
    closed = topology.rings(have[:need], plan.context) if plan.context > 1 == plan.tensor else None
    if closed is not None:
        return jax.sharding.Mesh(closed.reshape(plan.shape), rules.AXES, kinds)
    # not jax.make_mesh: for some shapes of some TPUs it has no layout, with axes whole on a torus
    placed = mesh_utils.create_device_mesh(plan.shape, have[:need], allow_split_physical_axes=True)
    return jax.sharding.Mesh(placed, rules.AXES, kinds)
