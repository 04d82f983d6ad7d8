"""Ablations: paired effects, power, looks that keep alpha, and what a loss is worth in compute."""

import math

import numpy as np
import pytest
from scipy import stats

from jaxlm.scaling.ablation import compute_multiplier, paired, sequential


def test_the_effect_is_scipys_paired_t():
    rng = np.random.default_rng(0)
    seed = rng.normal(0, 0.05, 8)  # what both runs of a pair share
    a, b = 3 + seed + rng.normal(0, 0.01, 8), 2.99 + seed + rng.normal(0, 0.01, 8)
    effect = paired.effect(a, b, alpha=0.1)
    oracle = stats.ttest_rel(b, a)
    interval = oracle.confidence_interval(0.9)
    assert effect.mean == pytest.approx(np.mean(b - a)) and effect.pairs == 8
    assert effect.p == pytest.approx(oracle.pvalue, rel=1e-9)
    assert (effect.low, effect.high) == pytest.approx((interval.low, interval.high), rel=1e-9)
    # unpaired, the seeds' spread would drown it
    assert effect.high - effect.low < 0.3 * 4 * 0.05


def test_power_is_what_simulation_gives():
    """R's power.t.test(n = 10, delta = 1, sd = 1, type = "paired") says 0.8030962, without the tail
    on the wrong side (7e-7); SciPy's own noncentral t has the right one."""
    assert paired.power(1, 1, 10) == pytest.approx(0.8030962, abs=1e-6)
    for pairs, size in ((3, 0.7), (6, 1.1), (30, 0.5)):
        df, shift, edge = pairs - 1, size * math.sqrt(pairs), stats.t.ppf(0.995, pairs - 1)
        oracle = stats.nct.sf(edge, df, shift) + stats.nct.cdf(-edge, df, shift)
        assert paired.power(size, 1, pairs, 0.01) == pytest.approx(oracle, abs=1e-9)
    # 2 pairs at a small alpha, where the noncentral t of SciPy ends in nan
    rng = np.random.default_rng(1)
    x = rng.normal(paired.detectable(1.0, 2, 0.01), 1.0, (40_000, 2))
    assert (stats.ttest_1samp(x, 0, axis=1).pvalue < 0.01).mean() == pytest.approx(0.8, abs=0.01)
    x = rng.normal(0.02, 0.015, (40_000, 4))
    p = stats.ttest_1samp(x, 0, axis=1).pvalue
    assert paired.power(-0.02, 0.015, 4) == pytest.approx((p < 0.05).mean(), abs=0.01)
    assert paired.power(1e-9, 1, 5, alpha=0.07) == pytest.approx(0.07, abs=1e-6)


def test_detectable_effect_inverts_the_power():
    size = paired.detectable(0.01, 5, 0.05, 0.9)
    assert paired.power(size, 0.01, 5) == pytest.approx(0.9, abs=1e-9)
    assert paired.detectable(0.01, 20) < paired.detectable(0.01, 5)


def test_boundaries_are_those_of_the_published_designs():
    """Lan & DeMets' O'Brien-Fleming spending, two-sided 0.05, as ld98 prints them (its second
    is a unit of the fourth digit off); and alpha by SciPy's integral of the normal distribution."""
    five = sequential.boundaries((0.2, 0.4, 0.6, 0.8, 1.0))
    np.testing.assert_allclose(five, [4.8769, 3.3569, 2.6803, 2.2898, 2.0310], atol=1.2e-4)
    np.testing.assert_allclose(sequential.boundaries((0.5, 1.0)), [2.9626, 1.9686], atol=1e-4)
    assert sequential.boundaries((1.0,), 0.01)[0] == pytest.approx(stats.norm.isf(0.005))
    t = np.array([0.3, 0.7, 1.0])
    b = sequential.boundaries(tuple(t), 0.1)
    joint = np.sqrt(np.minimum.outer(t, t) / np.maximum.outer(t, t))
    inside = stats.multivariate_normal.cdf(b, cov=joint, lower_limit=-b, abseps=1e-7)
    assert 1 - inside == pytest.approx(0.1, abs=1e-5)


@pytest.mark.parametrize("looks", [(2, 4, 6), (3, 5, 8)])
def test_looking_often_keeps_the_false_alarms_at_alpha(looks):
    """100,000 experiments without an effect: alpha within three standard errors of the simulation;
    t-tests at 5 % at every look would be wrong far oftener. And every interval holds 0 together."""
    levels = sequential.nominal(looks)
    rng = np.random.default_rng(2)
    x = rng.normal(0, 0.3, (100_000, looks[-1]))
    p = np.array([stats.ttest_1samp(x[:, :n], 0, axis=1).pvalue for n in looks])
    stopped = (p <= np.array(levels)[:, None]).any(0).mean()
    assert stopped == pytest.approx(0.05, abs=3 * math.sqrt(0.05 * 0.95 / 100_000))
    assert (p <= 0.05).any(0).mean() > 0.09
    assert levels[0] < 0.002 and 0.04 < levels[-1] < 0.05


