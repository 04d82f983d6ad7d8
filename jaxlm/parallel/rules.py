"""The mesh axes that split each named dimension: one table for weights and activations.

    weight      "embed heads head"   -> ((fsdp, expert, context), tensor, None)
    activation  "batch seq embed"    -> ((data, pipe, fsdp, expert), context, None)

A mesh axis goes to the leftmost dimension that requires it, so `embed` takes `fsdp` in a weight and
yields it to `batch` in an activation. A dimension that does not divide is an error naming it, never
a silent replication; but for `layer`, which leaves `pipe` to `embed` then.

Rows inside a block are called "rows", and not split over `pipe`: there the dimension in front of
them is, "stage rows seq embed".
"""

import math
from collections.abc import Collection

import jax
from jax.sharding import NamedSharding, PartitionSpec

# A real mesh to run on, or an abstract one to plan for.
Mesh = jax.sharding.Mesh | jax.sharding.AbstractMesh

# The axes of every mesh, the slowest to change first: those after it are on nearer devices.
AXES = ("replica", "data", "pipe", "fsdp", "expert", "context", "tensor")
# Devices from which on XLA makes a gather, on a v5p, an all-reduce of the whole array, and the sum
# and split of its gradient one, too: findings/gather_over_64_chips.sh. So many are gathered along
# one mesh axis after the other, and `fsdp` of as many is two axes, itself and this one.
WIDE, INNER = 64, "fsdp_inner"
# Those that split the rows of a batch, those of one replica, and those of them in a block.
BATCH = ("data", "pipe", "fsdp", INNER, "expert")
ROWS = ("data", "fsdp", INNER, "expert")
# Those that split a weight only to store it: whoever uses it gathers it along them first. `pipe` is
# the last: XLA then moves it from `embed` to `layer` by an exchange, and else copies all weights.
STORED = ("fsdp", INNER, "expert", "context", "pipe")

RULES: dict[str, tuple[str, ...]] = {
    "replica": ("replica",),
    "global_batch": ("replica", *BATCH),
    "batch": BATCH,
    "rows": ROWS,
    "stage": ("pipe",),
    "seq": ("context",),
    "residual": ("context", "tensor"),
    "layer": ("pipe",),
    "vocab": ("tensor",),
    "embed": STORED,
    "heads": ("tensor",),
    "kv": ("tensor",),
    "head": (),
    "ffn": ("tensor",),
    "expert": ("expert",),
    "shared": (),
    "types": (),
    "buckets": (),
    "rank": STORED,
    "q_rank": STORED,
    "pair": (),
    "lora": (),
    "block": (*STORED, "tensor"),
    "code": (),
    "group": (),
    "whole": (),
}


def outer(devices: int) -> int:
    """The devices that `fsdp` has in the first of its two axes: all of them where they are not
    `WIDE`, or are no product of two numbers that are not."""
    if devices < WIDE:
        return devices
    parts = [n for n in range(2, WIDE) if devices % n == 0 and devices // n < WIDE]
    # 16 is a plane of a v5p of 4 x 4 x n chips
    return min(parts, key=lambda n: abs(math.log(n / 16)), default=devices)


def partition(
    axes: tuple[str, ...],
    shape: tuple[int, ...],
    mesh: Mesh,
    name: str,
    whole: Collection[str] = (),
) -> PartitionSpec:
    """The PartitionSpec of an array with these axis names and sizes; no dimension of it is split
    over the mesh axes `whole`.

    Raises: ValueError naming the array, the dimension and the sizes where it does not divide;
    ValueError for an axis name without a rule.
    """
    taken: set[str] = set()
    entries: list[tuple[str, ...] | None] = []
    for axis, size in zip(axes, shape, strict=True):
        if axis not in RULES:
            raise ValueError(f"{name}: axis {axis!r} has no rule; there are {sorted(RULES)}")
        want = tuple(
            m for m in RULES[axis] if m not in {*taken, *whole} and mesh.shape.get(m, 1) > 1
        )
        parts = math.prod(mesh.shape[m] for m in want)
        if axis == "layer" and size % parts:
            want, parts = (), 1
        if size % parts:
            sizes = {m: mesh.shape[m] for m in want if m != INNER}
            if INNER in want:
                sizes["fsdp"] *= mesh.shape[INNER]
            mesh_text = " x ".join(f"{m}={n}" for m, n in sizes.items())
            raise ValueError(
                f"{name}: dimension {axis!r} of size {size} does not divide over {mesh_text}; "
                f"the nearest products that fit are {_nearest(size, parts)}"
            )
        taken.update(want)
        entries.append(want or None)
    return PartitionSpec(*entries)


def _nearest(size: int, parts: int) -> str:
    """The divisors of a size next to a number that is none: "2 and 4"."""
    below = max(n for n in range(1, parts) if size % n == 0)
    above = next((n for n in range(parts + 1, size + 1) if size % n == 0), None)
    return f"{below}" if above is None else f"{below} and {above}"


def further(place: PartitionSpec, shape: tuple[int, ...], mesh: Mesh, axis: str) -> PartitionSpec:
    """The PartitionSpec with one more mesh axis, on the leftmost dimension that divides over it,
    too; as it was where none does."""
    entries = [(entry,) if isinstance(entry, str) else entry or () for entry in place]
    for i, (entry, size) in enumerate(zip(entries, shape, strict=True)):
        if size % math.prod(mesh.shape[m] for m in (*entry, axis)) == 0:
            return PartitionSpec(*entries[:i], (*entry, axis), *entries[i + 1 :])
    return place


def sharding(
    axes: tuple[str, ...],
    shape: tuple[int, ...],
    mesh: Mesh,
    name: str,
    whole: Collection[str] = (),
) -> NamedSharding:
    """`partition` on this mesh as a NamedSharding."""
    return NamedSharding(mesh, partition(axes, shape, mesh, name, whole))
