"""Optima of a law: N* and D* of least loss at a compute C = per N D, and least compute of a loss.

    best = optimum.at("chinchilla", [1.8172, 477.83, 2143.4, 0.34731, 0.36717], 5.76e23)
    best.params, best.tokens, best.loss, best.exponent

In closed form for E + A/N^alpha + B/D^beta (Hoffmann et al. 2022, equation 4), its tied and its
over-training case, and for Kaplan's L(N,D); by a bracketed search in log N for all others.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from jaxlm.scaling.laws import loss_laws

Array = np.ndarray

# The search looks between these tokens per parameter, first at so many geometric places.
RATIOS, PLACES = (1e-4, 1e8), 97
HALVINGS = 38  # of the bracket between two places, to 1e-12
ROUGH = 20  # where the loss alone is wanted: it is flat at the optimum, to 1e-13 then
# Step of the slope by log N: rounding moves the minimum by 1e-10, and where curvature jumps (at the
# first repeated token) the minimum is off by a tenth of a step at most.
STEP = 1e-5
# Step of d log N* / d log C.
WIDER = 1e-3
# Problems searched together: 2,000 x 97 float64 are 1.5 MiB, within a core's cache.
TOGETHER = 2000
# Search range of the least compute of a loss, in FLOPs: decades, two places in each.
LEAST, MOST = 3, 45


def decades(each: int) -> np.ndarray:
    """log C [places] from 10**LEAST to 10**MOST, `each` to a decade and the end."""
    return np.log(10.0) * np.linspace(LEAST, MOST, each * (MOST - LEAST) + 1)


class Optimum(NamedTuple):
    """Float64, shaped as the draws of theta, then as flops; nan where the law has no minimum."""

    params: Array
    """N*."""
    tokens: Array
    """D*."""
    loss: Array
    """The law's loss at both."""
    exponent: Array
    """a = d log N* / d log C."""


def at(
    law: str,
    theta: Any,
    flops: Any,
    per: float = 6.0,
    unique: float | None = None,
    *,
    paired: bool = False,
) -> Optimum:
    """The Optimum of a law with N and D at compute `flops`, an array of any shape or a number.

    theta [..., k]: natural parameters in the order of `LAWS[law].names`, or draws of them; each
    with every C, or paired: draw i of [P, k] with C i of [P]. per: C / (N D), 6 without attention.
    unique: the different tokens there are, of data_constrained; None is as many as are trained on.

    Raises: ValueError for an unknown law, one without N and D, and C or per not above 0.
    """
    rows, values, shape = _pairs(law, theta, flops, per, unique, "flops", paired)
    n, a = _solve(law, rows, values, per, unique, HALVINGS)
    d = values / (per * n)
    optima = (n, d, _loss(law, rows, n, d, unique), a)
    return Optimum(*(x.reshape(shape) for x in optima))


def loss(
    law: str,
    theta: Any,
    params: Any,
    tokens: Any,
    unique: float | None = None,
    *,
    paired: bool = False,
) -> Array:
    """The law's loss at N and D that broadcast together, for each draw of theta [..., k]: shaped as
    the draws, then as N and D; or paired, [P]. Raises: ValueError as `at`."""
    n, d = np.broadcast_arrays(np.asarray(params, float), np.asarray(tokens, float))
    rows, size, shape = _pairs(law, theta, n, 1.0, unique, "params", paired)
    _, length, _ = _pairs(law, theta, d, 1.0, unique, "tokens", paired)
    return _loss(law, rows, size, length, unique).reshape(shape)


def least(
    law: str,
    theta: Any,
    loss: Any,
    per: float = 6.0,
    unique: float | None = None,
    *,
    paired: bool = False,
) -> Array:
    """The least C at which the law's optimum reaches a loss, by bisection in log C; draws and
    losses meet as draws and C do in `at`. inf where it never does.

    Raises: ValueError as `at`; for a loss not above 0.
    """
    rows, wanted, shape = _pairs(law, theta, loss, per, unique, "loss", paired)

    def low_at(log_c: Array) -> Array:
        n, _ = _solve(law, rows, np.exp(log_c), per, unique, ROUGH)
        return _loss(law, rows, n, np.exp(log_c) / (per * n), unique)

    places = decades(2)
    reached = np.stack([low_at(np.full(len(rows), x)) <= wanted for x in places], 1)
    first = np.argmax(reached, 1)
    low, high = places[np.maximum(first - 1, 0)], places[first]
    log_c = _bisect(lambda x: low_at(x) <= wanted, low, high, HALVINGS)
    return np.where(reached.any(1), np.exp(log_c), np.inf).reshape(shape)


def _pairs(
    law: str,
    theta: Any,
    values: Any,
    per: float,
    unique: float | None,
    name: str,
    paired: bool,
) -> tuple[Array, Array, tuple[int, ...]]:
    """(theta [P,k], values [P], shape of the result): every draw with every value, or paired."""
    if law not in loss_laws.LAWS:
        raise ValueError(f"law: {law!r} is none of {', '.join(loss_laws.LAWS)}")
    names, inputs = loss_laws.LAWS[law].names, loss_laws.LAWS[law].inputs
    if not {"params", "tokens"} <= set(inputs):
        raise ValueError(f"law: {law} is of {', '.join(inputs)}; an optimum is between N and D")
    if unique is not None and ("unique" not in inputs or not unique > 0):
        raise ValueError(
            f"unique: {unique} given; of the laws data_constrained alone reads it, above 0"
        )
    theta, x = np.asarray(theta, np.float64), np.asarray(values, np.float64)
    if theta.ndim < 1 or theta.shape[-1] != len(names):
        raise ValueError(f"theta: shape {theta.shape} given; {law} has {len(names)}: {names}")
    if not (np.isfinite(x) & (x > 0)).all() or not per > 0:
        raise ValueError(f"{name}, per: {values}, {per} given; numbers above 0 are needed")
    if paired:
        if theta.shape[:-1] != x.shape or x.ndim != 1:
            raise ValueError(f"theta, {name}: {theta.shape[:-1]} and {x.shape} make no pairs")
        return theta, x, x.shape
    rows = theta.reshape(-1, theta.shape[-1])
    pairs = np.repeat(rows, x.size, 0), np.tile(x.reshape(-1), len(rows))
    return *pairs, theta.shape[:-1] + x.shape


