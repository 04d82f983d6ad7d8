"""GRPO and its relatives against their formulas in NumPy, over a bigram model: value, weight,
gradient and what is reported. `test_ppo.py` has PPO's."""

import functools

import numpy as np
import pytest

from jaxlm import objectives
from jaxlm.core.batch import Rollout
from jaxlm.objectives.rl import grpo
from tests.objectives import bigram
from tests.objectives.bigram import PARAMS, T, V, log_softmax, sigmoid

CONFIGS = {
    "grpo": grpo.Config(beta=0.1, temperature=0.7, entropy=0.05, most=2.0),
    "dr_grpo": grpo.Config(variant="dr_grpo", beta=0.2, kl_estimator="k2", divisor=3.0),
    "dapo": grpo.Config(variant="dapo", beta=0.1, kl_estimator="k3_ratio", dual=1.5),
    "gspo": grpo.Config(variant="gspo", beta=0.1, kl_estimator="k3_ratio"),
    "cispo": grpo.Config(variant="cispo"),
    "sapo": grpo.Config(variant="sapo"),
    "luspo": grpo.Config(variant="luspo"),
    "vespo": grpo.Config(variant="vespo"),
    "rloo": grpo.Config(variant="rloo", beta=0.3, kl="reward"),
    "reinforce": grpo.Config(variant="reinforce", clip_low=0.1, clip_high=0.4),
}
# (ratio of, surrogate, mean, clip down, clip up), as the papers have them
KINDS = {
    "grpo": ("token", "clipped", "sequence", 0.2, 0.2),
    "dr_grpo": ("token", "clipped", "constant", 0.2, 0.2),
    "dapo": ("token", "clipped", "token", 0.2, 0.28),
    "gspo": ("mean", "clipped", "sequence", 3e-4, 4e-4),
    "cispo": ("token", "capped", "token", None, 5.0),
    "sapo": ("token", "gated", "sequence", None, None),
    "luspo": ("mean", "clipped", "sequence_sum", 3e-4, 4e-4),
    "vespo": ("sum", "shaped", "token", None, None),
    "rloo": ("sum", "clipped", "sequence", 0.2, 0.2),
    "reinforce": ("token", "clipped", "token", 0.1, 0.4),
}


@functools.cache
def batch():
    """Ragged rows with a hole; the third scored as all of its group, the last is filling."""
    r = np.random.default_rng(3)
    weight = np.array([[1] * 6, [0, 1, 1, 0, 1, 0], [1, 1, 0, 0, 0, 0], [0, 0, 1, 1, 1, 1],
                       [1, 0, 0, 0, 0, 0], [0] * 6], float)  # fmt: skip
    tokens, targets = (r.integers(0, V, weight.shape).astype(np.int32) for _ in range(2))
    now = log_softmax(PARAMS["table"][tokens])
    now = np.take_along_axis(now, targets[..., None], -1)[..., 0]
    noise = r.normal(-0.2, 0.9, weight.shape)
    noise[3] *= 0.1  # a ratio near 1, of a response that is better than its group
    behaviour = weight * (now + noise)
    reference = weight * (now + r.normal(0, 0.7, weight.shape))
    advantage = np.array([1.2, -0.7, 0, 0.4, -1.5, 0])[:, None] * (1 + 0.1 * np.arange(T)) * weight
    ids = np.ones(weight.shape, np.int32)
    zero = 0 * weight
    return Rollout(
        tokens, targets, weight, ids, ids, behaviour, reference, zero, advantage, zero
    )  # fmt: skip


@functools.cache
def losses():
    built = {c: objectives.build(cfg, bigram.model()) for c, cfg in CONFIGS.items()}
    # nothing was sampled where the weight is 0, so nothing there is read
    b, there = batch(), batch().weight > 0
    b = b._replace(
        behaviour=np.where(there, b.behaviour, np.nan),
        reference=np.where(there, b.reference, np.nan),
    )
    given = [dict.fromkeys(built, x) for x in (PARAMS, {"reference": PARAMS}, b)]
    return bigram.slopes(built, *given)


def read(cfg, params):
    """(log-probability of targets, entropy), [N, T]."""
    log_p = log_softmax(params["table"][batch().tokens] / cfg.temperature)
    at = np.take_along_axis(log_p, batch().targets[..., None], -1)[..., 0]
    return at, -(np.exp(log_p) * log_p).sum(-1)


def ratio_of(level, log_ratio, weight):
    if level == "token":
        return np.exp(log_ratio)
    total = (weight * log_ratio).sum(1, keepdims=True)
    return np.exp(total / np.maximum(weight.sum(1, keepdims=True), 1) if level == "mean" else total)


