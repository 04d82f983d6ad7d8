"""What an objective is: the weights it trains, and a loss as a sum with its weight."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax

from jaxlm.core import param

# loss(params, frozen, batch, key) -> (sum, weight, {name: sum}). The step divides by the total
# weight once, over all micro-batches and devices, so the result does not depend on the cut.
Loss = Callable[
    [param.Tree, param.Tree, Any, jax.Array], tuple[jax.Array, jax.Array, dict[str, jax.Array]]
]


class Objective(NamedTuple):
    """spec: the weights trained (a tree of `Param`). loss: see `Loss`."""

    spec: param.Tree
    loss: Loss
