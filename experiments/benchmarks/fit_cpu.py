"""Bootstrap refits of E + A/N^alpha + B/D^beta: CPU time beside SciPy's, and who ends lower.

    python experiments/benchmarks/fit_cpu.py                       # generated runs, ~2 minutes
    python experiments/benchmarks/fit_cpu.py --csv runs.csv --below 3.44
    python experiments/benchmarks/fit_cpu.py --refits 400 --write table.md

Every solver minimises the same objective (Huber's, delta 1e-3, of the log loss) on the same
resamples, one after the other in one process, from the optimum of all points; SciPy has the
gradient in closed form and centred logarithms, in which it needs fewest steps. "As published" is
BFGS as Besiroglu et al. 2024 ran it: from Hoffmann et al.'s fit, logarithms as they are, SciPy's
tolerance. CPU time is the process's, all threads. L-BFGS-B (ftol 1e-16, gtol 1e-12) does the first
twentieth of the refits, and its time is multiplied by 20.
"""

import argparse
import pathlib
import platform
import time
from typing import NamedTuple

import jax
import numpy as np
import scipy
import scipy.optimize

from jaxlm.scaling import table
from jaxlm.scaling.laws import bootstrap, fitting, loss_laws
from jaxlm.scaling.reading import tables

DELTA = 1e-3
TIGHT = {"ftol": 1e-16, "gtol": 1e-12}
# Where Besiroglu et al. 2024 start: Hoffmann et al.'s fit; (log E, log A, log B, alpha, beta).
HOFFMANN = (0.5267228, 6.0073404, 6.0179186, 0.33917084, 0.2849083)
# name -> (starts at the optimum of all points, options, share of the refits that it does)
SOLVERS = {
    "SciPy BFGS, as published": (False, {"method": "BFGS"}, 1.0),
    "SciPy BFGS, gtol 1e-5": (True, {"method": "BFGS"}, 1.0),
    "SciPy BFGS, gtol 1e-12": (True, {"method": "BFGS", "options": {"gtol": 1e-12}}, 1.0),
    "SciPy L-BFGS-B, tight": (True, {"method": "L-BFGS-B", "options": TIGHT}, 0.05),
}


class Row(NamedTuple):
    """One solver's refits."""

    name: str
    seconds: float  # CPU, of all refits
    objective: np.ndarray  # [R]


def generated(points: int = 240, seed: int = 0) -> table.Table:
    """Runs about Hoffmann et al.'s sizes, with noise of 0.5 % and 3 % of outliers."""
    random = np.random.default_rng(seed)
    c = np.exp(random.uniform(np.log(1e18), np.log(3e21), points))
    n = np.sqrt(c / 120) * np.exp(random.uniform(-1.5, 1.5, points))
    theta = (1.817, 477.8, 2143.4, 0.3473, 0.3672)
    loss = loss_laws.CHINCHILLA.predict(theta, (n, c / (6 * n)))
    outlier = 1 + (random.random(points) < 0.03) * random.uniform(0.03, 0.25, points)
    return table.make(n, c / (6 * n), loss * outlier * np.exp(0.005 * random.normal(size=points)))


def by_scipy(
    t: table.Table, logs: np.ndarray, index: np.ndarray, start: np.ndarray, options: dict
) -> Row:
    """Refits of resamples [R,n] by scipy.optimize.minimize; logs [2,n] of N and D, start [5]."""
    (x, z), y = logs, np.log(t.loss)

    def objective(p, x, z, y):
        e, a, b, alpha, beta = p
        terms = np.exp([np.full_like(x, e), a - alpha * x, b - beta * z])
        total = terms.sum(0)
        r = y - np.log(total)
        psi = np.clip(r, -DELTA, DELTA)
        e, a, b = -(psi * terms / total)
        slope = np.array([e.sum(), a.sum(), b.sum(), -(a * x).sum(), -(b * z).sum()])
        return (psi * (r - psi / 2)).sum(), slope

    begun = time.process_time()
    ends = [
        scipy.optimize.minimize(objective, start, (x[i], z[i], y[i]), jac=True, **options).fun
        for i in index
    ]
    return Row("", time.process_time() - begun, np.array(ends))


def measured(t: table.Table, refits: int, seed: int) -> tuple[list[Row], float]:
    """(jaxlm's row and SciPy's, CPU seconds until jaxlm's first fit was there)."""
    law = loss_laws.CHINCHILLA
    begun = time.process_time()
    found = fitting.fit(law, t, delta=DELTA)
    first = time.process_time() - begun
    if found.failed is not None:
        raise SystemExit(found.failed)
    n = len(t.loss)
    index = np.random.default_rng(seed).integers(0, n, (refits, n))
    begun = time.process_time()
    draws = bootstrap.cases(law, t, found, refits, seed, index)
    rows = [Row("jaxlm", time.process_time() - begun, draws.objective)]
    logs = np.log([t.params, t.tokens])
    centre = logs.mean(1)
    start = law.internal(fitting.values(found), centre)
    for name, (near, options, share) in SOLVERS.items():
        some = index[: round(share * refits)]
        at = (logs - centre[:, None], some, start) if near else (logs, some, np.array(HOFFMANN))
        row = by_scipy(t, *at, options)
        rows.append(Row(name, row.seconds * refits / len(some), row.objective))
        print(f"{name}: {row.seconds:.1f} CPU s for {len(some)} refits", flush=True)
    return rows, first


def written(rows: list[Row], first: float, t: table.Table, what: str) -> str:
    """The table in Markdown."""
    mine = rows[0]
    lines = [
        f"{len(mine.objective):,} refits of {len(t.loss)} points ({what}), one process on "
        f"{platform.machine()}; jax {jax.__version__}, scipy {scipy.__version__}. jaxlm's first "
        f"fit, compiling included: {first:.1f} CPU s.",
        "",
        "| solver | CPU s | ms per refit | / jaxlm | lower than jaxlm by 1e-10 | most | "
        "higher by 1e-10 | most |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        higher = row.objective - mine.objective[: len(row.objective)]
        above, below = abs(max(higher.max(), 0)), abs(max(-higher.min(), 0))
        lines.append(
            f"| {row.name} | {row.seconds:.2f} | {1e3 * row.seconds / len(mine.objective):.2f} | "
            f"{row.seconds / mine.seconds:.0f}x | {(higher < -1e-10).sum()} | "
            f"{below:.1e} | {(higher > 1e-10).sum()} | {above:.1e} |"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--csv", type=pathlib.Path, help="runs to fit, as jaxlm.scaling.table reads"
    )
    parser.add_argument("--below", type=float, default=np.inf, help="leave out losses from here on")
    parser.add_argument("--refits", type=int, default=4000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--write", type=pathlib.Path, help="add the table to this file")
    options = parser.parse_args()
    t = generated() if options.csv is None else tables.read(options.csv)
    t = table.take(t, t.loss < options.below)
    what = "generated" if options.csv is None else options.csv.stem
    text = written(*measured(t, options.refits, options.seed), t, what)
    print(text)
    if options.write is not None:
        with options.write.open("a") as f:
            f.write("\n" + text)


if __name__ == "__main__":
    main()
