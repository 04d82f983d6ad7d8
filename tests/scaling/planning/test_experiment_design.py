"""The next run: what one more run does to the interval, against doing it many times."""

import numpy as np
import pytest
from scipy import stats

from jaxlm.scaling import table
from jaxlm.scaling.laws import bootstrap, fitting, loss_laws, optimum
from jaxlm.scaling.planning import experiment_design

LAW = loss_laws.LAWS["chinchilla"]
TRUTH = (1.7, 420.0, 900.0, 0.34, 0.31)
TARGET, SD = 1e22, 0.003


def runs():
    """22 runs on a grid of N and D, with noise of 0.3 %."""
    rng = np.random.default_rng(4)
    n, d = (a.ravel() for a in np.meshgrid(np.geomspace(2e7, 1e9, 5), np.geomspace(1e9, 3e10, 5)))
    n, d = n[:22], d[:22]
    return table.make(n, d, np.exp(np.log(LAW.predict(TRUTH, (n, d))) + rng.normal(0, SD, len(n))))


CANDIDATES = (
    np.array([1e7, 1e7, 1e9, 4e9, 4e9, 1e8, 3e8, 2e9, 5e7, 2e8]),
    np.array([1e9, 2e11, 2e11, 4e9, 4e10, 2e9, 1e10, 1e9, 8e10, 3e9]),
)


def width(t, noise):
    """95 % width of log N* over refits to the truth with noise [R, n] on the sizes of t."""
    clean = LAW.predict(TRUTH, (t.params, t.tokens))
    fitted = fitting.fit(LAW, t._replace(loss=clean), delta=np.inf)
    ones = np.ones((len(noise), len(clean)))
    draws = bootstrap.refit(LAW, t, fitted, ones, clean * np.exp(noise[:, : len(clean)]))
    best = np.log(optimum.at(LAW.name, draws.theta[~draws.failed], TARGET).params)
    return 2 * experiment_design.NORMAL * np.std(best), draws


@pytest.mark.slow
def test_the_choice_agrees_with_adding_each_run():
    """Brute force: add the candidate, refit 1,000 data sets, look at the spread of log N*. The
    noise of the 22 runs is the same with and without it, so that the difference is the run's."""
    t = runs()
    noise = np.random.default_rng(0).normal(0, SD, (1000, 23))
    before, draws = width(t, noise)
    after = []
    for n, d in zip(*CANDIDATES):
        more = [np.append(a, b) for a, b in ((t.params, n), (t.tokens, d), (t.loss, 1.0))]
        after.append(width(table.make(*more), noise)[0])
    cost = 6 * CANDIDATES[0] * CANDIDATES[1]
    shrink = (before - np.array(after)) / cost
    fitted = fitting.fit(LAW, t, delta=np.inf)
    for given in (None, draws.theta):
        chosen = experiment_design.choose(fitted, t, *CANDIDATES, TARGET, draws=given)
        assert stats.spearmanr(chosen.after, after).statistic > 0.9
        assert stats.spearmanr(chosen.gain, shrink).statistic > 0.85
        assert chosen.cost == pytest.approx(cost)
        if given is not None:
            assert chosen.before == pytest.approx(before, rel=1e-6)
            assert chosen.after == pytest.approx(np.array(after), rel=0.06)
        assert list(chosen.order) == sorted(range(10), key=lambda i: -chosen.gain[i])


def test_the_asymptote_is_least_squares_covariance():
    """Of a Gaussian fit the width is that of v (J^T J)^-1, by an independent inverse."""
    t = runs()
    fitted = fitting.fit(LAW, t, delta=np.inf)
    theta = fitting.values(fitted)
    chosen = experiment_design.choose(fitted, t, *CANDIDATES, TARGET)

    def columns(value):
        return np.stack(
            [(value(theta + s) - value(theta - s)) / 2e-6 for s in np.diag(1e-6 * theta)], -1
        )

    def covariance(t):
        x = (t.params, t.tokens)
        return np.linalg.inv((j := columns(lambda th: np.log(LAW.predict(th, x)))).T @ j)

    aim = columns(lambda th: np.log(optimum.at(LAW.name, th, TARGET).params))
    v = np.sum(fitted.residual**2) / (len(t.loss) - 5)
    assert chosen.before == pytest.approx(
        2 * experiment_design.NORMAL * np.sqrt(v * aim @ covariance(t) @ aim), rel=1e-4
    )
    more = [np.append(a, b[2]) for a, b in zip((t.params, t.tokens), CANDIDATES)]
    later = covariance(table.make(*more, np.append(t.loss, 1.0)))
    assert chosen.after[2] == pytest.approx(
        2 * experiment_design.NORMAL * np.sqrt(v * aim @ later @ aim), rel=1e-4
    )


def test_noise_of_a_huber_fit():
    """Inside delta it is the variance; of Laplace errors far beyond delta 1 / (4 f(0)^2)."""
    rng = np.random.default_rng(0)
    small = rng.normal(0, 1e-3, 1000)
    assert experiment_design.noise(small, 1.0, 5) == pytest.approx(np.sum(small**2) / 995)
    wide = rng.laplace(0, 0.01, 200_000)
    # the density of Laplace(0, b) at 0 is 1 / (2 b), so that the variance is b^2
    assert experiment_design.noise(wide, 1e-4, 5) == pytest.approx(1e-4, rel=0.05)


def test_candidates_from_a_file(tmp_path):
    path = tmp_path / "next.csv"
    path.write_text("Params,Tokens\n1e9,2e10\n2e9,4e10\n")
    params, tokens, cost = experiment_design.read(path)
    assert params.tolist() == [1e9, 2e9] and tokens.tolist() == [2e10, 4e10] and cost is None
    path.write_text("N,D,flops\n1e9,2e10,1e20\n")
    assert experiment_design.read(path)[2].tolist() == [1e20]
    for text, wrong in (
        ("N,D\n1e9,-1\n", "row 2, column 'D': '-1'"),
        ("N,D\n1e9,much\n", "row 2, column 'D': 'much'"),
        ("N,loss\n1e9,2\n", "no column for tokens"),
        ("N,D\n", "is empty"),
    ):
        path.write_text(text)
        with pytest.raises(ValueError, match=wrong):
            experiment_design.read(path)


def test_what_cannot_be_chosen_is_refused():
    t = runs()
    fitted = fitting.fit(LAW, t, delta=np.inf)
    with pytest.raises(ValueError, match=r"tokens\[1\] = 0"):
        experiment_design.choose(fitted, t, [1e9, 1e9], [1e10, 0], TARGET)
    with pytest.raises(ValueError, match="differ in shape"):
        experiment_design.choose(fitted, t, [1e9], [1e10, 1e11], TARGET)
    with pytest.raises(ValueError, match="say nothing about"):
        experiment_design.choose(fitted, table.take(t, np.arange(4)), [1e9], [1e10], TARGET)
    with pytest.raises(ValueError, match="reads"):
        experiment_design.choose(fitted._replace(law="offset"), t, [1e9], [1e10], TARGET)
