"""The exact solver of every law: damped Newton on Huber's loss, many problems at a time.

Minimised is sum over points of w Huber_delta(y - m(phi)), with y the log of the loss and m of the
law's value (Hoffmann et al. 2022, equation 3), or both as they are. With delta far below the
residuals this is nearly least absolute deviations: only points within delta curve it, so that
Gauss-Newton and L-BFGS stop before the optimum and the exact Hessian is needed, in float64.

A block of problems (starts, bootstrap replicates, points of a profile) shares one compiled
program and the inputs; the number of points is rounded up to few sizes with weight 0, so that
subsets and bootstraps of one study compile once.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

# Problems in one run of the compiled program: 32 x 256 float64 is 64 KiB, within a core's cache;
# differentiated ones have k times as much.
BLOCK, DIFFERENTIATED = 32, 16
# Newton steps before what has not arrived is gathered into fewer blocks, again and again; then it
# is taken through wider deltas, from WIDEST down tenfold with WIDER steps at each: where few points
# are within delta the objective is nearly piecewise linear, and steps from afar end at the next
# kink. At last LAST steps.
ROUNDS, WIDEST, WIDER, LAST = (8, 8, 8, 8, 8, 8, 16, 32, 64), 0.1, 100, 150
LEAST = 64  # points of the smallest program
# A problem has arrived when Newton promises less than this share of its objective.
ARRIVED = 1e-14
# So has one that AGAIN more steps lower by less than this share: at a kink, or at the rounding of
# the objective, Newton promises what no step keeps.
STALLED, AGAIN = 1e-8, 32
# Levenberg-Marquardt: damping at the start, and its factors after a step that lowered the
# objective and after one that did not.
DAMPING, EASIER, HARDER = 1e-2, 0.15, 5.0


# A law's derivatives in closed form: terms of `of_three_terms`, or a function of `by_derivatives`.
Closed = tuple[tuple[float, ...], ...] | Callable | None


class Solved(NamedTuple):
    """P problems' optima, float64 NumPy."""

    phi: np.ndarray  # [P,k] internal parameters
    objective: np.ndarray  # [P] the sum of Huber losses
    gradient: np.ndarray  # [P] largest absolute derivative by a free internal parameter
    arrived: np.ndarray  # [P] bool: Newton promises less than ARRIVED of the objective, or stalled
    steps: np.ndarray  # [P] int, steps of the problem's block


class Points(NamedTuple):
    """What a block of problems shares. Arrays of the compiled program."""

    logs: jax.Array  # [inputs,n] logarithms of the law's inputs
    centre: jax.Array  # [inputs] where the law's internal parameters have their origin
    free: jax.Array  # [k] 1 for a parameter that is fitted, 0 for one held
    delta: jax.Array  # [] Huber's; inf is least squares
    log: jax.Array  # [] 1: residuals of the logarithm; 0: of the loss itself


class Slopes(NamedTuple):
    """S problems' objectives and what Newton needs."""

    value: jax.Array  # [S]
    gradient: jax.Array  # [S,k]
    hessian: jax.Array  # [S,k,k] exact
    bound: jax.Array  # [S,k,k] of the reweighted least squares that bounds Huber's loss


def huber(residual: jax.Array, delta: jax.Array) -> tuple[jax.Array, jax.Array]:
    """(loss, clipped residual = its derivative), any shape; delta inf is half the square."""
    inside = jnp.clip(residual, -delta, delta)
    return inside * (residual - inside / 2), inside


def by_differentiation(
    model: Callable, phi: jax.Array, y: jax.Array, w: jax.Array, at: Points
) -> Slopes:
    """Slopes of any law by automatic differentiation; phi [S,k], y and w [S,n]."""

    def value(p):
        log_loss = model(p, at.logs, at.centre)
        return jnp.where(at.log > 0, log_loss, jnp.exp(log_loss))

    def one(p, y, w):
        def total(p):
            r = y - value(p)
            return (w * huber(r, at.delta)[0]).sum(), r

        def slope(p):
            gradient, r = jax.grad(total, has_aux=True)(p)
            return gradient, (gradient, r)

        hessian, (gradient, r) = jax.jacfwd(slope, has_aux=True)(p)
        slope = jax.jacfwd(value)(p)
        bound = slope.T @ ((w * _bound(r, at.delta))[:, None] * slope)
        return Slopes((w * huber(r, at.delta)[0]).sum(), gradient, hessian, bound)

    return jax.vmap(one)(phi, y, w)


