"""Notices about the rows of a table, from a fit's residuals: mixed experiments, sweeps, outliers.

    notices = experiments.notices(t, fit.residual)       # [] if all is well
    notices += experiments.cost(t, per, params)          # C/(N D) that depends on N

A form that fits one experiment leaves residuals that no column of the file explains.
"""

from typing import NamedTuple

import numpy as np
import scipy.stats

from jaxlm.scaling import table

# A column is an experiment's label if it has this many values ...
VALUES = (2, 20)
# ... and its groups explain this share of the residual variance, adjusted for their number, beyond
# chance (Kruskal and Wallis 1952). Two corpora are 90 % and more apart.
SHARE, CHANCE = 0.5, 1e-3
# Residuals this many standard deviations (1.4826 MAD) from the median, and 2 %, are outliers.
FAR, LEAST = 10.0, 0.02
# Most rows that one notice names.
SHOWN = 5
# A cost at the target that is off by this share is worth saying.
COST = 0.02

Array = np.ndarray


class Notice(NamedTuple):
    """As warn.Caution: `kind` names the check, `text` gives the numbers and what to do."""

    kind: str
    text: str


def notices(t: table.Table, residual: Array) -> list[Notice]:
    """Notices about a table whose fit has log residuals [n]: by `mixed`, `sweeps`, `outliers`."""
    return [*mixed(t, residual), *sweeps(t), *outliers(t, residual)]


def mixed(t: table.Table, residual: Array) -> list[Notice]:
    """Notices of columns whose values explain the residuals: several experiments in one table."""
    out = []
    for name, values in t.columns.items():
        group = _groups(values)
        if group is None or _is_size(t, group):
            continue
        share = _share(_clipped(residual), group)
        if share < SHARE or scipy.stats.kruskal(*_split(residual, group)).pvalue > CHANCE:
            continue
        example = values[0] if values.dtype.kind != "f" else f"{values[0]:g}"
        quoted = f"{name}={example}"
        quoted = f"'{quoted}'" if " " in quoted else quoted
        by = f"'{name}'" if " " in name else name
        out.append(
            (
                share,
                Notice(
                    "several experiments",
                    f"column {name!r} has {group.max() + 1} values and explains {share:.0%} of "
                    f"the residual variance: --by {by} makes a study of each, --where {quoted} "
                    "takes one",
                ),
            )
        )
    return [notice for _, notice in sorted(out, key=lambda pair: -pair[0])]


def _groups(values: Array) -> Array | None:
    """[n] int: the group of each row; None for columns that are no label."""
    if values.dtype.kind == "f" and not np.isfinite(values).all():
        return None
    names, group, counts = np.unique(values, return_inverse=True, return_counts=True)
    # a label is shared: an identifier has a value for each row
    if not VALUES[0] <= len(names) <= VALUES[1] or np.sum(counts > 1) < 2:
        return None
    return group


def _is_size(t: table.Table, group: Array) -> bool:
    """Whether groups are sizes, such as a model's name or width: each has one N, D or C."""
    for values in (t.params, t.tokens, t.flops):
        logs = np.log(values)
        if all(np.ptp(logs[group == g]) < 0.01 for g in range(group.max() + 1)):
            return True
    return False


def _clipped(residual: Array) -> Array:
    """Residuals without the pull of outliers."""
    middle, sd = _spread(residual)
    return np.clip(residual, middle - FAR * sd, middle + FAR * sd)


def _spread(residual: Array) -> tuple[float, float]:
    """(median, 1.4826 times the median absolute deviation)."""
    middle = float(np.median(residual))
    return middle, 1.4826 * float(np.median(np.abs(residual - middle)))


def _split(values: Array, group: Array) -> list[Array]:
    return [values[group == g] for g in range(group.max() + 1)]


