"""The loss of a model that predicts more than the next token. DeepSeek-AI 2024 (DeepSeek-V3),
section 2.2."""

import jax
import jax.numpy as jnp

from jaxlm.core import param
from jaxlm.core.batch import Batch
from jaxlm.models.model import Model
from jaxlm.ops.attention import At
from jaxlm.ops.losses import cross_entropy, shift
from jaxlm.parallel.plan import Plan


def loss(
    model: Model, params: param.Tree, x: jax.Array, batch: Batch, plan: Plan
) -> tuple[jax.Array, dict[str, jax.Array], dict[str, jax.Array]]:
    """The negative log-likelihood in nats of the tokens 2, 3, ... ahead, summed over targets and
    averaged over the depths: eqs. 24 and 25 without lambda, times the targets' weight. Sums to
    report: ahead_nll, ahead_correct. The statistics of the layers that did it.

    x [B, T, D]: what the model's `hidden` returned. Depth k predicts at t what the next token is k
    tokens later, with that target's weight, where both are in one document.
    """
    assert model.ahead is not None
    at, head = At(batch.segments, batch.positions), model.head(params)
    depths, stats = model.ahead(params, x, batch.tokens, at)
    total, told = jnp.zeros(()), {}
    for k, h in enumerate(depths, 1):
        nll, sums = cross_entropy.cross_entropy(
            model.unembed,
            head,
            h,
            shift.later(batch.targets, batch.segments, k)[0],
            shift.later(batch.weight, batch.segments, k)[0],
            chunk=plan.loss_tokens,
        )
        total = total + nll / len(depths)
        for name in ("nll", "correct"):
            told[f"ahead_{name}"] = told.get(f"ahead_{name}", 0.0) + sums[name] / len(depths)
    return total, told, stats
