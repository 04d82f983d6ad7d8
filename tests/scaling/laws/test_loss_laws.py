"""Laws: their values against published ones, their two parametrisations, the solver's slopes."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlm.scaling.laws import differentiate, extended_forms, loss_laws, slopes, solve
from jaxlm.scaling.study import tuning

# Parameters near published ones, for inputs params, tokens, unique or flops.
THETA = {
    "chinchilla": (1.69, 406.4, 410.7, 0.34, 0.28),
    "tied": (1.87, 520.8, 1487.7, 0.3527),
    "kaplan": (6.4e13, 1.8e13, 0.076, 0.103),
    "kaplan_params": (8.8e13, 0.076),
    "kaplan_tokens": (5.4e13, 0.095),
    "overtraining": (1.836648, 166.210978, 366.687159, 0.272851),
    "data_constrained": (1.87, 520.8, 1487.7, 0.34, 0.36, 15.387756, 5.309743),
    "farseer": (-1.6656, 3.1333, 0.0459, 230.73, -1.5442, -0.1729, -0.0625, 0.1285, 0.13),
    "offset": (1.7, 1600.0, 0.16),
}
N = np.geomspace(1e7, 1e10, 12)
D = np.geomspace(3e9, 1e11, 12)[[3, 0, 7, 1, 9, 2, 11, 4, 5, 10, 6, 8]]
INPUTS = {"params": N, "tokens": D, "flops": 6 * N * D, "unique": D / np.linspace(1, 40, 12)}


def test_every_law_has_parameters_here():
    assert set(THETA) == set(loss_laws.LAWS)


@pytest.mark.parametrize("name", THETA)
def test_natural_and_internal_parameters_are_one_law(name):
    law, theta = loss_laws.LAWS[name], np.array(THETA[name])
    x = [INPUTS[f] for f in law.inputs]
    logs = np.log(np.stack(x))
    model = jax.jit(law.model)
    for centre in (logs.mean(1), np.zeros(len(x))):
        phi = law.internal(theta, centre)
        np.testing.assert_allclose(law.natural(phi, centre), theta, rtol=1e-9)
        with jax.enable_x64(True):
            got = np.asarray(model(phi, logs, centre))
        np.testing.assert_allclose(got, np.log(law.predict(theta, x)), rtol=0, atol=1e-11)
    draws = np.stack([theta, theta])
    many = law.predict(draws.T[:, :, None], x)
    np.testing.assert_allclose(many, np.tile(law.predict(theta, x), (2, 1)))


def test_kaplans_forms_give_the_values_of_the_paper():
    """alpha_D is 0.103 in L(N,D) and 0.095 in L(D): Kaplan et al. 2020, equations 1.5 and 1.2."""
    at = lambda name, *x: loss_laws.LAWS[name].predict(THETA[name], x)  # noqa: E731
    assert at("kaplan", 1e9, 2.3e10) == pytest.approx(2.367307, abs=1e-6)
    assert at("kaplan_params", 1e9) == pytest.approx(2.375640, abs=1e-6)
    assert at("kaplan_tokens", 2.3e10) == pytest.approx(2.090322, abs=1e-6)


def test_over_training_is_in_tokens_per_parameter():
    e, a, b, eta = THETA["overtraining"]
    m = D / N
    want = e + a * N**-eta + b * 6 ** (-eta / 2) * (m * N) ** -eta
    np.testing.assert_allclose(loss_laws.OVERTRAINING.predict(THETA["overtraining"], (N, D)), want)


def test_repeated_tokens_are_worth_less_and_less():
    """The second epoch nearly a first one, R_D + 1 epochs' worth at most; Muennighoff et al."""
    u, r = 1e9, 15.387756
    worth = extended_forms.effective(np.array([0.5e9, 1e9, 2e9, 1e15]), u, r) / u
    assert worth[:2].tolist() == [0.5, 1.0]
    assert worth[2] == pytest.approx(1 + r * (1 - np.exp(-1 / r)))
    assert worth[3] == pytest.approx(1 + r)
    # U_N at the published base: alpha = beta makes it proportional to U
    theta = (np.exp(0.6254804), np.exp(6.255414), np.exp(7.3049974), 0.3526596, 0.3526596)
    n = extended_forms.optimal_params(theta, u)
    # least loss of N D = const through (n, u)
    at = lambda k: loss_laws.CHINCHILLA.predict(theta, (n * k, u / k))  # noqa: E731
    assert at(1.0) < min(at(1.001), at(0.999))


