"""Compute multipliers between training recipes whose runs are rows of one table.

    multiplier(C) = C / C_recipe(L_baseline(C))

where L_baseline(C) is the baseline's loss at compute C along its optimum and C_recipe(L) the least
compute at which the recipe reaches a loss: 1.3 means that the baseline needs 1.3 times the compute.
Laws of all recipes are fitted together, with exponents and floor shared, exponents shared, or
nothing shared. All are reported; the one that shares most is used unless another's Bayesian
information criterion (Schwarz 1978; McQuarrie 1999 for few points), under Huber's likelihood, is
lower by STRONG. Where D/N hardly varies the law is
E + a C^-b, else E + A/N^alpha + B/D^beta.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxlm.scaling import table
from jaxlm.scaling.extended.context import Setting
from jaxlm.scaling.laws import bootstrap, fitting, optimum, slopes, solve, starting_points

Array = np.ndarray
Record = dict[str, Any]

# Which parameters recipes share -> (exponents are shared, the floor is shared).
SHARED = {"exponents and E": (True, True), "exponents": (True, False), "nothing": (False, False)}
# D/N that differs by less than this factor between runs does not separate N from D.
RATIO = 1.3
# A difference of the criterion that is strong evidence (Kass and Raftery 1995).
STRONG = 6.0
# Places over the common range of compute.
PLACES = 5


class Joint(NamedTuple):
    """Laws of R recipes fitted together."""

    shared: str
    theta: Array  # [R, 1 + 2 m]: E, coefficients [m], exponents [m] of each recipe
    draws: Array  # [S, R, 1 + 2 m]
    residual: Array  # [n]
    parameters: int
    objective: float
    reached: float


def run(t: table.Table, column: str, baseline: str | None, setting: Setting) -> Record:
    """The record of the multipliers between values of a column, of each against the baseline.

    Raises: ValueError naming the column or recipe that cannot be used.
    """
    names, member = recipes(t, column, baseline)
    ratio = np.log(t.tokens / t.params)
    by_compute = bool(ratio.max() - ratio.min() < np.log(RATIO))
    per = np.array(
        [np.median((t.flops / (t.params * t.tokens))[member == i]) for i in range(len(names))]
    )
    result: dict[str, Joint] = {}
    skipped: dict[str, str] = {}
    for shared in SHARED:
        try:
            result[shared] = _fit(t, member, names, shared, by_compute, setting)
        except ValueError as reason:
            skipped[shared] = str(reason)
    if not result:
        raise ValueError(f"--multiplier {column}: {'; '.join(skipped.values())}")
    criteria = {k: _criterion(j, setting.delta) for k, j in result.items()}
    least = min(criteria.values())
    chosen = next((k for k in result if criteria[k] <= least + STRONG), next(iter(result)))
    low = max(t.flops[member == i].min() for i in range(len(names)))
    high = min(t.flops[member == i].max() for i in range(len(names)))
    places = np.geomspace(low, high, PLACES) if low < high else np.empty(0)
    return {
        "column": column,
        "baseline": names[0],
        "law": "E + a C^-b" if by_compute else "E + A/N^alpha + B/D^beta",
        "shared": chosen,
        "skipped": skipped,
        "fits": {
            k: {
                "bic": criteria[k],
                "parameters": j.parameters,
                "objective": j.objective,
                "reached": j.reached,
                "theta": dict(zip(names, j.theta)),
                "multipliers": {
                    name: {
                        "target": _at(j, i, setting.target, per, by_compute, setting.level),
                        "range": [
                            [float(c), _at(j, i, c, per, by_compute, setting.level)] for c in places
                        ],
                    }
                    for i, name in enumerate(names)
                    if i
                },
            }
            for k, j in result.items()
        },
        "target": setting.target,
        "level": setting.level,
    }


def recipes(t: table.Table, column: str, baseline: str | None) -> tuple[list[str], Array]:
    """(names of the recipes, the baseline first; [n] which recipe a row is of).

    Raises: ValueError for a column that is absent or has one value, and an unknown baseline.
    """
    if column not in t.columns:
        raise ValueError(f"--multiplier: no column {column!r}; the file has {', '.join(t.columns)}")
    values = np.array([_name(v) for v in t.columns[column].tolist()])
    names = list(dict.fromkeys(values.tolist()))
    if len(names) < 2:
        raise ValueError(
            f"--multiplier {column}: every row has {names[0]!r}; two recipes are needed"
        )
    if baseline is not None:
        if baseline not in names:
            raise ValueError(f"--baseline {baseline!r}: column {column!r} has {', '.join(names)}")
        names.remove(baseline)
        names.insert(0, baseline)
    return names, np.array([names.index(v) for v in values.tolist()])


def _name(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


# --- Fits of all recipes at once ---------------------------------------------------------------


def _derivatives(
    terms: int, count: int, exponents: bool, floor: bool, phi: Array, logs: Array, centre: Array
) -> tuple[Array, Callable]:
    """(log loss [S,n], more) of phi [S,k] = (exponents, coefficients, floors), for
    `slopes.by_derivatives`; of logs [terms + count, S, n] the last are 1 for a recipe's own runs.

    The logarithm of each term of the loss is linear in phi."""
    x, own = (logs - centre)[:terms], logs[terms:]
    every = np.ones((1, *x.shape[1:]))
    powers = -x[:, None] * (every if exponents else own)
    rows = [*powers, *[own] * terms, every if floor else own]
    owner = np.repeat([*range(terms), *range(terms), terms], [len(part) for part in rows])
    moves = np.concatenate(rows)
    parts = [
        np.einsum("sk,ksn->sn", phi[:, owner == i], moves[owner == i]) for i in range(terms + 1)
    ]
    return slopes.of_exponentials(
        np.stack(parts), owner, lambda at: moves[:, at].transpose(1, 0, 2)
    )


def _fit(
    t: table.Table,
    member: Array,
    names: Sequence[str],
    shared: str,
    by_compute: bool,
    setting: Setting,
) -> Joint:
    """Raises: ValueError for too few runs of a recipe, or a fit that does not converge."""
    exponents, floor = SHARED[shared]
    x = np.log(np.stack([t.flops] if by_compute else [t.params, t.tokens]))
    terms, count = len(x), len(names)
    own = (member == np.arange(count)[:, None]).astype(float)
    each = terms + (0 if floor else 1) + (0 if exponents else terms)
    for name, runs in zip(names, own.sum(1)):
        if runs < each + 1:
            raise ValueError(
                f"{shared} shared: {runs:.0f} runs of {name!r} for its own {each} parameters"
            )
    centre = np.concatenate([x.mean(1), np.zeros(count)])
    logs = np.concatenate([x, own])
    law = functools.partial(_derivatives, terms, count, exponents, floor)
    start = _starts(x - x.mean(1)[:, None], t.loss, own, exponents, floor)
    free = np.ones(start.shape[1], bool)
    y, w = np.log(t.loss), np.ones(len(t.loss))
    s = solve.minimise(None, law, start, y, w, logs, centre, free, setting.delta, True)
    objective = np.where(np.isfinite(s.objective) & s.arrived, s.objective, np.inf)
    best = int(np.argmin(objective))
    if not np.isfinite(objective[best]):
        raise ValueError(f"{shared} shared: none of {len(start)} starts converged")
    random = np.random.default_rng(setting.seed)
    weights = _resamples(t, member, count, setting, random)
    again = np.tile(s.phi[best], (len(weights), 1))
    many = solve.minimise(None, law, again, y, weights, logs, centre, free, setting.delta, True)
    value = np.log(t.loss) - np.asarray(_numpy(s.phi[best], x, own, centre, exponents, floor))
    return Joint(
        shared,
        _natural(s.phi[best], centre, terms, count, exponents, floor),
        _natural(many.phi[many.arrived], centre, terms, count, exponents, floor),
        value,
        start.shape[1],
        float(objective[best]),
        float(np.mean(objective <= objective[best] * (1 + fitting.SAME) + 1e-24)),
    )


def _starts(x: Array, loss: Array, own: Array, exponents: bool, floor: bool) -> Array:
    """[S,k] starts: those of one law for all runs, for every recipe alike."""
    terms, count = len(x), len(own)
    pooled = starting_points.powers(x, loss, np.ones(len(loss)))  # log E, coefficients, exponents
    e, level, power = pooled[:, :1], pooled[:, 1 : 1 + terms], pooled[:, 1 + terms :]
    width = 1 if exponents else count
    parts = [np.repeat(power, width, 1), np.repeat(level, count, 1)]
    return np.concatenate([*parts, np.repeat(e, 1 if floor else count, 1)], 1)


def _unpack(
    phi: Array, terms: int, count: int, exponents: bool, floor: bool
) -> tuple[Array, Array, Array]:
    """(exponents [..., terms, count], coefficients [..., terms, count], log E [..., count])."""
    width = 1 if exponents else count
    lead = phi.shape[:-1]
    power = phi[..., : terms * width].reshape(*lead, terms, width)
    level = phi[..., terms * width : terms * (width + count)].reshape(*lead, terms, count)
    e = phi[..., terms * (width + count) :]
    full = (*lead, terms, count)
    return np.broadcast_to(power, full), level, np.broadcast_to(e, (*lead, count))


def _natural(
    phi: Array, centre: Array, terms: int, count: int, exponents: bool, floor: bool
) -> Array:
    """[..., count, 1 + 2 terms]: E, coefficients, exponents of each recipe."""
    power, level, e = _unpack(phi, terms, count, exponents, floor)
    level = np.exp(level + power * centre[:terms, None])
    return np.concatenate(
        [np.exp(e)[..., None], np.moveaxis(level, -2, -1), np.moveaxis(power, -2, -1)], -1
    )


def _numpy(phi: Array, x: Array, own: Array, centre: Array, exponents: bool, floor: bool) -> Array:
    """log loss [n], as the model has it."""
    power, level, e = _unpack(phi, len(x), len(own), exponents, floor)
    shifted = x - centre[: len(x), None]
    return np.log(np.exp(e @ own) + np.exp(level @ own - (power @ own) * shifted).sum(0))


def _resamples(
    t: table.Table, member: Array, count: int, setting: Setting, random: np.random.Generator
) -> Array:
    """[S,n] counts: runs drawn with replacement within each recipe."""
    out = np.zeros((setting.replicates, len(member)))
    for i in range(count):
        rows = np.flatnonzero(member == i)
        units = t.run[rows] if setting.clusters else np.arange(len(rows))
        kinds, which = np.unique(units, return_inverse=True)
        share = np.full(len(kinds), 1 / len(kinds))
        out[:, rows] = random.multinomial(len(kinds), share, setting.replicates)[:, which]
    return out


def _criterion(j: Joint, delta: float) -> float:
    """Bayesian information criterion of the residuals with McQuarrie's (1999) correction for few
    points; the scale counts as a parameter."""
    n, k = len(j.residual), j.parameters + 1
    if n <= k + 2:
        return np.inf
    return -2 * _likelihood(j.residual, delta) + k * float(np.log(n)) * n / (n - k - 2)


def _likelihood(residual: Array, delta: float) -> float:
    if not residual.any():
        return np.inf
    if np.isfinite(delta):
        return fitting.likelihood(residual, delta)[0]
    n = len(residual)
    return -n / 2 * float(np.log(2 * np.pi * np.mean(residual**2)) + 1)


# --- Compute of a loss --------------------------------------------------------------------------


def _at(j: Joint, i: int, flops: float, per: Array, by_compute: bool, level: float) -> list[Any]:
    """[multiplier of recipe i at the baseline's compute, [low, high]]; 0 where the recipe never
    reaches the baseline's loss."""
    theta = np.concatenate([j.theta[None], j.draws])
    loss = _loss(theta[:, 0], flops, per[0], by_compute)
    needed = _needed(theta[:, i], loss, per[i], by_compute)
    gain = flops / needed
    low, high = bootstrap.interval(gain[1:], level)
    return [float(gain[0]), [float(low), float(high)]]


def _loss(theta: Array, flops: float, per: float, by_compute: bool) -> Array:
    """[S] loss of a recipe at a compute, along its optimum."""
    if by_compute:
        e, a, b = theta.T
        return e + a * flops**-b
    return optimum.at("chinchilla", theta, flops, per).loss


def _needed(theta: Array, loss: Array, per: float, by_compute: bool) -> Array:
    """[S] least compute of a recipe at a loss; inf where its floor is above."""
    if by_compute:
        e, a, b = theta.T
        with np.errstate(invalid="ignore", divide="ignore"):
            return np.where(loss > e, (a / np.maximum(loss - e, 1e-300)) ** (1 / b), np.inf)
    fine = np.isfinite(loss)
    out = np.full(len(loss), np.nan)
    out[fine] = optimum.least("chinchilla", theta[fine], loss[fine], per, paired=True)
    return out


def text(record: Record) -> str:
    """The report of compute multipliers."""
    lines = [
        f"compute multiplier over {record['column']} = {record['baseline']}: {record['law']}, "
        f"recipes share {record['shared']} (the most that BIC allows)"
    ]
    for shared, joint in record["fits"].items():
        marked = f"{shared} *" if shared == record["shared"] else shared
        lines.append(f"  {marked}: BIC {_short(joint['bic'])}, {joint['parameters']} parameters")
        for name, values in joint["multipliers"].items():
            value, ends = values["target"]
            places = [f"{_short(v[0])} at {c:.2g}" for c, v in values["range"]]
            lines.append(
                f"    {name}: {_short(value)} {_ends(ends)} at the target of {record['target']:.4g}"
                f" FLOPs" + (f"; {', '.join(places)}" if places else "")
            )
    lines += [f"  not fitted: {reason}" for reason in record["skipped"].values()]
    return "\n".join(lines)


def _ends(ends: Sequence[float | None]) -> str:
    return f"[{_short(ends[0])}, {_short(ends[1])}]"


def _short(value: float | None) -> str:
    return "-" if value is None or not np.isfinite(value) else f"{value:.4g}"
