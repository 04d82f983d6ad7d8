"""Laws of every loss of a table at once, and laws from one loss to another.

    record = losses.run(t, "loss_*", "chinchilla", setting)

The same law is fitted to every column of losses on the same runs, with the same resamples, so that
floors, exponents and optima compare. From the study's loss a to each other b the law is

    L_b = K (L_a - E_a)^kappa + E_b

(Brandfonbrener et al. 2024, arXiv:2411.12925, train-to-test), with E_a from the law of a, as their
code has it, and K, kappa and E_b by least squares of L_b, 0 <= E_b <= the least L_b. On held-out
budgets three predictions of L_b are compared: its own law of N and D, the law from the measured
L_a, and the law from the predicted L_a.
"""

import fnmatch
from typing import Any, NamedTuple

import numpy as np

from jaxlm.scaling import table
from jaxlm.scaling.extended.context import Setting, positive
from jaxlm.scaling.laws import bootstrap, fitting, least_squares, loss_laws, optimum

Array = np.ndarray
Record = dict[str, Any]

# Starts of kappa and, as shares of the least L_b, of E_b.
KAPPAS, FLOORS = (0.3, 0.6, 1.0, 1.5, 2.5), (0.0, 0.3, 0.6, 0.9)
# The name of the study's own loss among the columns.
OWN = "loss"


class Shifted(NamedTuple):
    """L_b = K (L_a - E_a)^kappa + E_b, fitted."""

    K: float
    kappa: float
    E_a: float
    E_b: float
    rmse: float
    reached: float


def run(t: table.Table, pattern: str, law: str, setting: Setting) -> Record:
    """The record of laws of the study's loss and of the columns that match the pattern.

    Raises: ValueError where no column matches, or a loss that matches cannot be one.
    """
    names = columns(t, pattern)
    form = loss_laws.LAWS[law]
    weights = _weights(t, setting)
    held = t.flops >= setting.holdout
    values = {OWN: t.loss} | {name: t.columns[name] for name in names}
    rows: Record = {}
    fitted: dict[str, fitting.Fit] = {}
    for name, loss in values.items():
        own = t._replace(loss=loss)
        fitted[name] = fitting.fit(form, own, delta=setting.delta)
        many = bootstrap.refit(form, own, fitted[name], weights)
        rows[name] = _law(fitted[name], many.theta[~many.failed], law, setting)
    return {
        "pattern": pattern,
        "law": law,
        "target": setting.target,
        "threshold": setting.holdout,
        "losses": rows,
        "loss_to_loss": {
            name: _pair(t, name, form, fitted[OWN], weights, held, setting) for name in names
        },
    }


def columns(t: table.Table, pattern: str) -> list[str]:
    """Columns that match a shell pattern such as `loss_*` and hold a loss in every row.

    Raises: ValueError where none matches, or one holds what is no loss, by row.
    """
    names = [c for c in t.columns if fnmatch.fnmatchcase(c, pattern)]
    if not names:
        raise ValueError(
            f"--losses {pattern!r}: no column matches; the file has {', '.join(t.columns)}"
        )
    for name in names:
        positive(t, name, "--losses", "a loss")
    return names


def fit(a: Array, b: Array, floor: float, weights: Array | None = None) -> Shifted:
    """The Shifted law from losses a [n] to b [n] with E_a given, by least squares of b.

    Raises: ValueError where a loss is not above the floor.
    """
    if a.min() <= floor:
        raise ValueError(f"a loss of {a.min():.4g} is not above E_a = {floor:.4g}")
    low, high = _bounds(b)
    solved = least_squares.minimise(
        lambda u: _value(u, a - floor), _starts(a - floor, b), b, weights, low=low, high=high
    )
    (log_k, kappa, e), cost, reached = least_squares.best(solved)
    return Shifted(
        float(np.exp(log_k)),
        float(kappa),
        floor,
        float(e),
        float(np.sqrt(cost / len(b))),
        reached,
    )


def predict(law: Shifted, a: Array) -> Array:
    """L_b at losses a; at or below E_a it is E_b."""
    return law.K * np.maximum(a - law.E_a, 0.0) ** law.kappa + law.E_b


def _value(u: Array, x: Array) -> Array:
    """[R,n] of (log K, kappa, E_b) [R,3] at L_a - E_a [n] or [R,n]."""
    log_k, kappa, e = u.T[:, :, None]
    return np.exp(log_k + kappa * np.log(x)) + e


def _bounds(b: Array) -> tuple[Array, Array]:
    return np.array([-np.inf, 1e-3, 0.0]), np.array([np.inf, np.inf, float(b.min())])


def _starts(x: Array, b: Array) -> Array:
    out = []
    for kappa in KAPPAS:
        for share in FLOORS:
            rest = np.maximum(b - share * b.min(), 1e-9)
            out.append([float(np.mean(np.log(rest) - kappa * np.log(x))), kappa, share * b.min()])
    return np.array(out)


def _weights(t: table.Table, setting: Setting) -> Array:
    """[R,n] counts of runs drawn with replacement, the same for every loss."""
    units = t.run if setting.clusters else np.arange(len(t.run))
    kinds, which = np.unique(units, return_inverse=True)
    random = np.random.default_rng(setting.seed)
    share = np.full(len(kinds), 1 / len(kinds))
    return random.multinomial(len(kinds), share, setting.replicates)[:, which].astype(float)


