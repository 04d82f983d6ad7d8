"""Notices about the rows of a table, from a fit's residuals: mixed experiments, sweeps, outliers.

    notices = heterogeneity.notices(t, fit.residual)     # [] if all is well
    notices += heterogeneity.cost(t, per, params)        # C/(N D) that depends on N

A form that fits one experiment leaves residuals that no column of the file explains.
"""

import re
import shlex
from collections.abc import Sequence

import numpy as np
import scipy.special

from jaxlm.scaling import table
from jaxlm.scaling.reading import units
from jaxlm.scaling.study.diagnostics import Caution

# A column is an experiment's label if it has this many values ...
VALUES = (2, 20)
# ... and its groups explain this share of the residual variance, adjusted for their number, beyond
# chance by an F test. Gadre et al. 2024's three corpora explain 74 % of it at equal (N, D).
SHARE, CHANCE = 0.3, 1e-3
# Columns that are tuned: learning rate, batch, weight decay, warm-up and their like.
_TUNED = re.compile(
    r"(^|_)(lr|learning_rate|eta|bs|bsz|batch|batch_size|wd|weight_decay|warmup|warm_up|momentum"
    r"|beta_?[12]|b[12]|dropout|clip|eps|optimi[sz]er|schedule)(_|$)"
)
# Columns of results, which go with the loss.
_MEASURED = re.compile(r"(err|acc|loss|eval|score|nll|ppl|bpb|std|stderr)")
# Residuals this many standard deviations (1.4826 MAD) from the median, and 2 %, are outliers.
FAR, LEAST = 10.0, 0.02
# Most rows that one notice names.
SHOWN = 5
# A cost at the target that is off by this share is reported.
COST = 0.02

Array = np.ndarray


def notices(t: table.Table, residual: Array) -> list[Caution]:
    """Notices about a table whose fit has log residuals [n]: by `mixed`, `sweeps`, `outliers`."""
    return [*mixed(t, residual), *sweeps(t), *outliers(t, residual)]


def mixed(t: table.Table, residual: Array) -> list[Caution]:
    """Notices of columns whose values explain the residuals: several experiments in one table.

    Of all rows, or of the rows that share their (N, D) about the mean there, which the form's own
    misfit does not touch: the larger share counts.
    """
    cell, clipped = _cells(t), _clipped(residual)

    def share(group: Array) -> float:
        """Share of the variance that groups explain; 0 if that may be chance."""
        shares = [_explained(clipped, group, cell)]
        if not _is_size(t, group):
            shares.append(_explained(clipped, group, np.zeros(len(group), np.int64)))
        best, chance = max(shares)
        return best if chance <= CHANCE else 0.0

    labels = {
        name: group
        for name, values in t.columns.items()
        # a tuned number is a sweep's; a word for it, such as "long", names a recipe
        if not (values.dtype.kind == "f" and _TUNED.search(units.plain(name)))
        and not _MEASURED.match(name.lower())
        for group in [_groups(values)]
        if group is not None
    }
    shares: dict[tuple[str, ...], float] = {(name,): share(group) for name, group in labels.items()}
    texts = [name for name in labels if t.columns[name].dtype.kind != "f"]
    if len(texts) > 1 and max(shares.values()) < SHARE:
        # warm-up, decay and tuning may differ together
        together = np.array(["\0".join(row) for row in zip(*(t.columns[c] for c in texts))])
        group = _groups(together)
        if group is not None:
            shares[tuple(texts)] = share(group)
    most = max(shares.values(), default=0.0)
    if most < SHARE:
        return []
    # of columns with the same information the one with the fewest values
    same = [names for names, value in shares.items() if value > most - 0.02]
    same.sort(key=lambda names: len(set(zip(*(t.columns[c].tolist() for c in names)))))
    names, others = same[0], [c for names in same[1:] for c in names]
    return [Caution("several experiments", _separate(t, names, most, others))]


