"""Forecasts of a run's loss from a study, before it is trained, and their comparison afterwards.

    forecasts = forecast.predict(record, 8.2e5, 7_900_000)    # every form, the planning one first
    forecast.compare(forecasts, 1.7312)                       # after the run

A forecast identifies its fit by a hash of points and parameters, without a date, so that anyone can
see whether a fit was changed after the run.
"""

import dataclasses
import hashlib
import json
import math

import numpy as np

from jaxlm.scaling import study_parts
from jaxlm.scaling.laws import loss_laws
from jaxlm.scaling.planning import discrepancy
from jaxlm.scaling.study_record import Record


@dataclasses.dataclass(frozen=True)
class FormForecast:
    """A form's forecast."""

    loss: float  # nats per token
    interval: tuple[float, float]
    noise: float  # standard deviation of the form's residuals in log loss


@dataclasses.dataclass(frozen=True, kw_only=True)
class Forecast:
    """A forecast of a run, as prediction.json holds it."""

    run: str | None = dataclasses.field(default=None, metadata=study_parts.LEFT_OUT)  # digest
    name: str | None = dataclasses.field(default=None, metadata=study_parts.LEFT_OUT)
    law: str  # the form that plans
    params: int | float
    tokens: int | float
    flops: float
    times_largest: float  # its FLOPs over those of the largest run fitted
    loss: float  # nats per token
    interval: tuple[float, float]
    level: float
    theta: study_parts.Theta
    forms: dict[str, FormForecast]
    fit: str  # `digest` of the study


@dataclasses.dataclass(frozen=True)
class Outcome:
    """A forecast's errors, 100 log(predicted / measured)."""

    measured: float
    error: float
    inside: bool  # the planning form's interval
    forms: dict[str, float]


def predict(record: Record, params: float, tokens: float) -> Forecast:
    """The Forecast of a run of `params` N on `tokens` D, as the study counts them.

    Its interval is for one run: the draws with the noise of a run on them, normal with the standard
    deviation of the form's own residuals in log loss; of the planning form also with its own error,
    a `discrepancy` of the form, or per decade of compute beyond the runs, as the rolling back-test
    measured it.
    Forms are those of N and D (unique tokens: all are).

    Raises: ValueError unless N and D are positive.
    """
    for name, value in (("params", params), ("tokens", tokens)):
        if not value > 0:
            raise ValueError(f"{name}: {value} given; a number above 0 is needed")
    level, law, flops = record.options.level, record.law, record.per * params * tokens
    forms: dict[str, FormForecast] = {}
    for name, form in record.forms.items():
        if not {"params", "tokens"} <= set(loss_laws.LAWS[name].inputs):
            continue
        draws, spread, own = form.draws, 0.0, None
        if name == law and record.plan is not None:
            plan = record.plan
            draws = plan.draws if len(plan.draws) else draws
            spread = plan.spread.surface * max(0.0, math.log10(flops / record.flops[1]))
            own = None if plan.discrepancy is None else _discrepancy(record)
        forms[name] = _form(name, form, draws, params, tokens, level, spread, own)
    return Forecast(
        law=law,
        params=params,
        tokens=tokens,
        flops=flops,
        times_largest=flops / record.flops[1],
        loss=forms[law].loss,
        interval=forms[law].interval,
        level=level,
        theta=record.forms[law].theta,
        forms=forms,
        fit=digest(record),
    )


def _discrepancy(record: Record) -> discrepancy.Form | None:
    """The Form of a record's law of loss, from the points that it was fitted to."""
    form, points, excess = record.forms[record.law], record.points, record.planned.undertuned
    return discrepancy.fit(
        loss_laws.LAWS[record.law],
        np.array(list(form.theta.values())),
        form.residual,
        points.params[points.used],
        points.tokens[points.used],
        excess.knot if excess is not None and record.law == "chinchilla" else None,
        form.fixed,
    )


def _form(
    name: str,
    form: study_parts.Form,
    draws: np.ndarray,
    params: float,
    tokens: float,
    level: float,
    spread: float,
    own: discrepancy.Form | None,
) -> FormForecast:
    """A form's forecast by draws [R, k], with a spread of log loss or the form's own error."""
    law = loss_laws.LAWS[name]
    x = tuple({"params": params, "unique": tokens}.get(name, tokens) for name in law.inputs)
    theta = np.array(list(form.theta.values()))
    freedom = max(len(form.residual) - len(theta), 1)
    noise = math.sqrt(float(form.residual @ form.residual) / freedom)
    with np.errstate(all="ignore"):  # a draw may have no value far from its data
        many = np.log(law.predict(draws.T, x))
    many = many[np.isfinite(many)]
    if own is not None:
        many = many + discrepancy.shifts(own, params, tokens, len(many), 0)
    many = many + np.random.default_rng(0).normal(0.0, math.hypot(noise, spread), len(many))
    low, high = np.exp(np.quantile(many, [(1 - level) / 2, (1 + level) / 2]))
    return FormForecast(float(law.predict(theta, x)), (float(low), float(high)), noise)


def compare(forecast: Forecast, measured: float) -> Outcome:
    """The Outcome of a forecast whose run reached a loss, nats per token."""
    low, high = forecast.interval
    return Outcome(
        measured=measured,
        error=100 * math.log(forecast.loss / measured),
        inside=low <= measured <= high,
        forms={name: 100 * math.log(f.loss / measured) for name, f in forecast.forms.items()},
    )


def digest(record: Record) -> str:
    """16 hex digits of SHA-256 over a study's points and the parameters of every form."""
    p = record.points
    points = {"params": p.params, "tokens": p.tokens, "flops": p.flops, "loss": p.loss}
    thetas = {name: form.theta for name, form in record.forms.items()}
    text = json.dumps([points, thetas], sort_keys=True, default=np.ndarray.tolist)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def text(forecast: Forecast, outcome: Outcome | None) -> str:
    """The prediction in words, and the outcome where it is known."""
    low, high = forecast.interval
    lines = [
        f"held-out run: {forecast.params:,.0f} parameters, {forecast.tokens:,} tokens, "
        f"{forecast.times_largest:.1f} times the compute of the largest run fitted",
        f"predicted by {forecast.law} (fit {forecast.fit}): {forecast.loss:.4f} nats per token, "
        f"{forecast.level:.0%} interval {low:.4f} to {high:.4f}",
    ]
    if outcome is None:
        return "\n".join([*lines, "not trained yet"])
    lines.append(
        f"measured: {outcome.measured:.4f}; error {outcome.error:+.2f} %, "
        f"{'inside' if outcome.inside else 'outside'} the interval"
    )
    errors = ", ".join(f"{name} {error:+.2f} %" for name, error in outcome.forms.items())
    return "\n".join([*lines, f"by form: {errors}"])
