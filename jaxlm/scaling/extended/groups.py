"""One law for several groups of runs, with exponents that are pooled as far as the data ask.

    record = groups.run(t, "dataset_name", setting)

Each group has its own E, A and B of E + A/N^alpha + B/D^beta, and exponents that are drawn towards
a common mean. The objective is

    sum of Huber(log L - log fit) / h + sum_g |(log alpha_g, log beta_g) - mean|^2 / (2 spread^2)

with the means free and h the mean Huber loss of the groups fitted alone. An infinite spread is
every group alone, 0 common exponents; the spread is chosen by how well the largest runs of each
group are predicted from the smaller ones: a normal distribution of log exponents over groups, its
width chosen by prediction.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from jaxlm.scaling import table
from jaxlm.scaling.extended.context import Setting
from jaxlm.scaling.laws import bootstrap, fitting, loss_laws, optimum, slopes, solve

Array = np.ndarray
Record = dict[str, Any]

# Standard deviations of log exponents between groups that are tried: alone, ..., common.
SPREADS = (np.inf, 0.4, 0.2, 0.1, 0.05, 0.02, 0.0)
# Share of each group's runs, those with the most compute, that the choice predicts, at least 1.
HELD_OUT = 0.2
# A group's own parameters: log E, log A, log B and, about their mean, log alpha and log beta.
OWN = 5


class Pooled(NamedTuple):
    """Fits of all groups under one spread."""

    spread: float
    theta: Array  # [G,5]: E, A, B, alpha, beta
    objective: float


class Problem(NamedTuple):
    """Rows of all groups as the solver takes them, with a row for each penalty at the end."""

    logs: Array  # [2 + G + 2 G, n + 2 G]
    y: Array  # [n + 2 G]
    weights: Array  # [n + 2 G]
    centre: Array
    count: int


def run(t: table.Table, column: str, setting: Setting) -> Record:
    """The record of pooled laws of the groups of a column.

    Raises: ValueError naming the column, or the group that has too few runs.
    """
    names, member = members(t, column)
    count = len(names)
    held = _largest(t.flops, member, count)
    small = table.take(t, ~held)
    first = alone(small, member[~held], count, setting.delta)
    scores = {}
    for spread in SPREADS:
        pooled = fit(small, member[~held], first, spread, setting.delta)
        scores[spread] = float(np.abs(_errors(t, member, pooled.theta)[held]).mean())
    spread = min(SPREADS, key=lambda s: (round(scores[s], 9), s))
    own = alone(t, member, count, setting.delta)
    chosen = fit(t, member, own, spread, setting.delta)
    common = fit(t, member, own, 0.0, setting.delta)
    draws = _draws(t, member, own, chosen, setting)
    per = [np.median((t.flops / (t.params * t.tokens))[member == i]) for i in range(len(names))]
    return {
        "column": column,
        "spread": spread,
        "errors": [[s, 100 * e] for s, e in scores.items()],
        "held_out": int(held.sum()),
        "target": setting.target,
        "groups": {
            name: {
                "runs": int(np.sum(member == i)),
                "alone": own.theta[i],
                "pooled": _values(chosen.theta[i], draws[:, i], float(per[i]), setting),
                "common": common.theta[i],
            }
            for i, name in enumerate(names)
        },
    }


def members(t: table.Table, column: str) -> tuple[list[str], Array]:
    """(names of the groups; [n] which group a row is of).

    Raises: ValueError for a column that is absent or has one value, or a group of few runs.
    """
    if column not in t.columns:
        raise ValueError(f"--pool: no column {column!r}; the file has {', '.join(t.columns)}")
    texts = [f"{v:g}" if isinstance(v, float) else str(v) for v in t.columns[column].tolist()]
    names = list(dict.fromkeys(texts))
    if len(names) < 2:
        raise ValueError(f"--pool {column}: every row has {names[0]!r}; two groups are needed")
    member = np.array([names.index(text) for text in texts])
    for i, name in enumerate(names):
        runs = int(np.sum(member == i))
        if runs < OWN:
            raise ValueError(f"--pool {column}: {runs} runs of {name!r}; {OWN} are needed")
    return names, member


def _derivatives(count: int, phi: Array, logs: Array, centre: Array) -> tuple[Array, Callable]:
    """(log loss [S,n], more) of phi [S,k] = (mean log exponents [2], then 5 a group), for
    `slopes.by_derivatives`. A row of a penalty has, in place of the loss, a group's departure from
    the mean times that penalty."""
    means, own = phi[:, :2], phi[:, 2:].reshape(len(phi), count, OWN)
    x, z = logs[:2] - centre[:2]
    each, penalties = logs[2 : 2 + count], logs[2 + count :]  # each: 1 for a group's runs
    e, a, b, u, v = np.einsum("sgi,gsn->isn", own, each)
    first, second = -np.exp(means[:, :1] + u) * x, -np.exp(means[:, 1:] + v) * z
    loss, more_of_loss = slopes.of_exponentials(
        np.stack([e, a + first, b + second]),
        np.array([1, 2, *[0, 1, 2, 1, 2] * count]),
        lambda at: _moves(each[:, at], first[at], second[at]),
    )
    departures = np.einsum("sd,dsn->sn", own[:, :, 3:].reshape(len(phi), 2 * count), penalties)

    def more(rows: slopes.Rows) -> tuple[Array, Callable]:
        slope, linear = more_of_loss(rows)
        places = 2 + OWN * np.arange(count)[:, None] + [3, 4]  # of the departures in phi

        def curvature(w: Array) -> Array:
            """exp(mean + departure) bends: its second derivatives are its first."""
            out = linear(w)
            for i in range(2):
                # a share of the loss times its exponent's slope is the slope by the mean
                bend = w * slope[:, i]
                by_group = np.einsum("rn,grn->rg", bend, each[:, rows])
                out[:, i, i] += bend.sum(1)
                out[:, i, places[:, i]] += by_group
                out[:, places[:, i], i] += by_group
                out[:, places[:, i], places[:, i]] += by_group
            return out

        whole = slope.copy()
        whole[:, places.reshape(-1)] += penalties[:, rows].transpose(1, 0, 2)
        return whole, curvature

    return np.where(each.sum(0) > 0, loss, departures), more


def _moves(each: Array, first: Array, second: Array) -> Array:
    """[R,k,n] slopes of the exponents by phi, of groups' rows [G,R,n] and A's and B's [R,n]."""
    own = np.stack([each, each, each, each * first, each * second], 1)
    return np.concatenate([np.stack([first, second]), *own]).transpose(1, 0, 2)


