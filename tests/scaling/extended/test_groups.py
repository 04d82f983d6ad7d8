"""Partial pooling: its two limits, known groups, and what it refuses."""

import numpy as np
import pytest

from jaxlm.scaling import table
from jaxlm.scaling.extended import groups, recipes
from jaxlm.scaling.extended.context import Setting
from jaxlm.scaling.laws import fitting, loss_laws
from tests.scaling import public

SETTING = Setting(1e22, 6.0, 1e21, 1e-3, 20, 0.95, 0, False)


def runs(noise=0.003, seed=0):
    """Three groups of 10 runs with the same exponents, and E, A and B of their own."""
    random = np.random.default_rng(seed)
    c = np.repeat(np.geomspace(1e18, 1e21, 5), 2)
    n = np.sqrt(c / 120) * np.tile([0.4, 2.5], 5)
    losses = []
    for e, a, b in ((1.7, 400.0, 900.0), (1.9, 300.0, 1200.0), (1.5, 500.0, 800.0)):
        loss = loss_laws.CHINCHILLA.predict((e, a, b, 0.33, 0.31), (n, c / (6 * n)))
        losses.append(loss * np.exp(noise * random.normal(size=10)))
    t = table.make(np.tile(n, 3), np.tile(c / (6 * n), 3), np.concatenate(losses))
    return t._replace(columns={"set": np.repeat(["x", "y", "z"], 10), "one": np.zeros(30)})


@pytest.mark.slow
def test_the_limits_are_separate_fits_and_common_exponents():
    t = runs()
    names, member = groups.members(t, "set")
    first = groups.alone(t, member, 3, 1e-3)
    for i in range(3):
        own = fitting.fit(loss_laws.CHINCHILLA, table.take(t, member == i))
        assert first.theta[i] == pytest.approx(list(own.theta.values()), rel=1e-9)
    common = groups.fit(t, member, first, 0.0, 1e-3)
    joint = recipes._fit(t, member, names, "exponents", False, SETTING)
    assert common.theta == pytest.approx(joint.theta, rel=1e-5)
    wide, narrow = (groups.fit(t, member, first, s, 1e-3).theta for s in (30.0, 1e-3))
    assert wide[:, 3:] == pytest.approx(first.theta[:, 3:], rel=2e-3)
    assert narrow[:, 3:] == pytest.approx(common.theta[:, 3:], rel=2e-3)
    half = groups.fit(t, member, first, 0.1, 1e-3).theta
    spread = [np.std(np.log(x[:, 3])) for x in (common.theta, half, first.theta)]
    assert spread[0] < spread[1] < spread[2]


@pytest.mark.slow
def test_groups_of_equal_exponents_are_pooled():
    """Ten noisy runs a group hold no exponents alone; together they nearly do."""
    result = groups.run(runs(), "set", SETTING)
    assert result["spread"] <= 0.2
    errors = dict((s, e) for s, e in result["errors"])
    assert errors[result["spread"]] < errors[np.inf]
    away = [[abs(np.log(g[k][3] / 0.33)) for g in result["groups"].values()] for k in ("alone",)]
    pooled = [abs(np.log(g["pooled"]["theta"][3] / 0.33)) for g in result["groups"].values()]
    assert np.mean(pooled) < np.mean(away)
    assert "spread of log exponents" in groups.text(result)


@pytest.mark.slow
def test_training_sets_of_gadre():
    """Three training sets of 35 runs: their exponents differ, and pooling hardly changes them."""
    data = public.gadre()
    n, d, loss = (public.column(data, c) for c in ("N", "D", "loss_c4_val"))
    names = np.array([r["dataset_name"] for r in data])
    t = table.make(n, d, loss)._replace(columns={"dataset_name": names})
    result = groups.run(t, "dataset_name", SETTING)
    errors = dict((s, e) for s, e in result["errors"])
    assert errors[result["spread"]] <= min(errors[np.inf], errors[0.0])


@pytest.mark.parametrize(
    ("column", "text"),
    [
        ("sets", "--pool: no column 'sets'; the file has set, one"),
        ("one", "--pool one: every row has '0'; two groups are needed"),
    ],
)
def test_groups_that_are_not_there_are_refused(column, text):
    with pytest.raises(ValueError, match=text):
        groups.members(runs(), column)
    with pytest.raises(ValueError, match="2 runs of 'z'; 5 are needed"):
        groups.members(table.take(runs(), np.arange(22)), "set")
