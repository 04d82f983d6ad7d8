"""The parts of a study's record: `study_record.Record` holds them, study.json their fields.

Parameters of a law are {name: value}; N and D are counted in parameters and tokens, C in training
FLOPs, losses in nats per token; an interval is (low, high) at the study's level, None where there
is none. Arrays: n points, R bootstrap draws, k parameters of a law.
"""

import dataclasses
import functools
import math
from typing import Annotated, Any

import numpy as np

from jaxlm.core import config

# Metadata of a field that is not written where it is None.
LEFT_OUT = {"left_out": True}


def _array(kind: type, value: Any, where: str) -> np.ndarray:
    """An array of a list; null is nan. Raises: ValueError for another type of elements."""
    try:
        array = np.array(value)
        array = np.array(value, float) if array.dtype == object else array
    except (TypeError, ValueError):
        array = np.array(None)
    if array.ndim == 0 or array.size and not np.can_cast(array.dtype, kind, "same_kind"):
        raise ValueError(f"{where}: expected a list of {kind.__name__}, got {value!r:.60}")
    return array.astype(kind)


def _number(null: float, value: Any, where: str) -> float:
    """A float, and for null the value that JSON cannot hold."""
    if type(value) not in (int, float, type(None)):
        raise ValueError(f"{where}: expected float or null, got {value!r:.60}")
    return null if value is None else float(value)


Floats = Annotated[np.ndarray, config.Stored(functools.partial(_array, float))]
Ints = Annotated[np.ndarray, config.Stored(functools.partial(_array, int))]
Bools = Annotated[np.ndarray, config.Stored(functools.partial(_array, bool))]
Texts = Annotated[np.ndarray, config.Stored(functools.partial(_array, str))]
# A number that may have no value: nan, null in JSON. Of a delta null is infinity.
Number = Annotated[float, config.Stored(functools.partial(_number, math.nan))]
Delta = Annotated[float, config.Stored(functools.partial(_number, math.inf))]
Interval = tuple[float, float] | None
Theta = dict[str, Number]


@dataclasses.dataclass(frozen=True)
class Skipped:
    """The reason why there is no result."""

    skipped: str


@dataclasses.dataclass(frozen=True)
class Estimate:
    """A number of the plan at the target, in parameters, tokens or nats per token."""

    value: Number
    interval: Interval


@dataclasses.dataclass(frozen=True)
class Dropped:
    """A point of highest loss that no fit read."""

    row: int
    run: str
    loss: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class Source:
    """The table."""

    name: str
    points: int  # those dropped among them
    dropped: tuple[Dropped, ...]
    left_out: tuple[str, ...]  # what of the file is no point, and why
    notes: tuple[str, ...] = ()  # what was done to the file's numbers
    path: str | None = dataclasses.field(default=None, metadata=LEFT_OUT)
    sha256: str | None = dataclasses.field(default=None, metadata=LEFT_OUT)


@dataclasses.dataclass(frozen=True)
class Points:
    """Columns of all points, [n] each."""

    params: Floats
    tokens: Floats
    flops: Floats
    loss: Floats
    unique: Floats | None
    run: Texts
    row: Ints  # lines of the file
    used: Bools  # whether it was fitted


@dataclasses.dataclass(frozen=True)
class Basin:
    """Another optimum of a fit."""

    objective: float
    theta: Theta


@dataclasses.dataclass(frozen=True)
class Optimum:
    """(value, interval) of a form's optimum at the target."""

    params: tuple[Number, Interval]
    tokens: tuple[Number, Interval]
    loss: tuple[Number, Interval]
    exponent: tuple[Number, Interval]  # d log N* / d log C
    tokens_per_parameter: tuple[Number, Interval]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Form:
    """A fitted law."""

    source: str
    inputs: tuple[str, ...]
    theta: Theta
    fixed: tuple[str, ...] = ()  # parameters that were held
    intervals: dict[str, Interval]
    objective: float
    points: int
    reached: float  # share of the starts that end at the optimum
    gradient: Number
    basins: tuple[Basin, ...]
    condition: Number  # condition number of the Jacobian
    residual: Floats  # [points] of log loss
    residual_sd: float
    optimum: Annotated[
        Optimum | Skipped, config.Stored(functools.partial(config.by_fields, (Optimum, Skipped)))
    ]
    failed: int  # bootstrap refits that did not converge
    draws: Floats  # [R, k]


@dataclasses.dataclass(frozen=True, kw_only=True)
class LossTest:
    """Errors of a form's loss on budgets held out, percent: 100 log(predicted / measured)."""

    fitted: int
    tested: int
    mean: float
    mae: float
    largest: float
    theta: Theta
    error: Floats  # [tested]
    row: Ints  # [tested]
    cutoffs: dict[str, Number] = dataclasses.field(default_factory=dict)  # {FLOPs: mae from there}


@dataclasses.dataclass(frozen=True)
class SizeTest:
    """Errors of N* on measured minima: log(predicted / measured)."""

    tested: int
    mean: Number
    median: Number  # of the absolute errors
    error: Floats  # [tested]
    decades: Floats  # [tested] beyond the largest budget fitted
    case: Ints  # [tested] which budget