def _share(values: Array, group: Array) -> float:
    """Share of the variance between groups, adjusted for their number (epsilon squared)."""
    n, k = len(values), int(group.max()) + 1
    total = float(np.sum((values - values.mean()) ** 2))
    if total == 0 or n <= k:
        return 0.0
    within = sum(float(np.sum((v - v.mean()) ** 2)) for v in _split(values, group))
    return 1 - within / (n - k) / (total / (n - 1))


def sweeps(t: table.Table) -> list[Notice]:
    """A notice of several rows at most (N, D) that differ in hyper-parameters: a sweep."""
    cell = np.unique(np.round(np.log([t.params, t.tokens]), 4), axis=1, return_inverse=True)[1]
    cell = np.asarray(cell).reshape(-1)
    counts = np.bincount(cell)
    several = counts > 2
    if counts[several].sum() < len(t.loss) / 2:
        return []
    varied = [
        name
        for name, values in t.columns.items()
        if values.dtype.kind == "f"
        and "seed" not in name.lower()
        and len(np.unique(values)) <= len(values) / 2
        and _varies(values, cell, several)
    ]
    if not varied:
        return []
    return [
        Notice(
            "hyper-parameters vary",
            f"{len(t.loss)} rows are at {len(counts)} (N, D), up to {counts.max()} each, where "
            f"{', '.join(repr(v) for v in varied[:3])} "
            f"{'varies' if len(varied) == 1 else 'vary'}: --best-by params tokens takes the row "
            "of lowest loss at each",
        )
    ]


def _varies(values: Array, cell: Array, several: Array) -> bool:
    """Whether a column has different values in most of the cells that have several rows."""
    at = [values[cell == c] for c in np.flatnonzero(several)]
    return sum(len(np.unique(v)) > 2 for v in at) > len(at) / 2


def outliers(t: table.Table, residual: Array) -> list[Notice]:
    """A notice of rows whose residual is FAR from the others': mistyped, or diverged."""
    middle, sd = _spread(residual)
    off = np.abs(residual - middle)
    rows = np.flatnonzero((off > FAR * sd) & (off > LEAST))
    if not len(rows):
        return []
    rows = rows[np.argsort(-off[rows], kind="stable")]
    texts = [
        f"row {t.row[i]}{_named(t, i)} (N {t.params[i]:.3g}, D {t.tokens[i]:.3g}, loss "
        f"{t.loss[i]:.4g}) is {100 * np.expm1(residual[i]):+.3g} % off the fit"
        for i in rows[:SHOWN]
    ]
    more = f"; and {len(rows) - SHOWN} more" if len(rows) > SHOWN else ""
    highest = set(np.argsort(-t.loss)[: len(rows)].tolist()) == set(rows.tolist())
    mend = f", or --drop-highest {len(rows)} leaves them out" if highest else ""
    return [
        Notice(
            "outliers",
            f"{'; '.join(texts)}{more}: more than {FAR:g} times the spread of the others "
            f"({100 * sd:.2g} %). A number mistyped, or a run that diverged? Correct it{mend}",
        )
    ]


def _named(t: table.Table, i: int) -> str:
    """A run's name, where it has one beyond its row."""
    return "" if t.run[i] == str(t.row[i]) else f" ({t.run[i]})"


def cost(t: table.Table, per: float, params: float) -> list[Notice]:
    """A notice of C/(N D) that depends on N, where a plan takes C = per N D.

    params: N* at the target. By the factor's power law in N, carried on to N*.
    """
    factor = t.flops / (t.params * t.tokens)
    x = np.log(t.params)
    if np.ptp(np.log(factor)) <= COST or np.ptp(x) == 0:
        return []
    slope, start = np.polyfit(x, np.log(factor), 1)
    there = float(np.exp(start + slope * np.log(params)))
    if abs(there / per - 1) <= COST:
        return []
    return [
        Notice(
            "cost depends on size",
            f"C is {factor.min():.3g} to {factor.max():.3g} N D by size, and plans take "
            f"{per:.3g} N D: at N = {params:.3g} it is about {there:.3g} N D, so that D there is "
            f"{abs(per / there - 1):.0%} {'less' if there > per else 'more'} than planned",
        )
    ]
