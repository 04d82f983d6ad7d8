"""Batches from the host onto the mesh."""

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
