"""Plans from a fitted law: the next run's size, tokens and loss, with intervals from its draws.

    law = next_run.law(study_record.load("study.json"))
    next_run.at(law, 5.76e23)                    # N*, D*, loss, D/N
    next_run.reach(law, 2.0)                     # least compute of a loss
    next_run.serve(law, 2.0, 2e12)               # fewest FLOPs of training and inference together
    next_run.choice(law, 5.76e23, params=70e9)   # the cost of another size
    next_run.capped(law, 5.76e23, 1e12)          # with no more than so many different tokens

Every number is taken at the fit and at each draw; an interval is of the draws' percentiles. For the
study's own plan it covers what `jaxlm.scaling.planning.allocation` lists; for another form that was
requested, resampling of the runs, but not that the form may be wrong.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from jaxlm.scaling import study_record, table
from jaxlm.scaling.approaches import comparison
from jaxlm.scaling.laws import loss_laws, optimum
from jaxlm.scaling.laws.optimum import Array
from jaxlm.scaling.planning import allocation

LEVEL = 0.95
# FLOPs per parameter and token of a forward pass: one multiplication and one addition.
INFERENCE = 2.0
# The search of `serve`: N between these parts of the compute-optimal one, geometric places, and
# steps of the golden section, each of which narrows the bracket to 0.618.
SMALLER, LARGER, PLACES, SECTIONS = 1e-3, 10.0, 65, 44
GOLDEN = (5**0.5 - 1) / 2
# Tokens per parameter between which D for a loss is looked for.
RATIOS = (1e-6, 1e12)


class Law(NamedTuple):
    """A fitted law that plans."""

    law: str
    """Its name in loss_laws.LAWS."""
    theta: Array
    """[k] natural parameters, in that law's order."""
    draws: Array
    """[R, k] of the bootstrap; R may be 0."""
    counting: table.Counting
    """The counting of N and C."""
    flops: tuple[float, float]
    """Least and largest training FLOPs among the runs fitted."""
    per: float = 6.0
    """C / (N D) of those runs, by which compute is made into N and D."""
    plan: allocation.Planned | None = None
    """Planners of N* and what its intervals cover; None: the form itself, by its draws alone."""
    record: study_record.Record | None = None
    """The study's record."""


class Range(NamedTuple):
    """A number and its interval."""

    value: float
    """At the fit."""
    low: float
    """nan without draws."""
    high: float
    """nan without draws."""


class Plan(NamedTuple):
    """A run."""

    flops: Range
    """Training compute C."""
    params: Range
    """N."""
    tokens: Range
    """D."""
    loss: Range
    """The law's, nats per token."""
    ratio: Range
    """Tokens per parameter D / N."""
    extrapolation: float
    """C over the largest C that was fitted."""
    lost: int
    """Draws without such a run: no minimum, or a loss never reached."""


class Served(NamedTuple):
    """A model that is trained once and then read by many: Sardana et al. 2024."""

    best: Plan
    """The plan of least training and inference FLOPs."""
    plain: Plan
    """The plan of least training FLOPs, at the same loss."""
    total: Range
    """per N D + 2 N times the inference tokens, of the best."""
    plain_total: Range
    """The same, of the plain one."""
    saved: Range
    """1 - total / plain_total."""


class Choice(NamedTuple):
    """A run that is not the optimum of its compute."""

    run: Plan
    """The run as chosen."""
    best: Plan
    """The optimum of the same compute."""
    extra: Range
    """Its loss above the optimum's, nats per token."""
    enough: Range
    """The compute that an optimal run of the chosen run's loss takes."""
    wasted: Range
    """The rest of its compute: deadweight FLOPs."""


class Capped(NamedTuple):
    """A plan with no more than so many different tokens."""

    run: Plan
    """The best run there is."""
    free: Plan
    """The optimum without the cap."""
    epochs: Range
    """D / U, at least 1 where the cap binds."""
    extra: Range
    """Loss above the optimum without the cap, nats per token."""
    binds: bool
    """Whether the optimum requires more different tokens than there are."""
    repeats: bool
    """Whether the law models the worth of a repeated token, so that D may exceed U."""


