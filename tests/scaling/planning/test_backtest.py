"""Back-tests, outliers and what laws a table identifies, on public runs."""

import numpy as np
import pytest

from jaxlm.scaling import table
from jaxlm.scaling.approaches import comparison
from jaxlm.scaling.laws import fitting, identifiability, loss_laws
from jaxlm.scaling.planning import backtest
from tests.scaling import public

CHINCHILLA = loss_laws.LAWS["chinchilla"]


def test_the_largest_budgets_of_hoffmann():
    """Fitted below 1e21 FLOPs, the form predicts 23 larger runs to 1 %, without a lean."""
    errors = backtest.run(CHINCHILLA, public.epoch(), 1e21)
    assert (errors.fitted, len(errors.error)) == (217, 23)
    assert errors.mean == pytest.approx(-0.024, abs=5e-4)
    assert errors.mae == pytest.approx(1.05, abs=5e-3)
    assert errors.largest == pytest.approx(2.74, abs=5e-3)
    expected = {"E": 1.82054, "A": 342.81, "B": 3820.1, "alpha": 0.32713, "beta": 0.39609}
    assert errors.theta == pytest.approx(expected, rel=2e-5)


@pytest.mark.slow
def test_leaving_out_the_highest_losses_of_hoffmann():
    """How many outliers go moves tokens per parameter at 5.76e23 from 7 to 31."""
    rows = comparison.outliers(public.epoch(0), CHINCHILLA, 5.76e23, 1e-3, 6.0)
    assert [r.dropped for r in rows] == [0, 2, 3, 5, 10, 20]
    assert [r.points for r in rows] == [245, 243, 242, 240, 235, 225]
    # the last is 31.15, given as 31.2
    expected = [6.8, 11.4, 14.7, 17.9, 19.9, 31.2]
    assert [r.tokens_per_parameter for r in rows] == pytest.approx(expected, abs=0.06)
    assert not any(r.failed for r in rows)
    fit = fitting.fit(CHINCHILLA, public.epoch())
    near = comparison.outliers(public.epoch(0), CHINCHILLA, 5.76e23, 1e-3, 6.0, near=fit)
    for a, b in zip(near, rows):
        assert a.theta == pytest.approx(b.theta, rel=1e-6)


def some(n, d, unique=None):
    n, d = np.array(n, float), np.array(d, float)
    return table.make(n, d, CHINCHILLA.predict((1.7, 400, 900, 0.34, 0.31), (n, d)), unique=unique)


GRID = some(np.repeat([1e7, 1e8, 1e9], 3), np.tile([1e9, 1e10, 1e11], 3))


@pytest.mark.parametrize(
    ("law", "t", "reason"),
    [
        ("chinchilla", GRID, ""),
        ("chinchilla", table.take(GRID, np.arange(4)), "4 points for 5 parameters"),
        ("chinchilla", table.take(GRID, np.arange(6)), "2 different params; 3 are needed"),
        ("chinchilla", table.take(GRID, [0, 1, 3, 4, 6, 7]), "2 different tokens; 3 are needed"),
        ("tied", table.take(GRID, np.arange(6)), ""),
        ("kaplan_params", GRID, "tokens run from 1e+09 to 1e+11, which the form does not read"),
        ("kaplan_params", table.take(GRID, [0, 3, 6]), ""),
        ("kaplan_tokens", table.take(GRID, [0, 1, 2]), ""),
        ("data_constrained", GRID, "there is no column of unique tokens"),
        ("data_constrained", GRID._replace(unique=GRID.tokens), "no run repeats a token"),
        ("data_constrained", GRID._replace(unique=GRID.tokens / 4), ""),
        ("farseer", table.take(GRID, np.arange(8)), "8 points for 9 parameters"),
        ("farseer", table.take(GRID, np.arange(20) % 9), "20 points; its 9 parameters need 45"),
    ],
)
def test_what_runs_identify(law, t, reason):
    assert identifiability.reason(loss_laws.LAWS[law], t) == reason


def test_what_is_held_out():
    """Of isoFLOP runs the largest budget; else the tenth with the most compute."""
    n = np.geomspace(1e7, 1e8, 5)
    budgets = np.repeat([1e17, 1e18, 1e19], 5)
    t = some(np.tile(n, 3), budgets / (6 * np.tile(n, 3)))
    assert backtest.threshold(t) == pytest.approx(1e19)
    n = np.geomspace(1e7, 1e10, 40)
    assert backtest.threshold(some(n, 20 * n)) == pytest.approx(120 * n[-4] ** 2)
    for least in (1.0, 1e30):
        with pytest.raises(ValueError, match="holdout: no run is"):
            backtest.run(CHINCHILLA, t, least)
