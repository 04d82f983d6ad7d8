"""Bootstraps: published standard errors on the same resamples, coverage of known truth."""

import numpy as np
import pytest

from jaxlm.scaling import table
from jaxlm.scaling.laws import bootstrap, fitting, loss_laws, profile, solve
from tests.scaling import public

LAW = loss_laws.CHINCHILLA
TRUTH = (1.6, 420.0, 900.0, 0.345, 0.315)


@pytest.fixture(scope="module")
def runs():
    random = np.random.default_rng(0)
    c = np.repeat(np.geomspace(1e17, 1e21, 5), 8)
    n = np.sqrt(c / 120) * np.tile(np.geomspace(0.2, 5, 8), 5)
    loss = LAW.predict(TRUTH, (n, c / (6 * n))) * np.exp(0.003 * random.normal(size=40))
    return table.make(n, c / (6 * n), loss, run=np.repeat([f"{i:02}" for i in range(20)], 2))


@pytest.fixture(scope="module")
def fitted(runs):
    return fitting.fit(LAW, runs)


def test_a_replicate_is_the_fit_of_its_points(runs, fitted):
    index = np.random.default_rng(1).integers(0, 40, (3, 40))
    draws = bootstrap.cases(LAW, runs, fitted, 3, seed=0, resamples=index)
    assert not draws.failed.any()
    for i in range(3):
        alone = fitting.fit(LAW, table.take(runs, index[i]))
        assert draws.objective[i] == pytest.approx(alone.objective, rel=1e-9)
        np.testing.assert_allclose(draws.theta[i], fitting.values(alone), rtol=1e-5)


def test_damping_that_many_steps_eased_is_soon_back(runs, monkeypatch):
    """Of a form that is wrong few points are within delta, and a step often ends at a kink. Damping
    that twenty steps had eased to 1e-16 took as many refusals to undo, each as dear as a step."""
    refused, longest, step = np.zeros(200, int), 0, solve._step

    def counted(problems, block, delta):
        nonlocal longest
        before = block.damping
        out, arrived = step(problems, block, delta)
        again = np.where(out.damping > before, refused[out.index] + 1, 0)
        refused[out.index] = again
        longest = max(longest, int(again[~arrived].max(initial=0)))
        return out, arrived

    fit = fitting.fit(loss_laws.KAPLAN, runs)
    weights = bootstrap.counts(runs, 200, 0, "case")
    monkeypatch.setattr(solve, "_step", counted)
    draws = bootstrap.refit(loss_laws.KAPLAN, runs, fit, weights)
    assert draws.failed.mean() < 0.02 and longest <= 12


def test_solved_together_is_solved_alone(runs, fitted):
    """Tables of 40, 32 and 24 points in one call: their fits, refits and profiles, one of them with
    points of weight 0, are those of a call each. Settings that differ are refused."""
    tables = [table.take(runs, runs.flops < least) for least in (np.inf, 3e20, 3e19)]
    assert [len(t.loss) for t in tables] == [40, 32, 24]
    few = [np.ones(40), np.ones(32), np.repeat([1.0, 0.0], 12)]
    few[2] = np.random.default_rng(2).permutation(few[2])
    problems = [fitting.problem(LAW, t, weights=w) for t, w in zip(tables, few)]
    together = fitting.fit_all(LAW, problems)
    alone = [fitting.fit(LAW, t, weights=w) for t, w in zip(tables, few)]
    alone[2] = fitting.fit(LAW, table.take(tables[2], few[2] > 0))
    parts = [(t, f, bootstrap.counts(t, 5, 0, "case"), None) for t, f in zip(tables, together)]
    draws = bootstrap.refit_all(LAW, parts)
    for part, joint, many, own in zip(parts, together, draws, alone):
        assert joint.failed is None and joint.objective == pytest.approx(own.objective, rel=1e-9)
        np.testing.assert_allclose(fitting.values(joint), fitting.values(own), rtol=1e-5)
        again = bootstrap.refit(LAW, *part[:3])
        assert not many.failed.any()
        np.testing.assert_allclose(many.objective, again.objective, rtol=1e-9)
        np.testing.assert_allclose(many.theta, again.theta, rtol=1e-4)
    grids = {"alpha": np.linspace(0.3, 0.4, 5), "E": np.linspace(1.5, 1.7, 4)}
    for name, least in profile.profiles(LAW, runs, fitted, grids).items():
        single = profile.profile(LAW, runs, fitted, name, grids[name])
        np.testing.assert_allclose(least, single, rtol=1e-9)
    problems[1] = fitting.problem(LAW, tables[1], delta=1e-2)
    with pytest.raises(ValueError, match=r"\(delta, log, near\).*all problems need the same"):
        fitting.fit_all(LAW, problems)
    parts[1] = (tables[1], fitting.fit(LAW, tables[1], delta=1e-2), np.ones((1, 32)), None)
    with pytest.raises(ValueError, match=r"\(delta, log\).*all fits need the same"):
        bootstrap.refit_all(LAW, parts)


