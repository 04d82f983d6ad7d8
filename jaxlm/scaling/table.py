"""A study's points: parameters N, tokens D, training FLOPs C and loss of runs that differ in size.

    t = table.read("runs.csv")                              # columns found by their usual names
    t = table.read("runs.csv", {"loss": "loss_c4_val"})     # or named
    t = table.read("runs/sweep", counting=Counting("matmul-only", "exact causal"))

What N and C count decides the exponent that is fitted: Porian et al. 2024 (section 3) take the
optimum's exponent from 0.84 to 0.71 on the same runs by counting the output matrix alone. So a
table carries its counting, and two countings in one table are refused.
"""

import pathlib
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from jaxlm.scaling.reading import checks, points

# What `Counting.params` and `Counting.flops` may say; "given": the file's own, not known here.
PARAMS = ("total", "non-embedding", "matmul-only", "given")
FLOPS = ("6ND", "6ND+attention", "exact causal", "given")
FIELDS = ("params", "tokens", "flops", "loss", "unique", "run")


class Counting(NamedTuple):
    """What N and C count. `params` is one of PARAMS, `flops` one of FLOPS; see counting.py."""

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
    _check(t, names, places)
    if loss_se is None:
        return t
    error = np.asarray(loss_se, np.float64)
    if error.shape != row.shape:
        raise ValueError(f"the arrays: loss_se has shape {error.shape}, others {row.shape}")
    checks.positive({"loss_se": error}, names, places)
    return t._replace(weight=weights(y, error))


def read(
    path: str | pathlib.Path,
    columns: Mapping[str, str] = {},
    counting: Counting | None = None,
    *,
    units: Mapping[str, str] = {},
    where: Mapping[str, str] = {},
    run_columns: Sequence[str] = (),
    best_by: Sequence[str] = (),
    intermediate: bool = False,
    decaying: bool = False,
    drop_repeats: bool = False,
    drop_incomplete: bool = False,
    weigh: bool = True,
) -> Table:
    """The points of a file, of a folder of curves, or of all finished runs in run directories.

    A file is CSV with any separator, JSON, JSON lines or Parquet, or such an export of Weights &
    Biases; a folder holds a training curve in each file. columns: {field: column of the file},
    for fields params, tokens, flops, loss, loss_se, unique, run; a field that is not named is
    found by its usual names. Of params, tokens and flops any two suffice: the third is made by
    C = 6 N D. units: {field: unit} of columns whose header does not say it: B, GFLOP, bits, 1e6.

    where: {column: text}, only rows that have that text there. run_columns: which columns together
    name a training run. best_by: only the row of lowest loss among those with equal values of
    these fields or columns. drop_incomplete: leave out rows with a cell that is no number above 0
    or a diverged loss, drop_repeats: all but the first of equal rows; they are refused otherwise.
    counting: of a file what its numbers count (None: N as given; C = 6 N D must hold); of run
    directories how N and C are counted from each Config (None: total, 6ND). weigh: weights from
    standard errors of the loss, if there is a column of them.

    Of run directories: N and C from config.json, D the positions trained on, and the last
    evaluation's nats per token. intermediate=True takes every evaluation, as points of one run, and
    of a folder of curves every row. Before its end a run whose learning rate decays has a loss that
    a run of that length, decayed to the end, would not have (Hoffmann et al. 2022, section 3.1), so
    run directories of such runs are refused then; decaying=True takes them all the same.

    Raises: FileNotFoundError; ImportError for Parquet without its extra; ValueError naming the row
    (line of the file), the column and the flag of `jaxlm fit` that mends it, which has the name of
    an argument here.
    """
    path = pathlib.Path(path).expanduser()
    points.exists(path)
    if counting is not None:
        known(counting)
    how = points.Selection(
        columns, units, where, run_columns, best_by, drop_incomplete, intermediate
    )
    if path.is_dir() and next(path.rglob("config.json"), None) is not None:
        if how._replace(intermediate=False) != points.Selection():
            raise ValueError(
                f"{path} is a directory of runs, which has no columns to name (--column, --unit, "
                "--where, --run-columns, --best-by, --drop-incomplete)"
            )
        return _directories(path, counting, intermediate, decaying, drop_repeats)
    if decaying:
        raise ValueError(f"{path} holds no run directories; --decaying: of run directories alone")
    return _file(path, how, counting, drop_repeats, weigh)


def values(
    path: str | pathlib.Path, by: Sequence[str], where: Mapping[str, str] = {}
) -> list[dict[str, str]]:
    """[{column: text}] of the different values of some columns of a file, in the order of its rows.

        for one in table.values("runs.csv", ["data"]):
            t = table.read("runs.csv", where=one)

    Raises: ValueError for a column that is not there.
    """
    path = pathlib.Path(path).expanduser()
    points.exists(path)
    return points.values(path, by, where)


def known(counting: Counting) -> None:
    """Raises: ValueError for a counting that is none of PARAMS and FLOPS."""
    for field, names in (("params", PARAMS), ("flops", FLOPS)):
        value = getattr(counting, field)
        if value not in names:
            raise ValueError(
                f"--counting: counting.{field}: {value!r} is none of {', '.join(names)}"
            )


def _directories(
    path: pathlib.Path,
    counting: Counting | None,
    intermediate: bool,
    decaying: bool,
    drop_repeats: bool,
) -> Table:
    """The table of all finished runs in run directories, checked."""
    # run directories need jaxlm's models; a table from a file does not
    from jaxlm.scaling import directories

    t = directories.read(path, counting or Counting("total"), intermediate, decaying)
    t, places = _repeats(t, [f"{path} row {i}" for i in t.row], drop_repeats)
    _several(t, path)
    _check(t, {f: f for f in FIELDS}, places)
    return t


