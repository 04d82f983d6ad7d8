"""A study's points: parameters N, tokens D, training FLOPs C and loss of runs that differ in size.

What N and C count decides the exponent that is fitted: Porian et al. 2024 (section 3) take the
optimum's exponent from 0.84 to 0.71 on the same runs by counting the output matrix alone. So a
table carries its counting, and two countings in one table are refused.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from jaxlm.scaling.reading import plausibility

# Values of `Counting.params` and `Counting.flops`; "given": the file's own, not known here.
PARAMS = ("total", "non-embedding", "matmul-only", "given")
FLOPS = ("6ND", "6ND+attention", "exact causal", "given")
FIELDS = ("params", "tokens", "flops", "loss", "unique", "run")


@dataclasses.dataclass(frozen=True)
class Counting:
    """Counting of N and C. `params` is one of PARAMS, `flops` one of FLOPS; cost/conventions.py."""

    params: str = "given"
    flops: str = "6ND"


class Table(NamedTuple):
    """n points, float64 each; points of one training run share `run`."""

    params: np.ndarray  # [n] N
    tokens: np.ndarray  # [n] D
    flops: np.ndarray  # [n] C of training
    loss: np.ndarray  # [n] nats per token
    unique: np.ndarray | None  # [n] different tokens among the D; None where all are
    run: np.ndarray  # [n] str, the training run a point is from
    counting: Counting
    row: np.ndarray  # [n] int64, the line of the file; of run directories 1, 2, ...
    left_out: tuple[str, ...] = ()  # what is not in the table, and why
    # {column of the file: [n]} of all columns that none of the fields above holds: float64 where
    # every cell is a number (nan where it is empty), else str
    columns: Mapping[str, np.ndarray] = {}
    weight: np.ndarray | None = None  # [n] of fits, mean 1: see `weights`; None: all alike
    notes: tuple[str, ...] = ()  # what was done to the file's numbers: units and their like
    loss_unit: str = "nats per token"


def take(t: Table, index: np.ndarray) -> Table:
    """The points that an index or a mask selects, in its order."""
    return t._replace(
        **{f: getattr(t, f)[index] for f in ("params", "tokens", "flops", "loss", "run", "row")},
        unique=None if t.unique is None else t.unique[index],
        weight=None if t.weight is None else t.weight[index],
        columns={name: values[index] for name, values in t.columns.items()},
    )


def weights(loss: np.ndarray, error: np.ndarray) -> np.ndarray:
    """[n] weights of mean 1, proportional to 1/error^2 of the logarithm of losses [n].

    error [n]: standard errors of the losses; of log L they are error / L.
    """
    w = (loss / error) ** 2
    return w / w.mean()


def make(
    params: np.ndarray,
    tokens: np.ndarray,
    loss: np.ndarray,
    flops: np.ndarray | None = None,
    unique: np.ndarray | None = None,
    run: np.ndarray | None = None,
    counting: Counting = Counting(),
    loss_se: np.ndarray | None = None,
) -> Table:
    """A Table of arrays [n], such as a simulation's; flops None is 6 N D.

    loss_se: standard errors of the losses, from which points have their weights.

    Raises: ValueError naming the element and field of numbers that are not above 0, and of a run
    that is twice at one number of tokens. Units are not judged: arrays have theirs.
    """
    c = 6 * np.asarray(params, float) * tokens if flops is None else flops
    n = len(c)
    row = np.arange(1, n + 1)
    runs = row.astype(str) if run is None else np.asarray(run).astype(str)
    x, d, c, y = (np.asarray(v, np.float64) for v in (params, tokens, c, loss))
    different = None if unique is None else np.asarray(unique, np.float64)
    t = Table(x, d, c, y, different, runs, counting, row)
    places, names = [f"the arrays row {i}" for i in row], {f: f for f in (*FIELDS, "loss_se")}
    check(t, names, places)
    if loss_se is None:
        return t
    error = np.asarray(loss_se, np.float64)
    if error.shape != row.shape:
        raise ValueError(f"the arrays: loss_se has shape {error.shape}, others {row.shape}")
    plausibility.positive({"loss_se": error}, names, places)
    return t._replace(weight=weights(y, error))


def known(counting: Counting) -> None:
    """Raises: ValueError for a counting that is none of PARAMS and FLOPS."""
    for field, names in (("params", PARAMS), ("flops", FLOPS)):
        value = getattr(counting, field)
        if value not in names:
            raise ValueError(
                f"--counting: counting.{field}: {value!r} is none of {', '.join(names)}"
            )


def check(t: Table, names: Mapping[str, str], places: Sequence[str]) -> None:
    """Raises: ValueError for values no run can have, naming the row and the column."""
    numbers = {"params": t.params, "tokens": t.tokens, "flops": t.flops, "loss": t.loss}
    for field, array in (*numbers.items(), ("run", t.run)):
        if array.shape != t.row.shape:
            raise ValueError(f"the arrays: {field} has shape {array.shape}, others {t.row.shape}")
    if t.unique is not None:
        numbers["unique"] = t.unique
    plausibility.positive(numbers, names, places)
    if t.unique is not None:
        plausibility.unique(t.unique, t.tokens, names["unique"], places)
    plausibility.once(t.run, t.tokens, names.get("run", "run"), places)