def test_bootstraps_are_of_their_seed_and_their_kind(runs, fitted):
    first, again = (bootstrap.cases(LAW, runs, fitted, 20, seed=s) for s in (3, 3))
    np.testing.assert_array_equal(first.theta, again.theta)
    assert (bootstrap.cases(LAW, runs, fitted, 20, seed=4).theta != first.theta).any()
    # each run twice in a row: a draw of runs is a draw of pairs of points
    random = np.random.default_rng(3)
    pairs = np.repeat(random.multinomial(20, np.full(20, 1 / 20), 20), 2, axis=1)
    want = bootstrap.refit(LAW, runs, fitted, pairs.astype(float))
    got = bootstrap.clusters(LAW, runs, fitted, 20, seed=3)
    np.testing.assert_array_equal(got.theta, want.theta)
    still = bootstrap.noise(LAW, runs, fitted, 2, seed=0, sd=0.0)
    np.testing.assert_allclose(still.theta, np.tile(fitting.values(fitted), (2, 1)), rtol=1e-6)
    spread = bootstrap.noise(LAW, runs, fitted, 200, seed=0).theta[:, 3].std()
    normal = bootstrap.noise(LAW, runs, fitted, 200, seed=0, sd=fitted.residual.std())
    assert 0.5 < spread / normal.theta[:, 3].std() < 2


def test_what_was_held_stays_held(runs):
    held = fitting.fit(LAW, runs, fixed={"beta": 0.315})
    draws = bootstrap.cases(LAW, runs, held, 5, seed=0)
    assert (draws.theta[:, 4] == 0.315).all() and (draws.theta[:, 3] != held.theta["alpha"]).all()


def test_intervals_are_percentiles():
    draws = np.arange(101.0)[:, None] * np.array([1.0, 2.0])
    low, high = bootstrap.interval(draws, 0.8)
    np.testing.assert_allclose([*low, *high], [10, 20, 90, 180])


def test_refusals_name_what_is_wrong(runs, fitted):
    with pytest.raises(ValueError, match="replicates is 0"):
        bootstrap.cases(LAW, runs, fitted, 0, seed=0)
    with pytest.raises(ValueError, match=r"integers \[3, points\] are needed"):
        bootstrap.cases(LAW, runs, fitted, 3, seed=0, resamples=np.zeros((2, 40), int))
    with pytest.raises(ValueError, match="go from 0 to 40 of 40 points"):
        bootstrap.cases(LAW, runs, fitted, 1, seed=0, resamples=np.arange(41)[None])
    with pytest.raises(ValueError, match="sd is -1"):
        bootstrap.noise(LAW, runs, fitted, 1, seed=0, sd=-1.0)
    with pytest.raises(ValueError, match="clusters need at least 2 runs"):
        bootstrap.clusters(LAW, runs._replace(run=np.full(40, "a")), fitted, 1, seed=0)


