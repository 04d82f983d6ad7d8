"""Cautions: each is given where a published study had reason for it, and not elsewhere."""

import numpy as np
import pytest

from jaxlm.scaling import study_parts, table
from jaxlm.scaling.laws import fitting, loss_laws
from jaxlm.scaling.planning import backtest, experiment_design
from jaxlm.scaling.study import diagnostics
from tests.scaling import public

CHINCHILLA = loss_laws.LAWS["chinchilla"]


def kinds(cautions):
    return [c.kind for c in cautions]


def test_porian_points_violate_the_form():
    """Tuned RefinedWeb points at a constant learning rate: the fitted floor is above a loss that
    was measured, and the largest budgets are predicted 6.9 % too high."""
    wanted = {"hparams": "tuned", "decay": "const", "param_count": "standard"}
    rows = public.porian(**wanted)
    t = table.make(*(public.column(rows, k) for k in ("n", "tokens", "loss", "flops")))
    fitted = fitting.fit(CHINCHILLA, t)
    assert fitted.theta["E"] == pytest.approx(3.1308, abs=1e-4)
    assert t.loss.min() == pytest.approx(3.0973, abs=1e-4)
    cautions = diagnostics.floor(
        "chinchilla", fitted.theta["E"], t.loss.min(), np.std(fitted.residual), None
    )
    assert kinds(cautions) == ["floor above the data"]
    assert "3.1308" in cautions[0].text and "3.0973" in cautions[0].text
    test = backtest.run(CHINCHILLA, t, 1.2e19)
    assert test.mean == pytest.approx(6.9, abs=0.05)
    assert kinds(diagnostics.curve(test.mean, "chinchilla")) == ["biased back-test"]


def test_hoffmann_has_none_of_these():
    t = public.epoch()
    fitted = fitting.fit(CHINCHILLA, t)
    E, sd = fitted.theta["E"], float(np.std(fitted.residual))
    number = diagnostics.number(
        experiment_design.gradients(CHINCHILLA, fitting.values(fitted), (t.params, t.tokens))
    )
    assert not diagnostics.basins("chinchilla", fitted.objective, fitted.basins)
    assert not diagnostics.floor("chinchilla", E, t.loss.min(), sd, 1.871)
    assert not diagnostics.few("chinchilla", fitted.n, 5)
    assert 100 < number < 500 and not diagnostics.condition("chinchilla", number)
    assert not diagnostics.starts("chinchilla", fitted.reached, 0, 100)


def test_gadre_has_five_points_for_four_parameters():
    assert kinds(diagnostics.few("overtraining", 5, 4)) == ["few points"]
    assert "5 points for 4 parameters" in diagnostics.few("overtraining", 5, 4)[0].text
    assert diagnostics.few("overtraining", 6, 4) == []


def test_floors():
    """Above the data, within noise of it, inside its interval, at nothing, clear of it."""
    assert kinds(diagnostics.floor("f", 3.1, 3.0, 0.01, None)) == ["floor above the data"]
    assert "2 sd" in diagnostics.floor("f", 2.99, 3.0, 0.01, None)[0].text
    assert "interval" in diagnostics.floor("f", 2.5, 3.0, 0.01, 3.05)[0].text
    assert kinds(diagnostics.floor("f", 2.5e-14, 3.0, 0.01, 2.6e-14)) == ["no floor"]
    assert diagnostics.floor("f", 2.5, 3.0, 0.01, 2.8) == []


def test_a_parameter_that_may_be_anything():
    ends = {"R_N": (3.5e5, 2.7e20), "R_D": (21, 40), "A": None, "alpha": (-1, 1e9)}
    (caution,) = diagnostics.undetermined("data_constrained", ends)
    assert caution.kind == "undetermined" and "R_N may be 3.5e+05 or 2.7e+20" in caution.text


def test_basins_are_reported_with_their_parameters():
    cautions = diagnostics.basins("data_constrained", 0.02, [(0.0201, {"R_D": 9.0})])
    assert kinds(cautions) == ["several basins"]
    assert "+0.500 % at R_D 9" in cautions[0].text


def test_coverage_of_tokens_per_parameter():
    assert kinds(diagnostics.coverage(np.array([18.0, 20, 22]), None, None)) == ["narrow coverage"]
    assert kinds(diagnostics.coverage(np.array([1.0, 100]), 300, 1e21)) == ["ratio not covered"]
    assert diagnostics.coverage(np.array([1.0, 100]), 20, 1e21) == []


def test_extrapolation_and_approaches():
    assert diagnostics.extrapolation(9e21, 1e21) == []
    assert "576 times" in diagnostics.extrapolation(5.76e23, 1e21)[0].text
    apart = {"envelope": (0.50, (0.48, 0.52)), "parametric": (0.60, (0.58, 0.62))}
    assert kinds(diagnostics.approaches(apart)) == ["approaches disagree"]
    assert diagnostics.approaches(apart | {"parametric": (0.60, (0.49, 0.7))}) == []
    assert diagnostics.approaches({"a": (0.50, None), "b": (0.53, None)}) == []


def test_checkpoints_starts_and_items_not_recorded():
    run = np.array(["a", "a", "b"])
    cautions = diagnostics.checkpoints(run, "not stated", "cosine")
    assert kinds(cautions) == ["intermediate checkpoints"] and "1 of 2 runs" in cautions[0].text
    assert diagnostics.checkpoints(run[1:], "final", "cosine") == []
    assert kinds(diagnostics.checkpoints(run[1:], "intermediate", "cosine")) == [
        "intermediate checkpoints"
    ]
    assert kinds(diagnostics.starts("f", 0.5, 3, 100)) == ["starts", "failed refits"]
    assert (
        kinds(diagnostics.not_recorded(["setup.corpus"])) == ["not recorded"]
        and diagnostics.not_recorded([]) == []
    )
    assert diagnostics.not_recorded(["setup.corpus"])[0].text.startswith(
        "Not recorded: setup.corpus"
    )
    assert kinds(diagnostics.shape("tied", True)) == ["fixed exponent"]
    assert diagnostics.shape("chinchilla", False) == []


def test_only_the_farthest_approaches_are_named():
    sides = {
        "envelope": (0.50, (0.48, 0.52)),
        "isoflop": (0.51, (0.49, 0.53)),
        "parametric farseer": (0.31, (0.26, 0.36)),
    }
    (caution,) = diagnostics.approaches(sides)
    assert "0.510 by isoflop and 0.307" in caution.text.replace("0.310", "0.307")
    assert "2 pairs of 3 approaches disagree" in caution.text


def test_largest_sizes_above_the_law():
    excess = study_parts.Undertuned(3e9, 5.9, 0.018, 23, 1e11, 1.94)
    (caution,) = diagnostics.undertuned(excess, 7e10, 1.97)
    assert "23 runs above N = 3e+09 lose up to 1.80%" in caution.text
    assert "N* is 1e+11, not 7e+10" in caution.text
    assert diagnostics.undertuned(None, 7e10, 1.97) == []


def test_the_condition_number():
    """Two columns at angle a have sqrt((1 + cos a) / (1 - cos a)), whatever their lengths."""
    a = 0.01
    columns = np.array([[1.0, 50 * np.cos(a)], [0.0, 50 * np.sin(a)]])
    expected = np.sqrt((1 + np.cos(a)) / (1 - np.cos(a)))
    assert diagnostics.number(columns) == pytest.approx(expected)
    assert diagnostics.number(np.zeros((3, 2))) == float("inf")
    assert kinds(diagnostics.condition("f", 2e4)) == ["ill conditioned"]
