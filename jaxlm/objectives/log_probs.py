"""Hidden states and log-probabilities of rows, which objectives share."""

from typing import Any

import jax
import jax.numpy as jnp

from jaxlm.core import param
from jaxlm.core.batch import Choices
from jaxlm.models.model import Hidden, Model
from jaxlm.ops.attention import At
from jaxlm.ops.losses import cross_entropy
from jaxlm.parallel.plan import Plan


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

    return cross_entropy.token_logprobs(
        unembed if temperature != 1.0 else model.unembed,
        model.head(params),
        x,
        targets,
        plan.loss_tokens,
    )


def responses(
    model: Model, params: param.Tree, batch: Choices, plan: Plan, key: jax.Array | None = None
) -> jax.Array:
    """float32[B, K, T]: the log-probability of every response token, 0 elsewhere. All K responses
    of all prompts are read in one forward pass."""
    rows = flat(batch)
    # [B * K, T]
    values = log_probs(model, params, forward(model, params, rows, key).x, rows.targets, plan)
    return jnp.where(batch.weight > 0, values.reshape(batch.targets.shape), 0.0)
