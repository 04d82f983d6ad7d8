"""Small facts about trees of arrays."""

from typing import Any

import jax
import jax.numpy as jnp

Tree = Any


def select(keep: jax.Array, new: Tree, old: Tree) -> Tree:
    """new where the bool scalar `keep` is true, else old, leaf by leaf."""
    return jax.tree.map(lambda a, b: jnp.where(keep, a, b), new, old)


def add(a: Tree, b: Tree) -> Tree:
    """a + b, leaf by leaf."""
    return jax.tree.map(jnp.add, a, b)
