"""Initial values of weights that are drawn together, by one function of one key."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax


@dataclasses.dataclass(frozen=True)
class Joint:
    """An initialiser of one weight among those that draw(key) -> {path: array} returns.

    `param.init` calls draw once for all weights that share it, with its own key rather than one
    folded from a path: the values are those that the function gives for that key.
    """

    draw: Callable[[jax.Array], dict[str, jax.Array]]
    path: str

    def __call__(self, key: jax.Array, p: Any) -> jax.Array:
        """The weight drawn by this key."""
        return self.draw(key)[self.path]

    def part(self, key: jax.Array, drawn: dict[Any, dict[str, jax.Array]]) -> jax.Array:
        """The weight; what is drawn for all is kept in `drawn`."""
        if self.draw not in drawn:
            drawn[self.draw] = self.draw(key)
        return drawn[self.draw][self.path]
