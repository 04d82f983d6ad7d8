"""Simulated scaling studies of eleven kinds, whose optimum is known.

    table, truth = studies.draw("mistuned", seed=3)
    truth.params, truth.loss                     # N* and the loss at truth.target FLOPs

A study is 5 to 8 budgets of 6 to 9 sizes about the optimum, with noise of 0.15 to 0.6 % of the
loss; its law is E + A/N^alpha + B/D^beta with random constants, unless the kind says otherwise. The
target is ten times the largest budget.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from jaxlm.scaling import table
from jaxlm.scaling.laws import loss_laws

KINDS = (
    "homoscedastic",
    "heteroscedastic",
    "outliers",
    "unequal budgets",
    "mistuned at large sizes",
    "alpha near beta",
    "E near 0",
    "12 to 15 points",
    "heavy tails",
    "form wrong",
    "form wrong otherwise",
)
BEYOND = 10.0

Array = np.ndarray
Loss = Callable[[Array, Array], Array]


class Truth(NamedTuple):
    """What a study's plan is held to."""

    target: float
    """FLOPs."""
    params: float
    """N* there."""
    loss: float
    """The expected loss there."""


def draw(kind: str, seed: int) -> tuple[table.Table, Truth]:
    """A study of a kind. Raises: ValueError for a kind that is none of KINDS."""
    if kind not in KINDS:
        raise ValueError(f"kind: {kind!r} is none of {', '.join(KINDS)}")
    random = np.random.default_rng([KINDS.index(kind), seed])
    law, middle = _law(kind, seed, random)
    count, sizes = int(random.integers(5, 9)), int(random.integers(6, 10))
    if kind == "12 to 15 points":
        count = int(random.integers(3, 5))
        sizes = int(random.integers(4, 6)) if count == 3 else 3
    least = 10 ** random.uniform(17.5, 18.5)
    budgets = np.geomspace(least, least * 10 ** random.uniform(1.7, 3), count)
    n, c = _sizes(kind, law, budgets, sizes, random)
    d = c / 6 / n
    loss = law(n, d) * np.exp(_noise(kind, c, random))
    if kind == "mistuned at large sizes":
        # a part of the sizes, the largest, loses up to 1 to 4 % more
        knot = np.quantile(n, random.uniform(0.6, 0.8))
        above = np.maximum(np.log(n / knot), 0) / np.log(n.max() / knot)
        loss = loss * np.exp(random.uniform(0.01, 0.04) * above)
    target = BEYOND * float(c.max())
    best, low = _optimum(law, target)
    return table.make(n, d, loss, c), Truth(target, best, low)


def _law(kind: str, seed: int, random: np.random.Generator) -> tuple[Loss, tuple[float, float]]:
    """(loss of N and D, (N, D) of its optimum at 1e20 FLOPs)."""
    floor, alpha, beta = random.uniform(1.5, 2.1), *random.uniform(0.28, 0.42, 2)
    if kind == "alpha near beta":
        beta = alpha + random.uniform(-0.01, 0.01)
    if kind == "E near 0":
        floor, alpha, beta = random.uniform(0.02, 0.2), *random.uniform(0.08, 0.2, 2)
    ratio = np.exp(random.uniform(np.log(8), np.log(60)))
    n0 = np.sqrt(1e20 / 6 / ratio)
    d0 = 1e20 / 6 / n0
    reducible = random.uniform(2, 3) if kind == "E near 0" else random.uniform(0.6, 1.2)
    # at the optimum alpha A N^-alpha = beta B D^-beta
    a = reducible * beta / (alpha + beta) * n0**alpha
    b = reducible * alpha / (alpha + beta) * d0**beta
    if kind == "form wrong otherwise":
        return _otherwise(seed, random, floor, (a, alpha, n0), (b, beta, d0)), (n0, d0)
    if kind != "form wrong":
        theta = (floor, a, b, alpha, beta)
        return lambda n, d: loss_laws.CHINCHILLA.predict(theta, (n, d)), (n0, d0)
    if seed % 3 == 0:  # the two terms interact
        p = random.uniform(0.7, 1.4)
        return (
            lambda n, d: floor + ((a * n**-alpha) ** (1 / p) + (b * d**-beta) ** (1 / p)) ** p
        ), (n0, d0)
    if seed % 3 == 1:  # the exponent of D drifts with N
        drift = random.uniform(-0.02, 0.02)
        return (
            lambda n, d: (
                floor
                + a * n**-alpha
                + b * np.exp(-beta * np.log(d) - drift * np.log10(n / n0) * np.log(d / d0))
            )
        ), (n0, d0)
    slow = random.uniform(0.02, 0.06)  # a second term of N, a logarithm
    return (lambda n, d: floor - slow * np.log10(n / n0) + a * n**-alpha + b * d**-beta), (n0, d0)