def test_farseers_exponents_may_vanish():
    """At exponent 0 a part is a power of N: the internal parameters go through it smoothly."""
    centre = np.array([18.0, 22.0])
    phi = loss_laws.FARSEER.internal(np.array(THETA["farseer"]), centre)
    logs = np.log(np.stack([N, D]))

    model = jax.jit(loss_laws.FARSEER.model)

    def log_loss(gamma):
        with jax.enable_x64(True):
            return np.asarray(model(np.array([*phi[:8], gamma]), logs, centre))

    # beyond where the series is used; the second order is 1e-9
    around = (log_loss(3e-5) + log_loss(-3e-5)) / 2
    np.testing.assert_allclose(log_loss(0.0), around, rtol=0, atol=1e-8)
    np.testing.assert_allclose(log_loss(9.9e-6), log_loss(1.01e-5), rtol=0, atol=1e-6)
    line = phi[7] + phi[6] * (logs[0] - 18)
    rest = np.exp(log_loss(0.1)) - np.exp(phi[7] + phi[6] * np.expm1(0.1 * (logs[0] - 18)) / 0.1)
    np.testing.assert_allclose(np.exp(log_loss(0.0)), np.exp(line) + rest, rtol=1e-12)


@pytest.fixture(scope="module")
def problems():
    """Losses, weights and parameters of 3 problems on 12 points, with residuals about delta."""
    random = np.random.default_rng(0)
    logs = np.log(np.stack([N, D]))
    centre = logs.mean(1)
    phi = loss_laws.CHINCHILLA.internal(np.array(THETA["chinchilla"]), centre)
    phi = phi + 0.01 * random.normal(size=(3, 5))
    clean = np.log(loss_laws.CHINCHILLA.predict(THETA["chinchilla"], (N, D)))
    y = clean + 0.02 * random.normal(size=(3, 12))
    return phi, y, random.integers(0, 4, (3, 12)).astype(float), logs, centre


class Full(NamedTuple):
    value: np.ndarray
    gradient: np.ndarray
    hessian: np.ndarray
    bound: np.ndarray


def full(trial):
    """All of a trial, after what it gives of some rows is seen to be a part of it."""
    every = trial.slopes(slice(None))
    for a, b in zip(trial.slopes(np.array([2, 0])), every):
        np.testing.assert_allclose(a, b[[2, 0]], rtol=1e-8, atol=1e-12 * np.abs(b).max())
    return Full(trial.value, *every)


def points(logs, centre, log=1.0):
    """The same points for each of three problems."""
    every = np.repeat(logs[:, None], 3, 1), np.repeat(centre[:, None, None], 3, 1)
    return slopes.Points(*every, 0.02, log)


