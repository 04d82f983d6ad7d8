"""Reward models: the loss against references, and what a reward is read from."""

import dataclasses
import functools
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlm import models, objectives
from jaxlm.core.batch import Choices
from jaxlm.data.records import preferences
from jaxlm.models import llama
from jaxlm.models.layers import value_head
from jaxlm.objectives import log_probs
from jaxlm.objectives.preference import reward
from jaxlm.ops.losses import ranking
from jaxlm.train.run import objective_data
from tests import programs
from tests.families import t5 as t5_cases
from tests.families.sizes import T, V
from tests.objectives import published
from tests.objectives.cases import reward as cases

MODEL = llama.Config(vocab=V, embed=16, layers=2, heads=4, kv=2, head=4, ffn=24, context=T)


@functools.partial(jax.jit, static_argnames=("margin", "smoothing", "centre"))
def loss_of(r, rank, preference=None, score=None, margin=0.0, smoothing=0.0, centre=0.0):
    """(loss sum, weight) of rewards [B, K], by the functions of the objective."""
    r, rank = jnp.asarray(r), jnp.asarray(rank)
    preference = jnp.ones(len(r)) if preference is None else jnp.asarray(preference)
    score = jnp.zeros(r.shape) if score is None else jnp.asarray(score)
    pairs = ranking.comparisons(rank, preference, score, jnp.ones(r.shape, bool))
    logit = ranking.differences(r) - margin * pairs.margin
    each = ranking.cross_entropy(logit, pairs.target, smoothing)
    each += centre * (r[:, :, None] + r[:, None, :]) ** 2
    return ranking.mean(pairs, each), ranking.prompts(pairs)


def reference(r, rank, preference, score, margin, smoothing, centre):
    """The same in float64, pair by pair, as the formulas are written."""
    total = weight = 0.0
    for b in range(len(r)):
        pairs = [
            (i, j)
            for i, j in itertools.permutations(range(r.shape[1]), 2)
            if 0 <= rank[b, i] < rank[b, j]
        ]
        for i, j in pairs:
            d = r[b, i] - r[b, j] - margin * (score[b, i] - score[b, j])
            t = preference[b] * (1 - smoothing) + (1 - preference[b]) * smoothing
            nll = t * math.log1p(math.exp(-d)) + (1 - t) * math.log1p(math.exp(d))
            total += (nll + centre * (r[b, i] + r[b, j]) ** 2) / len(pairs)
        weight += bool(pairs)
    return total, weight


@pytest.mark.parametrize(
    "name, settings",
    [
        ("loss", {}),
        ("loss_margin", {"margin": 1.0}),
        ("loss_margin_center", {"margin": 1.0, "centre": 0.01}),
    ],
)
def test_the_loss_is_the_anchors(name, settings):
    block = published.blocks()["reward_model"]
    given = {k: np.array(v) for k, v in block["inputs"].items()}
    with jax.enable_x64(True):
        r = np.stack([given["chosen"], given["rejected"]], 1)
        rated = np.stack([given["margin"], np.zeros(5)], 1)
        rank = np.tile([0, 1], (5, 1))
        total, weight = loss_of(r, rank, score=rated, **settings)
    np.testing.assert_allclose(total / weight, block["outputs"][name], rtol=1e-6)


def test_lists_ties_doubts_and_ratings_are_as_the_formulas_say():
    b = cases.batch(3)
    r = np.random.default_rng(4).standard_normal(b.rank.shape)
    settings = {"margin": 0.7, "smoothing": 0.2, "centre": 0.05}
    exists = jnp.asarray(b.rank >= 0)
    pairs = ranking.comparisons(b.rank, b.preference, b.score, exists)
    logit = ranking.differences(jnp.asarray(r)) - 0.7 * pairs.margin
    each = ranking.cross_entropy(logit, pairs.target, 0.2)
    each += 0.05 * jnp.asarray(r[:, :, None] + r[:, None, :]) ** 2
    want = reference(r, b.rank, b.preference, b.score, **settings)
    np.testing.assert_allclose(ranking.mean(pairs, each), want[0], rtol=1e-5)
    assert ranking.prompts(pairs) == want[1] == 6


def test_a_prompt_counts_as_one_however_many_responses_it_has():
    """Ouyang et al. 2022: the mean over the K (K - 1) / 2 pairs, not their sum."""
    r = np.random.default_rng(0).standard_normal((1, 4)).astype(np.float32)
    total, weight = loss_of(r, [[0, 1, 2, 3]])
    pairs = [math.log1p(math.exp(-(r[0, i] - r[0, j]))) for i in range(4) for j in range(i + 1, 4)]
    assert weight == 1
    np.testing.assert_allclose(total, np.mean(pairs), rtol=1e-6)


