"""Tables of a study's points from a file, a folder of curves, or run directories.

t = tables.read("runs.csv")                              # columns found by their usual names
t = tables.read("runs.csv", {"loss": "loss_c4_val"})     # or named
t = tables.read("runs/sweep", counting=Counting("matmul-only", "exact causal"))
"""

import pathlib
from collections.abc import Mapping, Sequence

import numpy as np

from jaxlm.scaling import table
from jaxlm.scaling.reading import plausibility, rows_of_runs


def read(
    path: str | pathlib.Path,
    columns: Mapping[str, str] = {},
    counting: table.Counting | None = None,
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
) -> table.Table:
    """The points of a file, of a folder of curves, or of all finished runs in run directories.

    A file is CSV with any separator, JSON, JSON lines or Parquet, or such an export of Weights &
    Biases; a folder holds a training curve in each file. columns: {field: column of the file},
    for fields params, tokens, flops, loss, loss_se, unique, run; a field that is not named is
    found by its usual names. Of params, tokens and flops any two suffice: the third is made by
    C = 6 N D. units: {field: unit} of columns whose header lacks it: B, GFLOP, bits, 1e6.

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
    (line of the file), the column and the flag of `jaxlm fit` that corrects it, with the name of
    an argument here.
    """
    path = pathlib.Path(path).expanduser()
    rows_of_runs.exists(path)
    if counting is not None:
        table.known(counting)
    how = rows_of_runs.Selection(
        columns, units, where, run_columns, best_by, drop_incomplete, intermediate
    )
    if path.is_dir() and next(path.rglob("config.json"), None) is not None:
        if how._replace(intermediate=False) != rows_of_runs.Selection():
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

        for one in tables.values("runs.csv", ["data"]):
            t = tables.read("runs.csv", where=one)

    Raises: ValueError for a column that is not there.
    """
    path = pathlib.Path(path).expanduser()
    rows_of_runs.exists(path)
    return rows_of_runs.values(path, by, where)


def _directories(
    path: pathlib.Path,
    counting: table.Counting | None,
    intermediate: bool,
    decaying: bool,
    drop_repeats: bool,
) -> table.Table:
    """The table of all finished runs in run directories, checked."""
    # run directories need jaxlm's models; a table from a file does not
    from jaxlm.scaling.reading import run_directories

    t = run_directories.read(path, counting or table.Counting("total"), intermediate, decaying)
    t, places = _repeats(t, [f"{path} row {i}" for i in t.row], drop_repeats)
    _several(t, path)
    table.check(t, {f: f for f in table.FIELDS}, places)
    return t


def _file(
    path: pathlib.Path,
    how: rows_of_runs.Selection,
    stated: table.Counting | None,
    drop_repeats: bool,
    weigh: bool,
) -> table.Table:
    """The table of a file or folder of curves, checked."""
    p = rows_of_runs.read(path, how)
    plausibility.plausible(p.numbers, p.names, p.places, p.stated)
    counting, note = _counting(path, stated, p)
    n, d, c = _third(p.numbers)
    loss, error = p.numbers["loss"], p.numbers.get("loss_se")
    notes = [*p.notes, *([note] if note else [])]
    weight = None
    if error is not None and weigh:
        weight = table.weights(loss, error)
        few = weight.sum() ** 2 / (weight**2).sum()
        notes.append(
            f"points have weights from column {p.names['loss_se']!r}, {weight.min():.2g} to "
            f"{weight.max():.2g}, worth {few:.1f} of {len(loss)} equal ones (--no-weigh: none)"
        )
    t = table.Table(
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
    table.check(t, p.names, places)
    if not p.stated:
        # the one that C = 6 N D gives, too
        both = {"params": t.params, "tokens": t.tokens}
        plausibility.plausible(both, {f: f for f in table.FIELDS} | p.names, places, ())
    plausibility.losses(t.loss, t.params, t.tokens, p.names["loss"], places, "loss" in p.stated)
    return t


def _several(t: table.Table, path: pathlib.Path) -> None:
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
    path: pathlib.Path, stated: table.Counting | None, p: rows_of_runs.Points
) -> tuple[table.Counting, str]:
    """(what the file's numbers count, a note). Raises: ValueError where rows differ in it."""
    params = stated.params if stated else "given"
    if p.counted in table.PARAMS and p.counted != "given":
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
        return table.Counting(params, "6ND"), ""
    if stated and stated.flops != "6ND":
        return table.Counting(params, stated.flops), ""
    flops, note = plausibility.convention(p.numbers, p.names, p.places)
    return table.Counting(params, flops), note


def _repeats(t: table.Table, places: Sequence[str], drop: bool) -> tuple[table.Table, list[str]]:
    """The table without rows that repeat another. Raises: ValueError unless `drop`."""
    fields = [t.params, t.tokens, t.flops, t.loss, *([] if t.unique is None else [t.unique])]
    # runs that differ in a hyper-parameter, a number that several rows share, are not the same
    fields += [
        np.nan_to_num(v)
        for v in t.columns.values()
        if v.dtype.kind == "f" and 2 * len(np.unique(v)) <= len(v)
    ]
    pairs = plausibility.repeats(list(zip(*(f.tolist() for f in fields))))
    if not pairs:
        return t, list(places)
    if not drop:
        i, j = pairs[0]
        raise ValueError(
            f"{places[i]} ({t.run[i]}) repeats {plausibility.seen_from(places[j], places[i])} "
            f"({t.run[j]}) in N, D, C and column 'loss' = {t.loss[i]:g}: the same run twice; "
            "remove one, or --drop-repeats keeps the first"
        )
    keep = np.setdiff1d(np.arange(len(t.loss)), [i for i, _ in pairs])
    left = [f"row {t.row[i]} ({t.run[i]}) repeats row {t.row[j]} ({t.run[j]})" for i, j in pairs]
    t = table.take(t, keep)._replace(
        left_out=(*t.left_out, *(f"{text}: the same N, D, C and loss" for text in left))
    )
    return t, [places[i] for i in keep]
