"""Back-tests: errors of each form, fitted on the smaller budgets, at the larger ones: from one
cut-off, or from several in turn (rolling origin: Tashman 2000).

    law = loss_laws.LAWS["chinchilla"]
    tests = [backtest.run(law, t, least) for least in backtest.cutoffs(t)]
    backtest.losses(tests)                     # errors of the loss by held-out budget
    backtest.sizes(tests, minima, per=6.0)     # of N*, against the measured isoFLOP minima

A form that fits better need not extrapolate better, and only extrapolation is wanted of it.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from jaxlm.scaling import table
from jaxlm.scaling.approaches import isoflop
from jaxlm.scaling.laws import bootstrap, fitting, identifiability, loss_laws, optimum

# Shares of the runs with the most compute that are held out in turn where no budgets are common.
HELD_OUT = (0.5, 0.4, 0.3, 0.2, 0.1)
# Budgets that are fitted at the least, and cut-offs at the most.
FITTED, ORIGINS = 3, 5
# Held-out runs are taken together where their C differ by less than this factor.
TOGETHER = isoflop.TOLERANCE

Array = np.ndarray


class Test(NamedTuple):
    """Errors on the runs held out, in percent: 100 log(predicted / measured)."""

    threshold: float
    """Runs of at least these training FLOPs were held out."""
    theta: dict[str, float]
    """The fit on the others."""
    error: Array
    """[m] signed, percent."""
    row: Array
    """[m] lines of the runs held out."""
    fitted: int
    """Runs fitted."""
    law: str = ""
    """The form."""
    flops: Array = np.empty(0)
    """[m] C of the runs held out."""
    largest_fitted: float = np.nan
    """The largest C among the runs fitted."""
    sd: Array = np.empty(0)
    """[m] standard deviation of the error that resampling the fitted runs gives, percent."""
    draws: Array = np.empty((0, 0))
    """[R, k] refits to resampled runs below the cut-off."""
    noise: float = 0.0
    """Robust standard deviation of the fit's own residuals, percent."""
    between: float = 0.0
    """The same of their medians by budget: what one misses by without any extrapolation."""

    @property
    def mean(self) -> float:
        """Mean signed error, percent: above 0 the form promises a loss that is too high."""
        return float(np.mean(self.error))

    @property
    def mae(self) -> float:
        """Mean absolute error, percent."""
        return float(np.mean(np.abs(self.error)))

    @property
    def largest(self) -> float:
        """Largest absolute error, percent."""
        return float(np.max(np.abs(self.error)))


class Errors(NamedTuple):
    """Errors of forecasts, m of them: budgets held out, each at every cut-off below it."""

    case: Array
    """[m] int: which held-out budget; errors on one are taken together."""
    cut: Array
    """[m] FLOPs of the cut-off."""
    decades: Array
    """[m] log10 of its C over the largest C fitted."""
    error: Array
    """[m] log(predicted / measured), the median over the budget's runs."""
    sd: Array
    """[m] standard deviation that sampling alone gives the error."""


def threshold(t: table.Table) -> float:
    """FLOPs of the last cut-off: the largest budget where most runs are on one of three budgets or
    more; else the tenth of the runs with the most compute, and at least two."""
    groups = isoflop.budgets(t)
    if len(groups) > 2 and 2 * sum(map(len, groups)) > len(t.flops):
        return float(np.min(t.flops[groups[-1]]))
    return _share(t, HELD_OUT[-1])


def cutoffs(t: table.Table) -> list[float]:
    """FLOPs from which runs are held out in turn, rising; the last is `threshold`.

    Budgets, where runs have them and three are left to fit; else the half of the runs with the most
    compute, then four tenths, and so on.
    """
    last = threshold(t)
    groups = isoflop.budgets(t)
    if len(groups) > 2 and 2 * sum(map(len, groups)) > len(t.flops):
        every = [float(np.min(t.flops[g])) for g in groups[FITTED:]]
    else:
        every = [_share(t, share) for share in HELD_OUT]
    return sorted({*[c for c in every if c < last][-(ORIGINS - 1) :], last})


def _share(t: table.Table, share: float) -> float:
    return float(np.sort(t.flops)[-max(2, round(share * len(t.flops)))])


def run(
    law: loss_laws.Law,
    t: table.Table,
    least: float,
    delta: float = 1e-3,
    fixed: Mapping[str, float] = {},
    replicates: int = 0,
    near: fitting.Fit | None = None,
) -> Test:
    """The Test of a law fitted to runs below `least` FLOPs on those of `least` or more; fixed:
    parameters held at values.

    replicates: refits for the errors' standard deviation, none where it is 0. near: the law's fit
    to all runs, to start from.

    Raises: ValueError if no run is on one of the sides, or too few are left for the law.
    """
    tests, refused = rolling(law, t, [least], delta, fixed, replicates, near)
    if refused:
        raise ValueError(refused[0])
    return tests[0]


