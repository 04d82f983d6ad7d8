"""Terms that PPO and GRPO share: responses as they were sampled and scored, their
log-probabilities under the policy and its reference, and measurements on the way.

    sampled, scored    batch.Rollout, without advantages
    estimated, once    Policy.advantages, over all responses of the step at once
    learnt from        batch.Rollout, in any cut, by the objective's loss

Dropout is off in all of it: a ratio of policies is 1 until the policy has moved.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxlm.core import param, precision
from jaxlm.core.batch import Array, Rollout
from jaxlm.models.model import Model
from jaxlm.objectives import log_probs
from jaxlm.ops.losses import advantages, cross_entropy, surrogate
from jaxlm.parallel.plan import Plan


class Measured(NamedTuple):
    """Readings of sampled responses, float32[N, T] each at the targets: log-probability under the
    policy by the forward pass that learns, under the reference, and the value; 0 where there is
    none."""

    log_prob: Array
    reference: Array
    value: Array


class Advantages(NamedTuple):
    """Learning signal of responses sampled together: advantage and returns float32[N, T], and
    metrics, {name: float32 scalar}."""

    advantage: jax.Array
    returns: jax.Array
    metrics: dict[str, jax.Array]


class Policy(NamedTuple):
    """Functions of a policy-gradient objective outside its loss: between sampling and learning."""

    temperature: float
    """Divisor of the logits, in sampling and in every log-probability."""
    kl_coefficient: float
    """Coefficient of the penalty at the first step; 0 is none."""
    measure: Callable[[param.Tree, param.Tree, Rollout], Measured]
    """(params, frozen, responses) -> Measured."""
    shaped_score: Callable[[Rollout], jax.Array]
    """float32[N]: the scores that are compared, clipped and shaped, without a penalty."""
    advantages: Callable[[Rollout, jax.Array | float], Advantages]
    """(responses with all but advantage and returns, penalty's coefficient) -> Advantages."""
    adapt_kl: Callable[[jax.Array, dict[str, jax.Array], jax.Array | int], jax.Array]
    """(coefficient, metrics of `advantages`, responses) -> the coefficient after these."""


class Read(NamedTuple):
    """A policy's reading of responses: log_prob and entropy float32[N, T] at every target, with
    logits divided by the temperature; x [N, T, D], from which a head may read more."""

    log_prob: jax.Array
    entropy: jax.Array
    x: jax.Array


def read(model: Model, params: param.Tree, rows: Any, plan: Plan, temperature: float) -> Read:
    """The Read of rows with tokens, targets, segments and positions int32[N, T]. Differentiable;
    the logits of the whole batch are never held."""
    x = log_probs.forward(model, params, rows).x

    def piece(head: param.Tree, h: jax.Array, target: jax.Array) -> dict[str, jax.Array]:
        logits = model.unembed(head, h) / temperature
        log_prob = cross_entropy.at_target(logits, target) - jax.nn.logsumexp(logits, axis=-1)
        return {"log_prob": log_prob, "entropy": advantages.entropy(logits)}

    terms = cross_entropy.per_token(piece, model.head(params), (x, rows.targets), plan.loss_tokens)
    return Read(terms["log_prob"], terms["entropy"], x)


# Metrics of `report`, and names of the sums over tokens of weight 1 whose means they are.
MEANS = (
    "policy_loss",  # the surrogate, by token, however the objective's own mean is taken
    "entropy",
    "ratio",
    "clipped",  # the share of tokens at which clipping bound the surrogate
    "behaviour_kl1",  # to the policy that sampled, on its own samples: k1, k2, k3 of
    "behaviour_kl2",  # KL(behaviour || policy) = mean of log behaviour - log policy
    "behaviour_kl3",
)
REFERENCE = ("reference_kl1", "reference_kl2", "reference_kl3")  # KL(policy || reference)

# |log ratio| in bins whose upper edges are 2^-24, 2^-23.75, ..., 2^7: a largest value is no sum,
# but the number of values in each bin is.
_LOW, _PER_OCTAVE, _BINS = -24, 4, 125


def watch(
    batch: Rollout, terms: Read, log_ratio: jax.Array, loss: jax.Array, clipped: jax.Array
) -> dict[str, jax.Array]:
    """The sums that `report` reads: "tokens" float32[1 + means], "ratio_bins" float32[bins].

    log_ratio [N, T] by token; loss and clipped broadcast to [N, T]. No gradient passes.
    """
    log_ratio = jax.lax.stop_gradient(log_ratio)
    now = jax.lax.stop_gradient(terms.log_prob)
    parts = [
        loss,
        terms.entropy,
        surrogate.ratio(log_ratio),
        clipped,
        *(kl(batch.behaviour, now) for kl in (advantages.k1, advantages.k2, advantages.k3)),
        *(kl(now, batch.reference) for kl in (advantages.k1, advantages.k2, advantages.k3)),
    ]
    here = batch.weight > 0
    sums = [jnp.sum(jnp.where(here, jax.lax.stop_gradient(part), 0.0)) for part in parts]
    count = jnp.sum(here.astype(precision.wide()))
    octaves = jnp.log2(jnp.maximum(jnp.abs(log_ratio), 2.0 ** (_LOW - 1))) - _LOW
    place = jnp.clip(jnp.ceil(octaves * _PER_OCTAVE), 0, _BINS - 1).astype(jnp.int32)
    bins = jnp.zeros(_BINS, precision.wide()).at[place].add(here.astype(precision.wide()))
    return {"tokens": jnp.stack([count, *sums]), "ratio_bins": bins}


def report(sums: dict[str, jax.Array], reference: bool) -> dict[str, jax.Array]:
    """{name: float32 scalar} of `watch`'s sums over all micro-batches: MEANS by token; REFERENCE
    where there is one; and ratio_gap, the largest |log ratio|, rounded up to a quarter octave (0
    where it is below 6e-8)."""
    count, *rest = sums["tokens"]
    names = (*MEANS, *REFERENCE) if reference else MEANS
    means = {name: x / jnp.maximum(count, 1.0) for name, x in zip(names, rest)}
    top = jnp.max(jnp.where(sums["ratio_bins"] > 0, jnp.arange(_BINS), 0))
    gap = jnp.where(top > 0, 2.0 ** (_LOW + top / _PER_OCTAVE), 0.0)
    return means | {"ratio_gap": gap}


def lengths(sampled: Rollout) -> dict[str, jax.Array]:
    """{name: float32 scalar} of the responses as they came: mean and largest number of tokens, the
    share that ended, mean and deviation of the scores."""
    count = jnp.sum((sampled.weight > 0).astype(precision.wide()), axis=1)
    there = (count > 0).astype(precision.wide())
    n = jnp.maximum(jnp.sum(there), 1.0)
    score = jnp.sum(there * sampled.score) / n
    spread = jnp.sum(there * jnp.square(sampled.score - score)) / n
    return {
        "length": jnp.sum(count) / n,
        "length_max": jnp.max(count),
        "finished": jnp.sum(there * sampled.finished) / n,
        "score": score,
        "score_std": jnp.sqrt(spread),
    }


def divergence(sampled: Rollout) -> jax.Array:
    """float32 scalar: k1 to the reference in nats of a whole response, its mean: what an adaptive
    controller steers by (Ziegler et al. 2019, section 2.2)."""
    kl = jnp.where(sampled.weight > 0, advantages.k1(sampled.behaviour, sampled.reference), 0.0)
    rows = jnp.sum((jnp.sum(sampled.weight, axis=1) > 0).astype(precision.wide()))
    return jnp.sum(kl) / jnp.maximum(rows, 1.0)


def scored(sampled: Rollout, unfinished: float | None, clip: float | None) -> jax.Array:
    """float32[N]: the scores at most `clip` from 0, and `unfinished` in place of the score of a
    response that did not end (Stiennon et al. 2020 give such a one -1)."""
    score = sampled.score.astype(precision.wide())
    score = score if clip is None else jnp.clip(score, -clip, clip)
    return score if unfinished is None else jnp.where(sampled.finished, score, unfinished)


def reference(
    model: Model, frozen: param.Tree, rows: Any, plan: Plan, temperature: float
) -> jax.Array:
    """float32[N, T]: the log-probabilities of the reference, zeros where there is none."""
    if "reference" not in frozen:
        return jnp.zeros(rows.targets.shape, precision.wide())
    x = log_probs.forward(model, frozen["reference"], rows).x
    return log_probs.log_probs(model, frozen["reference"], x, rows.targets, plan, temperature)
