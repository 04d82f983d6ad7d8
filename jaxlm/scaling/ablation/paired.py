"""Paired tests of a change: whether it helps, and by how much loss.

A pair is two runs of one seed and one data order, with the change and without: what seed and order
do to both cancels in the difference of their losses. The differences d_i = variant - baseline are
tested by Student's t (1908), at the looks that were planned before and no others (sequential.py);
the worth of a difference is read off the baseline's loss against compute (compute_multiplier.py).
"""

import math
from typing import NamedTuple

import numpy as np
from scipy import optimize, stats

from jaxlm.scaling.ablation import sequential

_NODES = 200  # of the integral over sd: power is then right to 1e-10


class Effect(NamedTuple):
    """Effect of a change, in nats per token; negative is better."""

    mean: float
    """Mean of variant - baseline over pairs."""
    low: float
    """The interval's lower end."""
    high: float
    """The interval's upper end."""
    sd: float
    """Standard deviation of one pair's difference."""
    p: float
    """Two-sided p-value of "no effect", as if this were the only look."""
    pairs: int
    """Number of pairs."""


def effect(baseline: np.ndarray, variant: np.ndarray, alpha: float = 0.05) -> Effect:
    """The paired-t Effect of losses [n] each, with a 1 - alpha interval. Student 1908.

    Raises: ValueError for fewer than two pairs, losses that are not finite, alpha outside (0, 1).
    """
    baseline, variant = _losses("baseline", baseline), _losses("variant", variant)
    if len(baseline) != len(variant):
        raise ValueError(
            f"{len(baseline)} losses of the baseline and {len(variant)} of the variant: one each a "
            "pair is needed"
        )
    _share("alpha", alpha)
    n = len(baseline)
    if n < 2:
        raise ValueError(f"{n} pair given: a paired test needs 2 or more, since one has no spread")
    d = variant - baseline
    mean, sd = float(d.mean()), float(d.std(ddof=1))
    error = sd / math.sqrt(n)
    width = float(stats.t.ppf(1 - alpha / 2, n - 1)) * error
    p = float(2 * stats.t.sf(abs(mean) / error, n - 1)) if error else float(mean == 0)
    return Effect(mean, mean - width, mean + width, sd, p, n)


def _losses(name: str, values: np.ndarray) -> np.ndarray:
    values = np.asarray(values, np.float64)
    if values.ndim != 1 or not np.isfinite(values).all():
        raise ValueError(f"{name}: {values} given; finite losses [n] are needed")
    return values


def _share(name: str, value: float) -> None:
    if not 0 < value < 1:
        raise ValueError(f"{name}: {value} given; a share between 0 and 1 is needed")


# --- Power, before the run -------------------------------------------------------------------


def power(size: float, sd: float, pairs: int, alpha: float = 0.05) -> float:
    """The probability that a paired t-test of `pairs` finds an effect of `size` nats, with
    differences of standard deviation `sd`: the noncentral t distribution, both tails.

    Cohen 1988, section 2.5; for a plan with looks give the last look's nominal alpha, and it is a
    lower bound.

    Raises: ValueError for fewer than two pairs, sd <= 0, or alpha outside (0, 1).
    """
    _share("alpha", alpha)
    if pairs < 2 or not sd > 0:
        raise ValueError(f"pairs={pairs}, sd={sd} given; 2 or more pairs and a positive sd")
    df, shift = pairs - 1, abs(size) / sd * math.sqrt(pairs)
    # over the estimated sd, s = chi / sqrt(df): SciPy's noncentral t is nan for 2 pairs and large
    # effects
    low, high = stats.chi.ppf(1e-15, df), stats.chi.isf(1e-15, df)
    node, weight = np.polynomial.legendre.leggauss(_NODES)
    chi = (high + low + (high - low) * node) / 2
    s = stats.t.ppf(1 - alpha / 2, df) * chi / math.sqrt(df)
    beyond = stats.norm.sf(s - shift) + stats.norm.cdf(-s - shift)
    return float(beyond * stats.chi.pdf(chi, df) @ weight) * float(high - low) / 2


def detectable(sd: float, pairs: int, alpha: float = 0.05, wanted: float = 0.8) -> float:
    """The smallest effect in nats detected with probability `wanted`. Raises: as `power`."""
    _share("wanted", wanted)
    if wanted <= alpha:
        raise ValueError(f"wanted={wanted}: more than alpha={alpha} is needed")
    power(sd, sd, pairs, alpha)
    high = sd
    while power(high, sd, pairs, alpha) < wanted:
        high *= 2
    return float(
        optimize.brentq(lambda x: power(x, sd, pairs, alpha) - wanted, 0, high, xtol=1e-12 * sd)
    )


# --- Looking more than once ------------------------------------------------------------------


class Look(NamedTuple):
    """Result of the test after `effect.pairs` pairs. `effect`'s interval is a repeated confidence
    interval: all looks' intervals hold the truth together with probability 1 - alpha."""

    effect: Effect
    nominal: float
    """The p-value that decides at this look."""
    verdict: str
    """better, worse, no difference that matters, go on, or undecided (at the last)."""


VERDICTS = ("better", "worse", "no difference that matters", "go on", "undecided")


def look(
    baseline: np.ndarray,
    variant: np.ndarray,
    looks: tuple[int, ...],
    alpha: float = 0.05,
    matters: float | None = None,
) -> Look:
    """The verdict on losses [n], n one of the planned `looks` (numbers of pairs, rising).

    Decided when the p-value is at most the look's nominal level (sequential.nominal), or, with
    `matters`, when the interval is within +- matters nats. Intervals at the nominal levels cover
    together (Jennison & Turnbull 1989), so the second rule costs no error of the first kind.

    Raises: ValueError for a number of pairs that was not planned, and as `effect`.
    """
    levels = sequential.nominal(looks, alpha)
    n = len(np.atleast_1d(baseline))
    if n not in looks:
        raise ValueError(f"{n} pairs given; looks were planned after {list(looks)}")
    if matters is not None and not matters > 0:
        raise ValueError(f"matters: {matters} given; a positive number of nats is needed")
    level = levels[looks.index(n)]
    estimate = effect(baseline, variant, level)
    verdict = "undecided" if n == looks[-1] else "go on"
    if estimate.p <= level:
        verdict = "better" if estimate.mean < 0 else "worse"
    elif matters is not None and -matters <= estimate.low and estimate.high <= matters:
        verdict = "no difference that matters"
    return Look(estimate, level, verdict)
