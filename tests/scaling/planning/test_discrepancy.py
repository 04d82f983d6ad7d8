"""A form's own error: against a Gaussian process written out, on a law that is wrong, and right."""

import numpy as np
import pytest

from jaxlm.scaling import table
from jaxlm.scaling.laws import fitting, loss_laws, optimum
from jaxlm.scaling.planning import discrepancy, experiment_design

TRUTH = np.array([1.7, 420.0, 900.0, 0.34, 0.31])
LAW = loss_laws.CHINCHILLA


def runs(loss, noise=0.002, seed=0):
    """Six budgets of seven sizes of a law, with noise of log loss."""
    c = np.repeat(np.geomspace(1e17, 1e20, 6), 7)
    n = optimum.at("chinchilla", TRUTH, c).params * np.tile(np.geomspace(0.3, 3, 7), 6)
    d = c / (6 * n)
    own = np.random.default_rng(seed).normal(0, noise, len(c))
    return table.make(n, d, loss(n, d) * np.exp(own))


def right(n, d):
    return LAW.predict(TRUTH, (n, d))


def interacting(n, d, power=1.3):
    """E + (a^(1/p) + b^(1/p))^p, what Kaplan et al.'s law has, with a floor."""
    e, a, b, alpha, beta = TRUTH
    return e + ((a * n**-alpha) ** (1 / power) + (b * d**-beta) ** (1 / power)) ** power


def form(loss, **how):
    t = runs(loss, **how)
    fitted = fitting.fit(LAW, t)
    theta = fitting.values(fitted)
    return theta, discrepancy.fit(LAW, theta, fitted.residual, t.params, t.tokens)


def test_it_is_universal_kriging(monkeypatch):
    """Mean and variance of one length and ratio by the textbook's n x n formulas (Rasmussen &
    Williams 2006, equations 2.41 and 2.42)."""
    monkeypatch.setattr(discrepancy, "LENGTHS", (1.5,))
    monkeypatch.setattr(discrepancy, "RATIOS", (2.0, 2.0, 1))
    _, f = form(interacting)
    n, d = np.array([1e9, 3e9]), np.array([4e10, 2e10])
    weight, mean, sd = discrepancy.posterior(f, n, d)

    place = np.log10(np.stack([n, d], 1))
    share = (1 - f.theta[0] / LAW.predict(f.theta, (n, d))) / f.unit

    def kernel(a, b):
        return np.exp(-((a[:, None] - b[None]) ** 2).sum(-1) / (2 * 1.5**2))

    k = 4 * kernel(f.position, f.position) * np.outer(f.scale, f.scale)
    cross = 4 * kernel(f.position, place) * np.outer(f.scale, share)
    far = 4 * kernel(place, place) * np.outer(share, share)
    there = experiment_design.gradients(LAW, f.theta, (n, d))

    def moments(k, cross, far):
        v = np.linalg.inv(np.eye(len(k)) + k)
        inner = np.linalg.inv(f.trend.T @ v @ f.trend)
        beta = inner @ f.trend.T @ v @ f.residual
        left = there - cross.T @ v @ f.trend
        value = there @ beta + cross.T @ v @ (f.residual - f.trend @ beta)
        return value, np.diag(far - cross.T @ v @ cross + left @ inner @ left.T)

    value, variance = moments(k, cross, far)
    plain, sampling = moments(0 * k, 0 * cross, 0 * far)
    q = np.linalg.qr(f.trend)[0]
    z = f.residual - q @ (q.T @ f.residual)
    # the noise that maximises the restricted likelihood
    v = np.linalg.inv(np.eye(len(k)) + k)
    inner = np.linalg.inv(f.trend.T @ v @ f.trend)
    noise = z @ (v - v @ f.trend @ inner @ f.trend.T @ v) @ z / (len(z) - f.trend.shape[1])
    assert weight == pytest.approx([1.0])
    assert mean[0] == pytest.approx(value - plain, rel=1e-6)
    assert sd[0] == pytest.approx(np.sqrt(noise * (variance - sampling)), rel=1e-6)


def curve(loss, **how):
    theta, f = form(loss, **how)
    return theta, discrepancy.along(f, discrepancy.grid((1e17, 1e20)), 6.0)


def test_a_wrong_form_is_as_wrong_as_it_says():
    """Ten times beyond the runs of an interacting law chinchilla's loss is off by 0.9 %; the
    discrepancy's draws hold it, and of a right law are a third as wide."""
    theta, own = curve(interacting, noise=0.001)
    n = np.geomspace(1e9, 1e11, 20001)
    truth = np.log(interacting(n, 1e21 / 6 / n).min())
    error = truth - np.log(optimum.at("chinchilla", theta, 1e21).loss)
    shift = discrepancy.draw(own, np.full(4000, 1e21), 0)[1]
    low, high = np.percentile(shift, [2.5, 97.5])
    assert abs(error) > 0.008 and low < error < high and abs(error - shift.mean()) < abs(error)
    none = discrepancy.draw(curve(right, noise=0.001)[1], np.full(4000, 1e21), 0)[1]
    assert np.diff(np.percentile(none, [2.5, 97.5])) < (high - low) / 3


def test_draws_keep_their_place_along_compute():
    """Of one seed the draws move smoothly with compute, and differ between draws."""
    own = curve(right)[1]
    near, next_to, far = (
        discrepancy.draw(own, np.full(500, c), 1)[0] for c in (1e21, 1.05e21, 1e26)
    )
    assert np.corrcoef(near, next_to)[0, 1] > 0.999 and near.std() > 0
    assert far.std() > near.std()
    assert (discrepancy.draw(own, np.full(500, 1e21), 1)[0] == near).all()
    mixed = discrepancy.draw(own, np.where(np.arange(500) < 250, 1e21, 1e26), 1)[0]
    assert (mixed == np.where(np.arange(500) < 250, near, far)).all()


def test_what_has_none():
    """Laws of compute alone, hardly more points than parameters, and residuals that are 0."""
    t = runs(right)
    zero = np.zeros(len(t.loss))
    assert discrepancy.fit(loss_laws.OFFSET, np.ones(3), zero, t.params, t.tokens) is None
    assert discrepancy.fit(LAW, TRUTH, zero, t.params, t.tokens) is None
    few = np.full(8, 1e-3)
    assert discrepancy.fit(LAW, TRUTH, few, t.params[:8], t.tokens[:8]) is None


def test_many_points_are_thinned_over_all_sizes():
    n = np.geomspace(1e7, 1e10, 1500)
    residual = np.random.default_rng(0).normal(0, 1e-3, 1500)
    f = discrepancy.fit(LAW, TRUTH, residual, n, 20 * n)
    assert len(f.residual) == discrepancy.MOST
    assert f.position[[0, -1], 0] == pytest.approx([7, 10])


def test_a_held_parameter_is_no_trend():
    """What `--fix` holds does not move with the runs."""
    t = runs(interacting)
    fitted = fitting.fit(LAW, t)
    own = [
        discrepancy.fit(LAW, TRUTH, fitted.residual, t.params, t.tokens, fixed=held)
        for held in ((), ("alpha",))
    ]
    assert [f.trend.shape[1] for f in own] == [5, 4]
    every = own[0].trend
    assert own[1].trend == pytest.approx(every[:, [0, 1, 2, 4]])
    assert discrepancy.posterior(own[1], np.array([1e9]), np.array([2e10]))[
        0
    ].sum() == pytest.approx(1)