def _file(
    path: pathlib.Path,
    how: points.Selection,
    stated: Counting | None,
    drop_repeats: bool,
    weigh: bool,
) -> Table:
    """The table of a file or folder of curves, checked."""
    p = points.read(path, how)
    checks.plausible(p.numbers, p.names, p.places, p.stated)
    counting, note = _counting(path, stated, p)
    n, d, c = _third(p.numbers)
    loss, error = p.numbers["loss"], p.numbers.get("loss_se")
    notes = [*p.notes, *([note] if note else [])]
    weight = None
    if error is not None and weigh:
        weight = weights(loss, error)
        few = weight.sum() ** 2 / (weight**2).sum()
        notes.append(
            f"points have weights from column {p.names['loss_se']!r}, {weight.min():.2g} to "
            f"{weight.max():.2g}, worth {few:.1f} of {len(loss)} equal ones (--no-weigh: none)"
        )
    t = Table(
        n,
        d,
        c,
        loss,
        p.numbers.get("unique"),
        p.run,
        counting,
        p.rows,
        p.left_out,
        p.columns,
        weight,
        tuple(notes),
        p.loss_unit,
    )
    t, places = _repeats(t, p.places, drop_repeats)
    _several(t, path)
    _check(t, p.names, places)
    if not p.stated:
        # the one that C = 6 N D gives, too
        both = {"params": t.params, "tokens": t.tokens}
        checks.plausible(both, {f: f for f in FIELDS} | p.names, places, ())
    checks.losses(t.loss, t.params, t.tokens, p.names["loss"], places, "loss" in p.stated)
    return t


def _several(t: Table, path: pathlib.Path) -> None:
    if len(t.loss) < 2:
        raise ValueError(f"{path}: {len(t.loss)} point; a law needs several, of different size")


def _third(numbers: Mapping[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """N, D and C, the one that is not given by C = 6 N D."""
    if "params" not in numbers:
        d, c = numbers["tokens"], numbers["flops"]
        return c / (6 * d), d, c
    n = numbers["params"]
    if "tokens" not in numbers:
        return n, numbers["flops"] / (6 * n), numbers["flops"]
    d = numbers["tokens"]
    return n, d, numbers.get("flops", 6 * n * d)


def _counting(
    path: pathlib.Path, stated: Counting | None, p: points.Points
) -> tuple[Counting, str]:
    """(what the file's numbers count, a note). Raises: ValueError where rows differ in it."""
    params = stated.params if stated else "given"
    if p.counted in PARAMS and p.counted != "given":
        if stated and "counting" in p.names and stated.params != p.counted:
            raise ValueError(
                f"{p.places[0]}, column {p.names['counting']!r}: {p.counted!r}, where "
                f"{stated.params!r} is required (--counting)"
            )
        params = stated.params if stated else p.counted
    if len({"params", "tokens", "flops"} & set(p.numbers)) < 3:
        if stated and "flops" in p.numbers and stated.flops != "6ND":
            lack = "params" if "params" not in p.numbers else "tokens"
            raise ValueError(
                f"{path}: no column for {lack}, which C = 6 N D gives from {p.names['flops']!r}; "
                f"under --counting {stated.params} {stated.flops!r} it needs each run's Config"
            )
        return Counting(params, "6ND"), ""
    if stated and stated.flops != "6ND":
        return Counting(params, stated.flops), ""
    flops, note = checks.convention(p.numbers, p.names, p.places)
    return Counting(params, flops), note


def _check(t: Table, names: Mapping[str, str], places: Sequence[str]) -> None:
    """Raises: ValueError for values no run can have, naming the row and the column."""
    numbers = {"params": t.params, "tokens": t.tokens, "flops": t.flops, "loss": t.loss}
    for field, array in (*numbers.items(), ("run", t.run)):
        if array.shape != t.row.shape:
            raise ValueError(f"the arrays: {field} has shape {array.shape}, others {t.row.shape}")
    if t.unique is not None:
        numbers["unique"] = t.unique
    checks.positive(numbers, names, places)
    if t.unique is not None:
        checks.unique(t.unique, t.tokens, names["unique"], places)
    checks.once(t.run, t.tokens, names.get("run", "run"), places)


def _repeats(t: Table, places: Sequence[str], drop: bool) -> tuple[Table, list[str]]:
    """The table without rows that repeat another. Raises: ValueError unless `drop`."""
    fields = [t.params, t.tokens, t.flops, t.loss, *([] if t.unique is None else [t.unique])]
    # runs that differ in a hyper-parameter, a number that several rows share, are not the same
    fields += [
        np.nan_to_num(v)
        for v in t.columns.values()
        if v.dtype.kind == "f" and 2 * len(np.unique(v)) <= len(v)
    ]
    pairs = checks.repeats(list(zip(*(f.tolist() for f in fields))))
    if not pairs:
        return t, list(places)
    if not drop:
        i, j = pairs[0]
        raise ValueError(
            f"{places[i]} ({t.run[i]}) repeats {checks.seen_from(places[j], places[i])} "
            f"({t.run[j]}) in N, D, C and column 'loss' = {t.loss[i]:g}: the same run twice; "
            "remove one, or --drop-repeats keeps the first"
        )
    keep = np.setdiff1d(np.arange(len(t.loss)), [i for i, _ in pairs])
    left = [f"row {t.row[i]} ({t.run[i]}) repeats row {t.row[j]} ({t.run[j]})" for i, j in pairs]
    t = take(t, keep)._replace(
        left_out=(*t.left_out, *(f"{text}: the same N, D, C and loss" for text in left))
    )
    return t, [places[i] for i in keep]
