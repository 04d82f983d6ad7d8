"""Log-probabilities of whole responses, under a policy and under its reference."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxlm.core import param, precision
from jaxlm.core.batch import Choices
from jaxlm.models.model import Model
from jaxlm.objectives import log_probs
from jaxlm.ops.losses import preference
from jaxlm.parallel.plan import Plan


class Read(NamedTuple):
    """Responses [B, K] as `preference.Response`, with 1 token where there is none; which are
    there, bool[B, K]; the statistics of experts on the way."""

    responses: preference.Response
    there: jax.Array
    stats: dict[str, jax.Array]


def read(
    model: Model,
    params: param.Tree,
    batch: Choices,
    reference: jax.Array | None,
    plan: Plan,
    text: bool = False,
) -> Read:
    """All responses of the batch, in one forward pass without dropout. reference [B, K] is from
    `summed`, or None where nothing is held to one. nll is of the response, or (text) of all targets
    with the prompt's."""
    rows = log_probs.flat(batch)  # [B * K, T] each
    hidden = log_probs.forward(model, params, rows)
    each = log_probs.log_probs(model, params, hidden.x, rows.targets, plan)
    each = each.reshape(batch.targets.shape)  # [B, K, T]
    tokens = counted(batch)
    there = (tokens > 0) & (batch.rank >= 0)  # [B, K]
    log_prob = jnp.sum(jnp.where(batch.weight > 0, each, 0.0), axis=-1)  # [B, K]
    learnt = targets(batch) if text else batch.weight > 0
    nll = -jnp.sum(jnp.where(learnt, each, 0.0), axis=-1) / jnp.maximum(jnp.sum(learnt, -1), 1)
    values = preference.Response(
        log_prob=log_prob,
        reference=jnp.zeros_like(log_prob) if reference is None else reference,
        tokens=jnp.maximum(tokens, 1.0),
        nll=nll,
    )
    return Read(values, there, hidden.stats)


def summed(model: Model, params: param.Tree, batch: Choices, plan: Plan) -> jax.Array:
    """float32[B, K]: each response's log-probability, summed over its tokens; no gradient comes
    through. Used for a reference, now or stored before."""
    values = log_probs.responses(model, jax.lax.stop_gradient(params), batch, plan)
    return jnp.sum(values, axis=-1)


def counted(batch: Choices) -> jax.Array:
    """float32[B, K]: how many tokens of each response are learnt from; 0 where there is none."""
    return jnp.sum(batch.weight > 0, axis=-1, dtype=precision.wide())


def targets(batch: Choices) -> jax.Array:
    """bool[B, K, T]: whether a target is of the text, the prompt's among them."""
    follows = jnp.pad(batch.segments[..., 1:], [(0, 0), (0, 0), (0, 1)])  # [B, K, T]
    return ((batch.segments > 0) & (follows == batch.segments)) | (batch.weight > 0)


def only(batch: Choices, places: slice) -> Choices:
    """The batch with these of each prompt's responses."""
    kept = {
        name: value[:, places]
        for name, value in batch._asdict().items()
        if value is not None and name != "preference"
    }
    return batch._replace(**kept)
