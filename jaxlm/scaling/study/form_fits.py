"""Every form that a table identifies, fitted with its bootstrap, and its entry in a record."""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from jaxlm.scaling import study_parts, table
from jaxlm.scaling.approaches import comparison
from jaxlm.scaling.laws import bootstrap, fitting, identifiability, loss_laws, optimum, profile
from jaxlm.scaling.planning import experiment_design
from jaxlm.scaling.study import diagnostics, tuning

# Points of a profile, over the bootstrap interval stretched by half on each side.
GRID = 21
# Forms that are another one in other letters: fitted where they are named.
SAME_AS = {"overtraining": "tied"}
# Forms whose exponent of N*(C) is no estimate, and the form that estimates it.
FIXED_EXPONENT = {"tied": "chinchilla", "overtraining": "chinchilla"}
# The form whose largest sizes are tested for being tuned like the rest.
TUNED = "chinchilla"

Array = np.ndarray


class Fitted(NamedTuple):
    """One form on its points."""

    law: loss_laws.Law
    t: table.Table
    fit: fitting.Fit
    draws: Array
    """[R, k] refits that did not fail."""
    failed: int
    """Refits that did."""

    @property
    def theta(self) -> Array:
        """[k] parameters in the law's order."""
        return fitting.values(self.fit)


class Settings(NamedTuple):
    """Settings of the fits: see `analysis.Options`."""

    laws: tuple[str, ...]
    fix: Mapping[str, Mapping[str, float]]
    """{form: {parameter: the value it is held at}}."""
    delta: float
    replicates: int
    bootstrap: str
    seed: int
    level: float


def every(
    t: table.Table, front: table.Table | None, how: Settings
) -> tuple[dict[str, Fitted], dict[str, str]]:
    """(the forms fitted, {form: why it was not}); front: the points of approach 1, for laws of
    compute.

    Raises: ValueError with all reasons if there is no form with an optimum.
    """
    fitted: dict[str, Fitted] = {}
    skipped: dict[str, str] = {}
    for name, law in loss_laws.LAWS.items():
        if how.laws and name not in how.laws:
            continue
        if not how.laws and name in SAME_AS:
            continue
        points = front if law.inputs == ("flops",) else t
        if points is None:
            skipped[name] = "there is no frontier (approach 1) to fit it on"
            continue
        why = identifiability.reason(law, points)
        if not why:
            fit = fitting.fit(law, points, delta=how.delta, fixed=how.fix.get(name, {}))
            why = fit.failed or identifiability.rises(law, fitting.values(fit), points)
        if why:
            skipped[name] = why
            continue
        many = bootstrap.resample(law, points, fit, how.replicates, how.seed, how.bootstrap)
        draws = many.theta[~many.failed]
        fitted[name] = Fitted(law, points, fit, draws, int(np.sum(many.failed)))
    if not any(plans(f.law) for f in fitted.values()):
        reasons = "; ".join(f"{k}: {v}" for k, v in skipped.items())
        raise ValueError(
            f"these {len(t.loss)} points hold no law of parameters and tokens: {reasons}"
        )
    return fitted, skipped


def plans(law: loss_laws.Law) -> bool:
    """Whether a law has an optimum between parameters and tokens."""
    return {"params", "tokens"} <= set(law.inputs)


def default(fitted: Mapping[str, Fitted]) -> str:
    """The form that plans unless another predicts better: that of repeated tokens where there are
    any, else chinchilla, else of the fewest parameters and then the closest fit."""
    for name in ("data_constrained", "chinchilla"):
        if name in fitted:
            return name
    able = [name for name, form in fitted.items() if plans(form.law)]
    return min(able, key=lambda f: (len(fitted[f].law.names), fitted[f].fit.objective))


def record(
    form: Fitted, fitted: Mapping[str, Fitted], level: float, target: float, per: float
) -> study_parts.Form:
    """A form's entry in a study's record."""
    law, fit = form.law, form.fit
    ends = {
        name: None if name in fit.fixed else comparison.interval(form.draws[:, i], level)
        for i, name in enumerate(law.names)
    }
    return study_parts.Form(
        source=law.source,
        inputs=law.inputs,
        theta=fit.theta,
        fixed=fit.fixed,
        intervals=ends,
        objective=fit.objective,
        points=fit.n,
        reached=fit.reached,
        gradient=fit.gradient,
        basins=tuple(study_parts.Basin(value, theta) for value, theta in fit.basins),
        condition=diagnostics.number(
            experiment_design.gradients(law, form.theta, fitting.inputs(law, form.t))
        ),
        residual=fit.residual,
        residual_sd=float(np.std(fit.residual)),
        optimum=_optimum(form, fitted, level, target, per),
        failed=form.failed,
        draws=form.draws,
    )


