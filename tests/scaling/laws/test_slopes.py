"""Derivatives of joint laws, written out, against central differences."""

import functools

import numpy as np
import pytest

from jaxlm.scaling.extended import groups, recipes
from jaxlm.scaling.laws import slopes

R = np.random.default_rng(0)
X, OWN = R.normal(size=(2, 9)), np.repeat(np.eye(3), 3, 1)  # three recipes of three runs
SHARED = [(exponents, floor) for exponents in (True, False) for floor in (True, False)]
# a row of a penalty at the end for each of six departures
PENALTIES = np.block([[np.zeros((5, 6))], [0.3 * np.eye(6)]])
GROUPS = np.concatenate([np.concatenate([X, OWN, np.zeros((6, 9))]), PENALTIES], 1)
CASES = {
    **{
        f"recipes, {exponents}, {floor}": (
            functools.partial(recipes._derivatives, 2, 3, exponents, floor),
            np.concatenate([X, OWN]),
            6 + (2 if exponents else 6) + (1 if floor else 3),
        )
        for exponents, floor in SHARED
    },
    "recipes by compute": (
        functools.partial(recipes._derivatives, 1, 3, True, False),
        np.concatenate([X[:1], OWN]),
        7,
    ),
    "groups": (functools.partial(groups._derivatives, 3), GROUPS, 17),
}


@pytest.mark.parametrize("log", [1.0, 0.0])
@pytest.mark.parametrize("name", CASES)
def test_joint_laws_have_the_derivatives_of_their_values(name, log):
    """Of least squares, where every residual bends the objective; two problems at once."""
    derivatives, logs, k = CASES[name]
    n = logs.shape[1]
    phi, y, w = R.normal(size=(2, k)) / 3, R.normal(size=(2, n)), R.uniform(0.5, 2, (2, n))
    logs = np.stack([logs, logs], 1)
    at = slopes.Points(logs, np.zeros((len(logs), 2, 1)), np.inf, log)

    def trial(phi):
        return slopes.by_derivatives(derivatives, phi, y, w, at)

    found, steps = trial(phi).slopes(slice(None)), 1e-5 * np.eye(k)
    up, down = ([trial(phi + sign * h) for h in steps] for sign in (1, -1))
    gradient = np.stack([(a.value - b.value) / 2e-5 for a, b in zip(up, down)], -1)
    np.testing.assert_allclose(found.gradient, gradient, rtol=1e-6, atol=1e-6)
    sides = ([t.slopes(np.arange(2)).gradient for t in many] for many in (up, down))
    hessian = np.stack([(a - b) / 2e-5 for a, b in zip(*sides)], -1)
    np.testing.assert_allclose(found.hessian, hessian, rtol=1e-6, atol=1e-6)
