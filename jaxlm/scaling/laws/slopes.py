"""A law's objective with its gradient and Hessian, for many parameter vectors at a time, in NumPy.

The objective is the sum over points of w Huber_delta(y - m(phi)), with y the log of the loss and m
of the law's value, or both as they are. `of_three_terms` and `by_derivatives` are for laws whose
derivatives are written out, as `of_exponentials` does for sums of powers; differentiate.py is for
all others.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

Array = np.ndarray
# A law's derivatives in closed form: terms of `of_three_terms`, or a function of `by_derivatives`.
Closed = tuple[tuple[float, ...], ...] | Callable | None


class Points(NamedTuple):
    """The points of S problems, and what all share."""

    logs: Array  # [inputs,S,n] logarithms of the law's inputs
    centre: Array  # [inputs,S,1] where the law's internal parameters have their origin
    delta: float  # Huber's; inf is least squares
    log: float  # 1: residuals of the logarithm; 0: of the loss itself


# [R] indices of problems, or all of them
Rows = Array | slice


class Slopes(NamedTuple):
    """R problems' derivatives of the objective."""

    gradient: Array  # [R,k]
    hessian: Array  # [R,k,k] exact
    bound: Array  # [R,k,k] of the reweighted least squares that bounds Huber's loss


class Trial(NamedTuple):
    """S problems' objectives, and what Newton needs where a step is kept."""

    value: Array  # [S]
    slopes: Callable[[Rows], Slopes]  # of some of the problems


Evaluate = Callable[[Array, Array, Array, Points], Trial]


def huber(residual: Array, delta: float) -> tuple[Array, Array]:
    """(loss, clipped residual = its derivative), any shape; delta inf is half the square."""
    inside = np.clip(residual, -delta, delta)
    return inside * (residual - inside / 2), inside


def _bound(residual: Array, delta: float) -> Array:
    """Weights of the least squares that is above Huber's loss and touches it at the residual."""
    if np.isinf(delta):
        return np.ones_like(residual)
    return np.minimum(1.0, delta / np.maximum(np.abs(residual), 1e-300))


def by_derivatives(derivatives: Callable, phi: Array, y: Array, w: Array, at: Points) -> Trial:
    """The Trial of a law whose log loss has its derivatives in closed form; phi [S,k], y, w [S,n].

    derivatives(phi [S,k], logs [inputs,S,n], centre [inputs,S,1]) -> (log loss m [S,n], more),
    more(rows) -> (dm/dphi [R,k,n], curvature), and curvature(u [R,n]) -> [R,k,k], the sum over
    points of u times the second derivatives of m.
    """
    logarithm, more = derivatives(phi, at.logs, at.centre)
    # dL = L dm and d2L = L (d2m + dm dm^T), where residuals are of the loss itself
    value = logarithm if at.log > 0 else np.exp(logarithm)
    r = y - value
    rho, psi = huber(r, at.delta)

    def slopes(rows: Rows) -> Slopes:
        slope, curvature = more(rows)
        weight, near = w[rows], np.abs(r[rows]) <= at.delta
        u, q, bound = weight * psi[rows], weight * near, weight * _bound(r[rows], at.delta)
        if not at.log > 0:
            u *= value[rows]
            q, bound = q * value[rows] ** 2 - u, bound * value[rows] ** 2
        across, part = slope.transpose(0, 2, 1), slope * q[:, None]
        hessian = part @ across - curvature(u)
        np.multiply(slope, bound[:, None], out=part)
        return Slopes(-(slope @ u[:, :, None])[:, :, 0], hessian, part @ across)

    return Trial(np.vecdot(w, rho), slopes)


def of_exponentials(
    exponents: Array, owner: Array, jacobian: Callable[[Rows], Array]
) -> tuple[Array, Callable]:
    """(m [S,n], more) for `by_derivatives` of m = log sum_t exp(exponents [T,S,n]).

    Parameter i moves the exponent owner[i] alone, and linearly: by jacobian(rows) [R,k,n]. With p
    the exponentials' shares the slope is s = sum p_t g_t, the second derivative
    sum p_t g_t g_t^T - s s^T.
    """
    most = exponents.max(0)
    shares = np.exp(exponents - most)
    total = shares.sum(0)
    shares /= total
    together = owner[:, None] == owner

    def more(rows: Rows) -> tuple[Array, Callable]:
        moves = jacobian(rows)
        slope = shares[:, rows][owner].transpose(1, 0, 2) * moves

        def curvature(u: Array) -> Array:
            part = slope * u[:, None]
            across = part @ moves.transpose(0, 2, 1)
            return across * together - part @ slope.transpose(0, 2, 1)

        return slope, curvature

    return most + np.log(total), more


