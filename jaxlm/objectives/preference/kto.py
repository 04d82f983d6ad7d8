"""KTO: single responses that are desirable or not. Ethayarajh et al. 2024.

A batch is `Choices` of labelled responses: for each prompt its own response, and another prompt's
in its place, which estimates how far the policy is from the reference anyway.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxlm.core import param, precision
from jaxlm.core.batch import Choices
from jaxlm.models.model import Model
from jaxlm.objectives.preference import responses
from jaxlm.ops.losses import preference
from jaxlm.parallel.plan import Plan


class Read(NamedTuple):
    """Terms of B labelled responses: log_prob and log_ratio to the reference [B]; desirable and
    there bool[B]; baseline, a scalar without gradient; stats, the experts' statistics of the own
    responses."""

    log_prob: jax.Array
    log_ratio: jax.Array
    desirable: jax.Array
    there: jax.Array
    baseline: jax.Array
    stats: dict[str, jax.Array]


def read(
    model: Model, params: param.Tree, reference: jax.Array, batch: Choices, plan: Plan
) -> Read:
    """The policy's Read of a batch; reference [B, 2] is from `responses.summed`. The other
    prompts' responses are read without a gradient.

    Raises: ValueError for a batch of other than 2 responses a prompt.
    """
    if batch.rank.shape[1] != 2:
        raise ValueError(
            f"objective.loss: kto reads labelled responses (data.format='labelled'); this data has "
            f"{batch.rank.shape[1]} responses a prompt; kto_pair learns from pairs"
        )
    own = responses.read(model, params, responses.only(batch, slice(0, 1)), reference[:, :1], plan)
    other = responses.summed(model, params, responses.only(batch, slice(1, 2)), plan)
    # what has a rank is compared with the first: it is no stand-in for another prompt's response
    stand_in = (responses.counted(batch) > 0) & (batch.rank < 0)
    baseline = preference.kto_baseline((other - reference[:, 1:])[:, 0], stand_in[:, 1])
    return Read(
        log_prob=own.responses.log_prob[:, 0],
        log_ratio=preference.ratio(own.responses)[:, 0],
        desirable=batch.rank[:, 0] == 0,
        there=own.there[:, 0] & stand_in[:, 1],
        baseline=baseline,
        stats=own.stats,
    )


def loss(
    response: Read, settings: dict[str, float]
) -> tuple[jax.Array, jax.Array, dict[str, jax.Array]]:
    """(sum over responses, how many, sums): the mean log-ratio of stand-ins is a statistic of each
    micro-batch, so cutting the batch changes the step a little."""
    each = preference.kto(response.log_ratio, response.desirable, response.baseline, **settings)
    weight = jnp.sum(response.there, dtype=precision.wide())
    rewards = settings["beta"] * response.log_ratio
    # [2, B]: desirable ones, then the others
    sorts = jnp.stack([response.there & response.desirable, response.there & ~response.desirable])
    columns = jnp.stack([jnp.ones_like(rewards), rewards, response.log_prob])  # [3, B]
    sums = {
        "baseline": weight * response.baseline,
        "labelled": jnp.einsum("sb,cb->sc", sorts.astype(precision.wide()), columns),
    }
    return jnp.sum(jnp.where(response.there, each, 0.0)), weight, jax.lax.stop_gradient(sums)


def report(sums: dict[str, jax.Array]) -> dict[str, jax.Array]:
    """Means over the desirable and over the undesirable responses of a step, 0 where there are
    none, and the difference of the rewards."""
    count, rewards, log_probs = sums["labelled"].T
    reward, log_prob = (x / jnp.maximum(count, 1.0) for x in (rewards, log_probs))
    metrics = {"desirable_share": count[0] / jnp.maximum(jnp.sum(count), 1.0)}
    for i, name in enumerate(("desirable", "undesirable")):
        metrics |= {f"reward_{name}": reward[i], f"log_prob_{name}": log_prob[i]}
    return metrics | {"margin": reward[0] - reward[1]}