def surrogate(case, params, held):
    """(loss, whether clipping bound it), [N, T]."""
    cfg, b = CONFIGS[case], batch()
    level, kind, _, low, high = KINDS[case]
    now, still = (np.where(b.weight > 0, read(cfg, p)[0], 0) for p in (params, held))
    r, fixed = (ratio_of(level, x - b.behaviour, b.weight) for x in (now, still))
    a = b.advantage
    if level == "mean":
        a = (b.weight * a).sum(1, keepdims=True) / np.maximum(b.weight.sum(1, keepdims=True), 1)
    none = np.zeros(b.weight.shape, bool)
    if kind == "capped":
        return -np.minimum(fixed, high) * a * now, (r > high) & (a > 0)
    if kind == "gated":
        tau = np.where(a > 0, 1.0, 1.05)
        return -4 / tau * sigmoid(tau * (r - 1)) * a, none
    if kind == "shaped":
        k, l_ = np.where(a >= 0, 2, 3), np.where(a >= 0, 3, 2)
        return -(fixed**k) * np.exp(l_ * (1 - fixed)) * a * now, none
    free = a * (r if cfg.most is None else np.minimum(r, cfg.most))
    bound = a * np.clip(r, 1 - low, 1 + high)
    loss = -np.minimum(free, bound)
    if cfg.dual is not None:
        loss = np.where(a < 0, np.minimum(loss, cfg.dual * -a), loss)
    return loss, none | (bound < free)


def oracle(case, params, held):
    """(sum, weight) of the whole loss."""
    cfg, b = CONFIGS[case], batch()
    level, _, mean, _, _ = KINDS[case]
    each = surrogate(case, params, held)[0]
    now, entropy = read(cfg, params)
    now = np.where(b.weight > 0, now, 0)
    if cfg.beta and cfg.kl == "loss":
        d = now - b.reference
        kl = d**2 / 2 if cfg.kl_estimator == "k2" else np.exp(-d) - 1 + d
        if cfg.kl_estimator == "k3_ratio":
            of = "mean" if level == "mean" else "token"
            kl = kl * ratio_of(of, now - b.behaviour, b.weight)
        each = each + cfg.beta * kl
    each = each - cfg.entropy * entropy
    weight = b.weight
    if case == "dapo":
        weight = weight * (np.arange(6) != 2)[:, None]
    rows, count = (weight * each).sum(1), weight.sum(1)
    if mean == "token":
        return rows.sum(), count.sum()
    responses = (count > 0).sum()
    if mean == "sequence":
        return (rows[count > 0] / count[count > 0]).sum(), responses
    return rows.sum() / (cfg.divisor if mean == "constant" else 1), responses


@pytest.mark.parametrize("case", CONFIGS)
def test_losses_of_rollouts_are_their_formulas(case):
    weight = oracle(case, PARAMS, PARAMS)[1]
    bigram.agrees(losses()[case], lambda p, held: oracle(case, p, held)[0], PARAMS, weight)


@pytest.mark.parametrize("case", CONFIGS)
def test_reports_of_rollouts_are_means_over_tokens(case):
    cfg, b, here = CONFIGS[case], batch(), batch().weight > 0
    report = objectives.build(cfg, bigram.model()).report(losses()[case][2])
    now, entropy = read(cfg, PARAMS)
    loss, clipped = (np.broadcast_to(x, now.shape) for x in surrogate(case, PARAMS, PARAMS))
    moved, away = (now - b.behaviour)[here], (now - b.reference)[here]
    right = {
        "policy_loss": loss[here].mean(),
        "entropy": entropy[here].mean(),
        "clipped": clipped[here].mean(),
        "ratio": np.exp(moved).mean(),
        "behaviour_kl1": -moved.mean(),
        "behaviour_kl2": (moved**2).mean() / 2,
        "behaviour_kl3": (np.exp(moved) - 1 - moved).mean(),
    }
    if cfg.beta:
        right |= {
            "reference_kl1": away.mean(),
            "reference_kl2": (away**2).mean() / 2,
            "reference_kl3": (np.exp(-away) - 1 + away).mean(),
        }
    assert sorted(report) == sorted([*right, "ratio_gap"])
    for name, value in right.items():
        np.testing.assert_allclose(report[name], value, rtol=1e-4, atol=1e-6, err_msg=name)
    largest = np.abs(moved).max()
    assert largest <= report["ratio_gap"] * (1 + 1e-6) <= largest * 2**0.25 * (1 + 1e-5)
    assert 0 < clipped[here].mean() < 1 or case in ("sapo", "vespo")


def test_clips_of_variants_are_those_of_their_sources():
    """A wrong digit in a published constant is a wrong objective."""
    for name, (level, kind, mean, low, high) in KINDS.items():
        variant = grpo.VARIANTS[name]
        assert (variant.level, variant.surrogate, variant.aggregate) == (level, kind, mean)
        if name != "reinforce":
            assert (variant.low, variant.high) == (low, high)
    plain = grpo.VARIANTS["reinforce"]
    assert (plain.low, plain.high) == (0.2, 0.2)
    assert plain._replace(advantage="whitened_centred") == grpo.VARIANTS["reinforce_baseline"]
    assert [n for n, v in grpo.VARIANTS.items() if not v.counts_ties] == ["dapo"]