def rolling(
    law: loss_laws.Law,
    t: table.Table,
    cuts: Sequence[float],
    delta: float = 1e-3,
    fixed: Mapping[str, float] = {},
    replicates: int = 0,
    near: fitting.Fit | None = None,
) -> tuple[list[Test], list[str]]:
    """(`run` from each cut-off that can be tested, why each other one cannot), all fits and refits
    solved together."""
    held, problems, refused = [], [], []
    for least in cuts:
        try:
            problems.append(_problem(law, t, least, delta, fixed, near))
            held.append((least, table.take(t, t.flops >= least)))
        except ValueError as error:
            refused.append(str(error))
    fitted: list[tuple[float, table.Table, fitting.Problem, fitting.Fit]] = []
    fits = fitting.fit_all(law, problems) if problems else []
    for (least, test), problem, fit in zip(held, problems, fits):
        try:
            _usable(law, fit, fitting.inputs(law, test), least)
            fitted.append((least, test, problem, fit))
        except ValueError as error:
            refused.append(str(error))
    draws = [np.empty((0, len(law.names)))] * len(fitted)
    if replicates and fitted:
        parts = []
        for _, _, p, fit in fitted:
            parts.append((p.t, fit, bootstrap.counts(p.t, replicates, 0), None))
        draws = [many.theta[~many.failed] for many in bootstrap.refit_all(law, parts)]
    return [_test(law, *part, own) for part, own in zip(fitted, draws)], refused


def _problem(
    law: loss_laws.Law,
    t: table.Table,
    least: float,
    delta: float,
    fixed: Mapping[str, float],
    near: fitting.Fit | None,
) -> fitting.Problem:
    """The fit to the runs below a cut-off. Raises: ValueError as `run`."""
    held = t.flops >= least
    if not held.any() or held.all():
        side = "at or above" if not held.any() else "below"
        raise ValueError(
            f"--holdout: no run is {side} {least:g} FLOPs; they range from {t.flops.min():g} to "
            f"{t.flops.max():g}"
        )
    rest = table.take(t, ~held)
    reason = identifiability.reason(law, rest)
    if reason:
        raise ValueError(
            f"--holdout {least:g}: {law.name} on {len(rest.loss)} other runs: {reason}"
        )
    return fitting.problem(law, rest, delta, None, fixed, True, near)


def _usable(law: loss_laws.Law, fit: fitting.Fit, x: tuple[Array, ...], least: float) -> None:
    """Raises: ValueError for a fit that did not converge, or has no losses at inputs x."""
    if fit.failed:
        raise ValueError(f"--holdout {least:g}: {law.name} on {fit.n} other runs: {fit.failed}")
    with np.errstate(over="ignore", invalid="ignore"):
        predicted = np.asarray(law.predict(fitting.values(fit), x))
    if not (np.isfinite(predicted) & (predicted > 0)).all():
        raise ValueError(
            f"--holdout {least:g}: {law.name} fitted to {fit.n} other runs predicts no loss "
            "for these"
        )


def _test(
    law: loss_laws.Law,
    least: float,
    test: table.Table,
    problem: fitting.Problem,
    fit: fitting.Fit,
    draws: Array,
) -> Test:
    """The Test of a fit and its refits [R,k] on the runs held out."""
    rest, x, sd = problem.t, fitting.inputs(law, test), np.zeros(len(test.loss))
    error = 100 * np.log(law.predict(fitting.values(fit), x) / test.loss)
    if len(draws):
        with np.errstate(all="ignore"):  # a draw may have no value far from its data
            sd = 100 * np.nanstd(np.log(law.predict(draws.T[:, :, None], x)), axis=0)
    return Test(
        float(least),
        fit.theta,
        error,
        test.row,
        len(rest.loss),
        law.name,
        test.flops,
        float(rest.flops.max()),
        sd,
        draws,
        _scale(fit.residual),
        _scale(np.array([np.median(fit.residual[g]) for _, g in _together(rest.flops)])),
    )


def _scale(residual: Array) -> float:
    """A robust standard deviation about 0, percent."""
    return 148.26 * float(np.median(np.abs(residual)))


def losses(tests: Sequence[Test]) -> Errors:
    """Errors of the loss by held-out budget: the median over its runs, at every cut-off."""
    rows = []
    for test in tests:
        for case, group in _together(test.flops):
            n = len(group)
            # of a median of n runs
            own = test.noise * (1.25 if n > 2 else 1.0) / np.sqrt(n)
            sd = np.hypot(np.mean(test.sd[group]), max(own, test.between)) / 100
            decades = np.log10(np.exp(np.mean(np.log(test.flops[group]))) / test.largest_fitted)
            rows.append((case, test.threshold, decades, np.median(test.error[group]) / 100, sd))
    return _errors(rows)


