"""The loss as a surface of learning rate and batch size, and the laws of its minimum.

    record = surfaces.run(t, "lr", "batch_size", setting, at)

Around its minimum the loss of one cell (N, D) is taken as

    c_cell + (x - x*)^T H (x - x*),   x = (log lr, log batch),   x* = Theta (1, log N, log D)

with one curvature H for all cells, so that lr* and batch* are powers of N and D (the laws of Step
Law, arXiv:2503.04715, which are fitted there to the best run of each cell). That is linear in c, H
and H Theta: one linear least squares, with no choice of a best run. Of each cell the best quarter
of the runs is used, at least LEAST, because far from the minimum no loss is quadratic. Cells are
resampled for the intervals, so that an error of a whole cell counts once.
"""

from typing import Any, NamedTuple

import numpy as np

from jaxlm.scaling import table
from jaxlm.scaling.extended.context import Setting, positive
from jaxlm.scaling.laws import bootstrap

Array = np.ndarray
Record = dict[str, Any]

# Share of each cell's runs, those with the lowest losses, that is used, and the least number.
SHARE, LEAST = 0.25, 8
# Cells that a law in N and D, with a curvature, needs.
CELLS = 5
NAMES = ("constant", "params", "tokens")


class Cells(NamedTuple):
    """Runs near the minimum of each cell, logarithms centred."""

    x: Array  # [n,2] log lr, log batch, minus `middle`
    z: Array  # [n,3] 1, log N, log D, minus `centre`
    loss: Array  # [n]
    cell: Array  # [n] index of the cell
    params: Array  # [cells]
    tokens: Array  # [cells]
    flops: Array  # [cells]
    row: Array  # [n] index in the table
    middle: Array  # [2]
    centre: Array  # [3]


def run(
    t: table.Table,
    rate: str,
    batch: str,
    setting: Setting,
    at: tuple[tuple[float, float], ...],
) -> Record:
    """The record of the surface: laws of lr* and batch*, their intervals, back-test, predictions.

    Raises: ValueError naming the column or the cells that are too few.
    """
    x = columns(t, rate, batch)
    cells = _cells(t, x)
    count = len(cells.params)
    if count < CELLS:
        raise ValueError(
            f"--hyperparameters: {count} pairs of N and D have {LEAST} or more runs; a law of "
            f"both needs {CELLS}"
        )
    weights = np.random.default_rng(setting.seed).multinomial(
        count, np.full(count, 1 / count), setting.replicates
    )
    resampled = np.concatenate([np.ones((1, count)), weights.astype(float)])
    out: Record = {"rate": rate, "batch": batch, "cells": count, "runs": len(cells.loss)}
    for name, tokens_alone in (("batch of N and D", False), ("batch of D", True)):
        curvature, theta = _fit(cells, resampled, tokens_alone)
        fine = np.array([np.isfinite(row).all() for row in theta])
        fine &= np.linalg.eigvalsh(curvature).min(1) > 0
        if not fine[0]:
            out[name] = {"skipped": "the surface has no minimum: it is not convex"}
            continue
        curvature, theta = curvature[fine], _uncentred(theta[fine], cells)
        out[name] = {
            "curvature": curvature[0],
            "laws": {
                label: _law(theta[:, i], setting.level, i == 1 and tokens_alone)
                for i, label in enumerate((rate, batch))
            },
            "failed": int(np.sum(~fine)),
            "backtest": _backtest(t, x, cells, tokens_alone, setting),
            "predictions": [_prediction(theta, curvature[0], n, d, setting.level) for n, d in at],
        }
    out["minima"] = _minima(t, x, cells, setting)
    return out


def columns(t: table.Table, rate: str, batch: str) -> Array:
    """[n,2] log learning rate and log batch size. Raises: ValueError naming column and row."""
    names = (rate, batch)
    return np.stack([np.log(positive(t, c, "--hyperparameters", "a number")) for c in names], 1)


def _cells(t: table.Table, x: Array) -> Cells:
    """The runs near the minimum of every cell with enough of them."""
    pairs, member = np.unique(np.stack([t.params, t.tokens], 1), axis=0, return_inverse=True)
    member = member.reshape(-1)
    rows, kept, which = [], [], []
    for i in range(len(pairs)):
        own = np.flatnonzero(member == i)
        if len(own) < LEAST:
            continue
        order = own[np.argsort(t.loss[own], kind="stable")]
        near = order[: max(LEAST, round(SHARE * len(own)))]
        which.append(np.full(len(near), len(kept)))
        rows.append(near)
        kept.append(i)
    if not kept:
        return Cells(*(np.empty(0) for _ in range(10)))
    row, cell = np.concatenate(rows), np.concatenate(which)
    z = np.stack([np.ones(len(row)), np.log(t.params[row]), np.log(t.tokens[row])], 1)
    centre = z.mean(0)
    centre[0] = 0.0
    middle = x[row].mean(0)
    flops = np.array([np.median(t.flops[member == i]) for i in kept])
    n, d = pairs[kept].T
    return Cells(x[row] - middle, z - centre, t.loss[row], cell, n, d, flops, row, middle, centre)