def test_the_gradient_is_the_probability_of_the_other_order():
    """d loss / d better = -sigmoid(worse - better); finite however far the rewards are apart."""
    grad = jax.jit(jax.grad(lambda r: loss_of(r, [[0, 1]])[0]))
    np.testing.assert_allclose(grad(jnp.array([[1.0, 3.0]])), [[-0.880797, 0.880797]], rtol=1e-5)
    for far in (1e4, -1e4):
        assert np.all(np.isfinite(grad(jnp.array([[far, -far]]))))
    assert np.isfinite(loss_of(jnp.array([[-1e4, 1e4]]), [[0, 1]])[0])


def test_equal_rewards_are_half_right_and_cost_log_two():
    r = jnp.zeros((4, 2))
    pairs = ranking.comparisons(
        jnp.tile(jnp.array([0, 1]), (4, 1)), jnp.ones(4), r, jnp.ones((4, 2), bool)
    )
    apart = ranking.differences(r)
    assert ranking.mean(pairs, ranking.agreement(apart, pairs.target)) / 4 == 0.5
    nll = ranking.mean(pairs, ranking.cross_entropy(apart, pairs.target)) / 4
    np.testing.assert_allclose(nll, math.log(2), rtol=1e-6)


def test_calibration_is_exact_over_parts_and_zero_where_confidence_is_accuracy():
    r = np.random.default_rng(1)
    apart = r.standard_normal((400, 2)) * 2
    # the label follows the rewards as often as they say
    first = r.random(400) < 1 / (1 + np.exp(apart[:, 1] - apart[:, 0]))
    rank, apart = jnp.asarray(np.stack([~first, first], 1), jnp.int32), jnp.asarray(apart)

    @jax.jit
    def sums(rank, r):
        n = len(r)
        pairs = ranking.comparisons(rank, jnp.ones(n), jnp.zeros((n, 2)), jnp.ones((n, 2), bool))
        return ranking.reliability(pairs, ranking.differences(r), 10)

    parts = [sums(rank[i : i + 200], apart[i : i + 200]) for i in (0, 200)]
    whole = sums(rank, apart)
    np.testing.assert_allclose(whole, np.add(*parts), rtol=1e-5)
    error = jax.jit(ranking.calibration)
    assert error(whole) < 0.08
    assert error(sums(rank, 3 * apart)) > 0.1  # three times as sure as it should be


# --- What a reward is read from --------------------------------------------------------------


@pytest.fixture(scope="module")
def built():
    model = models.build(MODEL)
    objective = objectives.build(reward.Config(), model)
    params = programs.drawn(objective.spec, 0)
    return model, objective, params, jax.jit(lambda p, b: reward.rewards(model, p, b))


def text_rows(texts, width, left=False):
    """`Choices` of one prompt with these texts."""
    shape = (1, len(texts), width)
    tokens, segments, positions = (np.zeros(shape, np.int32) for _ in range(3))
    for k, text in enumerate(texts):
        at = slice(width - len(text), width) if left else slice(0, len(text))
        tokens[0, k, at], segments[0, k, at] = text, 1
        positions[0, k, at] = np.arange(len(text))
    rank = np.arange(len(texts), dtype=np.int32)[None]
    ones = np.ones(1, np.float32)
    weight = np.float32(segments)
    return Choices(tokens, tokens, weight, segments, positions, rank, ones, 0 * np.float32(rank))


def test_a_reward_is_read_at_the_last_token_wherever_the_padding_is(built):
    """Full rows, padding on either side, and a text that ends in id 0, the id that fills rows: each
    is read where the text ends, not where an id says so."""
    model, _, params, run = built
    texts = [[3, 1, 4, 1, 5, 9, 2, 6], [7, 0], [5], [0, 0, 0]]
    right, left = (run(params, text_rows(texts, T, side)) for side in (False, True))
    np.testing.assert_allclose(right, left, atol=1e-5)
    b = text_rows(texts, T)
    x = jax.jit(lambda p, b: log_probs.forward(model, p, log_probs.flat(b)).x)(params, b)
    ends = np.stack([x[k, len(text) - 1] for k, text in enumerate(texts)])
    np.testing.assert_allclose(right[0], ends @ np.asarray(params["score"]), atol=1e-5)


