"""Laws beyond one power per input: repeated tokens, and exponents that vary with size."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

# |kappa x| below which (exp(kappa x) - 1) / kappa and its derivatives are taken as their series, of
# so many terms: the first one left out is then below 1e-16, and rounding elsewhere below 1e-14 of
# the slope.
SMALL, SERIES = 0.02, 7

# -- data-constrained


def optimal_params(theta: Sequence[Any], unique: Any) -> Any:
    """U_N: the parameters that are compute-optimal for that many different tokens.

    From dL = 0 along N D = const of E + A/N^alpha + B/D^beta: (alpha A / beta B) D^beta = N^alpha.
    Muennighoff et al. 2023, section 3.1.
    """
    _, a, b, alpha, beta = theta[:5]
    return (alpha * a / (beta * b) * unique**beta) ** (1 / alpha)


def effective(size: Any, unique: Any, decay: Any, xp: Any = np) -> Any:
    """Size worth of different tokens (or of parameters): U + U R (1 - exp(-(size/U - 1) / R)).

    Where size is below unique it is worth itself. Muennighoff et al. 2023, equation 5.
    """
    least = xp.minimum(size, unique)
    return least * (1 - decay * xp.expm1(-(size / least - 1) / decay))


def data_constrained(theta: Sequence[Any], x: Sequence[Any], xp: Any = np) -> Any:
    """Loss of N parameters on D tokens of which U are different."""
    e, a, b, alpha, beta, r_d, r_n = theta
    n, d, u = x
    n = effective(n, optimal_params(theta, xp.minimum(u, d)), r_n, xp)
    return e + a * n**-alpha + b * effective(d, u, r_d, xp) ** -beta


def data_constrained_internal(theta: np.ndarray, centre: np.ndarray) -> np.ndarray:
    """log E, log A - alpha c_N, log B - beta c_D, alpha, beta, log R_D, log R_N."""
    e, a, b, alpha, beta, r_d, r_n = np.moveaxis(np.asarray(theta, np.float64), -1, 0)
    a, b = np.log(a) - alpha * centre[0], np.log(b) - beta * centre[1]
    return np.stack([np.log(e), a, b, alpha, beta, np.log(r_d), np.log(r_n)], -1)


def data_constrained_natural(phi: np.ndarray, centre: np.ndarray) -> np.ndarray:
    """The inverse of `data_constrained_internal`."""
    e, a, b, alpha, beta, r_d, r_n = np.moveaxis(phi, -1, 0)
    a, b = np.exp(a + alpha * centre[0]), np.exp(b + beta * centre[1])
    return np.stack([np.exp(e), a, b, alpha, beta, np.exp(r_d), np.exp(r_n)], -1)


def data_constrained_model(phi: Any, logs: Any, centre: Any) -> Any:
    """Log loss [n] of internal parameters."""
    import jax.numpy as jnp

    e, a, b, alpha, beta, r_d, r_n = phi
    n, d, u = logs
    unique = jnp.minimum(u, d)
    # log of `optimal_params`, with a and b at the centre
    best = jnp.log(alpha / beta) + a + alpha * centre[0] - b - beta * centre[1] + beta * unique
    x = _worth(n, jnp.minimum(n, best / alpha), jnp.exp(r_n)) - centre[0]
    z = _worth(d, unique, jnp.exp(r_d)) - centre[1]
    return jnp.log(jnp.exp(a - alpha * x) + jnp.exp(b - beta * z) + jnp.exp(e))


def _worth(size: Any, least: Any, decay: Any) -> Any:
    """log of `effective`, of logarithms with least <= size."""
    import jax.numpy as jnp

    return least + jnp.log1p(-decay * jnp.expm1(-jnp.expm1(size - least) / decay))


# -- Farseer


def farseer(theta: Sequence[Any], x: Sequence[Any], xp: Any = np) -> Any:
    """Loss of N parameters and D tokens, every part of it a stretched exponential of N."""
    a1, b1, alpha, a2, b2, beta, a3, b3, gamma = theta
    n, d = x
    power = xp.exp(a1 * n**alpha + b1)
    return xp.exp(a3 * n**gamma + b3) + xp.exp(a2 * n**beta + b2 - power * xp.log(d))


def farseer_internal(theta: np.ndarray, centre: np.ndarray) -> np.ndarray:
    """(slope, level, exponent) of each part's logarithm in log N at the centre, nine in all.

    a N^kappa + b = level + slope ((N/N_c)^kappa - 1) / kappa, which is a line in log N at kappa 0,
    where a and b diverge. The second part is taken at the centre's D as well.
    """
    t = np.asarray(theta, np.float64)
    a, b, kappa = t[..., 0::3], t[..., 1::3], t[..., 2::3]
    slope = a * kappa * np.exp(kappa * centre[0])
    level = a * np.exp(kappa * centre[0]) + b
    with np.errstate(over="ignore"):
        power = np.exp(level[..., 0])
    slope[..., 1] -= power * slope[..., 0] * centre[1]
    level[..., 1] -= power * centre[1]
    return np.stack([slope, level, kappa], -1).reshape(t.shape)


def farseer_natural(phi: np.ndarray, centre: np.ndarray) -> np.ndarray:
    """The inverse of `farseer_internal`; an exponent of 0 has none, and is moved by 1e-9."""
    phi = np.asarray(phi, np.float64)
    slope, level, kappa = (phi[..., i::3].copy() for i in range(3))
    with np.errstate(over="ignore"):  # of parameters far from any fit, which are no start then
        power = np.exp(level[..., 0])
    slope[..., 1] += power * slope[..., 0] * centre[1]
    level[..., 1] += power * centre[1]
    kappa = np.where(np.abs(kappa) < 1e-9, 1e-9, kappa)
    a = slope / kappa * np.exp(-kappa * centre[0])
    return np.stack([a, level - slope / kappa, kappa], -1).reshape(phi.shape)


def farseer_model(phi: Any, logs: Any, centre: Any) -> Any:
    """Log loss [n] of internal parameters."""
    import jax.numpy as jnp

    s1, l1, k1, s2, l2, k2, s3, l3, k3 = phi
    x = logs[0] - centre[0]
    power = jnp.exp(l1 + s1 * _stretched(x, k1))
    start = jnp.exp(l1)
    tokens = l2 + (s2 + start * s1 * centre[1]) * _stretched(x, k2) + start * centre[1]
    return jnp.log(jnp.exp(l3 + s3 * _stretched(x, k3)) + jnp.exp(tokens - power * logs[1]))


def farseer_derivatives(
    phi: np.ndarray, logs: np.ndarray, centre: np.ndarray
) -> tuple[np.ndarray, Callable]:
    """(log loss [S,n], more) of phi [S,9], for `slopes.by_derivatives`.

    The log loss is log(exp(P) + exp(Q)) with P of the third part, Q of the first two, p and q their
    shares: its slope is p dP + q dQ, its second derivative p d2P + q d2Q + p q d d^T, d = dQ - dP.
    """
    s1, l1, k1, s2, l2, k2, s3, l3, k3 = phi.T[:, :, None]
    x, z = logs[0] - centre[0], logs[1]
    powers = _Powers(x, phi.T[2::3, :, None])
    f1, f2, f3 = powers.value
    start = np.exp(l1)
    fall = np.exp(l1 + s1 * f1) * z  # the power of D, times log D
    level, tilt = start * centre[1], s2 + start * centre[1] * s1
    logarithm, other, share = _log_sum(l3 + s3 * f3, l2 + tilt * f2 + level - fall)

    def more(rows: slice | np.ndarray) -> tuple[np.ndarray, Callable]:
        shared = (s1, s3, level, tilt, fall, f1, f2, f3, share, other)
        return _farseer_slopes(*(a[rows] for a in shared), *powers.derivatives(rows))

    return logarithm, more


def _farseer_slopes(
    s1: np.ndarray,
    s3: np.ndarray,
    level: np.ndarray,
    tilt: np.ndarray,
    fall: np.ndarray,
    f1: np.ndarray,
    f2: np.ndarray,
    f3: np.ndarray,
    share: np.ndarray,
    other: np.ndarray,
    first: np.ndarray,
    second: np.ndarray,
) -> tuple[np.ndarray, Callable]:
    """(slope [R,9,n], curvature) by what `farseer_derivatives` has of R problems; first and second
    [3,R,n] are the derivatives of the f by their exponents."""
    (g1, g2, g3), (h1, h2, h3) = first, second
    by_s1, by_l1 = level * f2 - fall * f1, level * s1 * f2 + level - fall
    # dQ, then -dP
    apart = np.empty((len(s1), 9, f1.shape[1]))
    apart[:, 0], apart[:, 1], apart[:, 2] = by_s1, by_l1, -fall * s1 * g1
    apart[:, 3], apart[:, 4], apart[:, 5] = f2, 1.0, tilt * g2
    apart[:, 6], apart[:, 7], apart[:, 8] = -f3, -1.0, -s3 * g3
    slope = np.empty_like(apart)
    np.multiply(apart[:, :6], share[:, None], out=slope[:, :6])
    np.multiply(apart[:, 6:], -other[:, None], out=slope[:, 6:])

    def curvature(u: np.ndarray) -> np.ndarray:
        """[R,9,9] sum over points of u [R,n] times the second derivatives."""
        uq, up = u * share, u * other
        steep = uq * fall
        by_f1, by_g1 = steep * f1, steep * g1

        # of numbers for each problem
        s, tilted, third, start = s1[:, 0], tilt[:, 0], s3[:, 0], level[:, 0]
        all_g1, all_g2 = by_g1.sum(1), _total(uq, g2)
        # (i, j): the second derivative of Q, or of P from the seventh parameter on
        bend = {
            (0, 0): -_total(by_f1, f1),
            (0, 1): _total(uq, by_s1),
            (0, 2): -all_g1 - s * _total(by_g1, f1),
            (0, 5): start * all_g2,
            (1, 1): _total(uq, by_l1),
            (1, 2): -s * all_g1,
            (1, 5): start * s * all_g2,
            (2, 2): -s * _total(steep, h1) - s**2 * _total(by_g1, g1),
            (3, 5): all_g2,
            (5, 5): tilted * _total(uq, h2),
            (6, 8): _total(up, g3),
            (8, 8): third * _total(up, h3),
        }
        out = (apart * (uq * other)[:, None]) @ apart.transpose(0, 2, 1)
        for (i, j), value in bend.items():
            out[:, i, j] += value
            if i != j:
                out[:, j, i] += value
        return out

    return slope, curvature


def _total(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """[R] the sums over points of a b, [R,n] each."""
    return np.einsum("sn,sn->s", a, b)


def kaplan_derivatives(
    phi: np.ndarray, logs: np.ndarray, centre: np.ndarray
) -> tuple[np.ndarray, Callable]:
    """(log loss [S,n], more) of phi [S,4], for `slopes.by_derivatives`.

    The log loss is r l with l = log(exp(P) + exp(Q)), P = (log Nc - log N) alpha_N / r,
    Q = log Dc - log D and r = alpha_D.
    """
    nc, dc, all_powers, all_r = phi.T[:, :, None]
    every_v = nc - (logs[0] - centre[0])
    every_first = every_v * all_powers / all_r
    every_sum, every_p, every_q = _log_sum(every_first, dc - (logs[1] - centre[1]))

    def more(rows: slice | np.ndarray) -> tuple[np.ndarray, Callable]:
        v, first, both, p, q, power, r = (
            a[rows] for a in (every_v, every_first, every_sum, every_p, every_q, all_powers, all_r)
        )
        apart, slope = np.empty((2, len(v), 4, v.shape[1]))  # apart: dP - dQ
        apart[:, 0], apart[:, 1], apart[:, 2], apart[:, 3] = power / r, -1.0, v / r, -first / r
        slope[:, 0], slope[:, 1] = p * power, r * q
        slope[:, 2], slope[:, 3] = p * v, both - p * first

        def curvature(u: np.ndarray) -> np.ndarray:
            """[R,4,4] sum over points of u [R,n] times the second derivatives."""
            uq, up = u * q, u * p
            # d2(r l) = r (p q d d^T + p d2P) + e_r dl^T + dl e_r^T; terms p dP / r cancel in part
            out = (apart * (up * q * r)[:, None]) @ apart.transpose(0, 2, 1)
            for i, j, total in ((0, 2, up.sum(1)), (1, 3, uq.sum(1))):
                out[:, i, j] += total
                out[:, j, i] += total
            return out

        return slope, curvature

    return all_r * every_sum, more


def power_derivatives(
    phi: np.ndarray, logs: np.ndarray, centre: np.ndarray
) -> tuple[np.ndarray, Callable]:
    """(log loss [S,n], more) of (log c, alpha) [S,2]: alpha (log c - x)."""
    c, alpha = phi.T[:, :, None]
    apart = c - (logs[0] - centre[0])

    def more(rows: slice | np.ndarray) -> tuple[np.ndarray, Callable]:
        own = apart[rows]
        slope = np.stack([np.broadcast_to(alpha[rows], own.shape), own], 1)
        return slope, lambda u: u.sum(1)[:, None, None] * (1 - np.eye(2))

    return alpha * apart, more


def _log_sum(p: np.ndarray, q: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(log(exp(p) + exp(q)), the share of exp(p), of exp(q))."""
    gap = p - q
    less = np.exp(-np.abs(gap))
    more = 1 / (1 + less)
    share = np.where(gap > 0, more, less * more)
    return np.maximum(p, q) - np.log(more), share, 1 - share


