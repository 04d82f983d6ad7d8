"""The same runs with their parameters counted in several ways, side by side.

    record = countings.run(t, ["params_no_embed"], setting)

What N counts moves the exponent of the optimum (Porian et al. 2024, section 3): so the parametric
law and the isoFLOP minima are computed for the study's N and for every column of other counts, with
D as it is and C = per N D recounted where the table's C is a constant times its N D.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from jaxlm.scaling import table
from jaxlm.scaling.approaches import isoflop
from jaxlm.scaling.extended.context import Setting, positive
from jaxlm.scaling.laws import bootstrap, fitting, loss_laws, optimum

Array = np.ndarray
Record = dict[str, Any]

# The study's own count, among the columns.
OWN = "N"
# C that is this close to a constant times N D is recounted with N.
SAME = 0.03
# Budgets that an exponent of minima needs: through two there is always a line.
BUDGETS = 3


def run(t: table.Table, names: Sequence[str], setting: Setting) -> Record:
    """The record of exponents and optima by counting.

    Raises: ValueError naming the column.
    """
    columns(t, names)
    rows: Record = {}
    for name in (OWN, *names):
        params = t.params if name == OWN else t.columns[name]
        factor = t.flops / (t.params * t.tokens)
        recounted = bool(np.ptp(np.log(factor)) < SAME)
        flops = np.median(factor) * params * t.tokens if recounted else t.flops
        rows[name] = _counted(t._replace(params=params, flops=flops), setting) | {
            # budgets are those of the file's own C
            "isoflop": _minima(t._replace(params=params)),
            "flops_recounted": recounted and name != OWN,
            "share": float(np.median(params / t.params)),
        }
    return {"target": setting.target, "countings": rows}


def columns(t: table.Table, names: Sequence[str]) -> None:
    """Raises: ValueError for a column that is absent or holds what is no count, by row."""
    for name in names:
        positive(t, name, "--countings", "a count of parameters")


def _counted(t: table.Table, setting: Setting) -> Record:
    """{theta, exponent, params, tokens, loss: [value, ends]}."""
    law = loss_laws.CHINCHILLA
    per = float(np.median(t.flops / (t.params * t.tokens)))
    result = fitting.fit(law, t, delta=setting.delta)
    resampled = bootstrap.clusters if setting.clusters else bootstrap.cases
    many = resampled(law, t, result, setting.replicates, setting.seed)
    draws = many.theta[~many.failed]
    best = optimum.at(law.name, fitting.values(result), setting.target, per)
    drawn = optimum.at(law.name, draws, setting.target, per)
    out: Record = {"theta": result.theta, "failed": result.failed}
    for name in ("exponent", "params", "tokens", "loss"):
        values = getattr(drawn, name)
        ends = bootstrap.interval(values[np.isfinite(values)], setting.level)
        out[name] = [float(getattr(best, name)), [float(e) for e in ends]]
    return out


def _minima(t: table.Table) -> Record:
    """{exponent, sizes} of isoFLOP minima, or {skipped: why there are none}."""
    try:
        result = isoflop.fit(t, "akima", replicates=2)
    except ValueError as reason:
        return {"skipped": str(reason)}
    count = sum(not m.left_out for m in result.minima)
    if count < BUDGETS:
        return {"skipped": f"{count} budgets with a minimum inside; {BUDGETS} are needed"}
    return {"exponent": result.exponent, "budgets": count}


def text(record: Record) -> str:
    """The report of countings."""
    rows = record["countings"]
    wide = max(len(name) for name in rows)
    lines = [
        f"countings of N: E + A/N^alpha + B/D^beta and isoFLOP minima by each, N* at "
        f"{record['target']:.4g} FLOPs",
        f"  {'counting':<{wide}}{'of N':>8}{'exponent':>10}  {'interval':<18}{'isoFLOP':>8}"
        f"{'N*':>11}  interval",
    ]
    for name, row in rows.items():
        (a, a_ends), (n, n_ends) = row["exponent"], row["params"]
        iso = row["isoflop"]
        exponent = "-" if "skipped" in iso else f"{iso['exponent']:.4f}"
        ends = f"[{a_ends[0]:.4f}, {a_ends[1]:.4f}]"
        lines.append(
            f"  {name:<{wide}}{row['share']:>8.3f}{a:>10.4f}  {ends:<18}{exponent:>8}{n:>11.4g}"
            f"  [{n_ends[0]:.3g}, {n_ends[1]:.3g}]"
        )
    return "\n".join(lines)