def _separate(t: table.Table, names: Sequence[str], share: float, others: Sequence[str]) -> str:
    """The notice of columns that together separate experiments."""
    count = len(set(zip(*(t.columns[c].tolist() for c in names))))
    shown = ", ".join(repr(c) for c in names)
    values = [t.columns[c][0] for c in names]
    texts = [f"{v:g}" if isinstance(v, float) else str(v) for v in values]
    where = " ".join(f"--where {shlex.quote(f'{c}={v}')}" for c, v in zip(names, texts))
    also = f" (so {'does' if len(others) == 1 else 'do'} {', '.join(others[:3])})" if others else ""
    what = f"column {shown} has" if len(names) == 1 else f"columns {shown} together have"
    verb = "explains" if len(names) == 1 else "explain"
    return (
        f"{what} {count} values and {verb} {share:.0%} of the residual variance{also}: --by "
        f"{' '.join(map(shlex.quote, names))} makes a study of each, {where} takes one"
    )


def _cells(t: table.Table) -> Array:
    """[n] int: which rows share their (N, D)."""
    logs = np.round(np.log([t.params, t.tokens]), 3)
    return np.asarray(np.unique(logs, axis=1, return_inverse=True)[1]).reshape(-1)


def _explained(residual: Array, group: Array, cell: Array) -> tuple[float, float]:
    """(share of the variance within cells that groups explain, adjusted for their number; chance
    of as much by an F test). (0, 1) where fewer than half of the rows share a cell."""
    counts = np.bincount(cell)
    inside = counts[cell] > 1
    if 2 * np.sum(inside) < len(cell):
        return 0.0, 1.0
    y, cell = residual[inside], np.unique(cell[inside], return_inverse=True)[1]
    x = np.eye(group.max() + 1)[group[inside]]
    size = np.bincount(cell)
    y = y - (np.bincount(cell, y) / size)[cell]
    x = x - np.stack([np.bincount(cell, c) / size for c in x.T], 1)[cell]
    beta, _, rank, _ = np.linalg.lstsq(x, y, rcond=1e-9)
    total, free = float(y @ y), len(y) - len(size)
    within = float(np.sum((y - x @ beta) ** 2))
    if rank == 0 or free <= rank or total == 0:
        return 0.0, 1.0
    share = 1 - within / (free - rank) / (total / free)
    f = (total - within) / rank / max(within / (free - rank), 1e-300)
    return share, float(scipy.special.fdtrc(rank, free - rank, f))


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
    """Whether groups are sizes, such as a model's name or width: each has one N, D, C or D/N."""
    for values in (t.params, t.tokens, t.flops, t.tokens / t.params):
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


def sweeps(t: table.Table) -> list[Caution]:
    """A notice of several rows at most (N, D) that differ in hyper-parameters: a sweep."""
    cell = _cells(t)
    counts = np.bincount(cell)
    several = counts > 2
    if counts[several].sum() < len(t.loss) / 2:
        return []
    varied = [
        name
        for name, values in t.columns.items()
        if values.dtype.kind == "f"
        and _TUNED.search(units.plain(name))
        and not _MEASURED.match(name.lower())
        and _varies(values, cell, several)
    ]
    if not varied:
        return []
    return [
        Caution(
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


def outliers(t: table.Table, residual: Array) -> list[Caution]:
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
        Caution(
            "outliers",
            f"{'; '.join(texts)}{more}: more than {FAR:g} times the spread of the others "
            f"({100 * sd:.2g} %). A number mistyped, or a run that diverged? Correct it{mend}",
        )
    ]


def _named(t: table.Table, i: int) -> str:
    """A run's name, where it has one beyond its row."""
    return "" if t.run[i] == str(t.row[i]) else f" ({t.run[i]})"


def cost(t: table.Table, per: float, params: float) -> list[Caution]:
    """A notice of C/(N D) that depends on N, where a plan takes C = per N D.

    params: N* at the target. C/(N D) there is read off the sizes around it, or off the largest.
    """
    factor = t.flops / (t.params * t.tokens)
    order = np.argsort(t.params, kind="stable")
    there = float(np.interp(np.log(params), np.log(t.params[order]), factor[order]))
    share = per / there - 1
    if abs(share) <= COST:
        return []
    beyond = f", the largest, of {t.params.max():.3g}" if params > t.params.max() else ""
    return [
        Caution(
            "cost depends on size",
            f"C is {factor.min():.3g} to {factor.max():.3g} N D by size, and plans take "
            f"{per:.3g} N D at all: at N = {params:.3g} it is {there:.3g} N D{beyond}, so that the "
            f"budget buys {abs(share):.0%} {'more' if share > 0 else 'fewer'} tokens than planned",
        )
    ]
