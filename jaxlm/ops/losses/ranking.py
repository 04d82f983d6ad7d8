"""Ranked responses: which pairs compare, the Bradley-Terry loss of each, how sure it should be."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxlm.core import precision


class Comparisons(NamedTuple):
    """Every ordered pair (better i, worse j) of K responses of B prompts.

    weight float32[B, K, K]: 1 / (number of the prompt's pairs) where i was ranked above j, 0
    elsewhere: a prompt counts as one, however many responses it has (Ouyang et al. 2022, section
    3.5). target float32[B, 1, 1]: the probability that i is indeed preferred. margin
    float32[B, K, K]: by how much i was rated above j.
    """

    weight: jax.Array
    target: jax.Array
    margin: jax.Array


def comparisons(
    rank: jax.Array, preference: jax.Array, score: jax.Array, exists: jax.Array
) -> Comparisons:
    """The `Comparisons` of rank int32[B, K] (0 the best, equals a tie, -1 none), preference
    float32[B], score float32[B, K], as `Choices` has them; exists bool[B, K] is False for rows that
    hold no text. A tie is no comparison."""
    there = exists & (rank >= 0)
    pair = there[:, :, None] & there[:, None, :] & (rank[:, :, None] < rank[:, None, :])
    weight = pair.astype(precision.wide())  # [B, K, K]
    weight /= jnp.maximum(jnp.sum(weight, axis=(1, 2), keepdims=True), 1.0)
    margin = jnp.where(pair, score[:, :, None] - score[:, None, :], 0.0)  # [B, K, K]
    return Comparisons(weight, preference[:, None, None], margin)


def prompts(pairs: Comparisons) -> jax.Array:
    """float32 scalar: how many prompts have at least one comparison."""
    return jnp.sum(jnp.any(pairs.weight > 0, axis=(1, 2)).astype(precision.wide()))


def mean(pairs: Comparisons, value: jax.Array) -> jax.Array:
    """float32 scalar: the sum over prompts of the mean of value [B, K, K] over their pairs."""
    return jnp.sum(jnp.where(pairs.weight > 0, pairs.weight * value, 0.0))


def differences(reward: jax.Array) -> jax.Array:
    """float32[B, K, K]: by how much reward [B, K] of i is above that of j."""
    return reward[:, :, None] - reward[:, None, :]


def cross_entropy(logit: jax.Array, target: jax.Array, smoothing: float = 0.0) -> jax.Array:
    """float32 of logit's shape: -t log sigmoid(logit) - (1 - t) log sigmoid(-logit), in nats.

    t is the target (a probability, broadcast), flipped with probability `smoothing`: with target 1
    and smoothing e the conservative loss of Mitchell 2023 (cDPO). Bradley and Terry 1952: i is
    preferred to j with probability sigmoid(reward i - reward j). Stable at any logit.
    """
    t = target * (1 - smoothing) + (1 - target) * smoothing
    return -t * jax.nn.log_sigmoid(logit) - (1 - t) * jax.nn.log_sigmoid(-logit)


def wins(difference: jax.Array) -> jax.Array:
    """float32: 1 where the first is above, 0 where it is below, 0.5 where they are equal."""
    return 0.5 * (1 + jnp.sign(difference))


def agreement(difference: jax.Array, target: jax.Array) -> jax.Array:
    """float32: the probability that the label agrees with the sign of the difference; equals agree
    half: a model that gives all the same reward is right in half of the cases, not in none."""
    won = wins(difference)
    return target * won + (1 - target) * (1 - won)


def brier(difference: jax.Array, target: jax.Array) -> jax.Array:
    """float32: the expected (sigmoid(difference) - label)^2. Brier 1950; 0.25 at 0."""
    p = jax.nn.sigmoid(difference)
    return target * jnp.square(1 - p) + (1 - target) * jnp.square(p)


def reliability(pairs: Comparisons, difference: jax.Array, bins: int) -> jax.Array:
    """float32[bins, 3]: the weight of the pairs whose confidence sigmoid(|difference|), from 0.5 to
    1, falls into each of `bins` equal intervals; the sum of their confidence; and of how often they
    are right. Sums of parts of a batch are those of the whole, so `calibration` is exact."""
    confidence = jax.nn.sigmoid(jnp.abs(difference))
    at = jnp.clip((2 * bins * (confidence - 0.5)).astype(jnp.int32), 0, bins - 1)
    right = agreement(difference, jnp.broadcast_to(pairs.target, difference.shape))
    each = jnp.stack([jnp.ones_like(confidence), confidence, right], axis=-1)  # [B, K, K, 3]
    each = jnp.where(pairs.weight[..., None] > 0, pairs.weight[..., None] * each, 0.0)
    return jnp.zeros((bins, 3)).at[at.reshape(-1)].add(each.reshape(-1, 3))


def calibration(sums: jax.Array) -> jax.Array:
    """float32 scalar: the expected calibration error of `reliability`'s sums [bins, 3]: the mean
    over pairs of |confidence - accuracy| of their bin (Guo et al. 2017, equation 3)."""
    return jnp.sum(jnp.abs(sums[:, 1] - sums[:, 2])) / jnp.maximum(jnp.sum(sums[:, 0]), 1e-9)


def moments(reward: jax.Array, exists: jax.Array) -> jax.Array:
    """float32[3]: how many rewards [B, K] there are, their sum, and the sum of their squares."""
    r = jnp.where(exists, reward, 0.0)
    return jnp.stack([jnp.sum(exists.astype(precision.wide())), jnp.sum(r), jnp.sum(r * r)])


def spread(sums: jax.Array) -> tuple[jax.Array, jax.Array]:
    """(mean, standard deviation) of `moments`' sums."""
    count = jnp.maximum(sums[0], 1.0)
    average = sums[1] / count
    return average, jnp.sqrt(jnp.maximum(sums[2] / count - average**2, 0.0))