def _together(flops: Array) -> list[tuple[int, Array]]:
    """(number, indices) of runs whose C is about the same; the number is that of C alone."""
    case = np.round(np.log(flops) / np.log(TOGETHER)).astype(int)
    return [(int(c), np.flatnonzero(case == c)) for c in np.unique(case)]


def sizes(tests: Sequence[Test], minima: Sequence[isoflop.Minimum], per: float) -> Errors:
    """Errors of N* on the isoFLOP minima of the budgets held out.

    minima: of approach 2 on all runs, each from its own budget alone; those left out are skipped.
    per: C / (N D).
    """
    rows, measured = [], _measured(minima)
    for test in tests:
        for case, m in enumerate(minima):
            if m.left_out or m.flops <= test.largest_fitted:
                continue
            theta = np.array(list(test.theta.values()))
            best = float(optimum.at(test.law, theta, m.flops, per).params)
            spread = 0.0
            if len(test.draws):
                many = optimum.at(test.law, test.draws, m.flops, per).params
                spread = float(np.nanstd(np.log(many)))
            decades = np.log10(m.flops / test.largest_fitted)
            sd = np.hypot(spread, measured[case])
            rows.append((case, test.threshold, decades, np.log(best / m.params), sd))
    return _errors(rows)


def lines(tests: Sequence[Test], minima: Sequence[isoflop.Minimum]) -> Errors:
    """As `sizes`, of the power law through the minima below each cut-off: approach 2 itself.

    tests: of any form, for their cut-offs.
    """
    rows, measured = [], _measured(minima)
    kept = [(case, m) for case, m in enumerate(minima) if not m.left_out]
    for cut, largest in ((test.threshold, test.largest_fitted) for test in tests):
        below = [m for _, m in kept if m.flops <= largest]
        if len(below) < FITTED:
            continue
        x, y = np.log([m.flops for m in below]), np.log([m.params for m in below])
        own = np.array([measured[case] for case, m in kept if m.flops <= largest])
        weights = own**-2.0 if (own > 0).all() else np.ones(len(below))
        line, middle = isoflop.power(x, y, weights), np.average(x, weights=weights)
        lever = np.sum(weights * (x - middle) ** 2)
        for case, m in kept:
            if m.flops <= largest:
                continue
            at = np.log(m.flops)
            error = line.intercept + line.exponent * at - np.log(m.params)
            line_sd = 1 / np.sum(weights) + (at - middle) ** 2 / lever if (own > 0).all() else 0.0
            sd = np.sqrt(line_sd + measured[case] ** 2)
            rows.append((case, cut, np.log10(m.flops / largest), error, sd))
    return _errors(rows)


def frontier(minima: Sequence[isoflop.Minimum]) -> table.Table:
    """Approach 2's minima as points of compute and loss."""
    kept = [m for m in minima if not m.left_out]
    n, d, c, loss = (
        np.array([getattr(m, k) for m in kept]) for k in ("params", "tokens", "flops", "loss")
    )
    row = np.arange(len(kept))
    return table.Table(n, d, c, loss, None, row.astype(str), table.Counting(), row)


def edges(cutoffs: Sequence[float], t: table.Table, delta: float) -> Errors:
    """Errors of the law `offset` through the points of a frontier below each cut-off, on those
    above; sd is the scatter of those it was fitted to."""
    rows = []
    for cut in cutoffs:
        below = t.flops < cut
        if below.sum() <= len(loss_laws.OFFSET.names) or below.all():
            continue
        fit = fitting.fit(loss_laws.OFFSET, table.take(t, below), delta=delta)
        free = int(below.sum()) - len(loss_laws.OFFSET.names)
        sd = float(np.sqrt(np.sum(fit.residual**2) / free))
        for case in np.flatnonzero(~below):
            predicted = loss_laws.OFFSET.predict(fitting.values(fit), (t.flops[case],))
            decades = np.log10(t.flops[case] / t.flops[below].max())
            rows.append((case, cut, decades, np.log(predicted / t.loss[case]), sd))
    return _errors(rows)


def _measured(minima: Sequence[isoflop.Minimum]) -> Array:
    """[m] standard deviations of log N* of the minima; those about their own power law scatter more
    than the replicas of noise say are all taken for so much less certain."""
    kept = [m for m in minima if not m.left_out and np.isfinite(m.sd)]
    sd = np.array([m.sd if np.isfinite(m.sd) else 0.0 for m in minima])
    if len(kept) <= 2:
        return sd
    x, y = np.log([m.flops for m in kept]), np.log([m.params for m in kept])
    own = np.array([m.sd for m in kept])
    line = isoflop.power(x, y, own**-2.0)
    left = (y - line.intercept - line.exponent * x) / own
    return sd * np.sqrt(max(1.0, float(left @ left) / (len(kept) - 2)))


def _errors(rows: Sequence[tuple[float, ...]]) -> Errors:
    case, cut, decades, error, sd = np.array(rows, float).reshape(-1, 5).T
    return Errors(case.astype(int), cut, decades, error, sd)
