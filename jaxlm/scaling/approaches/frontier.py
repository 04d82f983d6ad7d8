"""Approach 1: the lowest loss that any run had reached at each compute, and N*(C) = k C^a of it.

Hoffmann et al. 2022, section 3.1: of all training curves the one that is lowest at each of 1,500
values of C. Where every run has one point there are no curves; then the runs on the frontier count,
those whose loss no run with less compute undercuts. Where the smallest or the largest size is the
lowest, a still smaller or larger one might be lower, so that such places are left out.
"""

from typing import NamedTuple

import numpy as np

from jaxlm.scaling.approaches import isoflop
from jaxlm.scaling.table import Table

GRID = 1500  # values of C at which curves are compared
# A budget is met to a whole step, so that runs of one budget differ a little in C: a run counts for
# this much of log C beyond its ends, or the one with the least compute would be alone there.
BEYOND = 0.01


class Envelope(NamedTuple):
    """Approach 1's result; the frontier's m places by rising C."""

    curves: bool
    """Whether places are values of C on training curves, or else runs on the frontier."""
    flops: np.ndarray  # [m] C
    params: np.ndarray  # [m] N of the lowest run
    tokens: np.ndarray  # [m] its D at C
    loss: np.ndarray  # [m] nats per token
    run: np.ndarray  # [m] str
    exponent: float
    """a of N* = exp(intercept) C^a, least squares over the places."""
    intercept: float
    """log k."""
    r2: float
    """Share of the variance of log N* that it explains."""
    draws: np.ndarray
    """[R, 2] exponent and intercept, runs resampled."""
    interval: tuple[float, float]
    """95 % percentile interval of the exponent; (nan, nan) without replicates."""


def fit(t: Table, *, replicates: int = 1000, seed: int = 0, grid: int = GRID) -> Envelope:
    """Approach 1 on a table; runs are resampled whole for the interval.

    Points of one run are its training curve, log loss between them linear in log C. A run of one
    point among curves is left out: its loss at other C is unknown.

    Raises: ValueError where fewer than two sizes are on the frontier, naming what is there.
    """
    if grid < 2 or replicates < 0:
        raise ValueError(f"grid, replicates: {grid}, {replicates} given; at least 2 and 0")
    names, which, count = np.unique(t.run, return_inverse=True, return_counts=True)
    curves = bool((count > 1).any())
    log_c, height = _curves(t, which, count, grid) if curves else _points(t)
    sizes = np.array([t.params[which == i].max() for i in range(len(names))])
    log_n = np.log(sizes if curves else t.params)
    runs = names if curves else t.run
    held, best = _frontier(height, np.arange(len(height)), log_n, curves)
    x = log_c[held]
    if len(np.unique(log_n[best])) < 2:
        low, high = (f"{np.exp(end):.4g}" for end in (log_n.min(), log_n.max()))
        raise ValueError(
            f"params: {len(np.unique(log_n[best]))} size between the least ({low}) and the largest "
            f"({high}) on the frontier of {len(names)} runs; N*(C) needs two or more"
        )
    law = isoflop.power(x, log_n[best])
    draws = _draws(log_c, height, log_n, curves, replicates, seed)
    ends = np.percentile(draws[:, 0], (2.5, 97.5)) if len(draws) else (np.nan, np.nan)
    per = np.array([np.median((t.flops / t.params / t.tokens)[which == i]) for i in which])
    each = np.zeros(len(runs))
    each[which if curves else np.arange(len(which))] = per
    c, n = np.exp(x), np.exp(log_n[best])
    return Envelope(
        curves,
        c,
        n,
        c / (n * each[best]),
        np.exp(height[best, held]),
        runs[best],
        law.exponent,
        law.intercept,
        law.r2,
        draws,
        (float(ends[0]), float(ends[1])),
    )


def _curves(
    t: Table, which: np.ndarray, count: np.ndarray, grid: int
) -> tuple[np.ndarray, np.ndarray]:
    """(log C [grid], log loss [runs, grid] of each run's curve, inf outside it)."""
    several = count[which] > 1
    log_c = np.log(t.flops)
    at = np.linspace(log_c[several].min(), log_c[several].max(), grid)
    height = np.full((len(count), grid), np.inf)
    for i in np.flatnonzero(count > 1):
        own = np.flatnonzero(which == i)
        own = own[np.argsort(log_c[own])]
        value = np.interp(at, log_c[own], np.log(t.loss[own]))
        inside = (at >= log_c[own[0]] - BEYOND) & (at <= log_c[own[-1]] + BEYOND)
        height[i] = np.where(inside, value, np.inf)
    return at, height


def _points(t: Table) -> tuple[np.ndarray, np.ndarray]:
    """(log C [n] rising, log loss [n, n] of run i at C of j: its own from its C on, inf before)."""
    order = np.argsort(t.flops, kind="stable")
    log_c = np.log(t.flops[order])
    reached = log_c[None, :] >= np.log(t.flops)[:, None] - BEYOND
    return log_c, np.where(reached, np.log(t.loss)[:, None], np.inf)


def _frontier(
    height: np.ndarray, rows: np.ndarray, log_n: np.ndarray, curves: bool
) -> tuple[np.ndarray, np.ndarray]:
    """(the columns with a place on the frontier of some rows, the lowest row there): of curves
    those where one is; of points those at which the lowest loss falls, where a run has just come
    onto it. Not where the lowest is of the least or the largest size."""
    own = height[rows]
    low = own.min(0)
    before = np.full(len(low), np.inf)
    if not curves:
        before[1:] = low[:-1]
    held = np.flatnonzero(low < before)
    lowest = rows[np.argmin(own[:, held], 0)]
    within = (log_n[lowest] > log_n.min()) & (log_n[lowest] < log_n.max())
    return held[within], lowest[within]


def _draws(
    log_c: np.ndarray,
    height: np.ndarray,
    log_n: np.ndarray,
    curves: bool,
    replicates: int,
    seed: int,
) -> np.ndarray:
    """[R, 2] exponent and intercept over resampled runs; those with one size are none."""
    random = np.random.default_rng(seed)
    out = []
    for _ in range(replicates):
        rows = np.unique(random.integers(0, len(height), len(height)))
        held, lowest = _frontier(height, rows, log_n, curves)
        n = log_n[lowest]
        if len(held) and np.ptp(n) > 0:
            law = isoflop.power(log_c[held], n)
            out.append((law.exponent, law.intercept))
    return np.array(out).reshape(-1, 2)
