"""Downstream laws against the published fit of Gadre et al. 2024 and against known truth."""

import csv
import pathlib

import numpy as np
import pytest
from scipy import optimize

from jaxlm.scaling.laws import downstream

DATA = pathlib.Path(__file__).parents[4] / "shared" / "data" / "scaling"
# Their fit's runs (section 4): M = 20 up to 1.4B, and the smallest model at M = 320.
FITTED = ["d=96_l=8_h=4-1.0", "d=512_l=8_h=4-1.0", "d=576_l=24_h=8-1.0", "d=1024_l=24_h=8-1.0"]
FITTED += ["d=96_l=8_h=4-16.0", "open_lm_1b-1.0"]


def gadre(corpus):
    """{name of the run without its corpus: {column: text}}."""
    path = DATA / "gadre_overtraining_runs.csv"
    if not path.exists():
        pytest.skip(f"{path.name} is not here")
    with path.open() as file:
        rows = [r for r in csv.DictReader(file) if r["dataset_name"] == corpus]
    return {r["name"][len(corpus) + 1 :]: r for r in rows}


def column(runs, names, field):
    return np.array([float(runs[name][field]) for name in names])


@pytest.mark.parametrize(
    ("corpus", "k", "gamma", "eps"),
    [
        ("rpj", 2.20649, 0.714591, 0.856992),
        ("c4_original", 2.078907, 0.756121, 0.849742),
        ("rw_original", 2.214815, 0.707049, 0.86528),
    ],
)
def test_the_error_law_of_gadre(corpus, k, gamma, eps):
    runs = gadre(corpus)
    loss, error = (column(runs, FITTED, c) for c in ("loss_c4_val", "err_avg_subset"))
    fitted = downstream.fit("exponential", (loss,), error)
    assert fitted.reached == 1.0
    assert fitted.theta["k"] == pytest.approx(k, abs=1e-5)
    assert fitted.theta["gamma"] == pytest.approx(gamma, abs=2e-6)
    assert fitted.theta["eps"] == pytest.approx(eps, abs=1e-6)


def test_two_steps_predict_the_errors_of_the_paper():
    """Loss by the over-training law on five runs, then error by the curve on six: their table 2
    has 3.6365 % for 1.4B at M = 640 and 0.0464 % for 6.9B at M = 20."""
    runs = gadre("rpj")
    loss, error = (column(runs, FITTED, c) for c in ("loss_c4_val", "err_avg_subset"))
    curve = downstream.fit("exponential", (loss,), error)

    def law(x, a, b, eta, floor):
        return floor + a * x[0] ** -eta + b * 6 ** (-eta / 2) * (x[0] * x[1]) ** -eta

    sizes = np.stack([column(runs, FITTED[:5], c) for c in ("N", "tok_mult")])
    theta, _ = optimize.curve_fit(law, sizes, loss[:5], p0=[100, 200, 0.25, 1.7], maxfev=10**5)
    for name, expected in (("open_lm_1b-32.0", 3.6365), ("open_lm_7b-1.0", 0.0464)):
        first = law(np.stack([column(runs, [name], c) for c in ("N", "tok_mult")]), *theta)
        measured = float(runs[name]["err_avg_subset"])
        percent = 100 * abs(downstream.predict(curve, (first,))[0] / measured - 1)
        assert percent == pytest.approx(expected, abs=0.01)


def test_a_span_that_the_data_do_not_hold_is_named():
    """On RedPajama the sigmoid would be an exponential: its span runs to its bound of 1."""
    runs = gadre("rpj")
    loss, error = (column(runs, FITTED, c) for c in ("loss_c4_val", "err_avg_subset"))
    assert downstream.fit("sigmoid", (loss,), error).bound == ("span",)
    runs = gadre("c4_original")
    loss, error = (column(runs, FITTED, c) for c in ("loss_c4_val", "err_avg_subset"))
    assert downstream.fit("sigmoid", (loss,), error).bound == ()


TRUTHS = {
    "exponential": (2.1, 0.73, 0.86),
    "sigmoid": (0.26, 0.55, 2.4, 2.9),
    "direct": (31.0, 0.078),
    "direct_params_tokens": (16.0, 0.18, 10.5, 0.13),
}


@pytest.mark.parametrize("form", sorted(downstream.FORMS))
@pytest.mark.parametrize("chance", [0.0, 0.25])
def test_known_truth_is_reached_by_every_start(form, chance):
    """Errors made by the law itself give its parameters back, with guessing taken out or not."""
    law = downstream.FORMS[form]
    rng = np.random.default_rng(3)
    inputs = {
        "loss": rng.uniform(2.0, 5.0, 20),
        "flops": 10 ** rng.uniform(17, 22, 20),
        "params": 10 ** rng.uniform(7, 10, 20),
        "tokens": 10 ** rng.uniform(9, 12, 20),
    }
    x = tuple(inputs[name] for name in law.inputs)
    truth = np.array(TRUTHS[form])
    error = law.predict(truth, x) * (1 - chance)
    fitted = downstream.fit(form, x, error, chance)
    assert [fitted.theta[n] for n in law.names] == pytest.approx(truth, rel=1e-5)
    assert fitted.rmse < 1e-9
    assert downstream.predict(fitted, x) == pytest.approx(error, abs=1e-9)


@pytest.mark.parametrize(
    ("form", "x", "error", "chance", "text"),
    [
        ("linear", [[3.0, 2.0]], [0.5, 0.4], 0.0, "form: 'linear'"),
        ("direct", [[1e18, -1.0]], [0.5, 0.4], 0.0, r"flops\[1\]: -1.0"),
        ("direct", [[1e18, 1e19]], [0.5, 1.4], 0.0, r"error\[1\]: 1.4"),
        ("exponential", [[3.0, 2.0]], [0.5, 0.4], 0.0, "2 points cannot hold the 3"),
        ("direct", [[1e18, 1e19]], [0.5, 0.4], 1.0, "chance: 1.0"),
        ("direct", [[1e18], [1.0]], [0.5], 0.0, "2 arrays were given"),
        ("direct", [[1e18]], [0.5, 0.4], 0.0, r"flops: shape \(1,\)"),
    ],
)
def test_what_cannot_be_fitted_is_refused(form, x, error, chance, text):
    with pytest.raises(ValueError, match=text):
        downstream.fit(form, [np.array(a) for a in x], np.array(error), chance)
