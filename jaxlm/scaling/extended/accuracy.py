"""Downstream accuracy of a run before it is trained, with one interval through the whole chain.

    record = accuracy.run(t, request, setting)

Two steps: a law of loss in N and D, then a curve from loss to error (Gadre et al. 2024,
arXiv:2403.08540; Bhagia et al. 2024, arXiv:2412.04403). One step: -log accuracy as a power of
compute, or of N and D (Krajewski et al. 2025, arXiv:2512.08894). Every chain is fitted without the
largest budgets and predicts the accuracies there; the one that does so best makes the predictions.

An anchor extends the second step beyond the runs of the first: rows of the table that the law of
loss does not read (Gadre et al. add one larger model), or the point of loss 0 and accuracy 1
(Bhagia et al.), which the chains named "..., anchored" have.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from jaxlm.scaling import table
from jaxlm.scaling.extended.context import Setting
from jaxlm.scaling.laws import bootstrap, downstream, fitting, loss_laws, optimum

Array = np.ndarray
Record = dict[str, Any]

# Chain -> (form of the curve, whether the point of loss 0 and accuracy 1 is one of its data).
CHAINS: dict[str, tuple[str, bool]] = {
    "exponential": ("exponential", False),
    "exponential, anchored": ("exponential", True),
    "sigmoid": ("sigmoid", False),
    "sigmoid, anchored": ("sigmoid", True),
    "direct": ("direct", False),
    "direct_params_tokens": ("direct_params_tokens", False),
}
# With fewer points than this per parameter a resample often lacks what holds a parameter: residuals
# are resampled instead of points.
FEW = 3
# With fewer runs held out the report warns that the winner may be chance.
RUNS = 5


@dataclasses.dataclass(frozen=True)
class Request:
    """Request for accuracies: which are predicted, and how."""

    column: str
    """Column of the table."""
    errors: bool
    """The column holds errors, 1 - accuracy."""
    chance: float
    """Accuracy of guessing."""
    anchor: Array
    """[n] bool: rows that only the second step reads."""
    at: tuple[tuple[float, float], ...]
    """(N, D) of the runs whose accuracy is predicted."""
    law: str
    """The law of loss."""
    log: bool
    """Whether its residuals are of the logarithm of the loss, rather than of the loss itself."""


class Fitted(NamedTuple):
    """One chain on one set of rows."""

    chain: str
    law: loss_laws.Law | None  # None: one step
    loss: fitting.Fit | None
    runs: table.Table  # rows of the law of loss
    curve: downstream.Curve
    x: tuple[Array, ...]  # the curve's inputs, the anchors' included
    error: Array


def run(t: table.Table, request: Request, setting: Setting) -> Record:
    """The record of an accuracy study: chains, their back-tests, the winner's predictions.

    Raises: ValueError naming the column, the row or the option that cannot be used.
    """
    error = errors(t, request)
    chains: Record = {}
    for name in CHAINS:
        chains[name] = _chain(name, t, error, request, setting)
    able = {k: c for k, c in chains.items() if "skipped" not in c}
    if not able:
        reasons = "; ".join(f"{k}: {c['skipped']}" for k, c in chains.items())
        raise ValueError(f"column {request.column!r}: no chain can be fitted: {reasons}")
    tested = {k: c for k, c in able.items() if c["backtest"] is not None}
    wins = min(tested or able, key=lambda k: _rank(able[k]))
    chosen = _fit(wins, t, error, np.ones(len(error), bool), request, setting)
    return {
        "column": request.column,
        "chance": request.chance,
        "law": request.law,
        "anchor_rows": [int(r) for r in t.row[request.anchor]],
        "threshold": setting.holdout,
        "chains": chains,
        "wins": wins,
        "backtested": bool(tested),
        "predictions": [_prediction(chosen, n, d, request, setting) for n, d in request.at],
    }


def predict(
    fitted: Fitted, params: Array, tokens: Array, request: Request, setting: Setting
) -> tuple[Array, Array, Array]:
    """(accuracy [m], its draws [R,m], draws of loss [R,m] or none [R,0]) of runs of N and D.

    A draw resamples the runs, refits the law of loss and the curve to them, and adds a residual of
    each step: it is an accuracy that could be measured.
    """
    random = np.random.default_rng(setting.seed)
    r, m = setting.replicates, len(params)
    n, k = len(fitted.error), len(fitted.curve.theta)
    noisy = n < FEW * max(k, 0 if fitted.law is None else len(fitted.law.names))
    weights = np.ones((r, n)) if noisy else _weights(fitted, random, r, setting.clusters)
    x: tuple[Array, ...]
    if fitted.law is None:
        draws = np.empty((r, 0))
        x = _inputs(fitted.curve.form, params, tokens, setting.per)
        drawn_x = x
    else:
        draws, loss = _losses(fitted, params, tokens, weights, random, noisy, setting)
        x, drawn_x = (loss,), (draws,)
    spread = fitted.curve.residual * np.sqrt(n / max(n - k, 1))
    measured = fitted.error
    if noisy:
        clean = downstream.predict(fitted.curve, fitted.x)
        measured = np.clip(clean + spread[random.integers(0, n, (r, n))], 0, 1)
    theta = downstream.resample(fitted.curve, fitted.x, measured, weights)
    drawn = downstream.predict(fitted.curve, drawn_x, theta)
    drawn = drawn + spread[random.integers(0, n, (r, m))]
    middle = 1 - downstream.predict(fitted.curve, x)
    return middle, np.clip(1 - drawn, request.chance, 1.0), draws


def _weights(fitted: Fitted, random: np.random.Generator, many: int, clusters: bool) -> Array:
    """[R,n] counts of the curve's points; those that are no run of the table are always kept."""
    runs = fitted.runs.run if clusters else np.arange(len(fitted.runs.run))
    names, member = np.unique(runs, return_inverse=True)
    drawn = random.multinomial(len(names), np.full(len(names), 1 / len(names)), many)
    extra = len(fitted.error) - len(fitted.runs.run)
    return np.concatenate([drawn[:, member], np.ones((many, extra))], 1).astype(float)


