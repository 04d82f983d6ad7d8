"""Small facts about trees of arrays."""

from typing import Any

import jax
import jax.numpy as jnp

Tree = Any


def norm(tree: Tree) -> jax.Array:
    """The global L2 norm, float32 scalar, of all leaves together."""
    return jnp.sqrt(sum(jnp.sum(jnp.square(x.astype(jnp.float32))) for x in jax.tree.leaves(tree)))


def finite(tree: Tree) -> jax.Array:
    """bool scalar: every element of every leaf is finite."""
    return jnp.stack([jnp.all(jnp.isfinite(x)) for x in jax.tree.leaves(tree)]).all()


def select(keep: jax.Array, new: Tree, old: Tree) -> Tree:
    """new where the bool scalar `keep` is true, else old, leaf by leaf."""
    return jax.tree.map(lambda a, b: jnp.where(keep, a, b), new, old)


def nbytes(tree: Tree) -> int:
    """Bytes of all leaves (arrays or ShapeDtypeStructs)."""
    return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(tree))


def add(a: Tree, b: Tree) -> Tree:
    """a + b, leaf by leaf."""
    return jax.tree.map(jnp.add, a, b)
