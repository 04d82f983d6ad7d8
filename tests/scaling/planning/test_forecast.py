"""A run's loss from a study: the law's own value, an interval for one run, a hash of the fit."""

import copy
import math

import numpy as np
import pytest

from jaxlm.scaling.planning import forecast

THETA = {"E": 1.7, "A": 400.0, "B": 2000.0, "alpha": 0.35, "beta": 0.37}
NOISE = 0.004


@pytest.fixture
def record():
    """A study without doubt about its parameters, whose runs scatter by NOISE."""
    residual = NOISE * np.sqrt(13 / 18) * np.where(np.arange(18) % 2, 1, -1)
    n, d = np.geomspace(1e6, 1e8, 18), np.geomspace(1e8, 1e10, 18)
    form = {"theta": THETA, "draws": [list(THETA.values())] * 4000, "residual": list(residual)}
    points = {"params": n, "tokens": d, "flops": 6 * n * d, "loss": np.full(18, 2.5)}
    return {
        "law": "chinchilla",
        "per": 6.0,
        "flops": [1e15, 6e18],
        "options": {"level": 0.95},
        "forms": {"chinchilla": form, "offset": {"theta": {"E": 1.0}, "draws": [], "residual": []}},
        "points": points,
    }


def test_a_prediction_is_the_laws_value_with_the_noise_of_one_run(record):
    told = forecast.predict(record, 2e8, 4e10)
    want = 1.7 + 400 * 2e8**-0.35 + 2000 * 4e10**-0.37
    assert told["loss"] == pytest.approx(want, rel=1e-12)
    assert list(told["forms"]) == ["chinchilla"]  # a law of C alone tells nothing of N and D
    assert told["times_largest"] == pytest.approx(6 * 2e8 * 4e10 / 6e18)
    assert told["forms"]["chinchilla"]["noise"] == pytest.approx(NOISE)
    low, high = told["interval"]
    assert math.log(high / low) == pytest.approx(2 * 1.96 * NOISE, rel=0.05)
    assert low < want < high


def test_the_hash_is_of_points_and_parameters_alone(record):
    same, moved, refitted = (copy.deepcopy(record) for _ in range(3))
    same["options"]["level"] = 0.5
    same["points"] = {name: list(values) for name, values in same["points"].items()}
    moved["points"]["loss"][3] += 1e-9
    refitted["forms"]["chinchilla"]["theta"]["E"] += 1e-9
    hashes = [forecast.digest(r) for r in (record, same, moved, refitted)]
    assert hashes[0] == hashes[1] and len(set(hashes)) == 3


def test_what_came_of_it(record):
    told = forecast.predict(record, 2e8, 4e10)
    near = forecast.compare(told, told["loss"] * 1.001)
    assert near["error"] == pytest.approx(-0.1, rel=1e-3) and near["inside"]
    far = forecast.compare(told, told["loss"] * 0.97)
    assert far["error"] == pytest.approx(100 * math.log(1 / 0.97)) and not far["inside"]
    assert "error -0.10 %, inside" in forecast.text(told, near)
    assert "not trained yet" in forecast.text(told, None)
    with pytest.raises(ValueError, match="tokens: 0 given"):
        forecast.predict(record, 2e8, 0)