def by_derivatives(
    derivatives: Callable, phi: jax.Array, y: jax.Array, w: jax.Array, at: Points
) -> Slopes:
    """Slopes of a law whose log loss has its derivatives in closed form; phi [S,k], y, w [S,n].

    derivatives(phi [S,k], logs, centre) -> (log loss m [S,n], dm/dphi [S,k,n], curvature), and
    curvature(u [S,n]) -> [S,k,k], the sum over points of u times the second derivatives of m.
    """
    logarithm, slope, curvature = derivatives(phi, at.logs, at.centre)
    loss = jnp.exp(logarithm)
    # dL = L dm and d2L = L (d2m + dm dm^T), where residuals are of the loss itself
    unit = jnp.where(at.log > 0, 1.0, loss)
    r = y - jnp.where(at.log > 0, logarithm, loss)
    rho, psi = huber(r, at.delta)
    u = w * psi * unit
    q = w * (jnp.abs(r) <= at.delta) * unit**2 - (1 - at.log) * u
    bound = w * _bound(r, at.delta) * unit**2
    k = slope.shape[1]
    weighed = [slope * q[:, None], slope * bound[:, None], u[:, None]]
    sums = jnp.einsum("sin,sjn->sij", jnp.concatenate(weighed, 1), slope)
    hessian, bound, gradient = jnp.split(sums, (k, 2 * k), 1)
    return Slopes((w * rho).sum(1), -gradient[:, 0], hessian - curvature(u), bound)


def _bound(residual, delta):
    """Weights of the least squares that lies above Huber's loss and touches it at the residual."""
    return jnp.minimum(1.0, delta / jnp.maximum(jnp.abs(residual), 1e-300))


def of_three_terms(
    terms: tuple[tuple[float, ...], ...], phi: jax.Array, y: jax.Array, w: jax.Array, at: Points
) -> Slopes:
    """Slopes of E + A/N^alpha + B/D^beta in closed form; phi [S,k], y and w [S,n].

    terms [5,k] takes phi to (log E, log A, log B, alpha, beta) at the centre; where the row of
    log B is 0 the law has no such term, and one input. With p the terms'
    shares of the loss and g = (p3, p1, p2, -p1 x, -p2 z) for x, z the centred log N, log D, every
    sum over points is one of few coefficients [S,n] against 1, x, z, x^2, z^2, xz, which all
    problems share: one product of matrices.
    """
    e, a, b, alpha, beta = (phi @ jnp.array(terms).T).T[:, :, None]
    inputs = at.logs - at.centre[:, None]
    x, z = inputs[0], inputs[-1]
    p1, p2 = jnp.exp(a - alpha * x - e), any(terms[2]) * jnp.exp(b - beta * z - e)
    total = 1 + p1 + p2
    logarithm = e + jnp.log(total)
    loss = jnp.exp(logarithm)
    # shares of the logarithm's slope, or the terms themselves as slopes of the loss
    unit = jnp.where(at.log > 0, 1.0, loss) / total
    p = (p1 * unit, p2 * unit, unit)
    r = y - jnp.where(at.log > 0, logarithm, loss)
    rho, psi = huber(r, at.delta)
    u, bound = w * psi, w * _bound(r, at.delta)
    q = w * (jnp.abs(r) <= at.delta) + at.log * u
    coefficients = (
        *(u * p[i] for i in range(3)),
        *(q * p[i] * p[j] - (u * p[i] if i == j else 0) for i, j in PAIRS),
        *(bound * p[i] * p[j] for i, j in PAIRS),
    )
    features = jnp.stack([x**i * z**j for i, j in FEATURES])
    sums = jnp.einsum("csn,fn->scf", jnp.stack(coefficients), features)
    k = phi.shape[1]
    sums = sums.reshape(len(phi), -1) @ jnp.array(_assembly(terms))
    gradient, hessian, bound = jnp.split(sums, (k, k + k * k), 1)
    matrix = (-1, k, k)
    return Slopes((w * rho).sum(1), gradient, hessian.reshape(matrix), bound.reshape(matrix))