def _stretched(x: Any, kappa: Any) -> Any:
    """(exp(kappa x) - 1) / kappa of jnp, and x at kappa 0."""
    import jax.numpy as jnp

    t = kappa * x
    small = jnp.abs(t) < SMALL
    safe = jnp.where(small, 1.0, t)
    return x * jnp.where(small, _series(t, 0), jnp.expm1(safe) / safe)


class _Powers:
    """(exp(kappa x) - 1) / kappa of x [S,n] and kappa [3,S,1], and its derivatives by kappa."""

    def __init__(self, x: np.ndarray, kappa: np.ndarray) -> None:
        t = kappa * x
        t += (t == 0) * 1e-300
        self.x, self.t, self.less = x, t, np.expm1(t)
        # of x f(t), x^2 f'(t), x^3 f''(t) with f = (exp(t) - 1) / t
        self.f = self.less / t
        self.value = self.f * x

    def derivatives(self, rows: slice | np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(first, second) [3,R,n] of some of the S."""
        t, f = self.t[:, rows], self.f[:, rows]
        x = self.x[rows]
        power, square = self.less[:, rows] + 1, x * x
        first = (power - f) / t
        second = (power - 2 * first) / t
        # close to 0 the differences are rounding
        small = np.flatnonzero(np.abs(t) < SMALL)
        near = t.ravel()[small]
        first.ravel()[small] = _series(near, 1)
        second.ravel()[small] = _series(near, 2)
        first *= square
        second *= square * x
        return first, second


def _series(t: Any, order: int) -> Any:
    """The order-th derivative of (exp(t) - 1) / t by its power series, for |t| below SMALL."""
    terms = [math.perm(j + order, order) / math.factorial(j + order + 1) for j in range(SERIES)]
    total = terms[-1]
    for term in terms[-2::-1]:
        total = total * t + term
    return total
