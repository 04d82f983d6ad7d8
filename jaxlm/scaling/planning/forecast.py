"""Forecasts of a run's loss from a study, before it is trained, and their comparison afterwards.

    forecasts = forecast.predict(record, 8.2e5, 7_900_000)    # every form, the planning one first
    forecast.compare(forecasts, 1.7312)                       # after the run

A forecast identifies its fit by a hash of points and parameters, without a date, so that anyone can
see whether a fit was changed after the run.
"""

import hashlib
import json
import math
from typing import Any

import numpy as np

from jaxlm.scaling.laws import loss_laws
from jaxlm.scaling.planning import discrepancy
from jaxlm.scaling.study_record import Record


def predict(record: Record, params: float, tokens: float) -> Record:
    """{"law", "loss", "interval", "level", "fit", "forms": {form: {"loss", "interval"}}, ...} for
    a run of `params` N on `tokens` D, as the study counts them.

    loss: nats per token. interval: for one run, the draws with the noise of a run on them, normal
    with the standard deviation of the form's own residuals in log loss; of the planning form also
    with its own error, a `discrepancy` of the form, or per decade of compute beyond the runs, as
    the rolling back-test measured it.
    Forms are those of N and D (unique tokens: all are).

    Raises: ValueError unless N and D are positive.
    """
    for name, value in (("params", params), ("tokens", tokens)):
        if not value > 0:
            raise ValueError(f"{name}: {value} given; a number above 0 is needed")
    level, plan = record["options"]["level"], record.get("plan")
    decades = max(0.0, math.log10(record["per"] * params * tokens / record["flops"][1]))
    kept: Record = {"draws": [], "spread": 0.0, "discrepancy": None}
    if plan is not None:
        kept = {
            "draws": plan["draws"],
            "spread": plan["spread"]["surface"] * decades,
            "discrepancy": _discrepancy(record) if plan.get("discrepancy") is not None else None,
        }
    forms = {
        name: _form(
            loss_laws.LAWS[name], form, params, tokens, level, kept if name == record["law"] else {}
        )
        for name, form in record["forms"].items()
        if {"params", "tokens"} <= set(loss_laws.LAWS[name].inputs)
    }
    law = record["law"]
    return {
        "law": law,
        "params": params,
        "tokens": tokens,
        "flops": record["per"] * params * tokens,
        "times_largest": record["per"] * params * tokens / record["flops"][1],
        "loss": forms[law]["loss"],
        "interval": forms[law]["interval"],
        "level": level,
        "theta": record["forms"][law]["theta"],
        "forms": forms,
        "fit": digest(record),
    }


def _discrepancy(record: Record) -> discrepancy.Form | None:
    """The Form of a record's law of loss, from the points that it was fitted to."""
    form, points, excess = (
        record["forms"][record["law"]],
        record["points"],
        record["plan"]["undertuned"],
    )
    used = np.array(points["used"], bool)
    return discrepancy.fit(
        loss_laws.LAWS[record["law"]],
        np.array(list(form["theta"].values())),
        np.array(form["residual"], float),
        np.array(points["params"], float)[used],
        np.array(points["tokens"], float)[used],
        excess["knot"] if excess is not None and record["law"] == "chinchilla" else None,
        form["fixed"],
    )


def _form(
    law: loss_laws.Law, form: Record, params: float, tokens: float, level: float, plan: Record
) -> Record:
    """A form's forecast; plan: {draws, spread, discrepancy} of the one that plans."""
    x = tuple({"params": params, "unique": tokens}.get(name, tokens) for name in law.inputs)
    theta = np.array(list(form["theta"].values()))
    draws = np.array(plan.get("draws") or form["draws"], float)
    residual = np.array(form["residual"], float)
    freedom = max(len(residual) - len(theta), 1)
    noise = math.sqrt(float(residual @ residual) / freedom)
    with np.errstate(all="ignore"):  # a draw may have no value far from its data
        many = np.log(law.predict(draws.T, x))
    many = many[np.isfinite(many)]
    own = plan.get("discrepancy")
    if own is not None:
        many = many + discrepancy.shifts(own, params, tokens, len(many), 0)
    spread = math.hypot(noise, plan.get("spread", 0.0))
    many = many + np.random.default_rng(0).normal(0.0, spread, len(many))
    low, high = np.exp(np.quantile(many, [(1 - level) / 2, (1 + level) / 2]))
    loss = float(law.predict(theta, x))
    return {"loss": loss, "interval": [float(low), float(high)], "noise": noise}


def compare(told: Record, measured: float) -> Record:
    """{"measured", "error", "inside", "forms": {form: error}}: errors are 100 log(predicted /
    measured), inside: whether the run's loss is in the planning form's interval."""
    low, high = told["interval"]
    return {
        "measured": measured,
        "error": 100 * math.log(told["loss"] / measured),
        "inside": low <= measured <= high,
        "forms": {
            name: 100 * math.log(form["loss"] / measured) for name, form in told["forms"].items()
        },
    }


def digest(record: Record) -> str:
    """16 hex digits of SHA-256 over a study's points and the parameters of every form."""
    points = {k: record["points"][k] for k in ("params", "tokens", "flops", "loss")}
    thetas: dict[str, Any] = {name: form["theta"] for name, form in record["forms"].items()}
    text = json.dumps([points, thetas], sort_keys=True, default=np.ndarray.tolist)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def text(told: Record, outcome: Record | None) -> str:
    """The prediction in words, and what came of it where that is known."""
    low, high = told["interval"]
    lines = [
        f"held-out run: {told['params']:,.0f} parameters, {told['tokens']:,} tokens, "
        f"{told['times_largest']:.1f} times the compute of the largest run fitted",
        f"predicted by {told['law']} (fit {told['fit']}): {told['loss']:.4f} nats per token, "
        f"{told['level']:.0%} interval {low:.4f} to {high:.4f}",
    ]
    if outcome is None:
        return "\n".join([*lines, "not trained yet"])
    lines.append(
        f"measured: {outcome['measured']:.4f}; error {outcome['error']:+.2f} %, "
        f"{'inside' if outcome['inside'] else 'outside'} the interval"
    )
    errors = ", ".join(f"{name} {error:+.2f} %" for name, error in outcome["forms"].items())
    return "\n".join([*lines, f"by form: {errors}"])