# Of log E, log A, log B, alpha and beta: which term's share the slope has, times -1 to a power,
# times log N and log D to powers. d(loss)/d(alpha) = -A/N^alpha log N.
PARTS = ((2, 0, (0, 0)), (0, 0, (0, 0)), (1, 0, (0, 0)), (0, 1, (1, 0)), (1, 1, (0, 1)))
PAIRS = ((0, 0), (0, 1), (0, 2), (1, 1), (1, 2), (2, 2))
FEATURES = ((0, 0), (1, 0), (0, 1), (2, 0), (0, 2), (1, 1))


def _assembly(terms: tuple[tuple[float, ...], ...]) -> np.ndarray:
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


def _newton(s: Slopes, damping, free) -> tuple[jax.Array, jax.Array, jax.Array]:
    """(step [S,k], solvable [S], by the exact Hessian [S]) of the damped Newton system.

    Where the Hessian is not positive definite, the reweighted least squares is added to it, and
    alone where the sum is not either: at a saddle, such as an exponent of a term that is still 0,
    damping enough to make it so would hold every other parameter too.
    """
    exact, fine = _eliminate(s.hessian, s, damping, free)
    bent, second = _eliminate(s.hessian + s.bound, s, damping, free)
    last, third = _eliminate(s.bound, s, damping, free)
    step = jnp.where(fine[:, None], exact, jnp.where(second[:, None], bent, last))
    return step, fine | second | third, fine


def _eliminate(matrix, s: Slopes, damping, free) -> tuple[jax.Array, jax.Array]:
    """(step [S,k], positive definite [S]) of a damped matrix [S,k,k], by elimination.

    A loop and no LAPACK, since the matrices are small and many; a symmetric matrix is positive
    definite if all pivots are positive, and needs no exchange of rows then.
    """
    k = len(free)
    scale = jnp.diagonal(s.bound, axis1=1, axis2=2)
    scale = scale + 1e-12 * scale.max(1, keepdims=True)
    held = jnp.eye(k) * (damping[:, None] * scale * free + 1 - free)[:, None]
    system = matrix * jnp.outer(free, free) + held
    system = jnp.concatenate([system, -(s.gradient * free)[:, :, None]], 2)

    def eliminate(i, carry):
        system, fine = carry
        row = jax.lax.dynamic_index_in_dim(system, i, 1)
        column = jax.lax.dynamic_index_in_dim(system, i, 2)
        pivot = jax.lax.dynamic_index_in_dim(row, i, 2)
        good = pivot > 0
        row /= jnp.where(good, pivot, 1.0)
        here = (jnp.arange(k) == i)[None, :, None]
        return jnp.where(here, row, system - column * row), fine & good[:, 0, 0]

    system, fine = jax.lax.fori_loop(0, k, eliminate, (system, jnp.ones(len(system), bool)))
    return system[:, :, k], fine


def derived(model: Callable, closed: Closed) -> Callable[..., Slopes]:
    """(phi [S,k], y, w [S,n], at) -> Slopes of a law, in closed form where it has one."""
    if closed is None:
        return functools.partial(by_differentiation, model)
    if callable(closed):
        return functools.partial(by_derivatives, closed)
    return functools.partial(of_three_terms, closed)


@functools.partial(jax.jit, static_argnames=("model", "closed"))
def _block(model, closed, phi, damping, y, w, at: Points, limit):
    """(phi, damping, objective, gradient, arrived, steps) of one block, each [S, ...]."""
    slopes = derived(model, closed)

    def go_on(state):
        return (state[0] < limit) & ~state[4].all()

    def step(state):
        i, phi, damping, s, arrived, move, solvable = state
        new = slopes(phi + move, y, w, at)
        better = solvable & (new.value <= s.value) & jnp.isfinite(new.hessian).all((1, 2))
        keep = better & ~arrived
        phi = jnp.where(keep[:, None], phi + move, phi)
        s = jax.tree.map(
            lambda new, old: jnp.where(keep.reshape(-1, *(1,) * (new.ndim - 1)), new, old), new, s
        )
        damping = jnp.where(better, damping * EASIER, jnp.minimum(damping * HARDER, 1e12))
        move, solvable, exact = _newton(s, damping, at.free)
        promised = -(move * s.gradient).sum(1)
        enough = promised <= ARRIVED * s.value + 1e-28 * w.sum(1)
        arrived |= exact & enough & (damping <= 1) & jnp.isfinite(s.value)
        # a step is kept short: exponents and logarithms far outside overflow
        move *= jnp.minimum(1.0, 4.0 / jnp.maximum(jnp.abs(move).max(1, keepdims=True), 1e-300))
        return i + 1, phi, damping, s, arrived, move, solvable

    many, k = phi.shape
    none = Slopes(
        jnp.full(many, jnp.inf),
        jnp.zeros((many, k)),
        *(jnp.tile(jnp.eye(k), (many, 1, 1)) for _ in range(2)),
    )
    state = (
        0,
        phi,
        damping,
        none,
        jnp.zeros(many, bool),
        jnp.zeros((many, k)),
        jnp.ones(many, bool),
    )
    steps, phi, damping, s, arrived, *_ = jax.lax.while_loop(go_on, step, state)
    return phi, damping, s.value, jnp.abs(s.gradient * at.free).max(1), arrived, steps


