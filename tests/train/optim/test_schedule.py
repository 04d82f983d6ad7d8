"""Every schedule against its formula, written out in Python floats, and at its corners."""

import math

import jax.numpy as jnp
import numpy as np
import pytest

from jaxlm.train.optim import schedule

PEAK, WARMUP, STEPS, FINAL, DECAY = 2e-3, 10, 110, 0.1, 0.2


def formula(name, s):
    """The learning rate after s updates."""
    if s < WARMUP:
        return PEAK * (s + 1) / WARMUP
    x = (s - WARMUP) / (STEPS - WARMUP)
    y = max(0.0, (s - (STEPS - DECAY * STEPS)) / (DECAY * STEPS))
    shape = {
        "cosine": FINAL + (1 - FINAL) * (1 + math.cos(math.pi * x)) / 2,
        "linear": 1 - (1 - FINAL) * x,
        "wsd": FINAL + (1 - FINAL) * (1 - math.sqrt(y)),
        "inverse_sqrt": math.sqrt(WARMUP / s),
        "constant": 1.0,
    }
    return PEAK * shape[name]


@pytest.mark.parametrize("name", schedule.Name.__args__)
def test_follows_its_formula(name):
    rate = schedule.build(name, PEAK, WARMUP, STEPS, FINAL, DECAY)
    got = np.asarray(rate(jnp.arange(STEPS + 1)))
    want = [formula(name, s) for s in range(STEPS + 1)]
    np.testing.assert_allclose(got, want, rtol=2e-6)


@pytest.mark.parametrize(
    "name, middle, end",
    [("cosine", 0.55, 0.1), ("linear", 0.55, 0.1), ("wsd", 1.0, 0.1), ("constant", 1.0, 1.0)],
)
def test_corners(name, middle, end):
    rate = schedule.build(name, PEAK, WARMUP, STEPS, FINAL, DECAY)
    corners = {0: 0.1, WARMUP - 1: 1.0, WARMUP: 1.0, 60: middle, STEPS: end, 10 * STEPS: end}
    for s, fraction in corners.items():
        assert float(rate(jnp.int32(s))) == pytest.approx(fraction * PEAK, rel=1e-6), s


def test_inverse_sqrt_quarters_the_rate_at_16_times_the_warmup():
    rate = schedule.build("inverse_sqrt", PEAK, WARMUP, STEPS, FINAL, DECAY)
    assert float(rate(jnp.int32(16 * WARMUP))) == pytest.approx(PEAK / 4)


@pytest.mark.parametrize("name", schedule.Name.__args__)
@pytest.mark.parametrize("warmup", [0, 1])
def test_without_warmup_the_first_update_has_the_peak(name, warmup):
    rate = schedule.build(name, PEAK, warmup, STEPS, FINAL, DECAY)
    got = np.asarray([rate(jnp.int32(s)) for s in range(STEPS)])
    assert got[0] == pytest.approx(PEAK) and np.isfinite(got).all() and (got > 0).all()


def test_wsd_holds_the_peak_until_the_last_fifth():
    rate = schedule.build("wsd", PEAK, WARMUP, STEPS, 0.0, DECAY)
    got = np.asarray(rate(jnp.arange(STEPS + 1)))
    assert (got[WARMUP : STEPS - 22 + 1] == np.float32(PEAK)).all()
    assert (np.diff(got[STEPS - 22 :]) < 0).all() and got[STEPS] == 0