def test_closed_slopes_are_those_of_the_objective(problems):
    """Against JAX's derivatives of the objective written out, for five and for tied parameters."""
    phi, y, w, logs, centre = problems

    def objective(phi, y, w, log):
        e, a, b, alpha, beta = phi
        x, z = logs - centre[:, None]
        loss = jnp.exp(e) + jnp.exp(a - alpha * x) + jnp.exp(b - beta * z)
        r = jnp.abs(y - jnp.where(log, jnp.log(loss), loss))
        return (w * jnp.where(r <= 0.02, r**2 / 2, 0.02 * (r - 0.01))).sum()

    @jax.jit
    def by_jax(*x):
        parts = (objective, jax.grad(objective), jax.hessian(objective))
        return [jax.vmap(f, (0, 0, 0, None))(*x) for f in parts]

    five = functools.partial(slopes.of_three_terms, loss_laws.CHINCHILLA.terms)
    four = functools.partial(slopes.of_three_terms, loss_laws.TIED.terms)
    t = np.array(loss_laws.TIED.terms)
    with jax.enable_x64(True):
        for log in (1.0, 0.0):
            y = y if log else np.exp(y)
            value, gradient, hessian = by_jax(phi, y, w, log)
            got = full(five(phi, y, w, points(logs, centre, log)))
            np.testing.assert_allclose(got.value, value, rtol=1e-12)
            np.testing.assert_allclose(got.gradient, gradient, rtol=1e-9, atol=1e-12)
            np.testing.assert_allclose(got.hessian, hessian, rtol=1e-8, atol=1e-11)
            assert (np.linalg.eigvalsh(got.bound) > 0).all()
        phi = phi @ t / (t**2).sum(0)
        _, gradient, hessian = by_jax(phi @ t.T, y, w, log)
        got = full(four(phi, y, w, points(logs, centre, log)))
        np.testing.assert_allclose(got.gradient, gradient @ t, rtol=1e-9, atol=1e-12)
        np.testing.assert_allclose(got.hessian, t.T @ hessian @ t, rtol=1e-8, atol=1e-11)


def test_differentiated_slopes_are_the_closed_ones(problems):
    phi, y, w, logs, centre = problems
    law = loss_laws.CHINCHILLA
    at = points(logs, centre)
    closed = full(slopes.of_three_terms(law.terms, phi, y, w, at))
    got = full(differentiate.trial(law.model, phi, y, w, at))
    for a, b in zip(got, closed, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-8, atol=1e-11)


@pytest.mark.parametrize("name", ["kaplan", "farseer", "offset", "kaplan_params", "excess"])
def test_closed_derivatives_are_those_of_the_model(name):
    """Objective, gradient, Hessian and bound against automatic differentiation of the model, with
    an exponent of Farseer's at which its stretched exponential is taken as a series."""
    random = np.random.default_rng(1)
    x = {"params": N, "tokens": D, "flops": 6 * N * D}
    if name == "excess":
        model, closed, inputs = tuning._model, tuning._derivatives, ("params", "tokens")
    else:
        law = loss_laws.LAWS[name]
        model, closed, inputs = law.model, law.closed, law.inputs
    logs = np.log(np.stack([x[k] for k in inputs]))
    centre = logs.mean(1)
    if name == "excess":
        logs, centre = np.append(logs, [np.maximum(logs[0] - 20, 0)], 0), np.append(centre, 0.0)
    phi = {
        "kaplan": (12.0, 10.0, 0.076, 0.103),
        "farseer": (-0.16, -0.9, 0.004, 0.22, -1.1, -0.25, -0.09, 0.8, -0.08),
        "offset": (0.5, -0.4, 0.16),
        "kaplan_params": (12.0, 0.076),
        "excess": (0.5, -0.4, -0.3, 0.34, 0.28, 0.02),
    }[name]
    phi = np.array(phi) * (1 + 0.1 * random.normal(size=(3, len(phi))))
    w = random.integers(0, 4, (3, 12)).astype(float)
    with jax.enable_x64(True):
        clean = jax.vmap(lambda p: model(p, logs, centre))(jnp.array(phi))
    y = np.asarray(clean) + 0.02 * random.normal(size=(3, 12))
    both = [solve.derived(model, c) for c in (closed, None)]
    for log in (1.0, 0.0):
        at = points(logs, centre, log)
        got, want = (full(f(phi, y if log else np.exp(y), w, at)) for f in both)
        for a, b in zip(got, want, strict=True):
            scale = np.abs(b).max()
            np.testing.assert_allclose(a, b, rtol=1e-8, atol=1e-10 * scale)


def test_sizes_that_are_compiled_are_few():
    assert sorted({differentiate.rounded(n) for n in range(1, 500)}) == [64, 128, 256, 512]
    assert all(n <= differentiate.rounded(n) for n in range(1, 500))
