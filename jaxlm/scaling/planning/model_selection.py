"""Choice of a planner: one form's N*(C), or approach 2's, and one form's loss, with their errors.

    tests = {"chinchilla": errors, "isoflop": errors}
    choice = model_selection.choose("chinchilla", tests, draws=1000)
    choice.name, choice.scores["isoflop"].t            # "isoflop", 21.3: it predicts N* better
    model_selection.spread(tests["isoflop"])           # of log N* for each decade beyond the runs

The choice is by rolling back-tests of what is wanted: of N* on the minima of budgets that were held
out, of the loss on their runs. The form that theory and practice start from plans unless another
one predicts better beyond noise; a choice among near equals would be noise itself, and an interval
that ignores it would be too narrow. So every bootstrap draw chooses anew.
"""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from scipy import special

from jaxlm.scaling.planning.backtest import Errors

# Approach 2 (isoFLOP, Akima) as a planner of N*.
ISOFLOP = "isoflop"
# A challenger has to be better with this confidence, by a paired t-test over held-out budgets.
CERTAIN = 0.99
# Held-out budgets without which nobody is replaced.
CASES = 3
# |log error| counts up to this: a refit without an optimum is no worse than a factor of 20.
WORST = 3.0
# Errors show that a form is wrong, and not only its fit uncertain, at this confidence.
MISFIT = 0.95
# An error counts for at most so many of its standard deviations in that test.
OUTLIER = 3.0
# Errors this few decades beyond the runs are more of the measurement than of the form.
NEAR = 0.05
# Half of a normal distribution is within so many standard deviations.
HALF = 0.6745

Array = np.ndarray


class Score(NamedTuple):
    """A challenger against the default on the budgets that both were tested on."""

    error: float
    """Its mean |log(predicted / measured)|."""
    default: float
    """The default's."""
    t: float
    """t statistic of the paired difference; above 0 the challenger is better."""
    needed: float
    """The t that replaces the default; inf where too few budgets were held out."""
    cases: int
    """Held-out budgets."""


class Choice(NamedTuple):
    """The one chosen."""

    name: str
    scores: dict[str, Score]
    """By challenger."""
    drawn: Array
    """[R] str, the choice of every draw, in which held-out budgets are resampled."""


def choose(default: str, errors: Mapping[str, Errors], draws: int, seed: int = 0) -> Choice:
    """The Choice between the default and challengers, by their errors on the same budgets."""
    random = np.random.default_rng(seed)
    scores: dict[str, Score] = {}
    gains: dict[str, Array] = {}
    for name, own in errors.items():
        if name == default or default not in errors:
            continue
        old, new = _shared(errors[default], own)
        scores[name], gains[name] = _score(old, new), old - new
    name = default
    if any(s.t > s.needed for s in scores.values()):
        # the default is refuted: of the others the one with the smallest errors, two at a time on
        # what both were tested on
        for rival in (n for n, s in scores.items() if s.cases > 1 and s.error < s.default):
            old, new = _shared(errors[name], errors[rival])
            if name == default or (len(new) and new.mean() < old.mean()):
                name = rival
    drawn = np.full(draws, default, dtype=f"<U{max(map(len, [default, *errors]))}")
    best = np.zeros(draws)
    for challenger, gain in gains.items():
        score = scores[challenger]
        # one that was chosen because others refute the default need not be beyond noise itself
        needed = score.needed if challenger != name or score.t > score.needed else 0.0
        if challenger != name and (name != default or not np.isfinite(score.needed)):
            continue
        again = gain[random.integers(0, len(gain), (draws, len(gain)))].mean(1)
        error = float(gain.std(ddof=1) / np.sqrt(len(gain)))
        wins = (again > needed * error) & (again > best)
        drawn[wins], best[wins] = challenger, again[wins]
    return Choice(name, scores, drawn)


def _shared(old: Errors, new: Errors) -> tuple[Array, Array]:
    """([B], [B]) mean |error| of both on each held-out budget, over the cut-offs both have."""
    ours, theirs = (
        {
            (case, cut): WORST if not np.isfinite(error) else min(abs(error), WORST)
            for case, cut, error in zip(e.case.tolist(), e.cut.tolist(), e.error.tolist())
        }
        for e in (old, new)
    )
    keys = sorted(ours.keys() & theirs.keys())
    cases = sorted({case for case, _ in keys})
    pairs = [
        [np.mean([side[k] for k in keys if k[0] == case]) for case in cases]
        for side in (ours, theirs)
    ]
    return np.array(pairs[0], float), np.array(pairs[1], float)


