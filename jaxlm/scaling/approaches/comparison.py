"""The exponent of the optimum N*(C) by three approaches side by side, and without outliers.

first = comparison.front(t, replicates=1000, seed=0)
second = comparison.isoflops(t, replicates=1000, seed=0)
rows = comparison.outliers(t, loss_laws.CHINCHILLA, target=1e21, delta=1e-3, per=6.0)
"""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from jaxlm.scaling import study_parts, table
from jaxlm.scaling.approaches import frontier, isoflop
from jaxlm.scaling.laws import fitting, loss_laws, optimum

# Numbers of the highest losses that the outlier table leaves out.
OUTLIERS = (0, 2, 3, 5, 10, 20)
# Points of a frontier of training curves: more of them add no information.
CURVE_POINTS = 50
# Approach 2's names in a record, and how each finds a budget's minimum.
ISOFLOPS: dict[str, isoflop.Method] = {
    "isoflop parabola": "parabola7",
    "isoflop akima": "akima",
}

Array = np.ndarray


class Front(NamedTuple):
    """Approach 1's result, or why there is none."""

    envelope: frontier.Envelope | None
    """The lower envelope."""
    skipped: str
    """Reason why it is None; "" if it is not."""

    def points(self) -> table.Table | None:
        """The frontier as a table of its own, for laws of compute; None without one."""
        if self.envelope is None:
            return None
        f = self.envelope
        at = np.arange(len(f.flops))
        if f.curves and len(at) > CURVE_POINTS:
            at = np.unique(np.linspace(0, len(at) - 1, CURVE_POINTS).round().astype(int))
        return table.Table(
            f.params[at],
            f.tokens[at],
            f.flops[at],
            f.loss[at],
            None,
            f.run[at],
            table.Counting(),
            at,
        )


def front(t: table.Table, replicates: int, seed: int) -> Front:
    """Approach 1 on a table, or the reason why it has no result."""
    try:
        return Front(frontier.fit(t, replicates=replicates, seed=seed), "")
    except ValueError as error:
        return Front(None, str(error))


def isoflops(
    t: table.Table, replicates: int, seed: int, noise: float | None = None
) -> dict[str, isoflop.IsoFlop | str]:
    """{"isoflop parabola", "isoflop akima": approach 2's result, or why there is none}.

    noise: sd of the loss between seeds, None measures it."""
    groups = isoflop.budgets(t)
    if len(groups) < 2:
        why = (
            f"not isoFLOP: {len(t.loss)} points have {len(groups)} budgets of {isoflop.SIZES} "
            "sizes or more; approach 2 needs two"
        )
        return dict.fromkeys(ISOFLOPS, why)
    out: dict[str, isoflop.IsoFlop | str] = {}
    for name, method in ISOFLOPS.items():
        try:
            out[name] = isoflop.fit(t, method, noise=noise, replicates=replicates, seed=seed)
        except ValueError as error:
            out[name] = str(error)
    return out


def compare(
    t: table.Table,
    first: Front,
    second: Mapping[str, isoflop.IsoFlop | str],
    parametric: Mapping[str, tuple[Array, Array]],
    target: float,
    per: float,
    level: float,
) -> dict[str, study_parts.Approach]:
    """{approach: its result, or why there is none}.

    first, second: results of approaches 1 and 2 on t. parametric: {law: (theta [k], draws [R, k])}
    of laws with an optimum, whose exponent is taken at `target` FLOPs.
    """
    out: dict[str, study_parts.Approach] = {"envelope": _envelope(first, target, level)}
    for name, other in second.items():
        out[name] = _isoflop(t, other, target, level)
    for law, (theta, draws) in parametric.items():
        best = optimum.at(law, theta, target, per=per)
        if not np.isfinite([best.exponent, best.params]).all():
            # a term that does not fall, as of runs whose loss rises or is all one
            out[f"parametric {law}"] = study_parts.Skipped("the form as fitted has no optimum")
            continue
        many = optimum.at(law, draws, target, per=per) if len(draws) else None
        out[f"parametric {law}"] = study_parts.Parametric(
            exponent=float(best.exponent),
            interval=None if many is None else interval(many.exponent, level),
            params=float(best.params),
            params_interval=None if many is None else interval(many.params, level),
        )
    return out


def interval(draws: Array, level: float) -> tuple[float, float] | None:
    """(low, high) percentiles of draws [R]; None if fewer than two are finite."""
    finite = draws[np.isfinite(draws)]
    if len(finite) < 2:
        return None
    low, high = np.percentile(finite, (50 * (1 - level), 50 * (1 + level)))
    return float(low), float(high)


def _power(
    law: frontier.Envelope | isoflop.IsoFlop, target: float, level: float
) -> tuple[float, float, study_parts.Interval, float, study_parts.Interval]:
    """(exponent, intercept, interval, N* at the target, interval): the first fields of the record's
    Envelope and IsoFlop."""
    c = np.log(target)
    return (
        law.exponent,
        law.intercept,
        interval(law.draws[:, 0], level),
        float(np.exp(law.intercept + law.exponent * c)),
        interval(np.exp(law.draws[:, 1] + law.draws[:, 0] * c), level),
    )


def _envelope(first: Front, target: float, level: float) -> study_parts.Approach:
    f = first.envelope
    if f is None:
        return study_parts.Skipped(first.skipped)
    power = _power(f, target, level)
    return study_parts.Envelope(*power, f.curves, f.r2, f.flops, f.params, f.loss)


def _isoflop(
    t: table.Table, result: isoflop.IsoFlop | str, target: float, level: float
) -> study_parts.Approach:
    if isinstance(result, str):
        return study_parts.Skipped(result)
    power = _power(result, target, level)
    return study_parts.IsoFlop(*power, result.noise, tuple(isoflop.budgets(t)), result.minima)


def outliers(
    t: table.Table,
    law: loss_laws.Law,
    target: float,
    delta: float,
    per: float,
    fixed: Mapping[str, float] = {},
    near: fitting.Fit | None = None,
) -> list[study_parts.Outlier]:
    """One row for each count of highest losses left out: exponents, and D/N at the target.

    How outliers are treated moves the optimum of Hoffmann et al. 2022's runs more than the
    bootstrap's interval is wide. Counts that leave fewer points than parameters + 1 have no row.
    fixed: parameters held at values. near: the law's fit to most of the points, to start from; not
    given: one to all of them.
    """
    order = np.argsort(-t.loss, kind="stable")
    counts = [count for count in OUTLIERS if len(order) - count > len(law.names)]
    if not counts:
        return []
    near = near or fitting.fit(law, t, delta=delta, fixed=fixed)
    if near.failed:
        near = None
    problems = []
    for count in counts:
        rest = table.take(t, np.sort(order[count:]))
        problems.append(fitting.problem(law, rest, delta, fixed=fixed, near=near))
    rows: list[study_parts.Outlier] = []
    for count, refit in zip(counts, fitting.fit_all(law, problems)):
        best = optimum.at(law.name, fitting.values(refit), target, per=per)
        rows.append(
            study_parts.Outlier(
                dropped=count,
                points=len(order) - count,
                law=law.name,
                theta=refit.theta,
                objective=refit.objective,
                failed=refit.failed,
                exponent=float(best.exponent),
                params=float(best.params),
                tokens_per_parameter=float(best.tokens / best.params),
                loss=float(best.loss),
            )
        )
    return rows
