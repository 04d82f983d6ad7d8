"""The likelihood of targets: the loss, and the log-probabilities, that objectives share."""

from typing import Any

import jax
import jax.numpy as jnp

from jaxlm.core import param
from jaxlm.core.batch import Batch, Choices, Pairs
from jaxlm.models import model as models
from jaxlm.models.model import Hidden, Model
from jaxlm.objectives.objective import Loss
from jaxlm.ops import loss as ops_loss
from jaxlm.ops.attention import At
from jaxlm.parallel.plan import Plan


def of_targets(model: Model, plan: Plan, z_loss: float) -> Loss:
    """The negative log-likelihood in nats, summed over targets, plus z_loss * log(Z)^2. Reported
    sums: nll, correct, z."""

    def loss(
        params: param.Tree, frozen: param.Tree, batch: Batch | Pairs, key: jax.Array | None
    ) -> tuple[jax.Array, jax.Array, dict[str, jax.Array]]:
        total, sums = ops_loss.cross_entropy(
            model.unembed,
            model.head(params),
            models.read(model, params, batch, key).x,
            batch.targets,
            batch.weight,
            chunk=plan.loss_chunk,
            z_loss=z_loss,
        )
        return total, jnp.sum(batch.weight), sums

    return loss


def flat(batch: Choices) -> Choices:
    """The rows of [B, K, ...] one under the other, [B * K, T]: as a model reads them."""
    names = ("tokens", "targets", "weight", "segments", "positions")
    rows = {name: getattr(batch, name) for name in names}
    return batch._replace(**{n: x.reshape(-1, x.shape[-1]) for n, x in rows.items()})


def forward(model: Model, params: param.Tree, rows: Any, key: jax.Array | None = None) -> Hidden:
    """The Hidden of rows [N, T] of a decoder: anything with tokens, segments and positions.

    Dropout is off unless a key is given."""
    return model.hidden(params, rows.tokens, At(rows.segments, rows.positions), key=key)


def log_probs(
    model: Model,
    params: param.Tree,
    x: jax.Array,
    targets: jax.Array,
    plan: Plan,
    temperature: float = 1.0,
) -> jax.Array:
    """float32[N, T]: the log-probability of every target int32[N, T] given x [N, T, D], of logits
    divided by the temperature. Differentiable; the logits of the whole batch are never held."""

    def unembed(head: param.Tree, x: jax.Array) -> jax.Array:
        return model.unembed(head, x) / temperature

    return ops_loss.token_logprobs(
        unembed if temperature != 1.0 else model.unembed,
        model.head(params),
        x,
        targets,
        plan.loss_chunk,
    )


def responses(
    model: Model, params: param.Tree, batch: Choices, plan: Plan, key: jax.Array | None = None
) -> jax.Array:
    """float32[B, K, T]: the log-probability of every response token, 0 elsewhere. All K responses
    of all prompts are read in one forward pass."""
    rows = flat(batch)
    found = log_probs(model, params, forward(model, params, rows, key).x, rows.targets, plan)
    return jnp.where(batch.weight > 0, found.reshape(batch.targets.shape), 0.0)
