"""Evaluation of a model on held-out examples: its objective's own loss and sums, exactly."""

import itertools
from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxlm.core import param
from jaxlm.objectives.objective import Objective
from jaxlm.parallel import transfer
from jaxlm.parallel.plan import Plan

# (params, frozen, batch) -> (loss sum, weight, {name: sum}).
Scorer = Callable[[param.Tree, param.Tree, Any], tuple[jax.Array, jax.Array, dict[str, jax.Array]]]


def scorer(objective: Objective, plan: Plan) -> Scorer:
    """The compiled function that judges a batch; dropout and noise are off."""

    def score(params: param.Tree, frozen: param.Tree, batch: Any) -> Any:
        total, weight, sums = objective.loss(params, frozen, batch, None)
        return jax.tree.map(jnp.float32, (total, weight, sums))

    return jax.jit(score, out_shardings=plan.replicated)


def evaluate(
    score: Scorer,
    objective: Objective,
    params: param.Tree,
    frozen: param.Tree,
    local: Iterable[Any],
    plan: Plan,
    batches: int | None = None,
) -> dict[str, float]:
    """{"loss", every scalar sum of the objective divided by the weight, "weight", and what
    `Objective.report` computes of the sums} over held-out batches, or the first `batches` of them.

    Sums run in float64, so the size of a batch changes nothing but rounding; a statistic that the
    objective takes of a batch is of each of these batches.

    Raises: ValueError if there is nothing to judge.
    """
    total: Any = None
    for batch in itertools.islice(local, batches):
        part = score(params, frozen, transfer.batch(plan, batch))
        part = jax.tree.map(lambda x: np.asarray(x, np.float64), part)
        total = part if total is None else jax.tree.map(np.add, total, part)
    if total is None or not total[1]:
        raise ValueError("data.holdout: the held-out split has nothing that is learnt from")
    loss, weight, sums = total
    means = {"loss": loss / weight, "weight": weight}
    means |= {name: value / weight for name, value in sums.items() if not np.ndim(value)}
    if objective.report is not None:
        means |= objective.report(jax.tree.map(jnp.float32, sums))
    return {name: float(value) for name, value in means.items()}
