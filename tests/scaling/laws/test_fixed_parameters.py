"""Parameters that a study holds: the options, and that every refit holds them."""

import dataclasses

import numpy as np
import pytest
from scipy import optimize

from jaxlm.scaling import table
from jaxlm.scaling.laws import fixed_parameters, loss_laws
from jaxlm.scaling.study import analysis

THETA = (1.7, 400.0, 900.0, 0.35, 0.3)


def runs():
    random = np.random.default_rng(5)
    c = np.repeat(np.geomspace(1e18, 1e20, 4), 5)
    n = np.sqrt(c / 120) * np.tile(np.geomspace(0.3, 3, 5), 4)
    loss = loss_laws.CHINCHILLA.predict(THETA, (n, c / (6 * n)))
    return table.make(n, c / (6 * n), loss * np.exp(0.004 * random.normal(size=len(n))))


def test_a_name_is_held_where_it_has_its_meaning():
    held = fixed_parameters.parse(["alpha=0.35", "kaplan.alpha_N=0.076", "farseer.alpha=0.1"])
    assert held == {
        "chinchilla": {"alpha": 0.35},
        "tied": {"alpha": 0.35},
        "kaplan": {"alpha_N": 0.076},
        "data_constrained": {"alpha": 0.35},
        "farseer": {"alpha": 0.1},
    }
    assert fixed_parameters.parse([]) == {}


@pytest.mark.parametrize(
    ("texts", "text"),
    [
        (["alpha"], "NAME=VALUE or LAW.NAME=VALUE is needed"),
        (["alpha=x"], "NAME=VALUE or LAW.NAME=VALUE is needed"),
        (["chinchila.alpha=0.3"], "'chinchila' is none of chinchilla"),
        (["gama=0.3"], "'gama' is none of"),
        (["alpha=0.3", "tied.alpha=0.4"], "tied.alpha is fixed twice"),
    ],
)
def test_what_cannot_be_held_is_refused(texts, text):
    with pytest.raises(ValueError, match=text):
        fixed_parameters.parse(texts)


def test_what_no_fitted_law_has_is_refused():
    options = analysis.Options(laws=("chinchilla",), fix=("tied.alpha=0.3",), replicates=20)
    with pytest.raises(ValueError, match="no law of .'chinchilla',. has what is held"):
        analysis.run(runs(), options)


def test_a_study_holds_it_in_every_refit():
    """Fit, bootstrap, back-test and outlier table; it has no interval, the others narrow."""
    options = analysis.Options(laws=("chinchilla",), replicates=60, delta=np.inf, target=1e22)
    held = analysis.run(runs(), dataclasses.replace(options, fix=("alpha=0.35",)))
    free = analysis.run(runs(), options)
    form = held.forms["chinchilla"]
    assert form.theta["alpha"] == pytest.approx(0.35, abs=1e-12)
    assert set(np.round(form.draws[:, 3], 12).tolist()) == {0.35}
    assert form.fixed == ("alpha",) and form.intervals["alpha"] is None
    assert [row.theta["alpha"] for row in held.outliers] == pytest.approx(
        [0.35] * len(held.outliers)
    )
    ends = [np.diff(np.log(r.forms["chinchilla"].intervals["A"])) for r in (held, free)]
    assert ends[0] < ends[1] / 3
    t = runs()

    def residual(u):
        theta = (*np.exp(u[:3]), 0.35, u[3])
        return np.log(t.loss) - np.log(loss_laws.CHINCHILLA.predict(theta, (t.params, t.tokens)))

    oracle = optimize.least_squares(residual, [*np.log(THETA[:3]), 0.3], x_scale="jac", xtol=1e-15)
    expected = [*np.exp(oracle.x[:3]), 0.35, oracle.x[3]]
    assert list(form.theta.values()) == pytest.approx(expected, rel=1e-4)
