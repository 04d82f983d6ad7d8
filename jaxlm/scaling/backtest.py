"""How well each form, fitted on the smaller budgets, predicts the largest ones.

    least = backtest.threshold(t)
    tests = {f: backtest.run(laws.LAWS[f], t, least) for f in ("chinchilla", "tied")}
    backtest.winner(tests)

A form that fits better need not extrapolate better, and only extrapolation is wanted of it.
"""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from jaxlm.scaling import fit as fits
from jaxlm.scaling import isoflop, laws, table

# Of runs that have no common budgets, the share with the most compute that is held out.
HELD_OUT = 0.1

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


def threshold(t: table.Table) -> float:
    """FLOPs from which runs are held out when nothing is said.

    The largest budget where most runs are on one of three budgets or more; else the tenth of the
    runs with the most compute, and at least two.
    """
    groups = isoflop.budgets(t)
    if len(groups) > 2 and 2 * sum(map(len, groups)) > len(t.flops):
        return float(np.min(t.flops[groups[-1]]))
    count = max(2, round(HELD_OUT * len(t.flops)))
    return float(np.sort(t.flops)[-count])


def run(
    law: laws.Law,
    t: table.Table,
    least: float,
    delta: float = 1e-3,
    fixed: Mapping[str, float] = {},
) -> Test:
    """The Test of a law fitted to runs below `least` FLOPs on those of `least` or more; fixed:
    parameters held at values.

    Raises: ValueError if no run is on one of the sides, or too few are left for the law.
    """
    held = t.flops >= least
    if not held.any() or held.all():
        side = "at or above" if not held.any() else "below"
        raise ValueError(
            f"holdout: no run is {side} {least:g} FLOPs; they range from {t.flops.min():g} to "
            f"{t.flops.max():g}"
        )
    rest, test = table.take(t, ~held), table.take(t, held)
    found = fits.fit(law, rest, delta=delta, fixed=fixed)
    if found.failed:
        raise ValueError(f"holdout: {law.name} on the {len(rest.loss)} other runs: {found.failed}")
    predicted = np.asarray(law.predict(fits.values(found), fits.inputs(law, test)))
    error = 100 * np.log(predicted / test.loss)
    return Test(float(least), found.theta, error, test.row, len(rest.loss))


def winner(tests: Mapping[str, Test]) -> str | None:
    """The form of smallest mean absolute error, of those tested on the most runs; None of none."""
    if not tests:
        return None
    most = max(len(test.error) for test in tests.values())
    whole = {name: test for name, test in tests.items() if len(test.error) == most}
    # tied and overtraining are one law in two parametrisations: the first named stands for both
    return min(whole, key=lambda name: round(whole[name].mae, 9))
