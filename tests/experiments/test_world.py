"""The laws of the enumerable world, each against a computation without its formulas."""

import itertools
import json

import jax
import numpy as np
import pytest

from experiments.rlhf import align, overoptimise, world
from jaxlm import models
from jaxlm.models import llama
from jaxlm.objectives import log_probs
from jaxlm.parallel.plan import Plan
from tests import programs

SMALL = world.World(symbols=3, length=3, prompts=2)
R = world.reward(SMALL)
REF = world.source(SMALL, 0)


def _random(seed, spread=1.0):
    """A policy drawn at random."""
    return world.normalised(np.random.default_rng(seed).normal(0, spread, R.shape))


def test_the_listing_is_complete():
    for size in (SMALL, world.World()):
        found = world.listing(size)
        texts = [tuple(t[real]) for t, real in zip(found.tokens, found.real)]
        assert len(set(texts)) == len(texts)
        for text, ended in zip(texts, found.ended):
            assert size.end not in text[:-1] and ended == (text[-1] == size.end)
            assert ended or len(text) == size.length
        assert (world.index(size, found.tokens, found.real) == np.arange(len(texts))).all()
    assert len(found.tokens) == 3906
    assert sum(1 for _ in found.tokens) == sum(5**n for n in range(6))


def test_the_source_is_markov():
    """Its probabilities sum to 1, and the ratio of two texts that differ in the end alone depends
    on the last symbols alone."""
    np.testing.assert_allclose(np.exp(REF).sum(1), 1, atol=1e-12)
    found = world.listing(SMALL)
    place = {tuple(t[real]): i for i, (t, real) in enumerate(zip(found.tokens, found.real))}
    ratios = [REF[1, place[a, 1, 2]] - REF[1, place[a, 1, 0]] for a in range(3)]
    np.testing.assert_allclose(ratios, ratios[0], atol=1e-12)
    assert abs(REF[0, place[0, 1, 2]] - REF[0, place[0, 1, 0]] - ratios[0]) > 0.1


def test_the_reward_is_what_it_says():
    size = world.World()
    found, r = world.listing(size), world.reward(size)
    place = {tuple(t[real]): i for i, (t, real) in enumerate(zip(found.tokens, found.real))}
    told = {
        (0, (5,)): 0.8,
        (0, (0, 4, 0, 4, 1)): 2 * 0.6 + 2 * 0.7 - 0.5,
        (3, (3, 4, 4, 5)): 0.6 + 0.7 - 2 * 0.5 + 0.8,
        (2, (1, 0, 1, 0, 1)): 0.0,
    }
    for (prompt, text), value in told.items():
        assert r[prompt, place[text]] == pytest.approx(value)


def test_a_model_is_listed_as_it_reads():
    """Probabilities sum to 1 and are those of each text by the library's own log-probabilities."""
    cfg = llama.Config(vocab=4, embed=16, layers=2, heads=2, kv=2, head=8, ffn=24, context=8)
    model = models.build(cfg)
    params = programs.drawn(model.spec, 1)
    log_p = world.policy(model, SMALL)(params)
    np.testing.assert_allclose(np.exp(log_p).sum(1), 1, atol=1e-12)
    count = len(world.listing(SMALL).tokens)
    prompt, index = np.repeat([0, 1], count), np.tile(np.arange(count), 2)
    rows = world.batch(SMALL, prompt, index)

    def read(params, rows):
        x = log_probs.forward(model, params, rows).x
        return log_probs.log_probs(model, params, x, rows.targets, Plan()) * rows.weight

    each = np.asarray(jax.jit(read)(params, rows), np.float64)
    np.testing.assert_allclose(each.sum(1).reshape(2, -1), log_p, atol=2e-6)
    pairs = world.choices(SMALL, prompt[:, None], index[:, None], 0 * index[:, None])
    assert (pairs.weight[:, 0, :-1] == rows.weight).all() and not pairs.weight[..., -1].any()
    assert (pairs.segments[:, 0].sum(1) == 2 + rows.weight.sum(1)).all()


@pytest.mark.parametrize("beta", [0.1, 0.5, 3.0])
def test_no_policy_is_better_than_the_best(beta):
    """The formulas of pi* and J* against any other policy, and against ascent without formulas."""
    log_best, most = world.best(REF, R, beta)
    at_best = world.standing(log_best, REF, R, beta)
    assert at_best.objective == pytest.approx(most, abs=1e-12)
    others = [_random(seed, 3.0) for seed in range(20)]
    others += [world.normalised(log_best + 0.1 * other) for other in others]
    assert max(world.standing(p, REF, R, beta).objective for p in others) < most
    z = np.zeros_like(R)
    for _ in range(4000):  # along the gradient in logits, p * (A - E[A])
        log_p = world.normalised(z)
        a = R - beta * (log_p - REF)
        z += 0.5 / beta * (a - (np.exp(log_p) * a).sum(1, keepdims=True))
    assert world.standing(world.normalised(z), REF, R, beta).objective == pytest.approx(most)


def test_what_cannot_be_is_refused():
    with pytest.raises(ArithmeticError, match="sum to"):
        world.standing(REF + 0.01, REF, R, 0.3)
    most = world.best(REF, R, 0.3)[1]
    with pytest.raises(ArithmeticError, match="exceeds J"):
        world.check(most + 0.02, most, 0.01)
    with pytest.raises(ArithmeticError, match="exceeds J"):
        world.check(float("nan"), most, 0.01)