@dataclasses.dataclass(frozen=True, kw_only=True)
class Backtest:
    """Rolling back-tests."""

    threshold: float | None  # FLOPs of the last cut-off
    cutoffs: tuple[float, ...] = ()
    wins: str | None
    unit: str
    forms: dict[str, LossTest]
    sizes: dict[str, SizeTest] = dataclasses.field(default_factory=dict)
    skipped: dict[str, str]


@dataclasses.dataclass(frozen=True)
class Parametric:
    """Approach 3: the optimum of a form at the target."""

    exponent: Number
    interval: Interval
    params: Number
    params_interval: Interval


@dataclasses.dataclass(frozen=True)
class Envelope:
    """Approach 1: N* = exp(intercept) C^exponent of the lower envelope, m places by rising C."""

    exponent: Number
    intercept: Number
    interval: Interval
    params: Number
    params_interval: Interval
    curves: bool  # places are on training curves, or else runs
    r2: Number
    flops: Floats  # [m]
    params_at: Floats  # [m]
    loss: Floats  # [m]


@dataclasses.dataclass(frozen=True)
class Minimum:
    """The lowest loss of one budget."""

    flops: float  # the geometric mean of its points' C
    params: Number  # N*; nan where left out
    tokens: Number  # D* at N*
    loss: Number
    sd: Number  # standard deviation of log N* over noise replicas; nan without noise
    sizes: int  # different N
    left_out: str  # reason why the power law is fitted without this budget, or ""


@dataclasses.dataclass(frozen=True)
class IsoFlop:
    """Approach 2: N* = exp(intercept) C^exponent of the minima of budgets."""

    exponent: Number
    intercept: Number
    interval: Interval
    params: Number
    params_interval: Interval
    noise: Number
    budgets: tuple[Ints, ...]  # indices of the points used
    minima: tuple[Minimum, ...]


APPROACHES = (Skipped, Parametric, Envelope, IsoFlop)
Approach = Annotated[
    Skipped | Parametric | Envelope | IsoFlop,
    config.Stored(functools.partial(config.by_fields, APPROACHES)),
]


@dataclasses.dataclass(frozen=True)
class Outlier:
    """A refit without so many of the highest losses."""

    dropped: int
    points: int
    law: str
    theta: Theta
    objective: Number
    failed: str | None
    exponent: Number
    params: Number
    tokens_per_parameter: Number
    loss: Number


@dataclasses.dataclass(frozen=True)
class Profile:
    """The objective along a parameter, the others refitted."""

    grid: Floats
    relative: Floats  # percent above the least


@dataclasses.dataclass(frozen=True)
class Planner:
    """One N*(C) of the plan."""

    name: str  # a form, or isoflop
    theta: Floats  # [k], of isoflop exponent and intercept
    draws: Floats | None  # [R, k]; None: those of the plan
    rows: Bools  # [R] draws that chose it


@dataclasses.dataclass(frozen=True)
class Spread:
    """Standard deviations for each decade of compute beyond the runs."""

    params: Number  # of log N*
    loss: Number  # of log loss
    surface: Number  # of log loss away from approach 2's minima


@dataclasses.dataclass(frozen=True)
class Frontier:
    """The law `offset` through approach 2's minima."""

    theta: Floats  # [k]
    draws: Floats  # [R, k]


@dataclasses.dataclass(frozen=True)
class Undertuned:
    """Excess loss of the largest sizes, and the plan without it."""

    knot: float  # N from which on it grows
    t: float  # in standard errors
    at_largest: float  # of log loss at the largest N
    runs: int  # above the knot
    params: Number
    loss: Number


@dataclasses.dataclass(frozen=True)
class Curve:
    """A form's own error along compute: the posterior of m settings at g places."""

    weight: Floats  # [m] probability
    flops: Floats  # [g] rising
    mean: Floats  # [2, m, g] of log N*, of log loss, relative to the fit
    sd: Floats  # [2, m, g] beyond what resampling the runs gives


@dataclasses.dataclass(frozen=True)
class StudyPlan:
    """The plan: planners, what their intervals hold, and its numbers at the target."""

    chosen_by: str
    default: str  # the form that plans without a back-test
    surface: str  # the form of the loss
    form: str  # the planner of N*
    sizes: tuple[Planner, ...]  # the one chosen first
    draws: Floats  # [R, k] of the surface
    spread: Spread
    frontier: Frontier | None
    discrepancy: Curve | None
    undertuned: Undertuned | None
    params: Estimate
    tokens: Estimate
    loss: Estimate
    exponent: Estimate
    tokens_per_parameter: Estimate
    disagreement: str


@dataclasses.dataclass(frozen=True)
class Candidate:
    """A candidate for the next run, and the 95 % widths of log N* without and with it."""

    params: float
    tokens: float
    cost: float  # FLOPs
    width_before: Number
    width_after: Number
    gain_per_flop: Number


@dataclasses.dataclass(frozen=True)
class Caution:
    """A warning. `kind` names the check, `text` gives the numbers and what to do."""

    kind: str
    text: str