@pytest.mark.slow
def test_besiroglus_standard_errors_on_their_resamples():
    """4,000 refits; the published errors are of BFGS from one start, and within 0.05 %."""
    t = public.epoch()
    draws = bootstrap.cases(LAW, t, fitting.fit(LAW, t), 4000, 0, public.epoch_resamples())
    assert not draws.failed.any()
    first = [1.793329, 349.5557, 2356.218, 0.3286333, 0.3718539]
    np.testing.assert_allclose(draws.theta[0], first, rtol=1e-6)
    errors = draws.theta.std(0, ddof=1)
    # an independent solver's, to the digits that are printed
    printed = [0.025657, 124.494, 1293.169, 0.015397, 0.020594]
    np.testing.assert_allclose(errors, printed, rtol=5e-5)
    published = [0.02566, 124.522, 1293.284, 0.01540, 0.02060]
    np.testing.assert_allclose(errors, published, rtol=0.005)
    low, high = bootstrap.interval(draws.theta)
    np.testing.assert_allclose(low, [1.7694, 286.09, 1042.37, 0.3168, 0.3313], rtol=2e-4)
    np.testing.assert_allclose(high, [1.8712, 743.61, 5810.36, 0.3733, 0.4154], rtol=2e-4)
    a = draws.theta[:, 4] / draws.theta[:, 3:].sum(1)
    assert a.std(ddof=1) == pytest.approx(0.01997, abs=5e-6)
    low, high = bootstrap.interval(a, 0.8)
    assert high - low == pytest.approx(0.0514, abs=5e-5)


@pytest.mark.slow
def test_another_generator_gives_the_same_standard_errors():
    """Within 5 %; of B only its logarithm, since 4,000 draws leave its own 5 % uncertain."""
    t = public.epoch()
    draws = bootstrap.cases(LAW, t, fitting.fit(LAW, t), 4000, seed=1).theta
    errors = [0.025657, 0.015397, 0.020594]
    np.testing.assert_allclose(draws[:, [0, 3, 4]].std(0), errors, rtol=0.05)
    theirs = bootstrap.cases(LAW, t, fitting.fit(LAW, t), 4000, 0, public.epoch_resamples()).theta
    got, want = (np.log(x[:, 1:3]).std(0) for x in (draws, theirs))
    np.testing.assert_allclose(got, want, rtol=0.05)


def test_known_truth_is_inside_its_intervals():
    t = public.synthetic()
    draws = bootstrap.cases(LAW, t, fitting.fit(LAW, t), 1000, seed=0)
    low, high = bootstrap.interval(draws.theta)
    assert not draws.failed.any() and (low < TRUTH).all() and (high > TRUTH).all()


@pytest.mark.slow
def test_95_percent_intervals_cover_the_truth_of_100_studies():
    """77 points, 0.3 % noise, 3 % outliers of 3 to 25 %: 400 refits of each, in one program."""
    random = np.random.default_rng(7)
    budgets = np.geomspace(1e17, 1e21, 7)
    c = np.repeat(budgets, 11)
    n = np.sqrt(c / 120) * np.tile(np.geomspace(0.1, 10, 11), 7)
    clean = LAW.predict(TRUTH, (n, c / (6 * n)))
    outlier = 1 + (random.random((100, 77)) < 0.03) * random.uniform(0.03, 0.25, (100, 77))
    loss = clean * np.exp(0.003 * random.normal(size=(100, 77))) * outlier
    t = table.make(n, c / (6 * n), loss[0])
    counts = random.multinomial(77, np.full(77, 1 / 77), 100 * 400).astype(float)
    draws = bootstrap.refit(LAW, t, fitting.fit(LAW, t), counts, np.repeat(loss, 400, 0))
    assert draws.failed.mean() < 1e-3

    def quantities(theta):
        """E, alpha, beta, the exponent a, log N* and log L* at 1e23 FLOPs."""
        e, a, b, alpha, beta = np.moveaxis(theta, -1, 0)
        best = (alpha * a / (beta * b) * (1e23 / 6) ** beta) ** (1 / (alpha + beta))
        least = LAW.predict(np.moveaxis(theta, -1, 0), (best, 1e23 / 6 / best))
        return np.stack([e, alpha, beta, beta / (alpha + beta), np.log(best), np.log(least)], -1)

    low, high = bootstrap.interval(quantities(draws.theta.reshape(100, 400, 5)).swapaxes(0, 1))
    truth = quantities(np.array(TRUTH))
    covered = ((low < truth) & (truth < high)).mean(0)
    assert (covered >= 0.88).all(), covered
