"""The exact solver of every law: damped Newton on Huber's loss, many problems at a time.

The objective is the sum over points of w Huber_delta(y - m(phi)), with y the log of the loss and m
of the law's value (Hoffmann et al. 2022, eq. 3), or both as they are. With delta far below the
residuals this is nearly least absolute deviations: only points within delta curve it, so that
Gauss-Newton and L-BFGS stop before the optimum and the exact Hessian is needed, in float64.

Problems are starts, bootstrap replicates, points of a profile, cut-offs of a back-test. BLOCK of
them take a step together, and those that have converged make room for the next. Points without
weight, such as those that a replicate did not draw, are left out of the arithmetic.
"""

import functools
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxlm.scaling.laws import slopes
from jaxlm.scaling.laws.slopes import Closed, Evaluate, Points

Array = np.ndarray

# Problems that take a step together: enough that the arithmetic outweighs the calls, and few enough
# that an array of one number a point, 250 KiB at 240 points, stays within a core's cache.
BLOCK = 128
# Newton steps; what has not arrived is then taken through wider deltas, from WIDEST down tenfold
# with WIDER steps at each: where few points are within delta the objective is nearly piecewise
# linear, and steps from afar end at the next kink. At last LAST steps.
STEPS, WIDEST, WIDER, LAST = 160, 0.1, 50, 100
# A problem has arrived when Newton promises less than this share of its objective.
ARRIVED = 1e-14
# So has one that AGAIN more steps lower by less than this share: at a kink, or at the rounding of
# the objective, Newton promises what no step keeps.
STALLED, AGAIN = 1e-8, 32
# Objectives closer than this share are one optimum.
SAME = 1e-8
# Bytes of an array that a C library which has once freed as many keeps for the next (glibc's
# largest): to map the memory of every array anew takes longer than the arithmetic.
KEPT = 31 << 20
# Levenberg-Marquardt: damping at the start, and its factors after a step that lowered the
# objective and after one that did not; then it is at least ANEW, or many small steps' easing would
# take as many refusals to undo.
DAMPING, EASIER, HARDER, ANEW = 1e-2, 0.15, 5.0, 1e-6


class Solved(NamedTuple):
    """P problems' optima, float64 NumPy."""

    phi: Array  # [P,k] internal parameters
    objective: Array  # [P] the sum of Huber losses
    gradient: Array  # [P] largest absolute derivative by a free internal parameter
    arrived: Array  # [P] bool: Newton promises less than ARRIVED of the objective, or stalled
    steps: Array  # [P] int


def minimise(
    model: Callable | None,
    closed: Closed,
    start: Array,
    y: Array,
    weights: Array,
    logs: Array,
    centre: Array,
    free: Array,
    delta: float,
    log: bool,
    agree: int = 0,
    group: Array | None = None,
) -> Solved:
    """P problems solved from their starts [P,k].

    closed: the terms of `slopes.of_three_terms`, the derivatives of `slopes.by_derivatives`, or
    None where there are only the automatic ones of model(phi [k], logs, centre) -> log loss [n] of
    jnp. y [n] log loss (log=False: loss), weights [n], logs [inputs,n], centre
    [inputs] and free [k] bool are for all problems, or [P, ...] of each. Parameters that are not
    free stay at the start's value.

    agree: of the starts of a group [P], how many have to arrive at one objective, below all others,
    for those to be left where they are; 0: all go on to the end. group None: all are one.
    """
    p = len(start)
    np.empty(KEPT, np.uint8)  # freed at once, never written
    out = Solved(
        np.array(start, np.float64),
        *np.full((2, p), np.nan),
        np.zeros(p, bool),
        np.zeros(p, np.int64),
    )
    problems = _Problems(
        derived(model, closed),
        *(_each(a, p, axes) for a, axes in ((y, 1), (weights, 1), (logs, 2), (centre, 1))),
        _each(free, p, 1),
        _weighted(_each(weights, p, 1)),
        np.zeros(p, np.int64) if group is None else group,
        float(log),
        out,
        np.full(p, DAMPING),
    )
    settled = _blocks(problems, np.arange(p), delta, STEPS, agree)
    lost, width = np.flatnonzero(~out.arrived & ~np.isin(problems.group, settled)), WIDEST
    if not len(lost):
        return out
    while width > delta:
        problems.damping[lost] = DAMPING
        _blocks(problems, lost, width, WIDER)
        width /= 10
    problems.damping[lost] = DAMPING
    _blocks(problems, lost, delta, LAST)
    # what another try from the same place does not lower has arrived as far as rounding allows
    lost = lost[~out.arrived[lost]]
    before = out.objective[lost]
    problems.damping[lost] = DAMPING
    _blocks(problems, lost, delta, AGAIN)
    out.arrived[lost] |= before - out.objective[lost] <= STALLED * before
    return out


class Task(NamedTuple):
    """Problems on one table, the fields of `minimise`."""

    start: Array
    y: Array
    weights: Array
    logs: Array
    centre: Array
    free: Array