def law(study: study_record.Study) -> Law:
    """The Law of a study: its plan, or the fitted form that was requested instead.

    Raises: ValueError for a form without an optimum between N and D, and missing parameters.
    """
    record, names = study.record, loss_laws.LAWS[study.law].names
    if set(study.theta) != set(names):
        raise ValueError(f"theta: {sorted(study.theta)} given; {study.law} has {names}")
    order = [list(study.theta).index(name) for name in names]
    theta = np.array([study.theta[name] for name in names])
    draws = study.draws.reshape(-1, len(names))[:, order]
    planned = None
    if not study.named and record.plan is not None:
        planned = allocation.of(record)
        draws = planned.draws
    counting, flops = record.counting, record.flops
    out = Law(study.law, theta, draws, counting, flops, record.per, planned, record)
    optimum.at(out.law, out.theta, flops[1], out.per)
    return out


def at(law: Law, flops: float, level: float = LEVEL) -> Plan:
    """The compute-optimal run of `flops` training FLOPs. Raises: ValueError unless above 0."""
    if not (np.isfinite(flops) and flops > 0):
        raise ValueError(f"flops: {flops} given; a number above 0 is needed")
    best = allocation.at(_planned(law), flops)
    return _plan(law, np.full(len(best.params), flops), best.params, best.tokens, best.loss, level)


def reach(law: Law, loss: float, level: float = LEVEL) -> Plan:
    """The run of least training FLOPs that reaches a loss, nats per token.

    A draw whose floor is above the loss has none, and counts as `lost`.

    Raises: ValueError for a loss that the fit itself never reaches, naming its floor.
    """
    thetas = _all(law)
    if law.plan is not None and np.isfinite(loss) and loss > 0:
        c = allocation.least(law.plan, loss)
    else:
        c = optimum.least(law.law, thetas, loss, law.per)
    if not np.isfinite(c[0]):
        everywhere = np.exp(optimum.decades(2))
        least = np.nanmin(optimum.at(law.law, law.theta, everywhere, law.per).loss)
        raise ValueError(f"loss: {loss:g} given; this law never goes below {least:.6g}")
    best = allocation.at(_planned(law), np.where(np.isfinite(c), c, 1.0))
    return _plan(law, c, best.params, best.tokens, np.where(np.isfinite(c), loss, np.nan), level)


def quality(law: Law, params: float) -> float:
    """The loss of the compute-optimal model of N parameters, at the fit: "13B quality".

    Raises: ValueError where no compute makes N optimal.
    """
    if not (np.isfinite(params) and params > 0):
        raise ValueError(f"params: {params} given; a number above 0 is needed")
    return allocation.quality(_planned(law), params)


def serve(law: Law, loss: float, inference_tokens: float, level: float = LEVEL) -> Served:
    """The run that reaches a loss with the fewest FLOPs of training and inference together:
    per N D + 2 N T of T inference tokens. Sardana et al. 2024, equation 3.

    Raises: ValueError as `reach`; for inference tokens below 0.
    """
    if not (np.isfinite(inference_tokens) and inference_tokens >= 0):
        raise ValueError(f"inference_tokens: {inference_tokens} given; 0 or more are needed")
    plain = reach(law, loss, level)
    thetas = _all(law)
    c = optimum.least(law.law, thetas, loss, law.per)
    start = _each(law, thetas, c)
    there = np.isfinite(start.params)

    def total(n: Array) -> Array:
        """[P, m] FLOPs of sizes n [P, m]."""
        d = _tokens(law, thetas[there], n, loss)
        return law.per * n * d + INFERENCE * n * inference_tokens

    n = np.full(len(thetas), np.nan)
    n[there] = _lowest(total, start.params[there])
    d = np.full(len(thetas), np.nan)
    d[there] = _tokens(law, thetas[there], n[there, None], loss)[:, 0]
    best = _plan(law, law.per * n * d, n, d, np.where(there, loss, np.nan), level)
    after, before = (
        law.per * x * y + INFERENCE * x * inference_tokens
        for x, y in ((n, d), (start.params, start.tokens))
    )
    ranges = [_range(v, level) for v in (after, before, 1 - after / before)]
    return Served(best, plain, *ranges)


