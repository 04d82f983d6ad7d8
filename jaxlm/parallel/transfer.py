"""Batches from the host onto the mesh, and results back onto the hosts of all processes."""

from typing import Any, NamedTuple

import jax
import numpy as np

from jaxlm.parallel.plan import Plan


class Reader(NamedTuple):
    """The part of every batch's rows that a process reads: the `index`-th of `count` equal ones."""

    index: int
    count: int


def reader(plan: Plan) -> Reader:
    """The part that this process reads. Processes that share rows, parts of whose sequence or of
    whose products are on the devices of each, read the same ones."""
    processes = jax.process_count()
    count = min(processes, plan.row_parts)
    return Reader(jax.process_index() * count // processes, count)


def batch(plan: Plan, local: Any) -> Any:
    """The global batch [B, ...] on devices, from each process' own rows of it (host, [B/R, ...]),
    by `reader`.

    With one process, its rows are the batch. Returns before the copy is done.

    Raises: ValueError naming the batch if its rows do not divide over the mesh.
    """
    parts = reader(plan).count
    gathered = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct((x.shape[0] * parts, *x.shape[1:]), x.dtype), local
    )
    return jax.tree.map(
        lambda where, x, like: jax.make_array_from_process_local_data(where, x, like.shape),
        plan.shard_batch(gathered),
        local,
        gathered,
    )


def own(plan: Plan, rows: Any) -> Any:
    """This process' rows of a batch [B, ...] on the host, by `reader`."""
    index, count = reader(plan)

    def part(x: Any) -> Any:
        each = len(x) // count
        return x[index * each : (index + 1) * each]

    return jax.tree.map(part, rows)


def fetch(tree: Any) -> Any:
    """A tree of arrays of the mesh as numpy, whole on every process. All call it alike."""
    if jax.process_count() == 1:
        return jax.device_get(tree)
    from jax.experimental import multihost_utils

    return multihost_utils.process_allgather(tree, tiled=True)


def joined(plan: Plan, local: Any) -> Any:
    """The rows [B, ...] of all processes (numpy), from each one's `own`: of those that read the
    same ones, from the first. All call it alike."""
    processes = jax.process_count()
    if processes == 1:
        return local
    from jax.experimental import multihost_utils

    every = multihost_utils.process_allgather(local)  # [P, B/R, ...]
    step = processes // reader(plan).count
    return jax.tree.map(lambda x: np.concatenate(x[::step]), every)