def _otherwise(
    seed: int,
    random: np.random.Generator,
    floor: float,
    size: tuple[float, float, float],
    length: tuple[float, float, float],
) -> Loss:
    """Laws wrong in other ways than "form wrong"; size, length: (coefficient, exponent, value at
    1e20 FLOPs) of the terms of N and D."""
    (a, alpha, n0), (b, beta, d0) = size, length
    if seed % 3 == 2:  # a third term, the product of powers of both
        share = random.uniform(0.15, 0.5)
        return lambda n, d: (
            floor + a * n**-alpha + b * d**-beta + share * np.sqrt(a * n**-alpha * b * d**-beta)
        )
    # an exponent that changes about a size, smoothly (Caballero et al. 2023), of N or of D
    more, width = random.choice([-1, 1]) * random.uniform(0.03, 0.08), random.uniform(0.3, 1)
    knot = (n0, d0)[seed % 3] * 10 ** random.uniform(-0.8, 0.2)

    def bend(x: Array) -> Array:
        return (1 + (x / knot) ** (1 / width)) ** (-more * width)

    if seed % 3 == 0:
        return lambda n, d: floor + a * n**-alpha * bend(n) + b * d**-beta
    return lambda n, d: floor + a * n**-alpha + b * d**-beta * bend(d)


def _optimum(law: Loss, c: float) -> tuple[float, float]:
    """(N*, loss) at compute c, on a grid of steps of 0.05 %."""
    n = np.exp(np.linspace(-6, 6, 24001) + np.log(c / 6) / 2)
    loss = law(n, c / 6 / n)
    at = int(np.argmin(loss))
    return float(n[at]), float(loss[at])


def _sizes(
    kind: str, law: Loss, budgets: Array, count: int, random: np.random.Generator
) -> tuple[Array, Array]:
    """(N, C) of the runs: geometric sizes over a factor of 6 to 16 about each budget's optimum."""
    n, c = [], []
    for budget in budgets:
        width, off, many = np.log(random.uniform(6, 16)), random.uniform(-0.3, 0.3), count
        if kind == "unequal budgets":
            many, off = int(random.integers(3, 14)), random.uniform(-0.6, 0.6)
            width *= random.uniform(0.6, 1.3)
        best = _optimum(law, budget)[0]
        n.append(best * np.exp(np.linspace(-width / 2, width / 2, many) + off))
        c.append(np.full(many, budget))
    return np.concatenate(n), np.concatenate(c)


def _noise(kind: str, c: Array, random: np.random.Generator) -> Array:
    """Of log loss."""
    sd = 0.003 * np.exp(random.uniform(-0.7, 0.7))
    if kind == "heavy tails":
        return random.standard_t(2, len(c)) * sd * 0.6
    noise = random.normal(0, 1, len(c))
    if kind == "heteroscedastic":  # by a factor of 6 from one end to the other
        power = random.choice([-1, 1]) * np.log(6) / np.log(c.max() / c.min())
        own = (c / c.min()) ** power
        return noise * sd * own / np.exp(np.mean(np.log(own)))
    noise = noise * sd
    if kind == "outliers":
        wild = random.random(len(c)) < 0.06
        noise[wild] += random.uniform(0.02, 0.15, int(wild.sum()))
    return noise