def _law(result: fitting.Fit, draws: Array, law: str, setting: Setting) -> Record:
    """{theta: {name: [value, ends]}, params, tokens, loss, exponent: [value, ends]}."""
    theta = fitting.values(result)
    best = optimum.at(law, theta, setting.target, setting.per)
    many = optimum.at(law, draws, setting.target, setting.per)
    low, high = bootstrap.interval(draws, setting.level)
    out: Record = {
        "theta": {
            k: [v, [float(low[i]), float(high[i])]] for i, (k, v) in enumerate(result.theta.items())
        },
        "residual_sd": float(np.std(result.residual)),
    }
    for name in ("params", "tokens", "loss", "exponent"):
        drawn = getattr(many, name)
        ends = bootstrap.interval(drawn[np.isfinite(drawn)], setting.level)
        out[name] = [float(getattr(best, name)), [float(e) for e in ends]]
    return out


def _pair(
    t: table.Table,
    name: str,
    form: loss_laws.Law,
    own: fitting.Fit,
    weights: Array,
    held: Array,
    setting: Setting,
) -> Record:
    """The law from the study's loss to a column: parameters, intervals, back-test; or why not."""
    b = t.columns[name]
    floor = own.theta.get("E", 0.0)
    try:
        law = fit(t.loss, b, floor)
    except ValueError as reason:
        return {"skipped": str(reason)}
    least, most = _bounds(b)
    start = np.array([[np.log(law.K), law.kappa, law.E_b]])
    many = least_squares.minimise(
        lambda u: _value(u, t.loss - floor),
        np.repeat(start, len(weights), 0),
        b,
        weights,
        low=least,
        high=most,
    ).theta
    many[:, 0] = np.exp(many[:, 0])
    low, high = bootstrap.interval(many, setting.level)
    ends = {k: [float(low[i]), float(high[i])] for i, k in enumerate(("K", "kappa", "E_b"))}
    return law._asdict() | {"intervals": ends, "backtest": _backtest(t, b, form, held, setting)}


def _backtest(t: table.Table, b: Array, form: loss_laws.Law, held: Array, setting: Setting) -> Any:
    """{prediction: {mean, mae, largest} in percent} on the budgets held out, or {skipped}."""
    if not held.any() or held.all():
        return {"skipped": f"no run on one side of {setting.holdout:.4g} FLOPs"}
    rest, test = table.take(t, ~held), table.take(t, held)
    try:
        first = fitting.fit(form, rest, delta=setting.delta)
        second = fitting.fit(form, rest._replace(loss=b[~held]), delta=setting.delta)
        law = fit(rest.loss, b[~held], first.theta.get("E", 0.0))
    except ValueError as reason:
        return {"skipped": str(reason)}
    x = fitting.inputs(form, test)
    predicted_a = np.asarray(form.predict(fitting.values(first), x))
    predictions = {
        "own law": np.asarray(form.predict(fitting.values(second), x)),
        "from measured loss": predict(law, test.loss),
        "from predicted loss": predict(law, predicted_a),
    }
    out: Record = {"tested": int(held.sum())}
    for name, value in predictions.items():
        error = 100 * np.log(value / b[held])
        out[name] = {
            "mean": float(error.mean()),
            "mae": float(np.abs(error).mean()),
            "largest": float(np.abs(error).max()),
        }
    return out


def text(record: Record) -> str:
    """The report of all losses."""
    names = list(next(iter(record["losses"].values()))["theta"])
    wide = max(len(name) for name in record["losses"])
    head = "".join(f"{n:>11}" for n in names)
    lines = [
        f"losses {record['pattern']}: {record['law']} of each, optimum at {record['target']:.4g} "
        "FLOPs",
        f"  {'loss':<{wide}}{head}{'exponent':>10}{'N*':>11}  interval",
    ]
    for name, row in record["losses"].items():
        cells = "".join(f"{row['theta'][n][0]:>11.5g}" for n in names)
        value, ends = row["params"]
        lines.append(
            f"  {name:<{wide}}{cells}{row['exponent'][0]:>10.4f}{value:>11.4g}  "
            f"[{ends[0]:.3g}, {ends[1]:.3g}]"
        )
    lines.append(
        f"loss to loss: L_b = K (L - E)^kappa + E_b; error on {record['threshold']:.4g} FLOPs and "
        "more, mean absolute percent"
    )
    lines.append(
        f"  {'b':<{wide}}{'K':>10}{'kappa':>9}{'E_b':>9}{'own law':>10}{'measured':>10}"
        f"{'predicted':>11}"
    )
    for name, pair in record["loss_to_loss"].items():
        if "skipped" in pair:
            lines.append(f"  {name}: {pair['skipped']}")
            continue
        test = pair["backtest"]
        row = f"  {name:<{wide}}{pair['K']:>10.4f}{pair['kappa']:>9.4f}{pair['E_b']:>9.4f}"
        if "skipped" in test:
            lines.append(f"{row}  no back-test: {test['skipped']}")
            continue
        lines.append(
            f"{row}{test['own law']['mae']:>10.3f}{test['from measured loss']['mae']:>10.3f}"
            f"{test['from predicted loss']['mae']:>11.3f}"
        )
    return "\n".join(lines)