def test_a_model_that_reads_a_constant_place_is_dead(built):
    """The first token is the same for both responses: a score read there says nothing."""
    model, objective, params, _ = built
    b = text_rows([[9, 1, 2, 3], [9, 4, 5]], T)
    loss = jax.jit(lambda b: objective.loss(params, {}, b, None))
    live = loss(b)[2]
    assert live["margin"] != 0 and live["accuracy"] in (0, 1)
    first = b._replace(segments=np.int32(np.arange(T) < 1) * b.segments)
    dead = loss(first)
    assert dead[2]["accuracy"] == 0.5 and dead[2]["margin"] == 0
    np.testing.assert_allclose(dead[0] / dead[1], math.log(2), rtol=1e-6)


def test_the_head_starts_small():
    """N(0, 1 / (D + 1)), Stiennon et al. 2020."""
    spec = value_head.spec(models.build(dataclasses.replace(MODEL, embed=4096)))
    drawn = spec.init(jax.random.key(1), spec)
    np.testing.assert_allclose(np.std(drawn), 4097**-0.5, rtol=0.05)


def test_wrong_settings_and_models_are_refused():
    for wrong in ({"margin": -1.0}, {"smoothing": 0.5}, {"centre": -0.1}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            reward.Config(**wrong)
    labelled = preferences.Preferences(source="-", format="labelled")
    problems = [*objective_data.problems(reward.Config(), models.build(MODEL), labelled)]
    assert problems[0].startswith("data.format: 'labelled' given; it must be one of comparisons")
    t5 = models.build(next(iter(t5_cases.CASES.values())))
    with pytest.raises(ValueError, match="pairs"):
        reward.build(reward.Config(), t5)


@pytest.mark.parity
def test_trl_agrees_in_value_and_gradient():
    """`RewardTrainer.compute_loss` on given rewards, with a margin and centring; but a tie counts
    half here and nothing there."""
    import collections
    import types

    torch = pytest.importorskip("torch")
    trl = pytest.importorskip("trl")
    r = np.random.default_rng(2).standard_normal((6, 2))
    margin = np.random.default_rng(3).uniform(0, 2, 6)
    given = torch.tensor(np.concatenate([r[:, 0], r[:, 1]])[:, None], requires_grad=True)
    same = types.SimpleNamespace(gather=lambda x: x, gather_for_metrics=lambda x: x)
    trainer = types.SimpleNamespace(
        model=types.SimpleNamespace(training=False),
        args=types.SimpleNamespace(center_rewards_coefficient=0.05),
        accelerator=same,
        _metrics=collections.defaultdict(lambda: collections.defaultdict(list)),
        _total_train_tokens=0,
        _tp_size=1,
    )
    inputs = {"margin": torch.tensor(margin), "attention_mask": torch.ones(12, 1)}
    answer = types.SimpleNamespace(logits=given)
    want = trl.RewardTrainer.compute_loss(trainer, lambda **_: answer, inputs)
    want.backward()
    metrics = trainer._metrics["eval"]
    with jax.enable_x64(True):
        rank, rated = np.tile([0, 1], (6, 1)), np.stack([margin, np.zeros(6)], 1)

        def mean(r):
            total, weight = loss_of(r, rank, score=rated, margin=1.0, centre=0.05)
            return total / weight

        value, grad = jax.jit(jax.value_and_grad(mean))(jnp.asarray(r))
    np.testing.assert_allclose(value, want.item(), rtol=1e-6)
    np.testing.assert_allclose(grad.T.reshape(-1), given.grad[:, 0].numpy(), rtol=1e-5, atol=1e-8)
    apart = r[:, 0] - r[:, 1]
    np.testing.assert_allclose(np.mean(ranking.wins(apart)), metrics["accuracy"][0])
    np.testing.assert_allclose(np.mean(apart), metrics["margin"][0])


def test_a_pair_of_which_a_model_is_certain_is_in_the_last_bin():
    """sigmoid(50) is 1 in float32: its bin is the last one, not one past it, which adds nothing."""
    r = jnp.array([[50.0, 0.0], [0.0, 50.0]])
    pairs = ranking.comparisons(
        jnp.array([[0, 1], [0, 1]]), jnp.ones(2), 0 * r, jnp.ones((2, 2), bool)
    )
    bins = ranking.reliability(pairs, ranking.differences(r), 10)
    np.testing.assert_allclose(bins[-1], [2, 2, 1], rtol=1e-6)
    assert not bins[:-1].any()
    np.testing.assert_allclose(ranking.calibration(bins), 0.5, rtol=1e-6)
