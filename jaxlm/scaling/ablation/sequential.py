"""Testing while data come in, without more false alarms: group-sequential boundaries.

Whoever tests at 5 % after each of five batches of data and stops at the first success is wrong in
14 % of the cases without an effect. A spending function limits how much of alpha is used up by each
share t of the data; here that of O'Brien & Fleming's kind,

    spent(t) = 2 (2 - 2 Phi(z_(alpha/4) / sqrt(t)))      Lan & DeMets 1983, alpha_1*, for each side

which spends next to nothing early and keeps the last look near the test that looks once. The
boundaries follow by integrating over trials not stopped before (Armitage, McPherson & Rowe 1969).
"""

import functools
import math

import numpy as np
from scipy import optimize, stats

_NODES = 101  # Gauss-Legendre; twice as many change no digit
_SEQUENCES = 1 << 19  # simulated for the last level: alpha is right to 3e-4


def spent(share: float, alpha: float) -> float:
    """Amount of a two-sided alpha that may be spent by a share in (0, 1] of the data."""
    return float(4 * stats.norm.sf(stats.norm.isf(alpha / 4) / math.sqrt(share)))


def boundaries(shares: tuple[float, ...], alpha: float = 0.05) -> np.ndarray:
    """[K] values of |Z| that stop at looks after these shares of the data, the last of which is 1.

    With Z_k sqrt(t_k) a Brownian motion, P(|Z_j| < b_j for j < k, |Z_k| >= b_k) is what look k may
    spend.

    Raises: ValueError for shares that do not rise from above 0 to 1, or alpha outside (0, 1).
    """
    if not 0 < alpha < 1:
        raise ValueError(f"alpha: {alpha} given; a share between 0 and 1 is needed")
    rising = all(a < b for a, b in zip((0.0, *shares), shares, strict=False))
    if not shares or not rising or shares[-1] != 1:
        raise ValueError(f"shares: {shares} given; rising shares of the data that end with 1")
    out: list[float] = []
    used, time = 0.0, 0.0
    node, weight = np.polynomial.legendre.leggauss(_NODES)
    at, mass = np.zeros(1), np.ones(1)  # quadrature of the paths that go on: S and its weight
    for share in shares:
        step, spend = math.sqrt(share - time), spent(share, alpha) - used
        bound = _bound(at, mass, step, spend)
        grid = bound * node
        density = stats.norm.pdf((grid[:, None] - at) / step) / step @ mass
        at, mass, used, time = grid, density * bound * weight, used + spend, share
        out.append(bound / math.sqrt(share))
    return np.array(out)


def _bound(at: np.ndarray, mass: np.ndarray, step: float, spend: float) -> float:
    """The |S| that paths with weights `mass` at `at` pass, `step` on, with probability `spend`."""

    def surplus(bound: float) -> float:
        tails = stats.norm.sf((bound - at) / step) + stats.norm.sf((bound + at) / step)
        # in logarithms: an early look may spend as little as 1e-50
        return math.log(max(float(mass @ tails), 1e-300)) - math.log(spend)

    return float(optimize.brentq(surplus, 0.0, 40 * step, xtol=1e-12))


@functools.lru_cache(maxsize=64)  # the simulation takes half a second
def nominal(looks: tuple[int, ...], alpha: float = 0.05) -> tuple[float, ...]:
    """The two-sided p-value that stops at each look, after these numbers of pairs (rising, from 2).

    The p-values of t-tests are compared with levels that are derived for a known variance, the
    significance level approach (Jennison & Turnbull 2000, section 3.8). With a handful of pairs
    that would stop in 5.2 to 5.4 % of the cases without an effect where 5 % were requested: so the
    last level is lowered to what a simulation of half a million sequences leaves of alpha.

    Raises: ValueError for looks that do not rise from 2 or more, and as `boundaries`.
    """
    if not looks or looks[0] < 2 or any(a >= b for a, b in zip(looks, looks[1:], strict=False)):
        raise ValueError(f"looks: {looks} given; numbers of pairs that rise from 2 or more")
    if len(looks) == 1:
        boundaries((1.0,), alpha)
        return (alpha,)
    bounds = boundaries(tuple(n / looks[-1] for n in looks), alpha)
    levels = 2 * stats.norm.sf(bounds)
    p = _null(looks)
    early = (p[:-1] <= levels[:-1, None]).any(0)
    left = round(alpha * _SEQUENCES) - int(early.sum())
    last = np.partition(p[-1][~early], max(left, 0))[max(left, 0)]
    return (*(float(x) for x in levels[:-1]), float(min(last, levels[-1])))


def _null(looks: tuple[int, ...]) -> np.ndarray:
    """[K, sequences]: p-values of paired t-tests at the looks, where there is no effect."""
    draw = np.random.Generator(np.random.Philox(1983))
    total = squares = np.zeros(_SEQUENCES)
    out, seen = [], 0
    for n in looks:
        new = n - seen
        # the sum of `new` normals, and their sum of squares about their own mean
        part = draw.standard_normal(_SEQUENCES) * math.sqrt(new)
        within = draw.chisquare(new - 1, _SEQUENCES) if new > 1 else 0.0
        total, squares, seen = total + part, squares + part**2 / new + within, n
        spread = np.sqrt((squares - total**2 / n) / (n - 1))
        out.append(2 * stats.t.sf(np.abs(total) / math.sqrt(n) / spread, n - 1))
    return np.array(out)
