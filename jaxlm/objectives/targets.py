"""The loss that objectives of plain targets share: the targets' negative log-likelihood."""

import jax
import jax.numpy as jnp

from jaxlm.core import param
from jaxlm.core.batch import Batch, Pairs
from jaxlm.models import model as models
from jaxlm.models.model import Model
from jaxlm.objectives.objective import Loss
from jaxlm.ops.losses import cross_entropy
from jaxlm.parallel.plan import Plan


def likelihood(model: Model, plan: Plan, z_loss: float) -> Loss:
    """The negative log-likelihood in nats, summed over targets, plus z_loss * log(Z)^2. Reported
    sums: nll, correct, z."""

    def loss(
        params: param.Tree, frozen: param.Tree, batch: Batch | Pairs, key: jax.Array | None
    ) -> tuple[jax.Array, jax.Array, dict[str, jax.Array]]:
        total, sums = cross_entropy.cross_entropy(
            model.unembed,
            model.head(params),
            models.read(model, params, batch, key).x,
            batch.targets,
            batch.weight,
            chunk=plan.loss_tokens,
            z_loss=z_loss,
        )
        return total, jnp.sum(batch.weight), sums

    return loss
