"""Compute multipliers against closed forms of known recipes."""

import dataclasses

import numpy as np
import pytest

from jaxlm.scaling import table
from jaxlm.scaling.extended import recipes
from jaxlm.scaling.extended.context import Setting
from jaxlm.scaling.laws import fitting, loss_laws
from tests.scaling import public

SETTING = Setting(1e22, 6.0, 1e21, 1e-3, 100, 0.95, 0, False)
# For fits whose intervals nobody reads: a replicate is a fit of its own.
POINT = dataclasses.replace(SETTING, replicates=2)


def runs(gain, noise=0.002, seed=0, one_ratio=False, alpha=0.3, beta=0.3):
    """Two recipes of E + A/N^alpha + B/D^beta, the second with A and B so much lower that it needs
    1/gain of the compute where alpha = beta: (A, B) gain^(-alpha / 2)."""
    random = np.random.default_rng(seed)
    c = np.repeat(np.geomspace(1e18, 1e21, 6), 1 if one_ratio else 5)
    spread = np.ones(1) if one_ratio else np.geomspace(0.3, 3, 5)
    n = np.sqrt(c / 120) * np.tile(spread, 6)
    losses = []
    for scale in (1.0, gain ** (-alpha / 2)):
        theta = (1.7, 400 * scale, 400 * scale, alpha, beta)
        loss = loss_laws.CHINCHILLA.predict(theta, (n, c / (6 * n)))
        losses.append(loss * np.exp(noise * random.normal(size=len(n))))
    t = table.make(np.tile(n, 2), np.tile(c / (6 * n), 2), np.concatenate(losses))
    names = np.repeat(["old", "new"], len(n))
    return t._replace(columns={"recipe": names, "seed": np.zeros(2 * len(n))})


@pytest.mark.parametrize("one_ratio", [pytest.param(False, marks=pytest.mark.slow), True])
def test_a_known_multiplier_is_recovered(one_ratio):
    """alpha = beta: the reducible loss at the optimum is proportional to C^(-alpha/2), so the
    multiplier is the same at every compute; without noise it is exact."""
    t = runs(1.5, 1e-6, one_ratio=one_ratio)
    exact = recipes.run(t, "recipe", None, POINT)
    for fit in exact["fits"].values():
        values = fit["multipliers"]["new"]
        assert values["target"][0] == pytest.approx(1.5, rel=1e-3)
        assert [v[0] for _, v in values["range"]] == pytest.approx([1.5] * 5, rel=1e-3)
    noisy = recipes.run(runs(1.5, one_ratio=one_ratio), "recipe", "old", SETTING)
    assert noisy["shared"] == "exponents and E"
    value, (low, high) = noisy["fits"]["exponents and E"]["multipliers"]["new"]["target"]
    assert low < 1.5 < high and high / low < 1.3
    # what is not shared is not known as well
    ends = noisy["fits"]["nothing"]["multipliers"]["new"]["target"][1]
    assert ends[1] / ends[0] > high / low
    back = recipes.run(runs(1.5, one_ratio=one_ratio), "recipe", "new", POINT)
    other = back["fits"]["exponents and E"]["multipliers"]["old"]["target"][0]
    assert other == pytest.approx(1 / value, rel=0.02)
    assert "old: 0.6" in recipes.text(back) and "BIC allows" in recipes.text(back)


@pytest.mark.slow
def test_nothing_shared_is_each_recipe_alone():
    """The joint fit with nothing shared has the parameters of separate fits."""
    t = runs(1.3, seed=4)
    joint = recipes.run(t, "recipe", None, POINT)
    for name in ("old", "new"):
        own = table.take(t, t.columns["recipe"] == name)
        result = fitting.fit(loss_laws.CHINCHILLA, own)
        e, a, b, alpha, beta = result.theta.values()
        assert joint["fits"]["nothing"]["theta"][name] == pytest.approx(
            [e, a, b, alpha, beta], rel=1e-4
        )


@pytest.mark.slow
def test_intervals_of_a_multiplier_hold():
    """95 % intervals of 4 studies cover the truth (of 40, at least 35 did)."""
    inside = 0
    for seed in range(4):
        result = recipes.run(runs(1.25, seed=seed), "recipe", None, SETTING)
        target = result["fits"][result["shared"]]["multipliers"]["new"]["target"]
        inside += target[1][0] <= 1.25 <= target[1][1]
    assert inside >= 3


@pytest.mark.slow
def test_training_sets_of_gadre():
    """By loss on C4, training on C4 saves compute against RedPajama, as its own set should."""
    data = public.gadre()
    n, d, loss = (public.column(data, c) for c in ("N", "D", "loss_c4_val"))
    names = np.array([r["dataset_name"] for r in data])
    t = table.make(n, d, loss)._replace(columns={"dataset_name": names})
    setting = dataclasses.replace(POINT, target=1e22)
    result = recipes.run(t, "dataset_name", "rpj", setting)
    gains = result["fits"][result["shared"]]["multipliers"]
    assert gains["c4_original"]["target"][0] > 1.5 > gains["rw_original"]["target"][0] * 0.5


@pytest.mark.parametrize(
    ("column", "baseline", "text"),
    [
        ("name", None, "--multiplier: no column 'name'; the file has recipe, seed"),
        ("seed", None, "--multiplier seed: every row has '0'; two recipes"),
        ("recipe", "older", "--baseline 'older': column 'recipe' has old, new"),
    ],
)
def test_recipes_that_are_not_there_are_refused(column, baseline, text):
    with pytest.raises(ValueError, match=text):
        recipes.recipes(runs(1.5), column, baseline)


def test_too_few_runs_are_named():
    t = table.take(runs(1.5), np.array([0, 1, 2, 3, 4, 5, 6, 7, 30]))
    with pytest.raises(ValueError, match="1 runs of 'new' for its own 2 parameters"):
        recipes.run(t, "recipe", None, SETTING)