def choice(
    law: Law,
    flops: float | None = None,
    *,
    params: float | None = None,
    tokens: float | None = None,
    unique: float | None = None,
    level: float = LEVEL,
) -> Choice:
    """Computes what a run that is not optimal costs, given two of its C, N and D; by the
    data-constrained law also with `unique` different tokens among the D.

    Raises: ValueError unless two of the three are given, above 0; for more tokens than are
    different by a law that does not model the worth of a repeated one.
    """
    given = {"flops": flops, "params": params, "tokens": tokens}
    if sum(v is not None for v in given.values()) != 2:
        raise ValueError(f"flops, params, tokens: {given} given; two of them make a run")
    for name, value in given.items():
        if value is not None and not (np.isfinite(value) and value > 0):
            raise ValueError(f"{name}: {value} given; a number above 0 is needed")
    if flops is None:
        assert params is not None and tokens is not None
        flops = law.per * params * tokens
    n = params if params is not None else flops / (law.per * (tokens or np.nan))
    d = flops / (law.per * n)
    thetas = _all(law)
    if unique is not None and "unique" not in loss_laws.LAWS[law.law].inputs:
        if d > unique:
            raise ValueError(
                f"tokens: {d:.4g} asked for, of which {unique:.4g} are different; {law.law} does "
                f"not know what a repeated token is worth. At most {unique:.4g} tokens, with "
                f"{flops / (law.per * unique):.4g} parameters, or the form data_constrained"
            )
        unique = None
    best = optimum.at(law.law, thetas, flops, law.per, unique)
    loss = optimum.loss(law.law, thetas, n, d, unique)
    ones = np.ones(len(thetas))
    enough = np.full(len(thetas), np.nan)
    has = np.isfinite(loss) & (loss > 0)
    enough[has] = optimum.least(law.law, thetas[has], loss[has], law.per, unique, paired=True)
    enough = np.where(np.isfinite(enough), np.minimum(enough, flops), np.nan)
    return Choice(
        _plan(law, flops * ones, n * ones, d * ones, loss, level),
        _plan(law, flops * ones, best.params, best.tokens, best.loss, level),
        _range(loss - best.loss, level),
        _range(enough, level),
        _range(flops - enough, level),
    )


def capped(law: Law, flops: float, unique: float, level: float = LEVEL) -> Capped:
    """The best run of `flops` with at most `unique` different tokens.

    The data-constrained law repeats tokens as far as it finds them worthwhile (Muennighoff et al.
    2023); every other law has no term for repetition, so that D is at most U and the rest of the
    compute goes into parameters.

    Raises: ValueError for compute or tokens not above 0.
    """
    if not (np.isfinite(unique) and unique > 0):
        raise ValueError(f"unique_tokens: {unique} given; a number above 0 is needed")
    thetas = _all(law)
    free = optimum.at(law.law, thetas, flops, law.per)
    repeats = "unique" in loss_laws.LAWS[law.law].inputs
    if repeats:
        best = optimum.at(law.law, thetas, flops, law.per, unique)
        n, d, loss = best.params, best.tokens, best.loss
        # where no token need be repeated the cap does not count
        n, d, loss = (
            np.where(free.tokens <= unique, a, b)
            for a, b in zip((free.params, free.tokens, free.loss), (n, d, loss))
        )
    else:
        d = np.minimum(free.tokens, unique)
        n = flops / (law.per * d)
        loss = np.full(len(thetas), np.nan)
        has = np.isfinite(d)
        loss[has] = optimum.loss(law.law, thetas[has], n[has], d[has], paired=True)
    c = np.full(len(thetas), flops)
    return Capped(
        _plan(law, c, n, d, loss, level),
        _plan(law, c, free.params, free.tokens, free.loss, level),
        _range(d / unique, level),
        _range(loss - free.loss, level),
        bool(free.tokens[0] > unique),
        repeats,
    )