def test_the_frontier_is_the_most_reward_at_a_divergence():
    for beta in (0.2, 1.0):
        log_best, _ = world.best(REF, R, beta)
        kl = world.divergence(log_best, REF)
        assert world.frontier(REF, R, kl) == pytest.approx(world.expected(log_best, R), abs=1e-9)
        assert world.efficiency(log_best, REF, R) == pytest.approx(1, abs=1e-9)
        assert world.gap(log_best, REF, R, beta) == pytest.approx(1, abs=1e-9)
    assert world.gap(REF, REF, R, 1.0) == pytest.approx(0, abs=1e-9)
    assert all(world.efficiency(_random(seed), REF, R) < 1 for seed in range(20))
    assert world.frontier(REF, R, 50.0) == pytest.approx(R.max(1).mean())


def test_a_fit_sees_no_constant_of_a_prompt():
    correlation, slope = world.fit(2 * R + [[5.0], [-3.0]], R, REF)
    assert (correlation, slope) == pytest.approx((1, 2))
    correlation, slope = world.fit(-R, R, REF)
    assert (correlation, slope) == pytest.approx((-1, -1))


def test_what_preferences_tell_against_all_pairs():
    values = np.round(R + 0.5 * np.random.default_rng(0).normal(size=R.shape), 1)  # with ties
    right = nll = 0.0
    for x, a, b in itertools.product(range(2), range(R.shape[1]), range(R.shape[1])):
        mass = np.exp(REF[x, a] + REF[x, b]) / 2
        p = 1 / (1 + np.exp(R[x, b] - R[x, a]))
        d = values[x, a] - values[x, b]
        right += mass * (p * ((d > 0) + 0.5 * (d == 0)) + (1 - p) * ((d < 0) + 0.5 * (d == 0)))
        nll += mass * (p * np.log1p(np.exp(-d)) + (1 - p) * np.log1p(np.exp(d)))
    assert world.accuracy(values, R, REF) == pytest.approx(right, abs=1e-12)
    assert world.preference_nll(values, R, REF) == pytest.approx(nll, abs=1e-12)
    assert world.accuracy(R, R, REF) > right and world.preference_nll(R, R, REF) < nll
    assert world.accuracy(0 * R, R, REF) == pytest.approx(0.5, abs=1e-12)


def test_the_best_of_two_against_all_pairs():
    values = np.round(R, 1)
    found = np.zeros_like(R)
    for x, a, b in itertools.product(range(2), range(R.shape[1]), range(R.shape[1])):
        mass, d = np.exp(REF[x, a] + REF[x, b]), values[x, a] - values[x, b]
        found[x, a] += mass * ((d > 0) + 0.5 * (d == 0))
        found[x, b] += mass * ((d < 0) + 0.5 * (d == 0))
    np.testing.assert_allclose(np.exp(world.best_of(REF, values, 2)), found, atol=1e-12)
    np.testing.assert_allclose(world.best_of(REF, values, 1), REF, atol=1e-9)


def test_the_divergence_of_the_best_of_n():
    """log n - (n - 1) / n where completions are many and their values differ, and never more."""
    size = world.World()
    even = world.normalised(np.zeros((1, 3906)))
    values = np.random.default_rng(0).normal(size=even.shape)
    for n in (2, 8, 64):
        bound = world.best_of_kl(n)
        assert world.divergence(world.best_of(even, values, n), even) == pytest.approx(bound, 1e-2)
        for r, ref in ((values, even), (world.reward(size), world.source(size, 0))):
            assert world.divergence(world.best_of(ref, r, n), ref) <= bound


def test_draws_are_as_frequent_as_they_are_probable():
    rng = np.random.default_rng(0)
    index = world.draw(rng, REF, np.ones(40000, int))
    count = np.bincount(index, minlength=R.shape[1])
    expected = 40000 * np.exp(REF[1])
    assert ((count - expected) ** 2 / expected)[expected > 5].sum() < 80  # of 40 degrees: p = 2e-4
    lists = world.preferences(rng, SMALL, REF, 2 * R, (20000,), 3)
    assert (lists.rank == [0, 1, 2]).all() and (
        lists.tokens[:, :1, 1] == lists.tokens[..., 1]
    ).all()
    assert lists.tokens.shape == (20000, 3, SMALL.width)
    rows = world.index(SMALL, lists.tokens[..., 2:], lists.segments[..., 2:] > 0)
    r = R[lists.tokens[..., 1], rows]
    limit = world.accuracy(R, 2 * R, REF)
    apart = r[:, [0, 0, 1]] - r[:, [1, 2, 2]]
    right = ((apart > 0) + 0.5 * (apart == 0)).mean()  # of every pair of a list
    assert right == pytest.approx(limit, abs=0.012)  # 5 standard errors


@pytest.mark.slow
@pytest.mark.parametrize("name", ["align", "overoptimise"])
def test_quick(name, tmp_path, capsys):
    """Each experiment runs from the source to its table, and none of its policies is above J*."""
    experiment = {"align": align, "overoptimise": overoptimise}[name]
    experiment.main(["--quick", "--seeds", "1", "--out", str(tmp_path)])
    record = tmp_path / ("results.json" if name == "align" else "overoptimise.json")
    results = json.loads(record.read_text("utf-8"))
    assert [seed["seed"] for seed in results["seeds"]] == [0]
    assert record.with_suffix(".png").stat().st_size > 10_000
    assert record.with_suffix(".md").read_text("utf-8") in capsys.readouterr().out
    for seed in results["seeds"]:
        if name == "align":
            assert seed["dpo"]["first_loss"] == pytest.approx(np.log(2), abs=1e-5)
            assert max(seed[stage]["ratio_gap"] for stage in ("ppo", "grpo")) < 1e-5
            assert all(seed[s]["objective"] <= seed[s]["best"] for s in ("dpo", "ppo", "grpo"))
        else:
            exact = [kl for kl, *_ in seed["curves"]["noise"]["best of n"]]
            assert all(kl <= bound + 1e-4 for kl, bound in zip(exact, seed["formula"], strict=True))
