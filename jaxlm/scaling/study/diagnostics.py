"""Diagnostics: reasons to distrust a fit. Each check returns cautions, none if all is well.

Every caution has been seen in a published study; the source is given at its check.
"""

import itertools
from collections.abc import Mapping, Sequence

import numpy as np

from jaxlm.scaling.study_parts import Caution, Undertuned

# Tokens per parameter must differ by this factor for the terms of N and D to be separated:
# along one ratio they are one power of C (Hoffmann et al. 2022 spread theirs over 0.2 to 400).
COVERAGE = 4.0
# A target this many times the largest budget is reported as far (Hoffmann et al.: 576 times).
FAR = 10.0
# Exponents of two approaches that differ by more are reported to disagree: .04 is a factor of 1.3
# in N* for each thousand-fold of compute.
DISAGREE = 0.04
# A floor below this share of the smallest loss is none.
NO_FLOOR = 0.01
# A parameter whose interval spans this factor is not determined: a coefficient A that goes with an
# exponent is loose by nature, by a factor of 3 to 1,000.
LOOSE = 1e6
# Condition of the Jacobian with columns of length 1. Hoffmann et al.'s five-parameter form on their
# runs has 220; at 1e4 noise of 0.1 % leaves no digit of the worst combination of coefficients.
CONDITION = 1e4

Array = np.ndarray


def basins(
    law: str, objective: float, others: Sequence[tuple[float, Mapping[str, float]]]
) -> list[Caution]:
    """Cautions of a fit with other optima within 1 % of its objective.

    Data-constrained fits have them (Muennighoff et al. 2023's 182 runs).
    """
    if not others:
        return []
    shown = "; ".join(
        f"{100 * (value / objective - 1):+.3f} % at "
        + ", ".join(f"{k} {v:.4g}" for k, v in theta.items())
        for value, theta in others[:3]
    )
    return [
        Caution(
            "several basins",
            f"{law}: {len(others)} other optima within 1 % of the objective ({shown}); the data "
            "do not choose between them, and neither does the interval of one",
        )
    ]


def floor(
    law: str, lowest: float, smallest: float, noise: float, high: float | None
) -> list[Caution]:
    """Cautions of a loss floor E at or near the smallest loss that was measured.

    lowest: E; smallest: the least loss; noise: sd of log residuals; high: upper end of E's
    interval. A floor above a loss cannot be one: Porian et al. 2024's tuned RefinedWeb points,
    intermediate losses at a constant learning rate, are fitted with E 3.13 over a loss of 3.10.
    """
    if lowest >= smallest:
        return [
            Caution(
                "floor above the data",
                f"{law}: E = {lowest:.4f} is above the smallest loss {smallest:.4f}, which no "
                "floor can be: the points violate the form (intermediate checkpoints, mixed "
                "schedules, under-trained runs), and its extrapolations are void",
            )
        ]
    if lowest < NO_FLOOR * smallest:
        return [
            Caution(
                "no floor",
                f"{law}: E = {lowest:.2g} next to a smallest loss of {smallest:.4f}: these runs "
                "show no floor, and larger ones may; losses far beyond them will be too low",
            )
        ]
    near = smallest - lowest <= 2 * noise * smallest
    reached = high is not None and high >= smallest
    if near or reached:
        why = f"within 2 sd of the residuals ({noise:.2%})" if near else "inside its interval"
        return [
            Caution(
                "floor near the data",
                f"{law}: the smallest loss {smallest:.4f} is {why} of E = {lowest:.4f}: the floor "
                "is an extrapolation",
            )
        ]
    return []


def undetermined(law: str, intervals: Mapping[str, Sequence[float] | None]) -> list[Caution]:
    """Cautions of parameters whose interval spans a factor of LOOSE: their size is not known.

    On Muennighoff et al. 2023's 182 runs R_N is such a one when all constants are free.
    """
    out = []
    for name, ends in intervals.items():
        if ends is not None and ends[0] > 0 and ends[1] > LOOSE * ends[0]:
            out.append(
                Caution(
                    "undetermined",
                    f"{law}: {name} may be {ends[0]:.2g} or {ends[1]:.2g}: the runs do not tell",
                )
            )
    return out


def few(law: str, points: int, parameters: int) -> list[Caution]:
    """Cautions of a fit with at most one point above its parameters (Gadre et al. 2024: 5, 4)."""
    if points > parameters + 1:
        return []
    return [
        Caution(
            "few points",
            f"{law}: {points} points for {parameters} parameters: residuals and intervals say "
            "next to nothing of its error",
        )
    ]


def condition(law: str, value: float) -> list[Caution]:
    """Cautions of a condition `number`: parameters that the runs hardly separate."""
    if value <= CONDITION:
        return []
    return [
        Caution(
            "ill conditioned",
            f"{law}: condition number {value:.2g} (above {CONDITION:.0g}): some parameters change "
            "together without changing the fit; read predictions, not coefficients",
        )
    ]


def number(jacobian: Array) -> float:
    """Condition number of a Jacobian [n, k] with columns of length 1."""
    length = np.linalg.norm(jacobian, axis=0)
    if not np.all(np.isfinite(jacobian)) or np.any(length == 0):
        return float("inf")
    return float(np.linalg.cond(jacobian / length))