def _planned(law: Law) -> allocation.Planned:
    """The planner: the study, or the form by its draws alone."""
    return law.plan or allocation.form(law.law, law.theta, law.draws, law.flops, law.per)


def _all(law: Law) -> Array:
    """[1 + R, k]: the fit, then its draws."""
    return np.concatenate([law.theta[None], law.draws])


def _each(law: Law, thetas: Array, c: Array) -> optimum.Optimum:
    """The optimum of draw i at c[i]; nan where c is not finite."""
    out = optimum.Optimum(*(np.full(len(c), np.nan) for _ in optimum.Optimum._fields))
    has = np.isfinite(c)
    for kept, optima in zip(out, optimum.at(law.law, thetas[has], c[has], law.per, paired=True)):
        kept[has] = optima
    return out


def _tokens(law: Law, thetas: Array, n: Array, loss: float) -> Array:
    """[P, m] D at which sizes n [P, m] reach a loss; inf where they never do."""
    form = loss_laws.LAWS[law.law]
    theta = thetas.T[:, :, None]

    def value(log_d: Array) -> Array:
        known = {"params": n, "tokens": np.exp(log_d), "unique": np.exp(log_d)}
        with np.errstate(all="ignore"):
            return form.predict(theta, tuple(known[k] for k in form.inputs))

    low, high = (np.log(n) + np.log(r) for r in RATIOS)
    ever = value(high) <= loss
    for _ in range(optimum.HALVINGS):
        middle = (low + high) / 2
        there = value(middle) <= loss
        low, high = np.where(there, low, middle), np.where(there, middle, high)
    return np.where(ever, np.exp((low + high) / 2), np.inf)


def _lowest(total: Callable[[Array], Array], centre: Array) -> Array:
    """[P] the N of least total, [P, m] -> [P, m], about sizes centre [P]: the lowest of PLACES,
    then golden sections of the bracket around it."""
    x = np.log(centre)[:, None] + np.linspace(np.log(SMALLER), np.log(LARGER), PLACES)
    at = np.clip(np.argmin(total(np.exp(x)), 1), 1, PLACES - 2)
    each = np.arange(len(x))
    low, high = x[each, at - 1], x[each, at + 1]
    for _ in range(SECTIONS):
        width = GOLDEN * (high - low)
        left, right = total(np.exp(np.stack([high - width, low + width], 1))).T
        down = left <= right
        low, high = np.where(down, low, high - width), np.where(down, low + width, high)
    return np.exp((low + high) / 2)


def _plan(law: Law, c: Array, n: Array, d: Array, loss: Array, level: float) -> Plan:
    """The Plan of arrays [1 + R], the fit's value first."""
    good = np.isfinite(n) & np.isfinite(d) & np.isfinite(loss)
    c, n, d, loss = (np.where(good, v, np.nan) for v in (c, n, d, loss))
    ranges = [_range(v, level) for v in (c, n, d, loss, d / n)]
    return Plan(*ranges, float(c[0] / law.flops[1]), int(np.sum(~good[1:])))


def _range(values: Array, level: float) -> Range:
    """The Range of values [1 + R], the fit's first; draws without one are left out."""
    if not 0 < level < 1:
        raise ValueError(f"level: {level} given; a share between 0 and 1 is needed")
    low, high = comparison.interval(values[1:], level) or (np.nan, np.nan)
    return Range(float(values[0]), low, high)