def _fit(cells: Cells, weights: Array, tokens_alone: bool) -> tuple[Array, Array]:
    """(H [S,2,2], Theta [S,2,3] about the centres) for weights [S,cells].

    Each cell's constant is removed by its means; the rest is nine numbers, three of H and six of
    H Theta, from sums over the cells. tokens_alone: batch* does not depend on N.
    """
    a, b = cells.x.T
    square = np.stack([a * a, 2 * a * b, b * b], 1)
    design = np.concatenate([square, -2 * a[:, None] * cells.z, -2 * b[:, None] * cells.z], 1)
    count = len(cells.params)
    normal, right = np.zeros((count, 9, 9)), np.zeros((count, 9))
    for i in range(count):
        own = cells.cell == i
        d = design[own] - design[own].mean(0)
        normal[i], right[i] = d.T @ d, d.T @ (cells.loss[own] - cells.loss[own].mean())
    q = np.einsum("sc,cij->sij", weights, normal)
    q += 1e-12 * np.trace(q, axis1=1, axis2=2)[:, None, None] * np.eye(9)
    p = np.linalg.solve(q, (weights @ right)[:, :, None])[:, :, 0]
    if tokens_alone:
        p = _constrained(p, q)
    h = np.stack([p[:, 0], p[:, 1], p[:, 1], p[:, 2]], 1).reshape(-1, 2, 2)
    with np.errstate(all="ignore"):
        inverse = np.stack([h[:, 1, 1], -h[:, 0, 1], -h[:, 1, 0], h[:, 0, 0]], 1)
        inverse = inverse.reshape(-1, 2, 2) / np.linalg.det(h)[:, None, None]
    return h, inverse @ p[:, 3:].reshape(-1, 2, 3)


def _constrained(p: Array, q: Array) -> Array:
    """The minimum of (u - p)^T q (u - p) where batch* has no power of N: by linearised steps.

    (H^-1 M)[1, N] is (H00 M[1, N] - H01 M[0, N]) / det H.
    """
    u = p.copy()
    for _ in range(20):
        value = u[:, 0] * u[:, 7] - u[:, 1] * u[:, 4]
        slope = np.zeros_like(u)
        slope[:, 0], slope[:, 7] = u[:, 7], u[:, 0]
        slope[:, 1], slope[:, 4] = -u[:, 4], -u[:, 1]
        turned = np.linalg.solve(q, slope[:, :, None])[:, :, 0]
        needed = value + np.einsum("si,si->s", slope, p - u)
        u = p - turned * (needed / np.einsum("si,si->s", slope, turned))[:, None]
    return u


def _uncentred(theta: Array, cells: Cells) -> Array:
    """[S,2,3] constants and powers of N and D of lr* and batch* themselves."""
    out = theta.copy()
    out[:, :, 0] += cells.middle - (theta[:, :, 1:] * cells.centre[1:]).sum(2)
    return out


def _law(theta: Array, level: float, tokens_alone: bool) -> Record:
    """{constant (of the value, not its logarithm), params, tokens: [value, ends]}; a power that is
    held at 0 has no interval."""
    low, high = bootstrap.interval(theta[1:], level)
    out: Record = {
        name: [float(theta[0, i]), [float(low[i]), float(high[i])]] for i, name in enumerate(NAMES)
    }
    value, ends = out["constant"]
    out["constant"] = [float(np.exp(value)), [float(np.exp(e)) for e in ends]]
    if tokens_alone:
        out["params"] = [0.0, None]
    return out


def _prediction(theta: Array, curvature: Array, n: float, d: float, level: float) -> Record:
    """lr* and batch* of a run, and what their error costs in loss on average."""
    x = theta @ np.array([1.0, np.log(n), np.log(d)])
    low, high = np.exp(bootstrap.interval(x[1:], level))
    away = x[1:] - x[0]
    cost = np.einsum("si,ij,sj->s", away, curvature, away)
    return {
        "params": n,
        "tokens": d,
        "rate": [float(np.exp(x[0, 0])), [float(low[0]), float(high[0])]],
        "batch": [float(np.exp(x[0, 1])), [float(low[1]), float(high[1])]],
        "excess_loss": float(cost.mean()),
    }


