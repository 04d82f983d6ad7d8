"""Causal language modelling: predict each next token."""

import dataclasses

import jax
import jax.numpy as jnp

from jaxlm.core import param
from jaxlm.core.batch import Batch
from jaxlm.models.model import Model
from jaxlm.objectives.objective import Objective
from jaxlm.ops import loss as ops_loss
from jaxlm.ops.attention import At
from jaxlm.parallel.plan import Plan


@dataclasses.dataclass(frozen=True)
class Config:
    """Next-token prediction."""

    z_loss: float = 0.0
    """Weight of log(Z)^2, which keeps logits near normalised (PaLM used 1e-4)."""

    def __post_init__(self) -> None:
        if self.z_loss < 0:
            raise ValueError(f"objective.z_loss: {self.z_loss} given; it must not be negative")


def build(cfg: Config, model: Model, plan: Plan = Plan()) -> Objective:
    """The negative log-likelihood in nats, summed over targets, plus z_loss * log(Z)^2 (Chowdhery
    et al. 2022, section 5). Reported sums: nll, correct, z."""

    def loss(
        params: param.Tree, frozen: param.Tree, batch: Batch, key: jax.Array
    ) -> tuple[jax.Array, jax.Array, dict[str, jax.Array]]:
        at = At(batch.segments, batch.positions)
        x = model.hidden(params, batch.tokens, at, key=key).x
        total, sums = ops_loss.cross_entropy(
            model.unembed,
            model.head(params),
            x,
            batch.targets,
            batch.weight,
            chunk=plan.loss_chunk,
            z_loss=cfg.z_loss,
        )
        return total, jnp.sum(batch.weight), sums

    return Objective(model.spec, loss)
