"""Masked language modelling: fill in the hidden tokens. Devlin et al. 2019, section 3.1.

Which tokens are hidden is in the batch (`data.mask`): its tokens have the holes, its targets are
the text, and its weight is 1 at the holes. The loss knows no mask token.
"""

import dataclasses

import jax
import jax.numpy as jnp

from jaxlm.core import param
from jaxlm.core.batch import Batch
from jaxlm.models import model as models
from jaxlm.models.model import Model
from jaxlm.objectives.objective import Objective
from jaxlm.ops import loss as ops_loss
from jaxlm.parallel.plan import Plan


@dataclasses.dataclass(frozen=True)
class Config:
    """Hidden tokens, from all that stands around them."""

    z_loss: float = 0.0
    """Weight of log(Z)^2, which keeps logits near normalised."""

    def __post_init__(self) -> None:
        if self.z_loss < 0:
            raise ValueError(f"objective.z_loss: {self.z_loss} given; it must not be negative")


def build(cfg: Config, model: Model, plan: Plan = Plan()) -> Objective:
    """The negative log-likelihood in nats of the hidden tokens, summed, plus z_loss * log(Z)^2.
    Reported sums: nll, correct, z.

    Raises: ValueError for a model that sees only the past, or that reads pairs.
    """
    if model.causal or model.encode is not None:
        raise ValueError(
            f"objective: mlm fills in tokens from both sides, and a {type(model.cfg).__module__} "
            "model cannot; take a model that reads both ways (bert)"
        )

    def loss(
        params: param.Tree, frozen: param.Tree, batch: Batch, key: jax.Array
    ) -> tuple[jax.Array, jax.Array, dict[str, jax.Array]]:
        total, sums = ops_loss.cross_entropy(
            model.unembed,
            model.head(params),
            models.read(model, params, batch, key).x,
            batch.targets,
            batch.weight,
            chunk=plan.loss_chunk,
            z_loss=cfg.z_loss,
        )
        return total, jnp.sum(batch.weight), sums

    return Objective(model.spec, loss)