def _backtest(
    t: table.Table, x: Array, cells: Cells, tokens_alone: bool, setting: Setting
) -> Record:
    """Errors on the cells of the largest compute: of the logarithms against each cell's best run,
    and the excess loss of the measured run that is nearest to the prediction."""
    held = cells.flops >= setting.holdout
    if not held.any():
        held = cells.flops == cells.flops.max()
    if np.sum(~held) < CELLS:
        return {"skipped": f"{np.sum(~held)} cells are left for the fit; {CELLS} are needed"}
    curvature, theta = _fit(cells, (~held).astype(float)[None], tokens_alone)
    theta = _uncentred(theta, cells)[0]
    rows = []
    for i in np.flatnonzero(held):
        own = np.flatnonzero((t.params == cells.params[i]) & (t.tokens == cells.tokens[i]))
        best = own[np.argmin(t.loss[own])]
        guess = theta @ np.array([1.0, np.log(cells.params[i]), np.log(cells.tokens[i])])
        away = x[own] - guess
        nearest = own[np.argmin(np.einsum("ni,ij,nj->n", away, curvature[0], away))]
        rows.append(
            {
                "params": float(cells.params[i]),
                "tokens": float(cells.tokens[i]),
                "rate": [float(np.exp(guess[0])), float(np.exp(x[best, 0]))],
                "batch": [float(np.exp(guess[1])), float(np.exp(x[best, 1]))],
                "excess_percent": 100 * float(t.loss[nearest] / t.loss[best] - 1),
                "median_excess_percent": 100 * float(np.median(t.loss[own]) / t.loss[best] - 1),
            }
        )
    return {"fitted": int(np.sum(~held)), "cells": rows}


def _minima(t: table.Table, x: Array, cells: Cells, setting: Setting) -> list[Record]:
    """Each cell's own quadratic: its minimum with an interval, or None where it has none."""
    out = []
    random = np.random.default_rng(setting.seed)
    for i in range(len(cells.params)):
        own = cells.cell == i
        a, b = cells.x[own].T
        design = np.stack([np.ones(len(a)), a, b, a * a, 2 * a * b, b * b], 1)
        n = len(a)
        counts = random.multinomial(n, np.full(n, 1 / n), setting.replicates).astype(float)
        counts = np.concatenate([np.ones((1, n)), counts])
        normal = np.einsum("sn,ni,nj->sij", counts, design, design) + 1e-9 * np.eye(6)
        right = np.einsum("sn,ni,n->si", counts, design, cells.loss[own])
        p = np.linalg.solve(normal, right[:, :, None])[:, :, 0]
        determinant = p[:, 3] * p[:, 5] - p[:, 4] ** 2
        convex = (p[:, 3] > 0) & (determinant > 0)
        with np.errstate(all="ignore"):
            u = -(p[:, 5] * p[:, 1] - p[:, 4] * p[:, 2]) / (2 * determinant) + cells.middle[0]
            v = -(p[:, 3] * p[:, 2] - p[:, 4] * p[:, 1]) / (2 * determinant) + cells.middle[1]
        rows = np.flatnonzero((t.params == cells.params[i]) & (t.tokens == cells.tokens[i]))
        best = rows[np.argmin(t.loss[rows])]
        minimum: Record = {
            "params": float(cells.params[i]),
            "tokens": float(cells.tokens[i]),
            "runs": len(rows),
            "best": [float(np.exp(x[best, 0])), float(np.exp(x[best, 1]))],
            "rate": None,
            "batch": None,
        }
        if convex[0] and convex[1:].mean() >= setting.level:
            for name, values in (("rate", u), ("batch", v)):
                ends = np.exp(bootstrap.interval(values[1:][convex[1:]], setting.level))
                minimum[name] = [float(np.exp(values[0])), [float(e) for e in ends]]
        out.append(minimum)
    return out


def text(record: Record) -> str:
    """The report of a surface."""
    lines = [
        f"{record['rate']} and {record['batch']}: one surface of {record['cells']} cells (N, D), "
        f"{record['runs']} runs near their minima"
    ]
    for name in ("batch of N and D", "batch of D"):
        surface = record[name]
        if "skipped" in surface:
            lines.append(f"  {name}: {surface['skipped']}")
            continue
        lines.append(f"  {name}")
        for label, law in surface["laws"].items():
            powers = [
                f" {letter}^{law[k][0]:.4f} [{law[k][1][0]:.3f}, {law[k][1][1]:.3f}]"
                for letter, k in (("N", "params"), ("D", "tokens"))
                if law[k][1] is not None
            ]
            lines.append(f"    {label}* = {law['constant'][0]:.4g}{''.join(powers)}")
        for p in surface["predictions"]:
            (r, r_ends), (b, b_ends) = p["rate"], p["batch"]
            lines.append(
                f"    N {p['params']:.4g}, D {p['tokens']:.4g}: {r:.3g} [{r_ends[0]:.3g}, "
                f"{r_ends[1]:.3g}], {b:.4g} [{b_ends[0]:.4g}, {b_ends[1]:.4g}]; the error of the "
                f"two costs {p['excess_loss']:.5f} of loss on average"
            )
        test = surface["backtest"]
        if "skipped" in test:
            lines.append(f"    no back-test: {test['skipped']}")
            continue
        for c in test["cells"]:
            lines.append(
                f"    held out N {c['params']:.3g}, D {c['tokens']:.3g}: {c['rate'][0]:.3g} (best "
                f"run {c['rate'][1]:.3g}), {c['batch'][0]:.4g} ({c['batch'][1]:.4g}); nearest run "
                f"+{c['excess_percent']:.2f} % of loss, median run "
                f"+{c['median_excess_percent']:.2f} %"
            )
    convex = sum(m["rate"] is not None for m in record["minima"])
    lines.append(f"  {convex} of {record['cells']} cells have a minimum of their own")
    return "\n".join(lines)
