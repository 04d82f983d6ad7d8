"""Largest sizes that were tuned worse: found where they are, not elsewhere, and taken out again."""

import numpy as np
import pytest

from jaxlm.scaling import table
from jaxlm.scaling.laws import fitting, loss_laws, optimum
from jaxlm.scaling.study import tuning

LAW = loss_laws.LAWS["chinchilla"]
TRUTH = (1.8, 480.0, 2100.0, 0.35, 0.366)


def study(seed, excess=0.0):
    """6 budgets of 8 sizes, noise of 0.2 %; sizes above 3e8 lose up to `excess` more."""
    random = np.random.default_rng(seed)
    c = np.repeat(np.geomspace(1e18, 3e20, 6), 8)
    best = optimum.at("chinchilla", TRUTH, c).params
    n = best * np.tile(np.geomspace(0.3, 3, 8), 6)
    log = np.maximum(np.log(n / 3e8), 0)
    loss = LAW.predict(TRUTH, (n, c / (6 * n))) * np.exp(random.normal(0, 0.002, len(c)))
    return table.make(n, c / (6 * n), loss * np.exp(excess * log / log.max()), c)


def test_an_excess_and_the_law_without_it():
    t = study(0, excess=0.03)
    fitted = fitting.fit(LAW, t)
    excess = tuning.test(t, fitted)
    assert excess is not None and excess.t > 3
    assert excess.at_largest == pytest.approx(0.03, rel=0.6)
    assert excess.runs == np.sum(t.params > excess.knot)
    corrected = tuning.correct(t, fitted, excess, replicates=40, seed=0)
    assert corrected is not None and len(corrected.draws) > 30
    truth = float(optimum.at("chinchilla", TRUTH, 3e21).params)
    plain = float(optimum.at("chinchilla", fitting.values(fitted), 3e21).params)
    without = float(optimum.at("chinchilla", corrected.theta, 3e21).params)
    assert abs(np.log(plain / truth)) > 0.15  # the form takes it for scale
    assert abs(np.log(without / truth)) < abs(np.log(plain / truth)) / 2
    draws = optimum.at("chinchilla", corrected.draws, 3e21).params
    assert np.quantile(draws, 0.01) < truth < np.quantile(draws, 0.99)


def test_sizes_that_are_tuned_alike_have_none():
    excesses = [tuning.test(t, fitting.fit(LAW, t)) for t in map(study, range(1, 9))]
    assert sum(e is not None for e in excesses) <= 1  # at 5 % in each
    better = study(0, excess=-0.03)  # a lower loss at the largest sizes is no excess
    assert tuning.test(better, fitting.fit(LAW, better)) is None


def test_few_points_are_not_tested():
    t = table.take(study(0, 0.03), np.arange(0, 45, 5))
    assert len(t.loss) == 9 and tuning.test(t, fitting.fit(LAW, t)) is None