def minimise_all(
    model: Callable,
    closed: Closed,
    tasks: Sequence[Task],
    delta: float,
    log: bool,
    agree: int = 0,
) -> list[Solved]:
    """`minimise` of several tasks at once: a step of few problems takes as long as one of many.

    Tables may differ in length: the shorter ones get points without weight. agree: of each task.
    """
    counts = [len(task.start) for task in tasks]
    n = max(task.logs.shape[-1] for task in tasks)

    def joined(arrays: Iterable[Array], axes: int, mode: Any = None) -> Array:
        """[P, ...] of every problem, the last axis filled up to n where there is a mode."""
        parts = []
        for values, count in zip(arrays, counts):
            a = _each(values, count, axes)
            if mode is not None:
                a = np.pad(a, [*[(0, 0)] * axes, (0, n - a.shape[-1])], mode)
            parts.append(a)
        return np.concatenate(parts)

    start, y, weights, logs, centre, free = zip(*tasks)
    solved = minimise(
        model,
        closed,
        np.concatenate(start),
        joined(y, 1, "edge"),
        joined(weights, 1, "constant"),
        joined(logs, 2, "edge"),
        joined(centre, 1),
        joined(free, 1),
        delta,
        log,
        agree,
        np.repeat(np.arange(len(tasks)), counts),
    )
    parts = zip(*(np.split(a, np.cumsum(counts)[:-1]) for a in solved))
    return [Solved(*part) for part in parts]


def _each(values: Array, count: int, axes: int) -> Array:
    """[count, ...] values of every problem, of an array with so many axes or with one more."""
    a = np.asarray(values, np.float64)
    return np.broadcast_to(a, (count, *a.shape[-axes:]))


def _weighted(weights: Array) -> Array:
    """[P,m] indices of the points with weight of [P,n], and of as many without as make the rows
    equally long."""
    bare = weights == 0
    most = int(np.max(np.sum(~bare, 1), initial=0))
    return np.argsort(bare, axis=1, kind="stable")[:, :most]


class _Problems(NamedTuple):
    """Problems and where they have got to: `out` and `damping` are written in place."""

    evaluate: Evaluate
    y: Array  # [P,n]
    weights: Array  # [P,n]
    logs: Array  # [P,inputs,n]
    centre: Array  # [P,inputs]
    free: Array  # [P,k] 1 for a parameter that is fitted, 0 for one held
    used: Array  # [P,m] which points
    group: Array  # [P] int
    log: float
    out: Solved
    damping: Array  # [P]


class _Block(NamedTuple):
    """Problems under way, [S, ...] each; a step writes into the arrays."""

    index: Array  # [S] which problem
    y: Array  # [S,m]
    w: Array  # [S,m]
    logs: Array  # [S,inputs,m]
    centre: Array  # [S,inputs]
    free: Array  # [S,k]
    steps: Array  # [S] int
    phi: Array  # [S,k]
    damping: Array  # [S]
    move: Array  # [S,k] the step to try
    solvable: Array  # [S] bool: there is one
    value: Array  # [S] the objective and its Slopes, at phi
    gradient: Array  # [S,k]
    hessian: Array  # [S,k,k]
    bound: Array  # [S,k,k]


def _blocks(
    problems: _Problems, todo: Array, delta: float, limit: int, agree: int = 0
) -> list[int]:
    """Takes the problems named by index at most `limit` steps; the groups of which `agree` do."""
    next = BLOCK
    block = _begin(problems, todo[:BLOCK])
    settled: list[int] = []
    with np.errstate(all="ignore"):  # a step too far is taken back
        while len(block.index):
            block, arrived = _step(problems, block, delta)
            over = arrived | (block.steps >= limit)
            if not over.any():
                continue
            _write(problems, _rows(block, over), arrived[over])
            rows = np.flatnonzero(over)
            new = _begin(problems, todo[next : next + len(rows)])
            next += len(rows)
            here, gone = np.split(rows, [len(new.index)])
            for a, b in zip(block, new):
                a[here] = b
            if len(gone):
                block = _rows(block, np.delete(np.arange(len(over)), gone))
            if agree and next >= len(todo):
                done = _agreed(problems, block, agree)
                settled += done
                over = np.isin(problems.group[block.index], done)
                _write(problems, _rows(block, over), np.zeros(over.sum(), bool))
                block = _rows(block, ~over)
    return settled


def _agreed(problems: _Problems, block: _Block, agree: int) -> list[int]:
    """The groups in a block of which so many problems have arrived at one objective, below that of
    all others of the group that are under way."""
    out, under_way = problems.out, problems.group[block.index]
    done = []
    for group in np.unique(under_way):
        known = out.objective[out.arrived & (problems.group == group)]
        if len(known) < agree:
            continue
        least = known.min() * (1 + SAME)
        if np.sum(known <= least) >= agree and (block.value[under_way == group] > least).all():
            done.append(int(group))
    return done


def _rows(block: _Block, rows: Array) -> _Block:
    return _Block(*(a[rows] for a in block))


