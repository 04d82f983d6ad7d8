"""Batches from the host onto the mesh, and results back onto the hosts of all processes."""

from typing import Any

import jax

from jaxlm.parallel.plan import Plan


def batch(plan: Plan, local: Any) -> Any:
    """The global batch [B, ...] on devices, from each process' own rows of it (host, [B/P, ...]).

    With one process, its rows are the batch. Returns before the copy is done.

    Raises: ValueError naming the batch if its rows do not divide over the mesh.
    """
    processes = jax.process_count()
    gathered = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct((x.shape[0] * processes, *x.shape[1:]), x.dtype), local
    )
    return jax.tree.map(
        lambda where, x, like: jax.make_array_from_process_local_data(where, x, like.shape),
        plan.shard_batch(gathered),
        local,
        gathered,
    )


def own(rows: Any) -> Any:
    """This process' rows of a batch [B, ...] on the host: the p-th of P equal parts."""
    processes, index = jax.process_count(), jax.process_index()

    def part(x: Any) -> Any:
        each = len(x) // processes
        return x[index * each : (index + 1) * each]

    return jax.tree.map(part, rows)


def fetch(tree: Any) -> Any:
    """A tree of arrays of the mesh as numpy, whole on every process. All call it alike."""
    if jax.process_count() == 1:
        return jax.device_get(tree)
    from jax.experimental import multihost_utils

    return multihost_utils.process_allgather(tree, tiled=True)


def joined(local: Any) -> Any:
    """The rows [B, ...] of all processes (numpy), from each one's `own`. All call it alike."""
    if jax.process_count() == 1:
        return local
    from jax.experimental import multihost_utils

    return multihost_utils.process_allgather(local, tiled=True)
