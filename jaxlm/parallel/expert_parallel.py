"""A mixture of experts on the mesh: each device sorts the tokens that its experts may get."""

from collections.abc import Callable, Collection

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from jaxlm.core import param
from jaxlm.parallel import rules
from jaxlm.parallel.plan import Plan

# f(weights, h, routing weights, experts) -> y [B, T, D]
Experts = Callable[[param.Tree, jax.Array, jax.Array, jax.Array], jax.Array]


def apply(
    f: Experts,
    plan: Plan,
    matrices: param.Tree,
    axes: dict[str, str],
    h: jax.Array,
    weights: jax.Array,
    experts: jax.Array,
) -> jax.Array:
    """f(matrices, h, weights, experts) [B, T, D], each device for its experts and its part of ffn.

    matrices {name: [E, ...]} with their axis names in `axes` ("expert embed ffn"); h [B, T, D];
    weights [B, T, k] of experts int32[B, T, k], where E stands for none, to which f adds nothing.

    Every device calls f with whole matrices along what stores them (`rules.STORED`) but for
    `expert`. Along `expert` it gathers its peers' tokens, and what its own experts add to them goes
    back by a reduce-scatter: nothing is dropped, and no buffer is larger than the tokens of those
    devices. The sum over ffn is one over `tensor`. Left to itself the partitioner would sort the
    tokens of all devices together.

    Raises: ValueError naming what does not divide over the mesh.
    """
    if plan.devices == 1:
        return f(matrices, h, weights, experts)
    count = next(iter(matrices.values())).shape[0]

    def place(x: jax.Array, names: str, whole: Collection[str] = ()) -> PartitionSpec:
        return rules.partition(tuple(names.split()), x.shape, plan.mesh, names, whole)

    def local(matrices: param.Tree, *rows: jax.Array) -> jax.Array:
        if plan.expert == 1:
            return jax.lax.psum(f(matrices, *rows), "tensor")
        gathered = (jax.lax.all_gather(x, "expert", axis=0, tiled=True) for x in rows)
        y = f(matrices, *_own(*gathered, count // plan.expert))
        return jax.lax.psum(
            jax.lax.psum_scatter(y, "expert", scatter_dimension=0, tiled=True), "tensor"
        )

    stored = tuple(name for name in rules.STORED if name != "expert")
    own = {name: place(w, axes[name], stored) for name, w in matrices.items()}
    rows = tuple(place(x, "rows seq whole") for x in (h, weights, experts))
    return jax.shard_map(
        local, mesh=plan.mesh, in_specs=(own, *rows), out_specs=rows[0], check_vma=False
    )(matrices, h, weights, experts)


def _own(
    h: jax.Array, weights: jax.Array, experts: jax.Array, count: int
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """(h, weights, experts) with the choices [B, T, m] of this device's `count` experts, numbered
    from 0; `count` stands for none. A token's choices differ: m = min(k, count) hold them all."""
    local = experts - jax.lax.axis_index("expert") * count
    local = jnp.where((local >= 0) & (local < count), local, count)
    order = jnp.argsort(local == count, axis=-1, stable=True)[..., : min(count, experts.shape[-1])]
    return (
        h,
        jnp.take_along_axis(weights, order, axis=-1),
        jnp.take_along_axis(local, order, axis=-1),
    )
