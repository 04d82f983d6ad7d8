"""A run's loss from a study: the law's own value, an interval for one run, a hash of the fit."""

import dataclasses
import math

import numpy as np
import pytest

from jaxlm.scaling.planning import forecast
from tests.scaling import public

THETA = {"E": 1.7, "A": 400.0, "B": 2000.0, "alpha": 0.35, "beta": 0.37}
NOISE = 0.004


@pytest.fixture
def record():
    """A study without doubt about its parameters, whose runs scatter by NOISE."""
    residual = NOISE * np.sqrt(13 / 18) * np.where(np.arange(18) % 2, 1, -1)
    n, d = np.geomspace(1e6, 1e8, 18), np.geomspace(1e8, 1e10, 18)
    study = public.recorded()
    forms = {
        "chinchilla": dataclasses.replace(
            study.forms["chinchilla"],
            theta=THETA,
            draws=np.tile(list(THETA.values()), (4000, 1)),
            residual=residual,
        ),
        "offset": study.forms["offset"],
    }
    points = dataclasses.replace(
        study.points, params=n, tokens=d, flops=6 * n * d, loss=np.full(18, 2.5)
    )
    return dataclasses.replace(
        study, law="chinchilla", per=6.0, flops=(1e15, 6e18), forms=forms, points=points
    )


def test_a_prediction_is_the_laws_value_with_the_noise_of_one_run(record):
    prediction = forecast.predict(record, 2e8, 4e10)
    want = 1.7 + 400 * 2e8**-0.35 + 2000 * 4e10**-0.37
    assert prediction.loss == pytest.approx(want, rel=1e-12)
    assert list(prediction.forms) == ["chinchilla"]  # a law of C alone predicts nothing of N and D
    assert prediction.times_largest == pytest.approx(6 * 2e8 * 4e10 / 6e18)
    assert prediction.forms["chinchilla"].noise == pytest.approx(NOISE)
    low, high = prediction.interval
    assert math.log(high / low) == pytest.approx(2 * 1.96 * NOISE, rel=0.05)
    assert low < want < high


def test_the_hash_is_of_points_and_parameters_alone(record):
    same = dataclasses.replace(record, options=dataclasses.replace(record.options, level=0.5))
    loss = record.points.loss + 1e-9 * (np.arange(18) == 3)
    moved = dataclasses.replace(record, points=dataclasses.replace(record.points, loss=loss))
    form = record.forms["chinchilla"]
    form = dataclasses.replace(form, theta=form.theta | {"E": form.theta["E"] + 1e-9})
    refitted = dataclasses.replace(record, forms=record.forms | {"chinchilla": form})
    hashes = [forecast.digest(r) for r in (record, same, moved, refitted)]
    assert hashes[0] == hashes[1] and len(set(hashes)) == 3


def test_the_outcome_of_a_forecast(record):
    prediction = forecast.predict(record, 2e8, 4e10)
    near = forecast.compare(prediction, prediction.loss * 1.001)
    assert near.error == pytest.approx(-0.1, rel=1e-3) and near.inside
    far = forecast.compare(prediction, prediction.loss * 0.97)
    assert far.error == pytest.approx(100 * math.log(1 / 0.97)) and not far.inside
    assert "error -0.10 %, inside" in forecast.text(prediction, near)
    assert "not trained yet" in forecast.text(prediction, None)
    with pytest.raises(ValueError, match="tokens: 0 given"):
        forecast.predict(record, 2e8, 0)