def _losses(
    fitted: Fitted,
    params: Array,
    tokens: Array,
    weights: Array,
    random: np.random.Generator,
    noisy: bool,
    setting: Setting,
) -> tuple[Array, Array]:
    """(draws [R,m], values [m]) of the loss."""
    law, loss, runs = fitted.law, fitted.loss, fitted.runs
    assert law is not None and loss is not None
    n, k = len(runs.loss), len(law.names)
    values = optimum.loss(law.name, fitting.values(loss), params, tokens)
    spread = loss.residual * np.sqrt(n / max(n - k, 1))
    drawn = None
    if noisy:
        clean = np.log(runs.loss) - loss.residual
        drawn = np.exp(clean + spread[random.integers(0, n, (len(weights), n))])
    many = bootstrap.refit(law, runs, loss, weights[:, :n], drawn)
    theta = np.where(many.failed[:, None], fitting.values(loss), many.theta)
    draws = optimum.loss(law.name, theta, params, tokens)
    return draws * np.exp(spread[random.integers(0, n, draws.shape)]), values


def errors(t: table.Table, request: Request) -> Array:
    """[n] errors of the column.

    Raises: ValueError naming the column, row or option that cannot be used.
    """
    if request.column not in t.columns:
        raise ValueError(
            f"no column {request.column!r} of accuracies; the file has {', '.join(t.columns)}"
        )
    values = t.columns[request.column]
    if values.dtype.kind != "f":
        raise ValueError(f"column {request.column!r}: {str(values[0])!r} is no number")
    bad = np.flatnonzero(~((values >= 0) & (values <= 1)))
    if bad.size:
        raise ValueError(
            f"row {t.row[bad[0]]}, column {request.column!r}: {values[bad[0]]:g}; a share from 0 "
            "to 1 is needed (percent divided by 100)"
        )
    if not 0 <= request.chance < 1:
        raise ValueError(f"--chance {request.chance}: an accuracy of guessing, 0 <= chance < 1")
    return values if request.errors else 1 - values


def _inputs(form: str, params: Array, tokens: Array, per: float) -> tuple[Array, ...]:
    known = {"params": params, "tokens": tokens, "flops": per * params * tokens}
    return tuple(known[name] for name in downstream.FORMS[form].inputs)


def _fit(
    chain: str, t: table.Table, error: Array, used: Array, request: Request, setting: Setting
) -> Fitted:
    """The chain on the rows used; anchors are read by two-step curves alone.

    Raises: ValueError for too few rows or a fit that fails.
    """
    form, anchored = CHAINS[chain]
    rows = table.take(t, used & ~request.anchor)
    if "loss" not in downstream.FORMS[form].inputs:
        x = _inputs(form, rows.params, rows.tokens, setting.per)
        own = error[used & ~request.anchor]
        curve = downstream.fit(form, x, own, request.chance)
        return Fitted(chain, None, None, rows, curve, x, own)
    law = loss_laws.LAWS[request.law]
    delta = setting.delta if request.log else np.inf
    loss = fitting.fit(law, rows, delta=delta, log=request.log)
    if loss.failed:
        raise ValueError(f"{law.name}: {loss.failed}")
    # the runs of the law first, then the anchors
    measured = np.concatenate([rows.loss, t.loss[request.anchor]])
    both = np.concatenate([error[used & ~request.anchor], error[request.anchor]])
    if anchored:
        measured, both = np.append(measured, 0.0), np.append(both, 0.0)
    curve = downstream.fit(form, (measured,), both, request.chance)
    return Fitted(chain, law, loss, rows, curve, (measured,), both)