def _write(problems: _Problems, block: _Block, arrived: Array) -> None:
    """Writes the state that a block's problems have reached."""
    out, index = problems.out, block.index
    out.phi[index], problems.damping[index] = block.phi, block.damping
    out.objective[index], out.arrived[index] = block.value, arrived
    out.gradient[index] = np.abs(block.gradient * block.free).max(1)
    out.steps[index] += block.steps


def _begin(problems: _Problems, index: Array) -> _Block:
    """Problems before their first step, which is none: it evaluates the start."""
    many, k = len(index), problems.out.phi.shape[1]
    used = problems.used[index]
    return _Block(
        index,
        problems.y[index[:, None], used],
        problems.weights[index[:, None], used],
        np.take_along_axis(problems.logs[index], used[:, None], 2),
        problems.centre[index],
        problems.free[index],
        np.zeros(many, np.int64),
        problems.out.phi[index],
        problems.damping[index],
        np.zeros((many, k)),
        np.ones(many, bool),
        np.full(many, np.inf),
        np.zeros((many, k)),
        *np.tile(np.eye(k), (2, many, 1, 1)),
    )


def _step(problems: _Problems, block: _Block, delta: float) -> tuple[_Block, Array]:
    """(the block a step on, [S] which problems have arrived)."""
    logs, centre = block.logs.swapaxes(0, 1), block.centre.T[:, :, None]
    at = Points(logs, centre, delta, problems.log)
    trial = problems.evaluate(block.phi + block.move, block.y, block.w, at)
    better = block.solvable & (trial.value <= block.value)
    rows = np.flatnonzero(better)
    if len(rows):
        new = trial.slopes(slice(None) if len(rows) == len(better) else rows)
        better[rows] = fine = np.isfinite(new.hessian).all((1, 2))
        rows = rows[fine]
        block.phi[rows] += block.move[rows]
        block.value[rows] = trial.value[rows]
        for old, part in zip((block.gradient, block.hessian, block.bound), new):
            old[rows] = part[fine]
    harder = np.clip(block.damping * HARDER, ANEW, 1e12)
    damping = np.where(better, block.damping * EASIER, harder)
    block = block._replace(damping=damping, steps=block.steps + 1)
    move, solvable, exact = _newton(block)
    promised = -(move * block.gradient).sum(1)
    enough = promised <= ARRIVED * block.value + 1e-28 * block.w.sum(1)
    arrived = exact & enough & (damping <= 1) & np.isfinite(block.value)
    # a step is kept short: exponents and logarithms far outside overflow
    move *= np.minimum(1.0, 4.0 / np.maximum(np.abs(move).max(1, keepdims=True), 1e-300))
    return block._replace(move=move, solvable=solvable), arrived


def _newton(block: _Block) -> tuple[Array, Array, Array]:
    """(step [S,k], solvable [S], by the exact Hessian [S]) of the damped Newton system.

    Where the Hessian is not positive definite, the reweighted least squares is added to it, and
    alone where the sum is not either: at a saddle, such as an exponent of a term that is still 0,
    damping enough to make it so would hold every other parameter too.
    """
    step, exact = _eliminate(block.hessian, block)
    solvable, rest = exact.copy(), np.flatnonzero(~exact & np.isfinite(block.value))
    for matrix in (block.hessian + block.bound, block.bound):
        if len(rest):
            step[rest], solvable[rest] = _eliminate(matrix[rest], _rows(block, rest))
            rest = rest[~solvable[rest]]
    return step, solvable, exact


def _eliminate(matrix: Array, block: _Block) -> tuple[Array, Array]:
    """(step [S,k], positive definite [S]) of a damped matrix [S,k,k], by elimination.

    All at once and no LAPACK, since the matrices are small and many; a symmetric matrix is positive
    definite if all pivots are positive, and needs no exchange of rows then.
    """
    free, scale = block.free.T, np.einsum("skk->ks", block.bound)
    k, scale = len(free), scale + 1e-12 * scale.max(0)
    # [k, k + 1, S]: problems last, where NumPy is fast
    system = np.empty((k, k + 1, len(matrix)))
    np.multiply(matrix.transpose(1, 2, 0), free[:, None] * free, out=system[:, :k])
    np.multiply(block.gradient.T, -free, out=system[:, k])
    diagonal = np.einsum("kks->ks", system[:, :k])
    diagonal += block.damping * scale * free + (1 - free)
    with np.errstate(all="ignore"):  # beyond a pivot that is not positive there is no step
        for i in range(k):
            row = system[i, i + 1 :] / system[i, i]
            system[:, i + 1 :] -= system[:, i, None] * row
            system[i, i + 1 :] = row
    return np.ascontiguousarray(system[:, k].T), (diagonal > 0).all(0)


def derived(model: Any, closed: slopes.Closed) -> slopes.Evaluate:
    """(phi [S,k], y, w [S,n], at) -> Trial of a law, in closed form where it has one."""
    if closed is None:
        # JAX is started for automatic derivatives alone
        from jaxlm.scaling.laws import differentiate

        return functools.partial(differentiate.trial, model)
    if callable(closed):
        return functools.partial(slopes.by_derivatives, closed)
    return functools.partial(slopes.of_three_terms, closed)
