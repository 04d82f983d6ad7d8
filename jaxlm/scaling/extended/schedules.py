"""Loss curves over learning-rate schedules, so that intermediate checkpoints are data.

    curves = schedules.read(data, "lr")
    record = schedules.run(curves, momentum=0.999, replicates=200, level=0.95, seed=0)

At every step of a run

    L = L_0 + A S_1^-alpha [+ B N^-beta] - C S_2

with S_1 the sum of learning rates so far and S_2 the sum of the annealing's momentum m_i =
momentum m_(i-1) + lr_(i-1) - lr_i (Tissue et al. 2024, arXiv:2408.11029, equations 1 and 2; the
term of N where a column has several sizes). Steps before the largest learning rate are warm-up and
are not fitted. Every run is predicted from the others, and each checkpoint gets the loss that a run
of its length with the same schedule, compressed, would have.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from jaxlm.scaling.laws import bootstrap, least_squares

Array = np.ndarray
Record = dict[str, Any]

# Starts of the exponents; pieces of a run that are resampled whole, since its steps share errors.
EXPONENTS, PIECES = (0.1, 0.25, 0.4, 0.6, 0.9, 1.3), 10
# Starts that are refined.
REFINED = 4
# Fractions of a run at which its checkpoints become points.
FRACTIONS = (0.1, 0.25, 0.5, 0.75, 1.0)
# Columns by their usual names.
ALIASES = {
    "run": ("run", "run_id", "run_name"),
    "step": ("step", "_step", "steps", "iteration"),
    "loss": ("loss", "train_loss", "val_loss", "Metrics/loss"),
    "params": ("params", "N", "parameters"),
}


class Curve(NamedTuple):
    """One run, its rows in order of steps."""

    run: str
    step: Array  # [n]
    rate: Array  # [n]
    loss: Array  # [n]
    params: float  # nan where no column has it


class Areas(NamedTuple):
    """Inputs of the law at the rows of a curve."""

    forward: Array  # [n] S_1
    annealed: Array  # [n] S_2
    fitted: Array  # [n] bool: not before the largest learning rate


def read(data: Mapping[str, Array], rate: str) -> list[Curve]:
    """The curves of a file's columns: run (one curve without it), step, loss, the learning rate.

    Raises: ValueError naming the column and the row.
    """
    names = {k: next((c for c in v if c in data), None) for k, v in ALIASES.items()}
    for field in ("step", "loss"):
        if names[field] is None:
            raise ValueError(
                f"--schedule: no column for {field} ({', '.join(ALIASES[field])}); the file has "
                f"{list(data)}"
            )
    if rate not in data:
        raise ValueError(f"--schedule: no column {rate!r}; the file has {list(data)}")
    columns = [n for n in (names["step"], names["loss"], rate, names["params"]) if n is not None]
    for name in columns:
        values = data[name]
        if values.dtype.kind != "f":
            raise ValueError(f"column {name!r}: {str(values[0])!r} is no number")
        least = 0.0 if name in (rate, names["step"]) else np.nextafter(0.0, 1.0)
        bad = np.flatnonzero(~(np.isfinite(values) & (values >= least)))
        if bad.size:
            raise ValueError(f"row {bad[0] + 2}, column {name!r}: {values[bad[0]]:g}")
    count = len(data[rate])
    runs = np.zeros(count) if names["run"] is None else data[names["run"]]
    out = []
    for run in dict.fromkeys(runs.tolist()):
        own = np.flatnonzero(runs == run)
        own = own[np.argsort(data[str(names["step"])][own], kind="stable")]
        step, loss = (data[str(names[k])][own] for k in ("step", "loss"))
        if len(own) < PIECES or np.any(np.diff(step) <= 0):
            raise ValueError(
                f"--schedule: run {run}: {len(own)} rows with {len(np.unique(step))} different "
                f"steps; {PIECES} or more are needed, each once"
            )
        params = np.nan if names["params"] is None else float(data[names["params"]][own[0]])
        out.append(Curve(str(run), step, data[rate][own], loss, params))
    return out


def areas(step: Array, rate: Array, momentum: float) -> Areas:
    """The Areas of a schedule known at some steps [n], counted a step at a time: linear between
    them; before the first it goes on rising where it rises there (warm-up), else it is constant."""
    from scipy import signal

    every = np.arange(1, int(round(step[-1])) + 1)
    slope = max(0.0, (rate[1] - rate[0]) / (step[1] - step[0]))
    start = max(0.0, rate[0] - slope * step[0])
    lr = np.interp(every, np.append(0.0, step), np.append(start, rate))
    forward = np.cumsum(lr)
    falls = np.concatenate([[0.0], lr[:-1] - lr[1:]])
    annealed = np.cumsum(signal.lfilter([1.0], [1.0, -momentum], falls))
    at = np.maximum(np.round(step).astype(int) - 1, 0)
    fitted = (step >= step[np.argmax(rate)]) & (forward[at] > 0)
    return Areas(forward[at], annealed[at], fitted)


def run(curves: list[Curve], momentum: float, replicates: int, level: float, seed: int) -> Record:
    """The record of the law of all curves.

    Raises: ValueError for schedules that never anneal, or too few rows.
    """
    result = [areas(c.step, c.rate, momentum) for c in curves]
    sizes = np.array([c.params for c in curves])
    of_size = bool(np.isfinite(sizes).all() and np.ptp(np.log(sizes)) > 0)
    if not any(np.any(np.diff(c.rate[a.fitted]) < 0) for c, a in zip(curves, result)):
        raise ValueError("--schedule: no learning rate falls, so that annealing has no effect here")
    x, y, which = _stacked(curves, result)
    theta, reached = fit(x, y, of_size)
    draws = _resample(theta, x, y, which, of_size, replicates, seed)
    low, high = bootstrap.interval(draws, level)
    names = ("L_0", "A", "alpha", "C", *(("B", "beta") if of_size else ()))
    log_error = np.log(predict(theta, x, of_size)) - np.log(y)
    rows = {}
    for i, curve in enumerate(curves):
        own = which == i
        rows[curve.run] = {
            "steps": float(curve.step[-1]),
            "rows": int(own.sum()),
            "mae": 100 * float(np.abs(log_error[own]).mean()),
            "unseen": _unseen(x, y, which, i, of_size),
            "points": _points(curve, result[i], theta, of_size, momentum),
        }
    return {
        "momentum": momentum,
        "theta": {
            k: [float(theta[i]), [float(low[i]), float(high[i])]] for i, k in enumerate(names)
        },
        "reached": reached,
        "rows": len(y),
        "runs": rows,
    }


def fit(x: Array, y: Array, of_size: bool) -> tuple[Array, float]:
    """(theta [k], share of the starts that agree): least squares of log L on x = (S_1, S_2, N)
    [3,n]. Raises: ValueError for fewer rows than parameters."""
    count = 6 if of_size else 4
    if len(y) <= count:
        raise ValueError(f"--schedule: {len(y)} rows after warm-up; {count + 1} are needed")
    starts = []
    for alpha in EXPONENTS:
        for beta in EXPONENTS if of_size else (0.0,):
            columns = [np.ones_like(y), x[0] ** -alpha, -x[1]]
            columns += [x[2] ** -beta] if of_size else []
            unit = np.array([np.sqrt(np.mean(c**2)) + 1e-300 for c in columns])
            design = np.stack(columns, 1) / unit
            linear, *_ = np.linalg.lstsq(design, y, rcond=None)
            linear = linear / unit
            power = np.log(np.maximum(linear[1], 1e-12))
            start = [linear[0], power, alpha, linear[2]]
            if of_size:
                start += [np.log(np.maximum(linear[3], 1e-12)), beta]
            starts.append((float(np.sum((y - design @ (linear * unit)) ** 2)), start))
    starts.sort(key=lambda pair: pair[0])
    kept = np.array([start for _, start in starts[:REFINED]])
    solved = least_squares.minimise(_value(x, of_size), kept, np.log(y))
    u, _, reached = least_squares.best(solved)
    return _natural(u[None])[0], reached


def predict(theta: Array, x: Array, of_size: bool) -> Array:
    """Losses [n] at x [3,n]."""
    value = theta[0] + theta[1] * x[0] ** -theta[2] - theta[3] * x[1]
    return value + theta[4] * x[2] ** -theta[5] if of_size else value


def _natural(u: Array) -> Array:
    """A and B from their logarithms, [R,k]."""
    theta = u.copy()
    theta[:, 1] = np.exp(u[:, 1])
    if u.shape[1] > 4:
        theta[:, 4] = np.exp(u[:, 4])
    return theta


def _value(x: Array, of_size: bool) -> least_squares.Value:
    logs = np.log(x[0]), np.log(x[2]) if of_size else np.zeros(x.shape[1])

    def value(u: Array) -> Array:
        total = u[:, :1] + np.exp(u[:, 1:2] - u[:, 2:3] * logs[0]) - u[:, 3:4] * x[1]
        if of_size:
            total = total + np.exp(u[:, 4:5] - u[:, 5:6] * logs[1])
        return np.log(np.maximum(total, 1e-6))

    return value


def _stacked(curves: list[Curve], result: list[Areas]) -> tuple[Array, Array, Array]:
    """(S_1, S_2, N [3,n]; losses [n]; curve [n]) of all rows after warm-up."""
    x = [
        np.stack([a.forward, a.annealed, np.full(len(a.forward), c.params)])[:, a.fitted]
        for c, a in zip(curves, result)
    ]
    y = [c.loss[a.fitted] for c, a in zip(curves, result)]
    which = [np.full(len(v), i) for i, v in enumerate(y)]
    return np.concatenate(x, 1), np.concatenate(y), np.concatenate(which)


def _resample(
    theta: Array, x: Array, y: Array, which: Array, of_size: bool, replicates: int, seed: int
) -> Array:
    """[R,k] refits to pieces of runs drawn with replacement."""
    piece = np.zeros(len(y), int)
    for i in np.unique(which):
        own = np.flatnonzero(which == i)
        piece[own] = i * PIECES + np.arange(len(own)) * PIECES // len(own)
    kinds, member = np.unique(piece, return_inverse=True)
    share = np.full(len(kinds), 1 / len(kinds))
    weights = np.random.default_rng(seed).multinomial(len(kinds), share, replicates)
    start = theta.copy()
    start[1] = np.log(theta[1])
    if of_size:
        start[4] = np.log(theta[4])
    out = []
    for first in range(0, replicates, 25):
        w = weights[first : first + 25][:, member].astype(float)
        start_of = np.repeat(start[None], len(w), 0)
        solved = least_squares.minimise(_value(x, of_size), start_of, np.log(y), w, steps=60)
        out.append(_natural(solved.theta))
    return np.concatenate(out)


def _unseen(x: Array, y: Array, which: Array, i: int, of_size: bool) -> Record | None:
    """{mae, last} in percent of the run predicted from the others; None where there are none."""
    rest, own = which != i, which == i
    if not rest.any() or np.ptp(x[1][rest]) == 0:
        return None
    sizes = np.unique(x[2][rest])
    if of_size and len(sizes) < 3 and x[2][own][0] not in sizes:
        return None  # a power of N needs three sizes
    theta, _ = fit(x[:, rest], y[rest], of_size)
    error = 100 * (predict(theta, x[:, own], of_size) / y[own] - 1)
    return {"mae": float(np.abs(error).mean()), "last": float(error[-1])}


def _points(
    curve: Curve, result: Areas, theta: Array, of_size: bool, momentum: float
) -> list[Record]:
    """Checkpoints as runs of their own length: measured loss, and what the same schedule compressed
    to that length would have reached."""
    out = []
    for fraction in FRACTIONS:
        i = int(np.argmin(np.abs(curve.step - fraction * curve.step[-1])))
        if not result.fitted[i]:
            continue
        # warm-up keeps its length, the rest is compressed
        peak = curve.step[np.argmax(curve.rate)]
        ratio = (curve.step[i] - peak) / (curve.step[-1] - peak)
        later = np.maximum(curve.step - peak, 0.0)
        short = areas(np.minimum(curve.step, peak) + ratio * later, curve.rate, momentum)
        now = np.array([[result.forward[i]], [result.annealed[i]], [curve.params]])
        then = np.array([[short.forward[-1]], [short.annealed[-1]], [curve.params]])
        gain = predict(theta, then, of_size)[0] - predict(theta, now, of_size)[0]
        out.append(
            {
                "step": float(curve.step[i]),
                "loss": float(curve.loss[i]),
                "as_a_run": float(curve.loss[i] + gain),
            }
        )
    return out


def text(record: Record) -> str:
    """The report of curves over schedules."""
    lines = [
        f"schedules: L = L_0 + A S1^-alpha - C S2 of {record['rows']} rows, momentum "
        f"{record['momentum']:g}; {record['reached']:.0%} of starts agree"
    ]
    lines += [
        f"  {name:<6}{value:>13.6g}  [{ends[0]:.4g}, {ends[1]:.4g}]"
        for name, (value, ends) in record["theta"].items()
    ]
    for name, row in record["runs"].items():
        unseen = row["unseen"]
        unseen_text = (
            "the other runs do not tell"
            if unseen is None
            else f"from the other runs {unseen['mae']:.3f} %, at its end {unseen['last']:+.3f} %"
        )
        lines.append(f"  {name}: mean absolute error {row['mae']:.3f} %; {unseen_text}")
        points = ", ".join(
            f"{p['step']:g}: {p['loss']:.4f} -> {p['as_a_run']:.4f}" for p in row["points"]
        )
        lines.append(f"    checkpoints as runs of their length: {points}")
    return "\n".join(lines)
