"""Countings side by side: a count that is a power of N has a known exponent."""

import numpy as np
import pytest

from jaxlm.scaling import table
from jaxlm.scaling.extended import countings
from jaxlm.scaling.extended.context import Setting
from jaxlm.scaling.laws import loss_laws
from tests.scaling import public

SETTING = Setting(1e22, 6.0, 1e21, 1e-3, 30, 0.95, 0, False)


def runs():
    c = np.repeat(np.geomspace(1e18, 1e21, 4), 6)
    n = np.sqrt(c / 120) * np.tile(np.geomspace(0.2, 5, 6), 4)
    loss = loss_laws.CHINCHILLA.predict((1.7, 400.0, 900.0, 0.34, 0.3), (n, c / (6 * n)))
    t = table.make(n, c / (6 * n), loss, c)
    columns = {"half": n / 2, "power": 3 * n**0.8, "name": np.repeat("x", 24), "zero": 0 * n}
    return t._replace(columns=columns)


def test_counts_change_exponents_as_algebra_says():
    """Half of N everywhere changes nothing but N*; N' = 3 N^0.8 has alpha / 0.8, and isoFLOP minima
    at N'* = 3 N*^0.8, so 0.8 times the exponent."""
    rows = countings.run(runs(), ["half", "power"], SETTING)["countings"]
    own, half, power = (rows[k] for k in ("N", "half", "power"))
    assert own["exponent"][0] == pytest.approx(0.3 / 0.64, abs=1e-5)
    assert half["exponent"][0] == pytest.approx(own["exponent"][0], abs=1e-6)
    assert half["params"][0] == pytest.approx(own["params"][0] / np.sqrt(1) * 0.5**1, rel=0.5)
    assert half["share"] == pytest.approx(0.5) and half["flops_recounted"]
    assert power["theta"]["alpha"] == pytest.approx(0.34 / 0.8, rel=1e-5)
    assert power["isoflop"]["exponent"] == pytest.approx(0.8 * own["isoflop"]["exponent"], rel=0.02)


def test_countings_of_gadre():
    """Without embeddings the exponent of N* is larger (Porian et al. 2024, section 3), on other
    runs than theirs."""
    data = public.gadre("rpj")
    n, d, loss, other = (
        public.column(data, c) for c in ("N", "D", "loss_c4_val", "params_no_embed")
    )
    t = table.make(n, d, loss)._replace(columns={"params_no_embed": other})
    rows = countings.run(t, ["params_no_embed"], SETTING)["countings"]
    assert rows["params_no_embed"]["exponent"][0] > rows["N"]["exponent"][0]
    assert "skipped" in rows["N"]["isoflop"] and "params_no_embed" in countings.text(
        {"target": 1e22, "countings": rows}
    )


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("total", "--countings: no column 'total'; the file has half, power"),
        ("name", "column 'name' has text, such as 'x'"),
        ("zero", "row 1, column 'zero': 0; a count of parameters above 0"),
    ],
)
def test_columns_that_are_no_counts_are_refused(name, text):
    with pytest.raises(ValueError, match=text):
        countings.run(runs(), [name], SETTING)
