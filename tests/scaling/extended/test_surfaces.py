"""Surfaces of learning rate and batch: known truth, SciPy, Step Law's runs and exponents."""

import numpy as np
import pytest
from scipy import optimize

from jaxlm.scaling import table
from jaxlm.scaling.extended import surfaces
from jaxlm.scaling.extended.context import Setting
from tests.scaling import public

SETTING = Setting(1e22, 6.0, 4e20, 1e-3, 200, 0.95, 0, False)
H = np.array([[0.03, -0.01], [-0.01, 0.02]])
THETA = np.array([[np.log(2.0), -0.7, 0.3], [np.log(1e-3), 0.0, 0.55]])


def runs(noise=0.0, off=0.0, seed=0):
    """8 cells of 6 x 6 runs around minima that are powers of N and D, up to exp(off) a cell."""
    random = np.random.default_rng(seed)
    rows = []
    for n, d in [(n, d) for n in (1e8, 3e8, 1e9) for d in (4e9, 2e10, 1e11)][:8]:
        middle = THETA @ [1, np.log(n), np.log(d)] + off * random.normal(size=2)
        for u in np.linspace(-1.5, 1.5, 6):
            for v in np.linspace(-1.6, 1.4, 6):
                away = np.array([u, v])
                loss = 2 + 400 * n**-0.34 + 800 * d**-0.3 + away @ H @ away
                rows.append((n, d, loss + noise * random.normal(), *np.exp(middle + away)))
    n, d, loss, lr, batch = np.array(rows).T
    columns = {"lr": lr, "batch": batch, "note": np.repeat("x", len(n))}
    return table.make(n, d, loss)._replace(columns=columns)


def test_a_known_surface_is_exact():
    result = surfaces.run(runs(), "lr", "batch", SETTING, ((7e9, 1e12),))
    for name in ("batch of N and D", "batch of D"):
        surface = result[name]
        assert np.array(surface["curvature"]) == pytest.approx(H, rel=1e-6)
        for row, label in zip(THETA, ("lr", "batch")):
            law = surface["laws"][label]
            values = [law[k][0] for k in surfaces.NAMES]
            assert values == pytest.approx([np.exp(row[0]), row[1], row[2]], rel=1e-5, abs=1e-7)
        expected = np.exp(THETA @ [1, np.log(7e9), np.log(1e12)])
        prediction = surface["predictions"][0]
        assert prediction["rate"][0] == pytest.approx(expected[0], rel=1e-5)
        assert prediction["batch"][0] == pytest.approx(expected[1], rel=1e-5)
        assert all(c["excess_percent"] < 0.2 for c in surface["backtest"]["cells"])
    assert result["batch of D"]["laws"]["batch"]["params"] == [0.0, None]
    assert len(result["minima"]) == 8 and "lr* = 2 N^-0.7" in surfaces.text(result)


def test_the_linear_fit_is_the_nonlinear_one():
    """With noise: SciPy on c, H and Theta themselves, with and without a power of N for batch*."""
    t = runs(0.003, 0.1)
    cells = surfaces._cells(t, surfaces.columns(t, "lr", "batch"))
    member = cells.cell[:, None] == np.arange(8)

    def residual(u, alone):
        h = np.array([[u[0], u[1]], [u[1], u[2]]])
        theta = np.array([u[3:6], [u[6], 0.0 if alone else u[8], u[7]]])
        away = cells.x - cells.z @ theta.T
        value = np.einsum("ni,ij,nj->n", away, h, away)
        rest = cells.loss - value
        return rest - member @ (member.T @ rest / member.sum(0))

    for alone in (False, True):
        start = [0.03, 0.0, 0.02, 0, -0.7, 0.3, 0, 0.5, *([] if alone else [0.0])]
        oracle = optimize.least_squares(residual, start, args=(alone,), xtol=1e-15, ftol=1e-15)
        h, theta = surfaces._fit(cells, np.ones((1, 8)), alone)
        ours = [h[0, 0, 0], h[0, 0, 1], h[0, 1, 1], *theta[0, 0], theta[0, 1, 0], theta[0, 1, 2]]
        ours += [] if alone else [theta[0, 1, 1]]
        assert ours == pytest.approx(oracle.x, rel=1e-4, abs=1e-5)
        if alone:
            assert abs(theta[0, 1, 1]) < 1e-9


def test_step_law():
    """2,819 runs of 42 cells. Step Law prints exponents -0.713, 0.307 of lr and 0.571 of batch in
    D; the best run of each of its 17 cells gives -0.823, 0.288, 0.498: they are known to 0.1. The
    cell of 1e11 tokens and 1.07e9 parameters is held out: the run nearest to the prediction is
    within 0.1 % of the best of its 117, where the median run loses 1.6 %."""
    data = public.rows("scalebench_lr_bsz_train.csv") + public.rows("scalebench_lr_bsz_test.csv")
    names = ("non_embedding_param_size", "data_size", "lm_loss", "lr", "bsz")
    n, d, loss, lr, batch = (public.column(data, k) for k in names)
    t = table.make(n, d, loss)._replace(columns={"lr": lr, "batch": batch})
    setting = Setting(1e22, 6.0, 5e20, 1e-3, 500, 0.95, 0, False)
    result = surfaces.run(t, "lr", "batch", setting, ((1.07e9, 1e11),))
    free, alone = result["batch of N and D"], result["batch of D"]
    assert free["laws"]["lr"]["params"][0] == pytest.approx(-0.713, abs=0.1)
    assert free["laws"]["lr"]["tokens"][0] == pytest.approx(0.307, abs=0.1)
    for surface in (free, alone):
        assert surface["laws"]["batch"]["tokens"][0] == pytest.approx(0.571, abs=0.1)
        (cell,) = surface["backtest"]["cells"]
        assert cell["excess_percent"] < 0.1 and cell["median_excess_percent"] > 1.5


@pytest.mark.parametrize(
    ("names", "text"),
    [
        (("rate", "batch"), "--hyperparameters: no column 'rate'; the file has lr, batch"),
        (("lr", "note"), "column 'note' has text, such as 'x'"),
    ],
)
def test_columns_that_cannot_be_are_refused(names, text):
    with pytest.raises(ValueError, match=text):
        surfaces.columns(runs(), *names)


def test_too_few_cells_and_rows_at_zero_are_refused():
    t = runs()
    with pytest.raises(ValueError, match="3 pairs of N and D have 8 or more runs"):
        surfaces.run(table.take(t, np.arange(108)), "lr", "batch", SETTING, ())
    t.columns["lr"][2] = 0.0
    with pytest.raises(ValueError, match="row 3, column 'lr': 0; a number above 0"):
        surfaces.columns(t, "lr", "batch")