def of_three_terms(
    terms: tuple[tuple[float, ...], ...], phi: Array, y: Array, w: Array, at: Points
) -> Trial:
    """The Trial of E + A/N^alpha + B/D^beta in closed form; phi [S,k], y and w [S,n].

    terms [5,k] takes phi to (log E, log A, log B, alpha, beta) at the centre; where the row of
    log B is 0 the law has no such term, and one input. With p the terms'
    shares of the loss and g = (p3, p1, p2, -p1 x, -p2 z) for x, z the centred log N, log D, every
    sum over points is one of few coefficients [S,n] against 1, x, z, x^2, z^2, xz: one product of
    matrices.
    """
    e, a, b, alpha, beta = (phi @ np.array(terms).T).T[:, :, None]
    inputs = at.logs - at.centre
    x, z = inputs[0], inputs[-1]
    p1 = np.exp(a - e - alpha * x)
    p2 = np.exp(b - e - beta * z) if any(terms[2]) else np.zeros_like(p1)
    total = 1 + p1 + p2
    logarithm = e + np.log(total)
    value = logarithm if at.log > 0 else np.exp(logarithm)
    r = y - value
    rho, psi = huber(r, at.delta)
    k = phi.shape[1]

    def slopes(rows: Rows) -> Slopes:
        # shares of the logarithm's slope, or the terms themselves as slopes of the loss
        unit = (1.0 if at.log > 0 else value[rows]) / total[rows]
        p = (p1[rows] * unit, p2[rows] * unit, unit)
        near, weight = np.abs(r[rows]) <= at.delta, w[rows]
        u, q, bound = weight * psi[rows], weight * near, weight * _bound(r[rows], at.delta)
        if at.log > 0:
            q = q + u
        parts, features = np.empty((len(u), 15, u.shape[1])), np.empty((len(u), 6, u.shape[1]))
        for i in range(3):
            np.multiply(u, p[i], out=parts[:, i])
        for place, (i, j) in enumerate(PAIRS):
            both = p[i] * p[j]
            np.multiply(q, both, out=parts[:, 3 + place])
            if i == j:
                parts[:, 3 + place] -= parts[:, i]
            np.multiply(bound, both, out=parts[:, 9 + place])
        own, other = x[rows], z[rows]
        for place, values in enumerate((1.0, own, other, own * own, other * other, own * other)):
            features[:, place] = values
        flat = parts @ features.transpose(0, 2, 1)
        flat = flat.reshape(len(u), 90) @ _assembly(terms)
        gradient, hessian, bound = np.split(flat, (k, k + k * k), 1)
        return Slopes(gradient, hessian.reshape(-1, k, k), bound.reshape(-1, k, k))

    return Trial(np.vecdot(w, rho), slopes)


# For log E, log A, log B, alpha and beta: which term's share the slope has, times -1 to a power,
# times log N and log D to powers. d(loss)/d(alpha) = -A/N^alpha log N.
PARTS = ((2, 0, (0, 0)), (0, 0, (0, 0)), (1, 0, (0, 0)), (0, 1, (1, 0)), (1, 1, (0, 1)))
PAIRS = ((0, 0), (0, 1), (0, 2), (1, 1), (1, 2), (2, 2))
FEATURES = ((0, 0), (1, 0), (0, 1), (2, 0), (0, 2), (1, 1))


@functools.cache
def _assembly(terms: tuple[tuple[float, ...], ...]) -> Array:
    """[90, k + 2 k^2]: from sums of 15 coefficients by 6 features to gradient, Hessian, bound."""
    t = np.array(terms)
    gradient, hessian = np.zeros((15, 6, 5)), np.zeros((2, 15, 6, 5, 5))
    for i, (share, sign, power) in enumerate(PARTS):
        gradient[share, FEATURES.index(power), i] = -((-1) ** sign)
        for j, (other, turn, exponent) in enumerate(PARTS):
            pair = PAIRS.index((min(share, other), max(share, other)))
            feature = FEATURES.index((power[0] + exponent[0], power[1] + exponent[1]))
            for kind, first in enumerate((3, 9)):
                hessian[kind, first + pair, feature, i, j] = (-1) ** (sign + turn)
    hessian, bound = np.einsum("ai,mcfab,bj->mcfij", t, hessian, t)
    return np.concatenate([part.reshape(90, -1) for part in (gradient @ t, hessian, bound)], 1)
