"""The Plan: how a model is executed. It never changes what is computed, only where and in what
order; the mathematics is in each family's Config."""

import dataclasses
import functools
import math
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec

from jaxlm.core import check, param
from jaxlm.parallel import rules

MESH_AXES = ("data", "fsdp", "tensor")


@dataclasses.dataclass(frozen=True)
class Plan:
    """Execution of a run: mesh, precision, memory and kernels."""

    data: int = 1
    """Devices over which the batch is split and the weights are copied."""
    fsdp: int = 1
    """Devices over which the batch and the weights are both split."""
    tensor: int = 1
    """Devices over which heads, feed-forward and vocabulary are split."""
    microbatches: int = 1
    """Parts each step's batch is cut into; gradients are summed exactly, then divided once."""
    compute: Literal["platform", "float32", "bfloat16", "float16"] = "platform"
    """Dtype of activations. `platform` is bfloat16 on TPU and GPU and float32 on CPU. Weights and
    optimiser state are always float32; float16 trains with dynamic loss scaling."""
    remat: Literal["none", "dots", "full"] = "none"
    """Recomputed per layer in the backward pass: nothing, all but matrix products, everything."""
    unroll: int = 1
    """Layers per iteration of the scan over layers; at least the number of layers means no scan."""
    attention: Literal["xla", "blockwise", "cudnn", "splash"] = "xla"
    """Training attention kernel: the whole score matrix; blocks that keep only log-sum-exp; cuDNN's
    for NVIDIA GPUs; splash for TPUs. Each refuses what it does not support: docs/attention.md. On a
    CPU blockwise is the faster one from rows of some 128 tokens."""
    loss_chunk: int = 4096
    """Tokens per chunk of the cross-entropy; bounds the float32 logits held at once."""

    def __post_init__(self) -> None:
        check.within("plan", self, *MESH_AXES, "microbatches", "unroll", "loss_chunk", least=1)

    @property
    def devices(self) -> int:
        """Devices the mesh needs."""
        return self.data * self.fsdp * self.tensor

    @property
    def dtype(self) -> Any:
        """The activations' dtype on this platform."""
        if self.compute == "platform":
            return jnp.float32 if jax.default_backend() == "cpu" else jnp.bfloat16
        return jnp.dtype(self.compute)

    @property
    def mesh(self) -> jax.sharding.Mesh:
        """The device mesh (data, fsdp, tensor).

        Raises: ValueError when this machine has fewer devices than the plan names.
        """
        return _mesh(self.data, self.fsdp, self.tensor)

    def shard_params(self, spec: param.Tree) -> param.Tree:
        """NamedShardings for a spec. Raises: ValueError naming a weight that does not divide."""
        flat = {
            path: rules.sharding(p.axes, p.shape, self.mesh, f"weight {path}")
            for path, p in param.flatten(spec).items()
        }
        structure = jax.tree.structure(spec, is_leaf=param.is_param)
        return jax.tree.unflatten(structure, list(flat.values()))

    def shard_batch(self, batch: Any) -> Any:
        """NamedShardings for a batch: every leaf split over its leading axis."""
        return jax.tree.map(
            lambda x: rules.sharding(
                ("batch", *["seq"] * (len(x.shape) - 1)), x.shape, self.mesh, "data.batch"
            ),
            batch,
        )

    @property
    def replicated(self) -> NamedSharding:
        """The sharding of scalars and small state: a copy everywhere."""
        return NamedSharding(self.mesh, PartitionSpec())

    def gather(self, w: jax.Array, axes: str) -> jax.Array:
        """The weight w with its parts along `fsdp` brought together: gather(w, "vocab embed").

        This is what every use of a weight begins with. The partitioner finds it by itself for
        products, but not for look-ups, where it would split x as the table is split and then copy
        all of x to every device to split it by rows.
        """
        if self.fsdp == 1:
            return w
        names = tuple(axes.split())
        place = rules.sharding(names, w.shape, self.mesh, f"weight {axes!r}", whole="fsdp")
        return jax.lax.with_sharding_constraint(w, place)

    def constrain(self, x: jax.Array, axes: str) -> jax.Array:
        """x, held to the rules' sharding for these axis names: constrain(x, "batch seq embed")."""
        if self.devices == 1:
            return x
        names = tuple(axes.split())
        return jax.lax.with_sharding_constraint(
            x, rules.sharding(names, x.shape, self.mesh, f"activation {axes!r}")
        )


@functools.lru_cache
def _mesh(data: int, fsdp: int, tensor: int) -> jax.sharding.Mesh:
    need, have = math.prod((data, fsdp, tensor)), jax.devices()
    if need > len(have):
        raise ValueError(
            f"plan.data={data} x plan.fsdp={fsdp} x plan.tensor={tensor} needs {need} devices; "
            f"{len(have)} {jax.default_backend()} device(s) here"
        )
    kinds = (jax.sharding.AxisType.Auto,) * 3
    return jax.make_mesh((data, fsdp, tensor), MESH_AXES, kinds, devices=have[:need])