def rounded(n: int) -> int:
    """The least power of 2 from LEAST on that is at least n: few sizes to trace and compile, which
    costs more than points of weight 0."""
    return max(LEAST, 1 << (n - 1).bit_length())


def minimise(
    model: Callable,
    closed: Closed,
    start: np.ndarray,
    y: np.ndarray,
    weights: np.ndarray,
    logs: np.ndarray,
    centre: np.ndarray,
    free: np.ndarray,
    delta: float,
    log: bool,
) -> Solved:
    """P problems solved from their starts [P,k].

    model(phi [k], logs, centre) -> log loss [n] of jnp; closed: the terms of `of_three_terms`, the
    derivatives of `by_derivatives`, or None where there are only automatic ones.
    y [P,n] or [n] log loss (log=False: loss); weights [P,n] or [n]; logs [inputs,n] shared; free
    [k] bool. Parameters that are not free stay at the start's value.
    """
    p, n = len(start), y.shape[-1]
    size = rounded(n)

    def padded(a):
        return np.pad(a, [(0, 0)] * (a.ndim - 1) + [(0, size - n)], "edge")

    y = np.broadcast_to(padded(np.asarray(y, np.float64)), (p, size))
    weights = np.broadcast_to(np.asarray(weights, np.float64), (p, n))
    weights = np.pad(weights, [(0, 0), (0, size - n)])
    out = Solved(
        np.array(start, np.float64),
        *(np.full(p, np.nan) for _ in range(2)),
        np.zeros(p, bool),
        np.zeros(p, np.int64),
    )
    with jax.enable_x64(True):
        shared = (padded(logs), centre, free)
        shared = tuple(jnp.array(np.asarray(a, np.float64)) for a in shared)
        problems = _Problems(model, closed, y, weights, out, np.full(p, DAMPING))

        def run(todo, width, limit):
            at = Points(*shared, jnp.array(float(width)), jnp.array(float(log)))
            _blocks(problems, todo, at, limit)

        for limit in ROUNDS:
            run(np.flatnonzero(~out.arrived), delta, limit)
        lost = np.flatnonzero(~out.arrived)
        width = WIDEST
        while len(lost) and width > delta:
            problems.damping[lost] = DAMPING
            run(lost, width, WIDER)
            width /= 10
        problems.damping[lost] = DAMPING
        run(lost, delta, LAST)
        # what another try from the same place does not lower has arrived as far as rounding allows
        lost = lost[~out.arrived[lost]]
        before = out.objective[lost]
        problems.damping[lost] = DAMPING
        run(lost, delta, AGAIN)
        out.arrived[lost] |= before - out.objective[lost] <= STALLED * before
    return out


class _Problems(NamedTuple):
    """Problems and where they have got to: `out` and `damping` are written in place."""

    model: Callable
    closed: Closed
    y: np.ndarray  # [P,n]
    weights: np.ndarray  # [P,n]
    out: Solved
    damping: np.ndarray  # [P]


def _blocks(problems: _Problems, todo: np.ndarray, at: Points, limit: int) -> None:
    """At most `limit` steps of the problems named by index, a block at a time."""
    model, closed, y, weights, out, damping = problems
    size = BLOCK if isinstance(closed, tuple) else DIFFERENTIATED
    for i in range(0, len(todo), size):
        real = todo[i : i + size]
        block = np.resize(real, size)
        found = _block(
            model, closed, out.phi[block], damping[block], y[block], weights[block], at, limit
        )
        *found, steps = (np.asarray(a) for a in found)
        phi, damp, objective, gradient, arrived = (a[: len(real)] for a in found)
        out.phi[real], damping[real] = phi, damp
        out.objective[real], out.gradient[real] = objective, gradient
        out.arrived[real] = arrived
        out.steps[real] += steps
