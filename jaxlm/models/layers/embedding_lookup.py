"""Rows of an embedding table whose columns are on many devices: tokens go to the table."""

import jax
import jax.numpy as jnp
from jax import lax

from jaxlm.ops import quant
from jaxlm.ops.kernels import tiles
from jaxlm.parallel import rules
from jaxlm.parallel.plan import Plan


def look_up(
    plan: Plan, table: jax.Array | tiles.Tiled | quant.Packed, tokens: jax.Array
) -> jax.Array:
    """table [V, D] at tokens int32[B, T]: [B, T, D], in the table's dtype.

    Where weights are stored on few devices, each gathers the table. On many (`Plan.wide`) each
    looks up its own columns for the tokens of all and sends them back, which is less than the table
    and than the sum of the table's gradient, for which XLA has all-reduces alone.
    """
    if isinstance(table, tiles.Tiled):
        return tiles.take(table, tokens)
    if isinstance(table, quant.Packed):
        return quant.take(table, tokens)
    if not plan.wide:
        return jnp.take(plan.gather(table, "vocab embed"), tokens, axis=0)
    sizes = {name: plan.axes[name] for name in rules.STORED if plan.axes.get(name, 1) > 1}
    names = tuple(sizes)

    def local(table: jax.Array, tokens: jax.Array) -> jax.Array:
        every = lax.all_gather(tokens, names).reshape(*sizes.values(), *tokens.shape)
        every = every - lax.axis_index("tensor") * table.shape[0]
        there = (every >= 0) & (every < table.shape[0])
        x = jnp.where(there[..., None], jnp.take(table, every, axis=0, mode="clip"), 0)
        for at, name in enumerate(names):
            x = lax.all_to_all(x, name, at, at)
        # [parts of D..., B, T, D / parts]: each part from the device that has it
        x = jnp.moveaxis(x, range(len(names)), range(2, 2 + len(names)))
        return lax.psum(x.reshape(*tokens.shape, -1), "tensor")

    own = rules.partition(("vocab", "embed"), table.shape, plan.mesh, "weight 'vocab embed'")
    rows = rules.partition(("batch", "seq"), tokens.shape, plan.mesh, "tokens")
    return jax.shard_map(
        local, mesh=plan.mesh, in_specs=(own, rows), out_specs=rows, check_vma=False
    )(table, tokens)
