"""Causal language modelling: predict each next token."""

import dataclasses

import jax
import jax.numpy as jnp

from jaxlm.core import check, param
from jaxlm.core.batch import Batch
from jaxlm.models.layers import moe
from jaxlm.models.model import Model
from jaxlm.objectives import load_balancing, multi_token
from jaxlm.objectives.objective import Objective
from jaxlm.ops.attention import At
from jaxlm.ops.losses import cross_entropy
from jaxlm.parallel.plan import Plan


@dataclasses.dataclass(frozen=True)
class Config:
    """Next-token prediction."""

    KIND = "clm"

    z_loss: float = 0.0
    """Weight of log(Z)^2, which keeps logits near normalised (PaLM used 1e-4)."""
    balance: float = 0.0
    """Weight of the experts' load-balancing loss, which is 1 where all get the same (Switch used
    1e-2). transformers' router_aux_loss_coef is this divided by the experts a token goes to. Taken
    of each micro-batch: cutting the batch changes it a little."""
    router_z: float = 0.0
    """Weight of the routers' z-loss (ST-MoE used 1e-3)."""
    bias_speed: float = 0.0
    """Step of the bias by which a router selects, towards even loads, without a loss (DeepSeek V3
    used 1e-3)."""
    ahead: float = 0.3
    """Weight of the loss of tokens further ahead than the next, in models that predict them
    (DeepSeek V3 used 0.3, in the last third of its training 0.1)."""

    def __post_init__(self) -> None:
        names = ("z_loss", "balance", "router_z", "bias_speed", "ahead")
        check.within("objective", self, *names, least=0)


def build(cfg: Config, model: Model, plan: Plan = Plan()) -> Objective:
    """The negative log-likelihood in nats, summed over targets, plus z_loss * log(Z)^2 (Chowdhery
    et al. 2022, section 5) and what `load_balancing.loss` and `multi_token.loss` add. Reported
    sums: nll, correct, z, and those of `multi_token.loss`.

    Raises: ValueError for fields that need experts, or their selection bias, in a model without;
    and for ahead=0 in a model that has weights for it.
    """
    _check(cfg, model)
    routed = moe.has(model.spec)

    def loss(
        params: param.Tree, frozen: param.Tree, batch: Batch, key: jax.Array | None
    ) -> tuple[jax.Array, jax.Array, dict[str, jax.Array]]:
        at = At(batch.segments, batch.positions)
        x, _, stats = model.hidden(params, batch.tokens, at, key=key)
        total, sums = cross_entropy.cross_entropy(
            model.unembed,
            model.head(params),
            x,
            batch.targets,
            batch.weight,
            chunk=plan.loss_tokens,
            z_loss=cfg.z_loss,
        )
        if model.ahead is not None:
            more, ahead_sums, further = multi_token.loss(model, params, x, batch, plan)
            total, sums = total + cfg.ahead * more, sums | ahead_sums
            stats = {name: jnp.concatenate([stats[name], further[name]]) for name in stats}
        weight = jnp.sum(batch.weight)
        if cfg.balance or cfg.router_z:
            total += weight * load_balancing.loss(stats, cfg.balance, cfg.router_z)
        return total, weight, sums | (load_balancing.sums(stats) if routed else {})

    def adjust(params: param.Tree, sums: dict[str, jax.Array]) -> param.Tree:
        return moe.rebalance(params, sums["load"], cfg.bias_speed)

    return Objective(
        model.spec,
        loss,
        report=load_balancing.report if routed else None,
        adjust=adjust if cfg.bias_speed else None,
    )


def _check(cfg: Config, model: Model) -> None:
    load_balancing.check_model(cfg, model)
    if model.ahead is not None and not cfg.ahead:
        raise ValueError(
            "objective.ahead: 0 given, which leaves weights of this model untrained; give a "
            "weight, or leave them out (model.ahead=0)"
        )