def alone(t: table.Table, member: Array, count: int, delta: float) -> Pooled:
    """Every group by itself. Raises: ValueError where a fit does not converge."""
    fits = [
        fitting.fit(loss_laws.CHINCHILLA, table.take(t, member == i), delta=delta)
        for i in range(count)
    ]
    for single in fits:
        if single.failed:
            raise ValueError(f"--pool: {single.failed}")
    theta = np.stack([fitting.values(single) for single in fits])
    return Pooled(np.inf, theta, float(sum(single.objective for single in fits)))


def fit(t: table.Table, member: Array, first: Pooled, spread: float, delta: float) -> Pooled:
    """The Pooled fit with exponents whose logarithms have this standard deviation, from the groups
    alone and from one law for all.

    Raises: ValueError where neither start converges.
    """
    if np.isinf(spread):
        return first
    problem, free = _problem(t, member, first, spread, delta)
    common = fitting.values(fitting.fit(loss_laws.CHINCHILLA, t, delta=delta))
    mean = first.theta.copy()
    mean[:, 3:] = np.exp(np.log(first.theta[:, 3:]).mean(0))
    places = [first.theta if spread else mean, np.tile(common, (problem.count, 1))]
    start = np.stack([_internal(theta, problem) for theta in places])
    solved = solve.minimise(
        None,
        functools.partial(_derivatives, problem.count),
        start,
        problem.y,
        problem.weights,
        problem.logs,
        problem.centre,
        free,
        delta,
        True,
    )
    cost = np.where(np.isfinite(solved.objective), solved.objective, np.inf)
    best = int(np.argmin(cost))
    if not np.isfinite(cost[best]):
        raise ValueError(f"--pool: no start of the pooled fit (spread {spread:g}) converged")
    return Pooled(spread, _natural(solved.phi[best : best + 1], problem)[0], float(cost[best]))


def _problem(
    t: table.Table, member: Array, first: Pooled, spread: float, delta: float
) -> tuple[Problem, Array]:
    """(the solver's arrays, [k] which parameters are free).

    The penalty h u^2 / (2 spread^2) is the Huber loss of a row whose residual is u times
    `strength`, which stays within delta, times a weight.
    """
    n, count = len(t.loss), len(first.theta)
    rows = n + 2 * count
    logs = np.zeros((2 + count + 2 * count, rows))
    logs[0, :n], logs[1, :n] = np.log(t.params), np.log(t.tokens)
    logs[2 + member, np.arange(n)] = 1.0
    centre = np.zeros(len(logs))
    centre[0], centre[1] = logs[0, :n].mean(), logs[1, :n].mean()
    # rows of penalties: inputs at the centre, so that nothing overflows
    logs[0, n:], logs[1, n:] = centre[0], centre[1]
    strength = 1e-3 * (delta if np.isfinite(delta) else 1.0)
    logs[2 + count + np.arange(2 * count), n + np.arange(2 * count)] = strength
    free = np.ones(2 + OWN * count, bool)
    weights = np.ones(rows)
    if spread == 0:
        weights[n:] = 0.0
        free[2:] = np.tile([True, True, True, False, False], count)
    else:
        weights[n:] = first.objective / n / (strength * spread) ** 2
    return Problem(
        logs, np.append(np.log(t.loss), np.zeros(2 * count)), weights, centre, count
    ), free