def _optimum(
    form: Fitted, fitted: Mapping[str, Fitted], level: float, target: float, per: float
) -> study_parts.Optimum | study_parts.Skipped:
    """The form's optimum at the target; Skipped of a law that has none.

    An exponent that the form fixes has no interval, and N* and D* have the width that the exponent
    gives them by the form that estimates it.
    """
    if not plans(form.law):
        return study_parts.Skipped(f"a law of {', '.join(form.law.inputs)} has no optimum")
    best = optimum.at(form.law.name, form.theta, target, per=per)
    many = optimum.at(form.law.name, form.draws, target, per=per)
    freed = fitted.get(FIXED_EXPONENT.get(form.law.name, ""))
    n, d = many.params, many.tokens
    if freed is not None and len(n) and len(freed.draws):
        tilt = _tilt(freed, target, per)[np.arange(len(n)) % len(freed.draws)]
        n, d = n * np.exp(tilt), d * np.exp(-tilt)
    fixed = form.law.name in FIXED_EXPONENT

    def ends(draws: Array, known: bool) -> study_parts.Interval:
        return comparison.interval(draws, level) if known else None

    known = not fixed or freed is not None
    return study_parts.Optimum(
        params=(float(best.params), ends(n, known)),
        tokens=(float(best.tokens), ends(d, known)),
        loss=(float(best.loss), ends(many.loss, True)),
        exponent=(float(best.exponent), ends(many.exponent, not fixed)),
        tokens_per_parameter=(float(best.tokens / best.params), ends(d / n, known)),
    )


def _tilt(freed: Fitted, target: float, per: float) -> Array:
    """[R] what draws of the exponent move log N* by, from the middle of the runs to the target."""
    exponent = optimum.at(freed.law.name, freed.draws, target, per=per).exponent
    middle = float(np.mean(np.log(freed.t.flops)))
    return (exponent - np.nanmean(exponent)) * (np.log(target) - middle)


def exponent_spread(name: str, fitted: Mapping[str, Fitted]) -> float:
    """Standard deviation of log N* for each decade of compute that the exponent's own gives, of a
    form that fixes it; 0 of others, and where no form estimates it."""
    freed = fitted.get(FIXED_EXPONENT.get(name, ""))
    if freed is None or not len(freed.draws):
        return 0.0
    middle = float(np.exp(np.mean(np.log(freed.t.flops))))
    exponent = optimum.at(freed.law.name, freed.draws, middle).exponent
    return float(np.nanstd(exponent) * np.log(10))


def profiles(form: Fitted, level: float) -> dict[str, study_parts.Profile]:
    """{parameter: its profile} of one form."""
    grids = {}
    for i, name in enumerate(form.law.names):
        ends = comparison.interval(form.draws[:, i], level)
        if name not in form.law.held or name in form.fit.fixed or ends is None:
            continue
        low, high = ends[0] - (ends[1] - ends[0]) / 4, ends[1] + (ends[1] - ends[0]) / 4
        low = low if low > 0 or ends[0] <= 0 else ends[0] / 2
        grid = np.linspace(low, high, GRID)
        grids[name] = grid[profile.possible(form.law, name, grid)]
    out: dict[str, study_parts.Profile] = {}
    for name, values in profile.profiles(form.law, form.t, form.fit, grids).items():
        relative = 100 * (values / form.fit.objective - 1)
        out[name] = study_parts.Profile(grids[name], relative)
    return out


def undertuned(
    fitted: Mapping[str, Fitted], how: Settings
) -> tuple[tuning.Excess, tuning.Corrected] | None:
    """Excess loss of the largest sizes above TUNED's law, and that law without it; None where it is
    not fitted or nothing is beyond noise."""
    if TUNED not in fitted:
        return None
    form = fitted[TUNED]
    if form.fit.fixed:
        return None
    excess = tuning.test(form.t, form.fit)
    # half of a plan's draws are of it
    half = (how.replicates + 1) // 2
    corrected = excess and tuning.correct(form.t, form.fit, excess, half, how.seed)
    return (excess, corrected) if excess and corrected else None
