"""Bootstraps of a fit: every replicate is refitted to its own optimum, many at a time.

    fitted = fitting.fit(law, t)
    draws = bootstrap.cases(law, t, fitted, 4000, seed=0)
    low, high = bootstrap.interval(draws.theta[:, 0])

A replicate of cases or clusters is the same table with multinomial counts as weights, so all share
its arrays; a replicate starts at the fit's own optimum.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from jaxlm.scaling import table
from jaxlm.scaling.laws import fitting, loss_laws, solve

# Runs that a cluster bootstrap needs: of n drawn 63 % are different, and of fewer than six those
# hardly hold a law.
RUNS = 6


class Draws(NamedTuple):
    """R replicates, float64."""

    theta: np.ndarray  # [R,k] natural parameters in the law's order
    objective: np.ndarray  # [R]
    failed: np.ndarray  # [R] bool: did not converge, for whatever the replicate left out


def interval(values: np.ndarray, level: float = 0.95) -> tuple[np.ndarray, np.ndarray]:
    """(low, high): the percentile interval over the first axis [R, ...]."""
    low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2], axis=0)
    return low, high


def method(choice: str, t: table.Table) -> str:
    """The bootstrap that "auto" chooses, "case" or "cluster"; another choice as it is.

    Clusters where a run has several points, which share its noise, and there are RUNS or more to
    draw from.
    """
    if choice != "auto":
        return choice
    return "cluster" if RUNS <= len(np.unique(t.run)) < len(t.run) else "case"


def resample(
    law: loss_laws.Law,
    t: table.Table,
    fitted: fitting.Fit,
    replicates: int,
    seed: int,
    how: str = "auto",
) -> Draws:
    """`cases` or `clusters`, by `method`. Raises: ValueError as they do."""
    return refit(law, t, fitted, counts(t, replicates, seed, how))


def counts(t: table.Table, replicates: int, seed: int, how: str = "auto") -> np.ndarray:
    """[R,n] how often each replicate has each point: of points drawn with replacement, or of whole
    runs, by `method`.

    Raises: ValueError for replicates below 1, or clusters of fewer than 2 runs.
    """
    _positive(replicates)
    random = np.random.default_rng(seed)
    if method(how, t) == "case":
        n = len(t.loss)
        return random.multinomial(n, np.full(n, 1 / n), replicates).astype(np.float64)
    names, member = np.unique(t.run, return_inverse=True)
    r = len(names)
    if r < 2:
        raise ValueError(f"all points are of run {names[0]!r}; clusters need at least 2 runs")
    return random.multinomial(r, np.full(r, 1 / r), replicates)[:, member].astype(np.float64)


def cases(
    law: loss_laws.Law,
    t: table.Table,
    fitted: fitting.Fit,
    replicates: int,
    seed: int,
    resamples: np.ndarray | None = None,
) -> Draws:
    """Refits to points drawn with replacement (Efron 1979).

    resamples [R,n] int: indices of the points of each replicate, instead of drawing them; then
    replicates is their number.

    Raises: ValueError for replicates below 1 or resamples that are not indices [replicates, n].
    """
    n = len(t.loss)
    _positive(replicates)
    if resamples is None:
        return resample(law, t, fitted, replicates, seed, "case")
    index = np.asarray(resamples)
    if index.ndim != 2 or len(index) != replicates or index.dtype.kind not in "iu":
        raise ValueError(
            f"resamples are {index.dtype} {index.shape}; integers [{replicates}, points] are needed"
        )
    if index.min() < 0 or index.max() >= n:
        raise ValueError(f"resamples go from {index.min()} to {index.max()} of {n} points")
    times = np.zeros((replicates, n))
    np.add.at(times, (np.arange(replicates)[:, None], index), 1.0)
    return refit(law, t, fitted, times)


def clusters(
    law: loss_laws.Law, t: table.Table, fitted: fitting.Fit, replicates: int, seed: int
) -> Draws:
    """Refits to training runs drawn with replacement, each with all its points.

    Points of one run share its noise; drawn alone they would make the intervals too narrow.

    Raises: ValueError for replicates below 1 or fewer than 2 runs.
    """
    return resample(law, t, fitted, replicates, seed, "cluster")


def noise(
    law: loss_laws.Law,
    t: table.Table,
    fitted: fitting.Fit,
    replicates: int,
    seed: int,
    sd: float | None = None,
) -> Draws:
    """Refits to the fit's own losses with new noise, on the same sizes.

    Of the logarithm: residuals drawn with replacement, or normal with this sd.

    Raises: ValueError for replicates below 1 or a negative sd.
    """
    _positive(replicates)
    random = np.random.default_rng(seed)
    n = len(t.loss)
    if sd is None:
        drawn = fitted.residual[random.integers(0, n, (replicates, n))]
    elif sd >= 0:
        drawn = random.normal(0.0, sd, (replicates, n))
    else:
        raise ValueError(f"sd is {sd}; a standard deviation is at least 0")
    clean = np.log(law.predict(fitting.values(fitted), fitting.inputs(law, t)))
    return refit(law, t, fitted, np.ones((replicates, n)), np.exp(clean + drawn))


def refit(
    law: loss_laws.Law,
    t: table.Table,
    fitted: fitting.Fit,
    weights: np.ndarray,
    loss: np.ndarray | None = None,
) -> Draws:
    """Refits with weights [R,n], and losses [R,n] in place of the table's, from the fit's optimum.

    Weights multiply the table's own. What was held in the fit stays held.
    """
    return refit_all(law, [(t, fitted, weights, loss)])[0]


def refit_all(
    law: loss_laws.Law,
    parts: Sequence[tuple[table.Table, fitting.Fit, np.ndarray, np.ndarray | None]],
) -> list[Draws]:
    """`refit` of several (table, fit, weights, losses), solved together.

    Raises: ValueError where the fits differ in delta or log.
    """
    settings = {(fit.delta, fit.log) for _, fit, _, _ in parts}
    if len(settings) > 1:
        raise ValueError(f"(delta, log): {sorted(settings)} given; all fits need the same")
    tasks = [_task(law, *part) for part in parts]
    first, out = parts[0][1], []
    solved = solve.minimise_all(law.model, law.closed, tasks, first.delta, first.log)
    for task, s in zip(tasks, solved):
        with np.errstate(over="ignore", invalid="ignore"):
            theta = law.natural(s.phi, task.centre)
        # a coefficient that grows without bound is no refit either
        out.append(Draws(theta, s.objective, ~(s.arrived & np.isfinite(theta).all(1))))
    return out


def _task(
    law: loss_laws.Law,
    t: table.Table,
    fitted: fitting.Fit,
    weights: np.ndarray,
    loss: np.ndarray | None,
) -> solve.Task:
    weights = weights if t.weight is None else weights * t.weight
    r = fitting.prepare(law, t, None, fitted.fixed, fitted.delta, fitted.log)
    start = np.tile(law.internal(fitting.values(fitted), r.centre), (len(weights), 1))
    y = r.y if loss is None else np.log(loss) if fitted.log else loss
    return solve.Task(start, y, weights, r.logs, r.centre, r.free)


def _positive(replicates: int) -> None:
    if replicates < 1:
        raise ValueError(f"replicates is {replicates}; at least 1 is needed")