def _natural(phi: Array, problem: Problem) -> Array:
    """[S,G,5]: E, A, B, alpha, beta."""
    own = phi[:, 2:].reshape(len(phi), problem.count, OWN)
    powers = np.exp(phi[:, None, :2] + own[:, :, 3:])
    levels = np.exp(own[:, :, 1:3] + powers * problem.centre[:2])
    return np.concatenate([np.exp(own[:, :, :1]), levels, powers], 2)


def _errors(t: table.Table, member: Array, theta: Array) -> Array:
    """[n] log of predicted over measured loss."""
    e, a, b, alpha, beta = theta[member].T
    return np.log(e + a * t.params**-alpha + b * t.tokens**-beta) - np.log(t.loss)


def _largest(flops: Array, member: Array, count: int) -> Array:
    """[n] bool: of each group the runs with the most compute."""
    held = np.zeros(len(flops), bool)
    for i in range(count):
        own = np.flatnonzero(member == i)
        most = max(1, round(HELD_OUT * len(own)))
        held[own[np.argsort(-flops[own], kind="stable")[:most]]] = True
    return held


def _draws(t: table.Table, member: Array, first: Pooled, pooled: Pooled, setting: Setting) -> Array:
    """[R,G,5] refits to runs drawn with replacement within each group, at the chosen spread."""
    if np.isinf(pooled.spread):
        return _draws_alone(t, member, pooled, setting)
    problem, free = _problem(t, member, first, pooled.spread, setting.delta)
    count = problem.count
    random = np.random.default_rng(setting.seed)
    weights = np.repeat(problem.weights[None], setting.replicates, 0)
    for i in range(count):
        own = np.flatnonzero(member == i)
        share = np.full(len(own), 1 / len(own))
        weights[:, own] = random.multinomial(len(own), share, setting.replicates)
    start = np.repeat(_internal(pooled.theta, problem)[None], setting.replicates, 0)
    solved = solve.minimise(
        None,
        functools.partial(_derivatives, count),
        start,
        problem.y,
        weights,
        problem.logs,
        problem.centre,
        free,
        setting.delta,
        True,
    )
    fine = solved.arrived & np.isfinite(solved.objective)
    return _natural(solved.phi[fine], problem)


def _draws_alone(t: table.Table, member: Array, pooled: Pooled, setting: Setting) -> Array:
    """[R,G,5] case bootstraps of each group by itself."""
    out = []
    for i in range(len(pooled.theta)):
        own = table.take(t, member == i)
        result = fitting.fit(loss_laws.CHINCHILLA, own, delta=setting.delta)
        seed = setting.seed + i
        out.append(
            bootstrap.cases(loss_laws.CHINCHILLA, own, result, setting.replicates, seed).theta
        )
    return np.stack(out, 1)


def _internal(theta: Array, problem: Problem) -> Array:
    """[k] of [G,5]."""
    powers = np.log(theta[:, 3:])
    mean = powers.mean(0)
    levels = np.log(theta[:, 1:3]) - theta[:, 3:] * problem.centre[:2]
    own = np.concatenate([np.log(theta[:, :1]), levels, powers - mean], 1)
    return np.concatenate([mean, own.reshape(-1)])


def _values(theta: Array, draws: Array, per: float, setting: Setting) -> Record:
    """{theta, intervals, params, loss: [value, ends]} of a group at the target."""
    low, high = bootstrap.interval(draws, setting.level)
    best = optimum.at("chinchilla", theta, setting.target, per)
    many = optimum.at("chinchilla", draws, setting.target, per)
    out: Record = {"theta": theta, "intervals": np.stack([low, high], 1)}
    for name in ("params", "loss"):
        drawn = getattr(many, name)
        ends = bootstrap.interval(drawn[np.isfinite(drawn)], setting.level)
        out[name] = [float(getattr(best, name)), [float(e) for e in ends]]
    return out


def text(record: Record) -> str:
    """The report of pooled groups."""
    label = {0.0: "common", np.inf: "alone", None: "alone"}
    errors = ", ".join(f"{label.get(s, s)} {e:.3f}" for s, e in record["errors"])
    lines = [
        f"groups of {record['column']}: spread of log exponents "
        f"{label.get(record['spread'], record['spread'])}, by the error on the "
        f"{record['held_out']} largest runs: mean absolute percent {errors}",
        f"  {'group':<20}{'alpha alone, pooled':>22}{'beta alone, pooled':>22}{'E':>9}"
        f"  N* at {record['target']:.4g} FLOPs",
    ]
    for name, g in record["groups"].items():
        own, pooled = g["alone"], g["pooled"]["theta"]
        value, ends = g["pooled"]["params"]
        lines.append(
            f"  {name:<20}{own[3]:>13.4f}{pooled[3]:>9.4f}{own[4]:>13.4f}{pooled[4]:>9.4f}"
            f"{pooled[0]:>9.4f}  {value:.4g} [{ends[0]:.3g}, {ends[1]:.3g}]"
        )
    return "\n".join(lines)
