"""The mesh axis that splits each named dimension: one table for weights and activations.

    weight      "embed heads head"   -> (fsdp, tensor, None)
    activation  "batch seq embed"    -> ((data, fsdp), None, None)

A mesh axis goes to the leftmost dimension that requires it, so `embed` takes `fsdp` in a weight and
yields it to `batch` in an activation. A dimension that does not divide is an error naming it, never
a silent replication.
"""

import math

import jax
from jax.sharding import NamedSharding, PartitionSpec

# A real mesh to run on, or an abstract one to plan for.
Mesh = jax.sharding.Mesh | jax.sharding.AbstractMesh

RULES: dict[str, tuple[str, ...]] = {
    "batch": ("data", "fsdp"),
    "seq": (),
    "layer": (),
    "vocab": ("tensor",),
    "embed": ("fsdp",),
    "heads": ("tensor",),
    "kv": ("tensor",),
    "head": (),
    "ffn": ("tensor",),
    "expert": (),
    "shared": (),
    "types": (),
    "buckets": (),
    "rank": ("fsdp",),
    "q_rank": ("fsdp",),
    "pair": (),
    "lora": (),
    "block": ("fsdp", "tensor"),
    "code": (),
    "group": (),
    "whole": (),
}


def partition(
    axes: tuple[str, ...], shape: tuple[int, ...], mesh: Mesh, name: str, whole: str | None = None
) -> PartitionSpec:
    """The PartitionSpec of an array with these axis names and sizes; no part of it is split over
    the mesh axis `whole`.

    Raises: ValueError naming the array, the dimension and the sizes where it does not divide;
    ValueError for an axis name without a rule.
    """
    taken: set[str] = set()
    entries: list[tuple[str, ...] | None] = []
    for axis, size in zip(axes, shape, strict=True):
        if axis not in RULES:
            raise ValueError(f"{name}: axis {axis!r} has no rule; there are {sorted(RULES)}")
        want = tuple(m for m in RULES[axis] if m not in {*taken, whole} and mesh.shape[m] > 1)
        parts = math.prod(mesh.shape[m] for m in want)
        if size % parts:
            mesh_text = " x ".join(f"{m}={mesh.shape[m]}" for m in want)
            raise ValueError(
                f"{name}: dimension {axis!r} of size {size} does not divide over {mesh_text}; "
                f"choose mesh sizes whose product divides {size}"
            )
        taken.update(want)
        entries.append(want or None)
    return PartitionSpec(*entries)


def sharding(
    axes: tuple[str, ...], shape: tuple[int, ...], mesh: Mesh, name: str, whole: str | None = None
) -> NamedSharding:
    """`partition` on this mesh as a NamedSharding."""
    return NamedSharding(mesh, partition(axes, shape, mesh, name, whole))
