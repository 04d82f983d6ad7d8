"""A reward model: one number for a text, learnt from which of several responses was preferred.

Christiano et al. 2017, section 2.2.3; Stiennon et al. 2020, section 3.4; Ouyang et al. 2022,
section 3.5, for ranked lists.
"""

import dataclasses
from typing import Any

import jax

from jaxlm.core import check, param
from jaxlm.core.batch import Choices
from jaxlm.models.layers import value_head
from jaxlm.models.model import Model
from jaxlm.objectives import log_probs
from jaxlm.objectives.objective import Objective
from jaxlm.ops.losses import ranking
from jaxlm.parallel.plan import Plan

_BINS = 10  # of the calibration


@dataclasses.dataclass(frozen=True)
class Config:
    """Score responses so that the preferred one has more (Bradley and Terry 1952)."""

    KIND = "reward"

    margin: float = 0.0
    """Factor on a difference of ratings (`Choices.score`) for the margin of rewards: 1 is TRL's and
    Llama 2's margin, 0 does not read the ratings."""
    smoothing: float = 0.0
    """The probability that a label is taken to be wrong, below one half."""
    centre: float = 0.0
    """Weight of the squared sum of a pair's rewards, which keeps them near 0: differences do not
    determine where 0 is (Eisenstein et al. 2023, section 2.1, and TRL used 1e-2)."""

    def __post_init__(self) -> None:
        check.within("objective", self, "margin", "centre", least=0)
        check.within("objective", self, "smoothing", least=0, below=0.5)


def build(cfg: Config, model: Model, plan: Plan = Plan()) -> Objective:
    """The cross-entropy, in nats, of all comparisons of a prompt's responses: the mean over its
    pairs, summed over prompts; the weight is the number of prompts that compare anything. All
    responses are read in one forward pass, each reward at the last token of its text.

    Reported: nll (of the labels, without margin, smoothing and centring), accuracy (equal rewards
    are half right), margin (better minus worse), brier, and over all: calibration (expected
    calibration error), reward_mean, reward_std.

    Raises: ValueError for an encoder-decoder.
    """
    if model.kind == "encoder_decoder":
        raise ValueError("objective: reward reads one text a row, and the model reads pairs")

    def loss(
        params: param.Tree, frozen: param.Tree, batch: Choices, key: jax.Array | None
    ) -> tuple[jax.Array, jax.Array, dict[str, jax.Array]]:
        r = rewards(model, params, batch, key)  # [B, K]
        exists = (batch.segments > 0).any(-1) & (batch.rank >= 0)
        pairs = ranking.comparisons(batch.rank, batch.preference, batch.score, exists)
        apart = ranking.differences(r)  # [B, K, K]
        gap = apart - cfg.margin * pairs.margin
        each = ranking.cross_entropy(gap, pairs.target, cfg.smoothing)
        each += cfg.centre * (r[:, :, None] + r[:, None, :]) ** 2
        metrics = {
            "nll": ranking.cross_entropy(apart, pairs.target),
            "accuracy": ranking.agreement(apart, pairs.target),
            "margin": apart,
            "brier": ranking.brier(apart, pairs.target),
        }
        sums = {name: ranking.mean(pairs, value) for name, value in metrics.items()}
        sums["reliability"] = ranking.reliability(pairs, apart, _BINS)
        sums["moments"] = ranking.moments(r, exists)
        return ranking.mean(pairs, each), ranking.prompts(pairs), sums

    return Objective(model.spec | {"score": value_head.spec(model)}, loss, report=_report)


def rewards(
    model: Model, params: param.Tree, batch: Choices, key: jax.Array | None = None
) -> jax.Array:
    """float32[B, K]: the reward of every text, read at its last token."""
    return score(model, params, log_probs.flat(batch), key).reshape(batch.rank.shape)


def score(model: Model, params: param.Tree, rows: Any, key: jax.Array | None = None) -> jax.Array:
    """float32[N]: the reward of each row of texts with tokens, segments and positions [N, T]."""
    x = log_probs.forward(model, params, rows, key).x
    return value_head.at_end(params["score"], x, rows.segments)


def _report(sums: dict[str, jax.Array]) -> dict[str, jax.Array]:
    average, deviation = ranking.spread(sums["moments"])
    return {
        "calibration": ranking.calibration(sums["reliability"]),
        "reward_mean": average,
        "reward_std": deviation,
    }