def _chain(name: str, t: table.Table, error: Array, request: Request, setting: Setting) -> Record:
    """{source, theta, rmse, bound, backtest}, or {skipped: why}."""
    held = (t.flops >= setting.holdout) & ~request.anchor
    try:
        fitted = _fit(name, t, error, np.ones(len(error), bool), request, setting)
    except ValueError as reason:
        return {"skipped": str(reason)}
    out: Record = {
        "source": downstream.FORMS[fitted.curve.form].source,
        "theta": fitted.curve.theta,
        "points": fitted.curve.n,
        "rmse": fitted.curve.rmse,
        "reached": fitted.curve.reached,
        "bound": list(fitted.curve.bound),
        "loss_theta": None if fitted.loss is None else fitted.loss.theta,
        "backtest": None,
    }
    if not held.any():
        return out | {"untested": f"no run has {setting.holdout:.4g} FLOPs or more"}
    try:
        small = _fit(name, t, error, ~held, request, setting)
    except ValueError as reason:
        return out | {"untested": str(reason)}
    middle, draws, _ = predict(small, t.params[held], t.tokens[held], request, setting)
    measured = 1 - error[held]
    low, high = bootstrap.interval(draws, setting.level)
    out["backtest"] = {
        "theta": small.curve.theta,
        "loss_theta": None if small.loss is None else small.loss.theta,
        "fitted": len(small.error),
        "tested": int(held.sum()),
        "row": t.row[held],
        "measured": measured,
        "predicted": middle,
        "low": low,
        "high": high,
        "mean": float(np.mean(middle - measured)),
        "mae": float(np.mean(np.abs(middle - measured))),
        "largest": float(np.max(np.abs(middle - measured))),
        "relative_error": np.abs(middle - measured) / np.maximum(1 - measured, 1e-12),
        "inside": int(np.sum((measured >= low) & (measured <= high))),
    }
    return out


def _rank(chain: Mapping[str, Any]) -> float:
    return chain["rmse"] if chain["backtest"] is None else round(chain["backtest"]["mae"], 9)


def _prediction(
    fitted: Fitted, params: float, tokens: float, request: Request, setting: Setting
) -> Record:
    middle, draws, losses = predict(
        fitted, np.array([params]), np.array([tokens]), request, setting
    )
    low, high = bootstrap.interval(draws[:, 0], setting.level)
    out: Record = {
        "params": params,
        "tokens": tokens,
        "flops": setting.per * params * tokens,
        "accuracy": [float(np.clip(middle[0], request.chance, 1.0)), [float(low), float(high)]],
        "loss": None,
    }
    if fitted.law is not None and fitted.loss is not None:
        value = optimum.loss(fitted.law.name, fitting.values(fitted.loss), params, tokens)
        ends = bootstrap.interval(losses[:, 0], setting.level)
        out["loss"] = [float(value), [float(v) for v in ends]]
    return out


def text(record: Record) -> str:
    """The report of an accuracy study."""
    lines = [
        f"accuracy: {record['column']}, chance {record['chance']:g}; law of loss {record['law']}"
    ]
    header = f"  {'chain':<24}{'points':>7}{'rmse':>9}{'tested':>8}{'mean':>9}{'mean abs':>10}"
    lines.append(f"{header}{'largest':>9}{'of error':>10}{'inside':>9}")
    for name, chain in record["chains"].items():
        if "skipped" in chain:
            lines.append(f"  {name}: not fitted: {chain['skipped']}")
            continue
        label = f"{name} (wins)" if name == record["wins"] else name
        row = f"  {label:<24}{chain['points']:>7}{chain['rmse']:>9.4f}"
        test = chain["backtest"]
        if test is None:
            lines.append(f"{row}  no back-test: {chain['untested']}")
            continue
        row += f"{test['tested']:>8}{test['mean']:>+9.4f}{test['mae']:>10.4f}"
        share = f"{100 * np.mean(test['relative_error']):.2f} %"
        row += f"{test['largest']:>9.4f}{share:>10}"
        lines.append(f"{row}{test['inside']:>6}/{test['tested']}")
    wins = record["chains"][record["wins"]]
    values = ", ".join(f"{k} {v:.6g}" for k, v in wins["theta"].items())
    lines.append(f"  {record['wins']}: {values}; {wins['source']}")
    if wins["bound"]:
        lines.append(f"  not determined by the data: {', '.join(wins['bound'])} (at its limit)")
    test = wins["backtest"]
    if test is not None and test["tested"] < RUNS:
        lines.append(f"  {test['tested']} runs held out: which chain wins may be chance")
    if not record["backtested"]:
        lines.append("  no chain could be back-tested: the one with the closest fit is used")
    for p in record["predictions"]:
        value, (low, high) = p["accuracy"]
        loss = "" if p["loss"] is None else f"loss {p['loss'][0]:.4f}, "
        lines.append(
            f"  N {p['params']:.4g}, D {p['tokens']:.4g} ({p['flops']:.4g} FLOPs): {loss}"
            f"accuracy {value:.4f} [{low:.4f}, {high:.4f}]"
        )
    return "\n".join(lines)
