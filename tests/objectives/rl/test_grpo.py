"""GRPO and its relatives: whole losses against published values and gradients, the advantages that
`judge` makes, and what is refused."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlm import models
from jaxlm.core.batch import Rollout
from jaxlm.models import llama, t5
from jaxlm.objectives.rl import grpo
from tests import programs
from tests.objectives import free, published

V = 7
# TRL 1.16 weighs its KL penalty by the ratio unless configured not to
WITH_KL = {"beta": 0.04, "kl_estimator": "k3_ratio"}
WIDE = {"clip_low": 0.2, "clip_high": 0.2}
FIRST = ("grpo", "dr_grpo", "dapo_ehigh0.28", "gspo")
PUBLISHED = {
    "grpo": grpo.Config(**WITH_KL),
    "grpo_nobias_kl": grpo.Config(beta=0.04, kl_estimator="k3"),
    "grpo_beta0": grpo.Config(),
    "grpo_delta1.3": grpo.Config(most=1.3, **WITH_KL),
    "dr_grpo": grpo.Config(variant="dr_grpo", divisor=6.0, **WITH_KL),
    "dapo": grpo.Config(variant="dapo", **WIDE, **WITH_KL),
    "dapo_ehigh0.28": grpo.Config(variant="dapo", **WITH_KL),
    "bnpo": grpo.Config(variant="reinforce", **WITH_KL),
    "gspo": grpo.Config(variant="gspo", **WIDE, **WITH_KL),
    "cispo_ehigh5": grpo.Config(variant="cispo", **WITH_KL),
    "sapo": grpo.Config(variant="sapo", **WITH_KL),
    "vespo": grpo.Config(variant="vespo", **WITH_KL),
    # its ratio by token here, and what is weighted by its length is a sum
    "luspo": grpo.Config(variant="dr_grpo", divisor=1.0, **WITH_KL),
}


@pytest.fixture(scope="module")
def anchors():
    return published.blocks()


@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=[] if n in FIRST else [pytest.mark.slow]) for n in PUBLISHED],
)
def test_values_and_gradients_are_the_published_ones(anchors, name):
    """Through the whole objective. The gradient in a target's logit is that in its log-probability
    times 1 - p, as `free.given` leaves the rest alone but for its share."""
    cfg, block = PUBLISHED[name], anchors["grpo_family"]
    given = {k: np.array(v) for k, v in block["inputs"].items() if isinstance(v, list)}
    right = np.array(anchors["grpo_family_grads_wrt_logps"]["outputs"][name])
    mask = given["mask"].astype(float)
    with jax.enable_x64(True):
        logits, targets = free.given(given["logps"], V)
        batch = free.rollout(
            mask,
            given["old_logps"],
            reference=given["ref_logps"],
            advantage=mask * given["advantages"][:, None],
            targets=targets,
        )
        objective = grpo.build(cfg, free.model(*logits.shape))
        assert sorted(objective.frozen) == (["reference"] if cfg.beta else [])
        value, metrics, grads = free.slope(objective, {"logits": logits}, {}, batch)
    np.testing.assert_allclose(value, block["outputs"][name], atol=1e-7)
    at_target = np.take_along_axis(grads["logits"], targets[..., None], -1)[..., 0]
    np.testing.assert_allclose(at_target, right * -np.expm1(given["logps"]), atol=1e-7)
    if cfg.beta:
        k1 = ((given["logps"] - given["ref_logps"]) * mask).sum() / mask.sum()
        np.testing.assert_allclose(metrics["reference_kl1"], k1, atol=1e-6)


def of(score, lengths, **more):
    """Responses of these scores and lengths, in rows of 5 tokens."""
    n = len(score)
    weight = (np.arange(5) < np.array(lengths)[:, None]).astype(np.float32)
    zero, ids = np.zeros((n, 5), np.float32), np.zeros((n, 5), np.int32)
    parts = {"behaviour": zero, "reference": zero, "value": zero, "finished": np.ones(n, bool)}
    parts |= {"weight": weight, "score": np.array(score, np.float32)}
    parts |= dict.fromkeys(("tokens", "targets", "segments", "positions"), ids)
    return Rollout(**parts | more)


def advantages_of(cfg, rows, coefficient, group):
    """(advantage, returns, metrics) of groups of rows, in one program."""
    compiled = programs.Whole(grpo).group_advantages
    return compiled(cfg, rows, coefficient, group=group, longest=5)


def test_advantages_of_every_variant_sum_to_0_in_a_group():
    whole = of([1, 0, 0, 1, 0.3, 0.3, 0.3, 0.3], [5, 1, 2, 3, 4, 5, 1, 2])
    right = {"standardised": 0.8660239, "centred": 0.5, "left_out": 2 / 3}
    for name, variant in grpo.VARIANTS.items():
        cfg = grpo.Config(variant=name)
        advantage, _, metrics = advantages_of(cfg, whole, cfg.beta, 4)
        assert not np.any(np.asarray(advantage)[whole.weight == 0])
        first = np.asarray(advantage)[:, 0]
        if variant.advantage in right:
            wanted = right[variant.advantage] * np.array([1, -1, -1, 1, 0, 0, 0, 0])
            np.testing.assert_allclose(first, wanted, atol=1e-6)
        else:
            rows = advantage[whole.weight > 0]
            np.testing.assert_allclose(rows.mean(), 0, atol=1e-6)
            np.testing.assert_allclose(rows.std(ddof=1), 1, rtol=1e-5)
        assert metrics["ties"] == 0.5 and metrics["length"] == 23 / 8
        np.testing.assert_allclose(metrics["score"], 3.2 / 8, rtol=1e-6)


def test_reinforce_gives_a_token_what_later_ones_cost():
    """Token t's return is the score less the penalty of t and all later tokens, not of earlier."""
    r = np.random.default_rng(0)
    behaviour, reference = (r.normal(size=(4, 5)).astype(np.float32) for _ in range(2))
    whole = of([1, 0, 2, 0], [5, 2, 3, 4], behaviour=behaviour, reference=reference)
    cfg = grpo.Config(variant="reinforce", beta=0.1, kl="reward")
    advantage, _, metrics = advantages_of(cfg, whole, 0.1, 2)
    cost = 0.1 * (behaviour - reference) * whole.weight
    to_go = whole.score[:, None] - np.cumsum(cost[:, ::-1], 1)[:, ::-1]
    kept = to_go[whole.weight > 0]
    right = (to_go - kept.mean()) / kept.std(ddof=1) * whole.weight
    np.testing.assert_allclose(advantage, right, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(metrics["kl"], cost.sum() / 0.1 / 4, rtol=1e-5)
    baseline = dataclasses.replace(cfg, variant="reinforce_baseline")
    based, _, _ = advantages_of(baseline, whole, 0.1, 2)
    to_go = to_go - np.array([0.5, 0.5, 1, 1])[:, None]
    kept = to_go[whole.weight > 0]
    right = (to_go - kept.mean()) / kept.std(ddof=1) * whole.weight
    np.testing.assert_allclose(based, right, rtol=1e-4, atol=1e-5)


def test_scores_are_shaped_before_they_are_compared():
    whole = of([9, 0, 1, 1], [5, 2, 3, 4], finished=np.array([True, True, False, True]))
    cfg = grpo.Config(variant="dr_grpo", score_clip=2.0, unfinished=-1.0, overlong=2)
    _, reward, _ = advantages_of(cfg, whole, 0.0, 2)
    # clipped and at full length; short; did not end; halfway over
    np.testing.assert_allclose(reward[:, 0], [2 - 1, 0, -1, 1 - 0.5])


def test_dapo_counts_no_group_that_scored_alike():
    with jax.enable_x64(True):
        log_probs = np.full((4, 3), -1.0)
        logits, targets = free.given(log_probs, V)
        weight = np.ones((4, 3))
        advantage = np.array([1.0, -1.0, 0.0, 0.0])[:, None] * weight
        batch = free.rollout(weight, log_probs, advantage=advantage, targets=targets)
        model = free.model(*logits.shape)
        for name, tokens in (("dapo", 6), ("cispo", 12)):
            objective = grpo.build(grpo.Config(variant=name), model)
            weigh = jax.jit(lambda p, objective=objective: objective.loss(p, {}, batch, None)[1])
            assert weigh({"logits": logits}) == tokens


def test_a_ratio_of_1_is_known_as_such_and_its_largest_is_recorded():
    log_probs = np.random.default_rng(1).uniform(-3, -0.5, (2, 4)).astype(np.float32)
    logits, targets = free.given(log_probs, V)
    weight = np.array([[1, 1, 1, 0], [1, 1, 0, 0]], np.float32)
    objective = grpo.build(grpo.Config(temperature=1.0), free.model(*logits.shape))
    for gap, low, high in ((0.0, 0, 1e-6), (0.3, 0.3, 0.36), (-2.0, 2.0, 2.38)):
        behaviour = log_probs.copy()
        behaviour[0, 2] -= gap
        behaviour[0, 3] = -99.0  # of no token
        batch = free.rollout(weight, behaviour, targets=targets)
        metrics = free.slope(objective, {"logits": jnp.asarray(logits)}, {}, batch)[1]
        assert low <= metrics["ratio_gap"] <= high
        np.testing.assert_allclose(metrics["ratio"], 1 + (np.exp(gap) - 1) / 5, rtol=1e-5)


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"clip_low": 0.0}, "objective.clip_low: 0.0"),
        ({"temperature": -1.0}, "objective.temperature"),
        ({"beta": -0.1}, "objective.beta"),
        ({"dual": 1.0}, "above 1"),
        (
            {"variant": "sapo", "clip_high": 0.2},
            "clip_high: 0.2 given; it must be None with sapo, which has nothing",
        ),
        ({"variant": "cispo", "clip_low": 0.2}, "clip_low: 0.2 given; it must be None with cispo"),
        ({"divisor": 9.0}, "divisor: 9.0 given; it must be 64.0 with grpo: only dr_grpo"),
        ({"gamma": 0.9}, "gamma: 0.9 given; it must be 1.0 with grpo, which rewards whole"),
    ],
)
def test_a_field_that_would_do_nothing_is_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        grpo.Config(**fields)


def test_only_what_continues_texts_can_learn_from_its_continuations():
    small = {"vocab": 8, "embed": 8, "layers": 1, "heads": 2, "ffn": 8}
    with pytest.raises(ValueError, match="model t5, which is not a decoder; grpo requires one"):
        grpo.build(grpo.Config(), models.build(t5.Config(encoder=1, head=4, **small)))
    objective = grpo.build(grpo.Config(beta=0.1), models.build(llama.Config(kv=1, head=4, **small)))
    assert objective.frozen["reference"].run is None
