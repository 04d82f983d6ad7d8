"""Who plans: a challenger only beyond noise, chosen anew by every draw; a form's own error."""

import numpy as np
import pytest
from scipy import stats

from jaxlm.scaling.planning import model_selection
from jaxlm.scaling.planning.backtest import Errors


def errors(values, decades=1.0, sd=0.01):
    """One cut-off, an error on each held-out budget."""
    n = len(values)
    every = np.broadcast_to(np.asarray(decades, float), n)
    spread = np.broadcast_to(np.asarray(sd, float), n)
    return Errors(np.arange(n), np.full(n, 1e20), every, np.asarray(values, float), spread)


OLD = np.array([0.30, 0.25, 0.35, 0.28, 0.33])


def test_a_challenger_plans_beyond_noise_alone():
    """The paired t of SciPy decides, at 99 %."""
    far = model_selection.choose("c", {"c": errors(OLD), "isoflop": errors(OLD / 8)}, draws=200)
    assert far.name == "isoflop" and set(far.drawn) == {"isoflop"}
    new = OLD - np.array([0.2, -0.1, 0.25, -0.05, 0.1])
    near = model_selection.choose("c", {"c": errors(OLD), "isoflop": errors(new)}, draws=200)
    score = near.scores["isoflop"]
    paired = stats.ttest_rel(OLD, np.abs(new), alternative="greater")
    assert score.t == pytest.approx(paired.statistic)
    assert (score.t > score.needed) == (paired.pvalue < 0.01)
    assert near.name == "c" and score.error < score.default  # better on average, and not chosen


def test_draws_near_the_line_choose_either():
    """A gain of about the t that is needed is taken by about half of the draws."""
    gain = np.array([0.10, 0.14, 0.06, 0.12, 0.08, 0.10, 0.02, 0.18])
    needed = stats.t.ppf(0.99, len(gain) - 1)
    t = gain.mean() / (gain.std(ddof=1) / np.sqrt(len(gain)))
    gain -= gain.mean() * (1 - needed / t)
    old = np.full(len(gain), 0.5)
    choice = model_selection.choose("c", {"c": errors(old), "f": errors(old - gain)}, draws=2000)
    assert 0.3 < np.mean(choice.drawn == "f") < 0.7


def test_of_those_that_refute_the_default_the_closest_plans():
    """Kaplan's form is better than the default beyond noise, and approach 2 better still, though
    its few budgets alone would not show it."""
    old = np.array([2.0, 2.1, 1.9, 2.05, 1.95])
    kaplan = errors([0.5, 0.6, 0.4, 0.55, 0.45])
    isoflop = errors([0.01, 0.02])._replace(case=np.array([3, 4]))
    rivals = {"c": errors(old), "kaplan": kaplan, "isoflop": isoflop}
    assert model_selection.choose("c", rivals, draws=10).name == "isoflop"
    assert (
        model_selection.choose("c", {k: rivals[k] for k in ("c", "isoflop")}, draws=10).name == "c"
    )


def test_two_budgets_replace_nobody():
    choice = model_selection.choose(
        "c", {"c": errors([0.9, 0.8]), "f": errors([0.0, 0.0])}, draws=20
    )
    assert choice.name == "c" and set(choice.drawn) == {"c"}
    assert model_selection.choose("c", {}, draws=3).drawn.tolist() == ["c"] * 3


def test_a_refit_without_an_optimum_counts_once():
    """nan is a factor of 20, not a comparison that is lost."""
    bad = OLD.copy()
    bad[2] = np.nan
    choice = model_selection.choose("c", {"c": errors(bad), "f": errors(OLD)}, draws=10)
    assert choice.scores["f"].default == pytest.approx(
        (OLD.sum() - OLD[2] + model_selection.WORST) / 5
    )


@pytest.mark.parametrize("half", [False, True])
def test_the_spread_of_a_form(half):
    """Errors of .02 for each decade on sampling errors of .004; 0 where sampling explains all."""
    random = np.random.default_rng(0)
    decades = random.uniform(0.2, 2, 400)
    noise = random.normal(0, 0.004, 400)
    own = errors(0.02 * decades * random.normal(size=400) + noise, decades, 0.004)
    assert model_selection.spread(own, half) == pytest.approx(0.02, rel=0.15)
    assert model_selection.spread(errors(noise, decades, 0.004), half) == 0.0
    assert model_selection.spread(errors([], 1.0), half) == 0.0


def test_one_wild_minimum_among_many_is_no_spread():
    values = np.array([0.02, -0.01, 0.015, 3.0, -0.02, 0.01, 0.0, 0.02])
    assert model_selection.spread(errors(values, 1.0, 0.02), half=True) == 0.0


def test_sentences():
    choice = model_selection.choose(
        "chinchilla", {"chinchilla": errors(OLD), "isoflop": errors(OLD / 8)}, 5
    )
    loss = model_selection.choose("chinchilla", {}, 5)
    text = model_selection.sentence("chinchilla", choice, loss, False)
    assert text.startswith("IsoFLOP (Akima) plans N*: over 5 held-out budgets")
    assert "to 3.8 %, chinchilla to 30 %" in text and text.endswith("the loss is chinchilla's.")
    # no N* was measured, and another form predicts the loss: it plans by that alone
    kaplan = model_selection.choose(
        "chinchilla", {"chinchilla": errors(OLD), "kaplan": errors(OLD / 8)}, 5
    )
    alone = model_selection.Choice(kaplan.name, {}, kaplan.drawn)
    text = model_selection.sentence("chinchilla", alone, kaplan, False)
    assert text.startswith("Kaplan plans: over 5 held-out budgets it predicted the loss to 3.8 %")
    assert model_selection.sentence("tied", loss, loss, True) == "tied plans, as --law asks."