def _score(old: Array, new: Array) -> Score:
    n = len(old)
    if n < CASES:
        nothing = float("nan")
        means = (float(v.mean()) if n else nothing for v in (new, old))
        return Score(*means, nothing, float("inf"), n)
    gain = old - new
    error = float(gain.std(ddof=1) / np.sqrt(n))
    t = float(gain.mean()) / error if error > 0 else float(np.sign(gain.mean())) * np.inf
    return Score(
        float(new.mean()),
        float(old.mean()),
        0.0 if np.isnan(t) else t,
        float(special.stdtrit(n - 1, CERTAIN)),
        n,
    )


def spread(errors: Errors, half: bool = False) -> float:
    """The form's own error: standard deviation of log(predicted / true) for each decade of compute
    beyond the runs, 0 where sampling explains the errors.

    An error e at d decades has the variance s^2 of sampling and (spread d)^2. First a chi-square
    test over the held-out budgets shows whether sampling is enough. Where it is not, the spread is
    that at which the mean square of e over its standard deviation is 1, the far errors counting
    more (d^2) and each at most OUTLIER. half: at which half of them, so counted, are within 0.6745
    standard deviations: for minima, of which one read off four runs is easily wrong by a factor.
    """
    fine = np.isfinite(errors.error) & np.isfinite(errors.sd) & (errors.sd > 0)
    fine &= errors.decades > NEAR
    if fine.sum() < 2:
        return 0.0
    e, s, d = np.abs(errors.error[fine]), errors.sd[fine], errors.decades[fine]
    # errors on one budget from several cut-offs are one observation
    count = len(np.unique(errors.case[fine]))
    squares = float(np.mean(np.minimum(e / s, OUTLIER) ** 2))
    if squares * count <= special.chdtri(count, 1 - MISFIT):
        return 0.0
    low, high = 0.0, 2 * float(np.max(e / d))
    for _ in range(60):
        middle = (low + high) / 2
        z = np.minimum(e / np.hypot(s, middle * d), OUTLIER)
        within = _median(z, d**2) / HALF if half else np.average(z**2, weights=d**2)
        low, high = (middle, high) if within > 1 else (low, middle)
    return high if low > 0 else 0.0


def _median(values: Array, weights: Array) -> float:
    order = np.argsort(values)
    total = np.cumsum(weights[order])
    return float(values[order][np.searchsorted(total, total[-1] / 2)])


def sentence(default: str, sizes: Choice, loss: Choice, named: bool, edge: bool = False) -> str:
    """Explains the choice of the plan in a sentence. named: by the user (--law); edge: whether
    approach 2's minima have a law of loss of their own."""
    if named:
        return f"{default} plans, as --law asks."
    if sizes.name == default:
        part = f"{_title(default)} plans"
        rivals = {n: s for n, s in sizes.scores.items() if np.isfinite(s.t)}
        if rivals:
            best = min(rivals, key=lambda n: rivals[n].error)
            s = rivals[best]
            part += (
                f": over {s.cases} held-out budgets it predicted the measured N* to "
                f"{_percent(s.default)}, {best} to {_percent(s.error)}, not better beyond noise"
            )
        elif sizes.scores and any(s.cases for s in sizes.scores.values()):
            count = max(s.cases for s in sizes.scores.values())
            part += (
                f": too few held-out budgets have a measured N* to replace it, {count} of {CASES}"
            )
        else:
            part += ": no budget's N* was measured, so that none could be back-tested"
    elif sizes.name not in sizes.scores:
        s = loss.scores[sizes.name]
        part = (
            f"{_title(sizes.name)} plans: over {s.cases} held-out budgets it predicted the loss to "
            f"{100 * s.error:.2g} %, {default} to {100 * s.default:.2g} %; no budget's N* was "
            "measured, so that none could be back-tested"
        )
    else:
        s = sizes.scores[sizes.name]
        part = (
            f"{_title(sizes.name)} plans N*: over {s.cases} held-out budgets it predicted the "
            f"measured N* to {_percent(s.error)}, {default} to {_percent(s.default)}"
        )
    if edge:
        part += "; the loss is that of its minima"
    elif loss.name not in (default, sizes.name):
        s = loss.scores[loss.name]
        part += (
            f"; the loss is {loss.name}'s, which predicted larger runs to {100 * s.error:.2g} % "
            f"({default}: {100 * s.default:.2g} %)"
        )
    elif sizes.name == ISOFLOP:
        part += f"; the loss is {loss.name}'s"
    return part + "."


def _title(name: str) -> str:
    return "IsoFLOP (Akima)" if name == ISOFLOP else name.replace("_", " ").capitalize()


def _percent(error: float) -> str:
    """A mean |log error| as percent, or as a factor where it is one."""
    return f"{100 * error:.2g} %" if error < 0.7 else f"a factor of {np.exp(error):.2g}"
