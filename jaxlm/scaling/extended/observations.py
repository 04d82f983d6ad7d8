"""Observational laws: benchmarks of public models of many families, and what compute buys of them.

    record = observations.run(data, Request(target="GSM8K"), replicates=500, level=0.95, seed=0)

Benchmark scores of models have few dimensions: principal components, of which the first is nearly
log-linear in compute within a family (Ruan et al. 2024, arXiv:2405.10938). A target benchmark is a
sigmoid of the components, fitted to models below a compute and tried on those above it, along with
the sigmoid of log compute alone; families with several sizes are extended along their own lines.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from jaxlm.scaling.laws import bootstrap, least_squares

Array = np.ndarray
Record = dict[str, Any]

# Components that the target is read from, as in the paper; rounds of the imputation.
COMPONENTS, ROUNDS = 3, 1000
# Models of different compute that a family's line needs; what is held out by default.
SIZES, HELD_OUT = 3, 0.25


@dataclasses.dataclass(frozen=True)
class Request:
    """Roles of the columns."""

    target: str
    """The benchmark that is predicted; it is no part of the components."""
    benchmarks: tuple[str, ...] = ()
    """Those that make the components; none named: all columns of shares from 0 to 1."""
    family: str = "Model Family"
    """Column of the families."""
    flops: str = "FLOPs (1E21)"
    """Column of the training compute, in any unit."""
    holdout: float | None = None
    """Compute, in that unit, from which models are held out; not given: the largest quarter."""
    at: float | None = None
    """Compute at which every family is predicted; not given: ten times that of its largest."""


class Components(NamedTuple):
    """Principal components of scores."""

    mean: Array  # [b]
    axes: Array  # [c,b], the first with a positive sum
    shares: Array  # [b] of the variance


def run(
    data: Mapping[str, Array], request: Request, replicates: int, level: float, seed: int
) -> Record:
    """The record: components, lines of the families, the target's law, its test, predictions.

    Raises: ValueError naming the column or the number of models.
    """
    scores, names, family, flops, target = _read(data, request)
    x = impute(scores)
    result = components(x)
    pcs = (x - result.mean) @ result.axes.T
    log_c = np.log10(flops)
    lines = _lines(pcs, log_c, family)
    known = np.isfinite(log_c) & np.isfinite(target)
    limit = request.holdout or float(np.nanquantile(flops, 1 - HELD_OUT))
    low, high = known & (flops < limit), known & (flops >= limit)
    count = min(COMPONENTS, pcs.shape[1])
    if low.sum() < count + 4 or not high.any():
        raise ValueError(
            f"--observe {request.target}: {low.sum()} models below {limit:g} of "
            f"{request.flops!r} and {high.sum()} at or above; {count + 4} and 1 are needed"
        )
    designs = {"components": pcs[:, :count], "compute": log_c[:, None]}
    tests = {}
    for name, design in designs.items():
        theta = _sigmoid(design[low], target[low])
        error = _predict(theta[None], design[high])[0] - target[high]
        tests[name] = {
            "mae": float(np.abs(error).mean()),
            "mse": float((error**2).mean()),
            "mean": float(error.mean()),
        }
    return {
        "target": request.target,
        "benchmarks": names,
        "models": len(x),
        "shares": result.shares,
        "axes": result.axes,
        "imputed": float(np.isnan(scores).mean()),
        "families": {
            f: {"models": n, "slope": float(slope[0]), "r2": float(r2[0])}
            for f, (n, slope, _, r2) in lines.items()
        },
        "limit": limit,
        "fitted": int(low.sum()),
        "tested": int(high.sum()),
        "test": tests,
        "wins": min(tests, key=lambda k: tests[k]["mae"]),
        "at": request.at,
        "predictions": _extended(
            pcs[:, :count], target, log_c, family, lines, request, replicates, level, seed
        ),
    }


def impute(scores: Array, rounds: int = ROUNDS, tolerance: float = 1e-6) -> Array:
    """Scores [n,b] with what is missing (nan) read off the first principal component of the
    standardised scores, iterated until it no longer changes; within [0, 1]."""
    gap = np.isnan(scores)
    mean, scale = np.nanmean(scores, 0), np.nanstd(scores, 0)
    scale = np.where(scale > 0, scale, 1.0)
    z = np.where(gap, 0.0, (scores - mean) / scale)
    for _ in range(rounds if gap.any() else 0):
        centre = z.mean(0)
        _, _, axes = np.linalg.svd(z - centre, full_matrices=False)
        low_rank = (z - centre) @ axes[:1].T @ axes[:1] + centre
        change = np.abs(np.where(gap, low_rank - z, 0.0)).max()
        z = np.where(gap, low_rank, z)
        if change < tolerance:
            break
    return np.where(gap, np.clip(z * scale + mean, 0.0, 1.0), scores)


def components(x: Array) -> Components:
    """The principal components of scores [n,b], centred and not scaled, as the paper has them."""
    mean = x.mean(0)
    _, spread, axes = np.linalg.svd(x - mean, full_matrices=False)
    axes = axes * np.where(axes.sum(1) < 0, -1.0, 1.0)[:, None]
    return Components(mean, axes, spread**2 / np.sum(spread**2))


def _read(
    data: Mapping[str, Array], request: Request
) -> tuple[Array, list[str], Array, Array, Array]:
    """(scores [n,b], their names, family [n], compute [n], target [n])."""
    for name, flag in (
        (request.target, "--observe"),
        (request.family, "--families"),
        (request.flops, "--column flops=NAME"),
        *((b, "--benchmarks") for b in request.benchmarks),
    ):
        if name not in data:
            raise ValueError(f"{flag}: no column {name!r}; the file has {list(data)}")
    shares = [
        k
        for k, v in data.items()
        if v.dtype.kind == "f" and np.nanmin(v) >= 0 and np.nanmax(v) <= 1 and k != request.flops
    ]
    names = [b for b in request.benchmarks or shares if b != request.target]
    for name in (*names, request.target):
        if name not in shares:
            raise ValueError(f"column {name!r}: scores from 0 to 1 are needed")
    if len(names) < 2:
        raise ValueError(f"--benchmarks {names}: components need two benchmarks or more")
    flops = data[request.flops]
    if flops.dtype.kind != "f":
        raise ValueError(f"column {request.flops!r}: {str(flops[0])!r} is no number")
    bad = np.flatnonzero(flops <= 0)
    if bad.size:
        raise ValueError(f"row {bad[0] + 2}, column {request.flops!r}: {flops[bad[0]]:g}")
    scores = np.stack([data[b] for b in names], 1)
    kept = np.isfinite(scores).any(1)
    target = data[request.target]
    return (
        scores[kept],
        list(names),
        data[request.family].astype(str)[kept],
        flops[kept],
        target[kept],
    )


def _lines(pcs: Array, log_c: Array, family: Array) -> dict[str, tuple[int, Array, Array, Array]]:
    """{family: (models, slopes [c], intercepts [c], R2 [c])} of components in log10 compute."""
    out = {}
    for name in dict.fromkeys(family.tolist()):
        own = (family == name) & np.isfinite(log_c)
        if len(np.unique(log_c[own])) < SIZES:
            continue
        x, y = log_c[own], pcs[own]
        away = x - x.mean()
        slope = away @ (y - y.mean(0)) / (away @ away)
        rest = y - y.mean(0) - away[:, None] * slope
        total = np.sum((y - y.mean(0)) ** 2, 0)
        r2 = 1 - np.sum(rest**2, 0) / np.where(total > 0, total, 1.0)
        out[name] = (int(own.sum()), slope, y.mean(0) - slope * x.mean(), r2)
    return out


def _predict(theta: Array, x: Array) -> Array:
    """[R,n] floor + height / (1 + exp(-(w x + b))) of (floor, height, b, w [c]) [R, 3 + c]."""
    z = theta[:, 2:3] + theta[:, 3:] @ x.T
    return theta[:, :1] + theta[:, 1:2] / (1 + np.exp(-np.clip(z, -500, 500)))


def _bounds(c: int) -> tuple[Array, Array]:
    free = np.full(c + 1, np.inf)
    return np.array([0.0, 0.0, *-free]), np.array([1.0, 1.0, *free])


def _sigmoid(x: Array, y: Array) -> Array:
    """[3 + c] least squares of the sigmoid, from logits of several floors and heights."""
    starts = []
    for floor in (0.0, max(float(y.min()) - 0.02, 0.0)):
        for top in (1.0, min(float(y.max()) + 0.05, 1.0)):
            share = np.clip((y - floor) / (top - floor), 0.02, 0.98)
            design = np.concatenate([np.ones((len(x), 1)), x], 1)
            linear, *_ = np.linalg.lstsq(design, np.log(share / (1 - share)), rcond=None)
            starts.append([floor, top - floor, *linear])
    low, high = _bounds(x.shape[1])
    solved = least_squares.minimise(
        lambda theta: _predict(theta, x), np.array(starts), y, low=low, high=high
    )
    return least_squares.best(solved)[0]


def _extended(
    pcs: Array,
    target: Array,
    log_c: Array,
    family: Array,
    lines: Mapping[str, tuple[int, Array, Array, Array]],
    request: Request,
    replicates: int,
    level: float,
    seed: int,
) -> Record:
    """{family: [compute, the target's value, ends]} at a compute along each line.

    A draw resamples the models of the target's law, and adds a residual; the family's components
    get an error from its line's own residuals.
    """
    known = np.isfinite(target)
    x, y = pcs[known], target[known]
    n, c = x.shape
    theta = _sigmoid(x, y)
    random = np.random.default_rng(seed)
    weights = random.multinomial(n, np.full(n, 1 / n), replicates).astype(float)
    low, high = _bounds(c)
    start = np.repeat(theta[None], replicates, 0)
    draws = least_squares.minimise(
        lambda t: _predict(t, x), start, y, weights, low=low, high=high, steps=60
    ).theta
    residual = y - _predict(theta[None], x)[0]
    out: Record = {}
    for name, (count, slope, intercept, _) in lines.items():
        own = (family == name) & np.isfinite(log_c)
        at = np.log10(request.at) if request.at else 1 + log_c[own].max()
        place = intercept[:c] + slope[:c] * at
        away = log_c[own] - log_c[own].mean()
        rest = pcs[own] - (intercept[:c] + log_c[own, None] * slope[:c])
        spread = np.sqrt(np.sum(rest**2, 0) / max(count - 2, 1))
        spread = spread * np.sqrt(1 / count + (at - log_c[own].mean()) ** 2 / (away @ away))
        noise = random.standard_t(max(count - 2, 1), (replicates, c)) * spread
        z = draws[:, 2] + np.einsum("rc,rc->r", draws[:, 3:], place + noise)
        value = draws[:, 0] + draws[:, 1] / (1 + np.exp(-np.clip(z, -500, 500)))
        value = np.clip(value + random.choice(residual, replicates), 0.0, 1.0)
        ends = bootstrap.interval(value, level)
        middle = float(np.clip(_predict(theta[None], place[None])[0, 0], 0.0, 1.0))
        out[name] = [float(10**at), middle, [float(e) for e in ends]]
    return out


def text(record: Record) -> str:
    """The report of observational laws."""
    shares = ", ".join(f"{100 * s:.1f} %" for s in record["shares"][:4])
    lines = [
        f"observations: {record['models']} models, components of {', '.join(record['benchmarks'])}"
        f" explain {shares} of the variance ({100 * record['imputed']:.1f} % of scores imputed)",
        "  first component along log10 compute, by family (models, slope, R2):",
    ]
    lines += [
        f"    {name:<18}{f['models']:>3}{f['slope']:>9.4f}{f['r2']:>8.3f}"
        for name, f in record["families"].items()
    ]
    lines.append(
        f"  {record['target']}: fitted on {record['fitted']} models below {record['limit']:g}, "
        f"tried on {record['tested']} above: "
        + ", ".join(
            f"from {name} mean absolute error {t['mae']:.4f} ({t['mean']:+.4f} on average)"
            for name, t in record["test"].items()
        )
    )
    lines.append(f"  {record['target']} along each family's line, at a compute of")
    lines += [
        f"    {name:<18}{at:<10.4g}{value:.4f} [{ends[0]:.4f}, {ends[1]:.4f}]"
        for name, (at, value, ends) in record["predictions"].items()
    ]
    return "\n".join(lines)