def _loss(law: str, rows: Array, n: Array, d: Array, unique: float | None) -> Array:
    """[P] or [P, m] loss of draw i at n[i], d[i]; nan where the law has no value."""
    theta = rows.T.reshape(rows.shape[1], len(rows), *[1] * (n.ndim - 1))
    known = {"params": n, "tokens": d, "unique": d if unique is None else np.full_like(d, unique)}
    with np.errstate(all="ignore"):  # a draw may have no value far from its data
        return loss_laws.LAWS[law].predict(
            theta, tuple(known[k] for k in loss_laws.LAWS[law].inputs)
        )


def _solve(
    law: str, rows: Array, c: Array, per: float, unique: float | None, halvings: int
) -> tuple[Array, Array]:
    """(N* [P], d log N* / d log C [P]) of draw i at compute c[i]; a search's bracket is halved so
    often, and its exponent is nan where that is ROUGH."""
    if unique is None:
        closed = _closed(law, rows, c, per)
        if closed is not None:
            return closed
    out = [
        _search(law, rows[i : i + TOGETHER], np.log(c[i : i + TOGETHER] / per), unique, halvings)
        for i in range(0, len(rows), TOGETHER)
    ]
    return np.concatenate([n for n, _ in out]), np.concatenate([a for _, a in out])


def _closed(law: str, rows: Array, c: Array, per: float) -> tuple[Array, Array] | None:
    """As `_solve` where there is a formula, None where there is none."""
    with np.errstate(all="ignore"):  # of a draw without a minimum the root is nan
        if law == "kaplan":
            # d/dN of (Nc/N)^r + Dc per N / C with r = alpha_N / alpha_D
            nc, dc, alpha_n, alpha_d = rows.T
            r = alpha_n / alpha_d
            n = np.exp((np.log(r * c / (per * dc)) + r * np.log(nc)) / (r + 1))
            return np.where(r > 0, n, np.nan), np.where(r > 0, 1 / (r + 1), np.nan)
        terms = _terms(law, rows)
        if terms is None:
            return None
        a, b, alpha, beta = terms
        # alpha A N^-alpha = beta B D^-beta
        total = alpha + beta
        n = np.exp((np.log(alpha * a / (beta * b)) + beta * np.log(c / per)) / total)
        held = (alpha > 0) & (beta > 0) & (a > 0) & (b > 0)
        return np.where(held, n, np.nan), np.where(held, beta / total, np.nan)


def _terms(law: str, rows: Array) -> tuple[Array, Array, Array, Array] | None:
    """(A, B, alpha, beta), each [P], of a law that is a sum of two powers and a floor. Of
    data_constrained it is that where no token is repeated: N* is then U_N, beyond which alone
    parameters lose worth."""
    if law in ("chinchilla", "data_constrained"):
        return rows[:, 1], rows[:, 2], rows[:, 3], rows[:, 4]
    if law == "tied":
        return rows[:, 1], rows[:, 2], rows[:, 3], rows[:, 3]
    if law == "overtraining":
        eta = rows[:, 3]
        return rows[:, 1], rows[:, 2] * 6 ** (-eta / 2), eta, eta
    return None


def _search(
    law: str, rows: Array, log_nd: Array, unique: float | None, halvings: int
) -> tuple[Array, Array]:
    """As `_solve`, at log (N D): the lowest valley of PLACES, then bisection of the slope there."""
    low, high = (log_nd[:, None] - np.log(np.array(RATIOS)[::-1])).T / 2
    x = low[:, None] + (high - low)[:, None] * np.linspace(0, 1, PLACES)

    def value(log_n: Array, more: float = 0.0) -> Array:
        total = log_nd if log_n.ndim == 1 else log_nd[:, None]
        return _loss(law, rows, np.exp(log_n), np.exp(total + more - log_n), unique)

    heights = value(x)
    heights = np.where(np.isfinite(heights), heights, np.inf)
    # Farseer's law falls again where models hardly read: the loss must rise on both sides
    inner = heights[:, 1:-1]
    valley = (inner < heights[:, :-2]) & (inner <= heights[:, 2:])
    middle = np.argmin(np.where(valley, inner, np.inf), 1) + 1
    inside = valley.any(1)
    each = np.arange(len(rows))

    def root(more: float) -> Array:
        def rising(log_n: Array) -> Array:
            return value(log_n + STEP, more) >= value(log_n - STEP, more)

        return _bisect(rising, x[each, middle - 1], x[each, middle + 1], halvings)

    best = root(0.0)
    if halvings == ROUGH:
        return np.where(inside, np.exp(best), np.nan), np.full(len(rows), np.nan)
    a = (root(WIDER) - root(-WIDER)) / (2 * WIDER)
    return np.where(inside, np.exp(best), np.nan), np.where(inside, a, np.nan)


def _bisect(above: Callable[[Array], Array], low: Array, high: Array, halvings: int) -> Array:
    """Bisects for the point between low and high, each [P], where `above` becomes true."""
    for _ in range(halvings):
        middle = (low + high) / 2
        there = above(middle)
        low, high = np.where(there, low, middle), np.where(there, middle, high)
    return (low + high) / 2
