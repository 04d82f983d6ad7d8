"""A mixture of experts on the mesh: each device sorts its own tokens."""

from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import PartitionSpec

from jaxlm.core import param
from jaxlm.parallel import rules
from jaxlm.parallel.plan import Plan


def by_rows(
    f: Callable[..., jax.Array],
    plan: Plan,
    weights: param.Tree,
    axes: dict[str, str],
    *rows: jax.Array,
) -> jax.Array:
    """f(weights, *rows) [B, T, D], where f adds up over its weights' part of `ffn`.

    weights {name: array} with their axis names in `axes` ("expert embed ffn"); rows [B, T, ...].
    Every device calls f with its own rows of the batch and its own part of ffn, the rest of the
    weights brought together along `fsdp`; the results are summed over `tensor`. Left to itself the
    partitioner would sort the tokens of all devices together, and gather them all for that.

    Raises: ValueError naming what does not divide over the mesh.
    """
    if plan.devices == 1:
        return f(weights, *rows)
    mesh = plan.mesh

    def place(x: jax.Array, names: str, whole: str | None) -> PartitionSpec:
        return rules.partition(tuple(names.split()), x.shape, mesh, names, whole)

    spread = [place(x, "batch" + " seq" * (x.ndim - 1), None) for x in rows]

    def local(weights: param.Tree, *rows: Any) -> jax.Array:
        return jax.lax.psum(f(weights, *rows), "tensor")

    own = {name: place(w, axes[name], "fsdp") for name, w in weights.items()}
    run = jax.shard_map(
        local, mesh=mesh, in_specs=(own, *spread), out_specs=spread[0], check_vma=False
    )
    return run(weights, *rows)
