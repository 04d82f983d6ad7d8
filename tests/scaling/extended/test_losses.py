"""Laws of several losses, and from loss to loss, against known truth and SciPy."""

import numpy as np
import pytest
from scipy import optimize

from jaxlm.scaling import table
from jaxlm.scaling.extended import losses
from jaxlm.scaling.extended.context import Setting
from jaxlm.scaling.laws import loss_laws
from tests.scaling import public

SETTING = Setting(1e22, 6.0, 1e21, 1e-3, 40, 0.95, 0, False)


def runs(noise=0.0):
    """24 runs whose second loss is 0.8 (L - 1.7)^1.3 + 0.9 of the first."""
    random = np.random.default_rng(2)
    c = np.repeat(np.geomspace(1e18, 1e21, 6), 4)
    n = np.sqrt(c / 120) * np.tile(np.geomspace(0.3, 3, 4), 6)
    loss = loss_laws.CHINCHILLA.predict((1.7, 400.0, 900.0, 0.33, 0.31), (n, c / (6 * n)))
    other = 0.8 * (loss - 1.7) ** 1.3 + 0.9
    loss, other = (v * np.exp(noise * random.normal(size=24)) for v in (loss, other))
    t = table.make(n, c / (6 * n), loss, c)
    return t._replace(columns={"loss_b": other, "loss_text": t.run + "x", "err": other * 0})


def test_a_known_law_from_loss_to_loss():
    t = runs()
    result = losses.fit(t.loss, t.columns["loss_b"], 1.7)
    assert (result.K, result.kappa, result.E_b) == pytest.approx((0.8, 1.3, 0.9), rel=1e-5)
    assert losses.predict(result, np.array([1.7, 1.0, 2.7])) == pytest.approx([0.9, 0.9, 1.7])
    with pytest.raises(ValueError, match="not above E_a = 3"):
        losses.fit(t.loss, t.columns["loss_b"], 3.0)
    oracle, _ = optimize.curve_fit(
        lambda x, k, kappa, e: k * (x - 1.6) ** kappa + e,
        t.loss,
        t.columns["loss_b"],
        p0=(1, 1, 0.5),
        bounds=([0, 0, 0], [np.inf, np.inf, t.columns["loss_b"].min()]),
        xtol=1e-14,
        ftol=1e-14,
    )
    again = losses.fit(t.loss, t.columns["loss_b"], 1.6)
    assert (again.K, again.kappa, again.E_b) == pytest.approx(tuple(oracle), rel=1e-3)


def test_all_losses_at_once():
    result = losses.run(runs(0.002), "loss_b", "chinchilla", SETTING)
    assert list(result["losses"]) == ["loss", "loss_b"]
    assert result["losses"]["loss"]["theta"]["E"][0] == pytest.approx(1.7, abs=0.08)
    value, (low, high) = result["losses"]["loss_b"]["params"]
    assert low < value < high
    pair = result["loss_to_loss"]["loss_b"]
    assert pair["kappa"] == pytest.approx(1.3, abs=0.3)
    assert pair["backtest"]["tested"] == 4
    assert pair["backtest"]["from measured loss"]["mae"] < 1
    assert "loss to loss" in losses.text(result)


@pytest.mark.parametrize(
    ("pattern", "text"),
    [
        ("nll_*", "no column matches; the file has loss_b, loss_text, err"),
        ("loss_*", "column 'loss_text' has text, such as '1x'"),
        ("err", "row 1, column 'err': 0; a loss above 0"),
    ],
)
def test_columns_that_are_no_losses_are_refused(pattern, text):
    with pytest.raises(ValueError, match=text):
        losses.columns(runs(), pattern)


@pytest.mark.slow
def test_the_losses_of_gadre():
    """From the C4 loss of runs below 1e20 FLOPs the Paloma C4 loss of larger ones, to 1 %."""
    data = public.gadre("rpj")
    n, d, loss, other = (
        public.column(data, c) for c in ("N", "D", "loss_c4_val", "loss_paloma_c4_en")
    )
    t = table.make(n, d, loss)._replace(columns={"loss_paloma_c4_en": other})
    setting = Setting(1e22, 6.0, 1e20, 1e-3, 20, 0.95, 0, False)
    pair = losses.run(t, "loss_*", "chinchilla", setting)["loss_to_loss"]["loss_paloma_c4_en"]
    assert pair["backtest"]["from measured loss"]["mae"] < 1.0