def coverage(ratio: Array, wanted: float | None, target: float | None) -> list[Caution]:
    """Cautions of tokens per parameter D/N [n] that hardly vary, or do not reach the optimum's.

    wanted: D/N at the optimum for `target` FLOPs.
    """
    out = []
    low, high = float(np.min(ratio)), float(np.max(ratio))
    if high < COVERAGE * low:
        out.append(
            Caution(
                "narrow coverage",
                f"tokens per parameter run from {low:.3g} to {high:.3g}, a factor of "
                f"{high / low:.2g}; below {COVERAGE:g} the terms of N and D are hardly told apart",
            )
        )
    if wanted is not None and target is not None and not low <= wanted <= high:
        out.append(
            Caution(
                "ratio not covered",
                f"the optimum at {target:.3g} FLOPs has {wanted:.3g} tokens per parameter; runs "
                f"have {low:.3g} to {high:.3g}",
            )
        )
    return out


def extrapolation(target: float | None, largest: float) -> list[Caution]:
    """Cautions of a target beyond FAR times the largest budget of the runs."""
    if target is None or target <= FAR * largest:
        return []
    return [
        Caution(
            "far extrapolation",
            f"the target {target:.3g} FLOPs is {target / largest:,.0f} times the largest run; the "
            "back-test reaches nowhere near as far",
        )
    ]


def approaches(exponents: Mapping[str, tuple[float, tuple[float, float] | None]]) -> list[Caution]:
    """The caution of exponents {approach: (value, interval)} that disagree: the two farthest apart.

    Two disagree if they differ by more than DISAGREE and neither is in the other's interval.
    Hoffmann et al. 2022's three approaches gave .50, .49 and .46.
    """
    apart = [
        (abs(a - b), first, second)
        for (first, (a, within_a)), (second, (b, within_b)) in itertools.combinations(
            exponents.items(), 2
        )
        if abs(a - b) > DISAGREE and not _inside(a, within_b) and not _inside(b, within_a)
    ]
    if not apart:
        return []
    width, first, second = max(apart)
    more = f"; {len(apart)} pairs of {len(exponents)} approaches disagree" if len(apart) > 1 else ""
    return [
        Caution(
            "approaches disagree",
            f"the optimum's exponent is {exponents[first][0]:.3f} by {first} and "
            f"{exponents[second][0]:.3f} by {second}: a factor of {1000**width:.2g} in N* for each "
            f"thousand-fold of compute{more}",
        )
    ]


def _inside(value: float, interval: tuple[float, float] | None) -> bool:
    return interval is not None and interval[0] <= value <= interval[1]


def checkpoints(run: Array, stated: str, schedule: str) -> list[Caution]:
    """Cautions of several points of one run [n], whose learning rate had not decayed yet.

    Before its end a run's loss is above that of a run of that length (Hoffmann et al. 2022,
    section 3.1). stated, schedule: the study's entries for checkpoints and schedule; "final": the
    points of a run are ends, of branches that were decayed each.
    """
    runs, counts = np.unique(run, return_counts=True)
    several = int(np.sum(counts > 1))
    if stated == "final" or not several and stated != "intermediate":
        return []
    number = f"{several} of {len(runs)} runs have several points" if several else "as was stated"
    return [
        Caution(
            "intermediate checkpoints",
            f"points are intermediate checkpoints ({number}; schedule: {schedule}): unless each "
            "was decayed to its end, their losses are too high for a run of that length; such "
            "points of one run are also one observation (cluster bootstrap)",
        )
    ]


def starts(law: str, reached: float, failed: int, replicates: int) -> list[Caution]:
    """Cautions of starts that missed the optimum, and of bootstrap refits that failed."""
    out = []
    if reached < 1:
        out.append(
            Caution(
                "starts", f"{law}: only {reached:.0%} of the starts reached the least objective"
            )
        )
    if failed:
        out.append(
            Caution(
                "failed refits",
                f"{law}: {failed} of {replicates} bootstrap refits failed and are left out",
            )
        )
    return out


def disagreement(text: str) -> list[Caution]:
    """The caution of forms and approaches outside the plan's interval, from
    `allocation.disagreement`."""
    return [Caution("forms disagree", text)] if text else []


def undertuned(excess: Undertuned | None, n: float, loss: float) -> list[Caution]:
    """The caution of largest sizes whose loss is above the law; n, loss: the plan's N* and loss."""
    if excess is None:
        return []
    return [
        Caution(
            "largest sizes above the law",
            f"the {excess.runs:.0f} runs above N = {excess.knot:.3g} lose up to "
            f"{excess.at_largest:.2%} more than the smaller ones let expect (t = "
            f"{excess.t:.1f}): they are tuned worse (learning rate, batch, warm-up), or the "
            f"form bends. Without that N* is {excess.params:.3g}, not {n:.3g}, and the loss "
            f"{excess.loss:.4g}, not {loss:.4g}; the intervals hold both. Tune the largest size",
        )
    ]


def shape(law: str, fixed: bool) -> list[Caution]:
    """The caution of a planner of N* whose exponent its form fixes: alpha = beta makes it 1/2."""
    if not fixed:
        return []
    return [
        Caution(
            "fixed exponent",
            f"{law} has the exponent of N* by its form, not from the runs (--law chinchilla "
            "estimates it)",
        )
    ]


def curve(bias: float, form: str | None) -> list[Caution]:
    """Cautions of the loss's form, whose back-test leans: mean error `bias`, percent."""
    if form is None or abs(bias) <= 1:
        return []
    side = "too high" if bias > 0 else "too low"
    return [
        Caution(
            "biased back-test",
            f"{form} predicted held-out budgets {abs(bias):.2f} % {side} on average",
        )
    ]


def not_recorded(items: Sequence[str]) -> list[Caution]:
    """Cautions of items of the checklist that are not stated."""
    if not items:
        return []
    return [
        Caution(
            "not recorded",
            f"Not recorded: {', '.join(items)} (--about.FIELD TEXT says them)",
        )
    ]