def test_verdicts():
    base = np.array([3.0, 3.1, 2.9, 3.05, 2.95, 3.02])
    looks = (2, 4, 6)
    rng = np.random.default_rng(3)
    clear = base - 0.05 + rng.normal(0, 1e-3, 6)
    assert paired.look(base[:4], clear[:4], looks).verdict == "better"
    assert paired.look(clear[:4], base[:4], looks).verdict == "worse"
    # two pairs may not decide what does not stand out by far
    assert paired.look(base[:2], (base - [0.05, 0.06, 0, 0, 0, 0])[:2], looks).verdict == "go on"
    faint = base + rng.normal(0, 1e-3, 6)
    assert paired.look(base, faint, looks).verdict == "undecided"
    verdict = paired.look(base, faint, looks, matters=0.01)
    assert verdict.verdict == "no difference that matters"
    assert -0.01 < verdict.effect.low < 0 < verdict.effect.high < 0.01
    assert paired.look(base[:2], faint[:2], looks, matters=0.01).verdict == "go on"


def test_worth_by_a_law_is_the_compute_that_the_baseline_would_need():
    """A variant that behaves as the baseline with 1.3 times the compute, at 1.1 times the cost."""
    theta = (1.8, 400.0, 1500.0, 0.34, 0.34)
    e, a, b, power, _ = theta
    # at equal exponents N* = (A/B)^(1/2p) (C/6)^(1/2): L = E + 2 sqrt(A B) (C/6)^(-p/2)
    flops = 1e18 * np.array([1.0, 1.02, 0.98, 1.01])
    loss = lambda c: e + 2 * math.sqrt(a * b) * (c / 6) ** (-power / 2)  # noqa: E731
    curve = compute_multiplier.of_law("chinchilla", theta, np.zeros((0, 5)))
    worth = compute_multiplier.worth(loss(flops), loss(1.3 * flops), curve, cost=1.1)
    assert worth.multiplier == pytest.approx(1.3 / 1.1, rel=1e-6)
    assert worth.low == pytest.approx(worth.high, rel=1e-5)
    # a law whose exponent is not certain widens it, pairs that scatter do too
    draws = np.array(theta) * (1 + 0.05 * np.random.default_rng(4).normal(size=(200, 5)))
    draws[:, 0] = 1.8
    wide = compute_multiplier.worth(
        loss(flops), loss(1.3 * flops), compute_multiplier.of_law("chinchilla", theta, draws)
    )
    assert wide.low < 1.29 < 1.31 < wide.high and wide.multiplier == pytest.approx(1.3, rel=1e-6)
    # some draws' floors above the loss: the upper end is open, and the estimate stays
    draws[:20, 0] = 4.0
    some = compute_multiplier.worth(
        loss(flops), loss(1.3 * flops), compute_multiplier.of_law("chinchilla", theta, draws)
    )
    assert some.high == math.inf and some.multiplier == pytest.approx(1.3, rel=1e-6)
    low = compute_multiplier.of_law("chinchilla", (4.0, *theta[1:]), [])
    with pytest.raises(ValueError, match="does not reach"):
        compute_multiplier.worth(loss(flops), loss(1.3 * flops), low)


@pytest.mark.slow
def test_worth_intervals_cover():
    """400 ablations of 5 pairs and 6 baseline runs for the slope: the truth, 1.25, is in 95 %."""
    rng = np.random.default_rng(5)
    slope, inside = -0.12, 0
    x = np.log(np.array([0.5, 0.5, 0.5, 1, 1, 1]) * 1e15)
    for _ in range(400):
        seeds = np.tile(rng.normal(0, 0.02, 3), 2)
        runs = 4 + slope * (x - x.mean()) + seeds + rng.normal(0, 0.004, 6)
        shared = rng.normal(0, 0.02, 5)
        base = 4 + shared + rng.normal(0, 0.004, 5)
        variant = 4 + slope * math.log(1.25) + shared + rng.normal(0, 0.004, 5)
        worth = compute_multiplier.worth(
            base, variant, compute_multiplier.of_runs(np.exp(x), runs, [0, 1, 2] * 2)
        )
        inside += worth.low <= 1.25 <= worth.high
    assert 0.92 < inside / 400 <= 0.99


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: paired.effect([1.0], [1.0]), "1 pair given"),
        (lambda: paired.effect([1.0, 2.0], [1.0]), "2 losses of the baseline and 1"),
        (lambda: paired.effect([1.0, math.nan], [1.0, 1.0]), "baseline: .* finite losses"),
        (lambda: paired.effect([1.0, 2.0], [1.0, 1.0], 1.5), "alpha: 1.5 given"),
        (lambda: paired.power(1, 0, 5), "sd=0 given"),
        (lambda: paired.detectable(1, 5, 0.05, 0.01), "wanted=0.01"),
        (lambda: paired.look(np.ones(3), np.ones(3), (2, 4)), "3 pairs given; looks were"),
        (lambda: paired.look(np.ones(2), np.ones(2), (2,), matters=-1.0), "matters: -1.0"),
        (lambda: sequential.nominal((1, 2)), "looks: .* rise from 2"),
        (lambda: sequential.boundaries((0.5, 0.9)), "end with 1"),
        (
            lambda: compute_multiplier.of_runs([1e9, 1e9, 1e9], [1, 2, 3], [0, 0, 0]),
            "2 lengths of a pair",
        ),
        (
            lambda: compute_multiplier.of_runs([1e9, 2e9], [2, 1], [0, 0]),
            "2 such pairs or 3 lengths",
        ),
        (
            lambda: compute_multiplier.of_runs([1e9, 1e9, 2e9], [1, 1, 3], [0, 0, 0]),
            "does not fall",
        ),
        (lambda: compute_multiplier.worth([1, 2], [1, 2], np.atleast_2d, cost=0), "cost: 0 given"),
    ],
)
def test_bad_input_is_refused_by_name(call, message):
    with pytest.raises(ValueError, match=message):
        call()
