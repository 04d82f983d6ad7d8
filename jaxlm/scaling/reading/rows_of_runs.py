"""The points of a file or folder of curves as arrays: columns found, units taken, rows chosen."""

import pathlib
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from jaxlm.scaling.reading import columns, exports, grid, plausibility, quantities

# Rows that a note names; the others it counts.
SHOWN = 3

Array = np.ndarray


class Selection(NamedTuple):
    """Names and units of a file's columns, and the rows that are points: see `tables.read`."""

    columns: Mapping[str, str] = {}
    units: Mapping[str, str] = {}
    where: Mapping[str, str] = {}
    run_columns: Sequence[str] = ()
    best_by: Sequence[str] = ()
    drop_incomplete: bool = False
    intermediate: bool = False


class Points(NamedTuple):
    """A file's points, finite and above 0."""

    numbers: dict[str, Array]  # field -> [n] of the fields that have columns
    run: Array  # [n] str
    rows: Array  # [n] int64
    places: list[str]  # [n] file and row, for messages
    names: dict[str, str]  # field -> its column
    stated: tuple[str, ...]  # fields whose unit was stated
    counted: str  # what N counts, as the file states it; "given" where it does not
    columns: dict[str, Array]  # the columns that no field holds
    left_out: tuple[str, ...]
    notes: tuple[str, ...]
    loss_unit: str


def exists(path: pathlib.Path) -> None:
    """Raises: FileNotFoundError, saying what was expected there."""
    if not path.exists():
        raise FileNotFoundError(
            f"{path} is not there: a table with a row for each run, a folder of training curves, "
            "or a directory of run directories is needed"
        )


def values(
    path: pathlib.Path, columns_by: Sequence[str], where: Mapping[str, str]
) -> list[dict[str, str]]:
    """[{column: text}] of the different rows of some columns of a file, in its order.

    Raises: ValueError for a column that is not there.
    """
    sheet = _where(exports.read(grid.load(path)), where)
    for column in columns_by:
        if column not in sheet.header:
            raise ValueError(_no_column(sheet, column, "--by"))
    rows = dict.fromkeys(zip(*(sheet.column(c) for c in columns_by)))
    return [dict(zip(columns_by, row)) for row in rows]


def read(path: pathlib.Path, how: Selection) -> Points:
    """The points of a file, or of a folder of curves.

    Raises: FileNotFoundError; ImportError for Parquet without its extra; ValueError naming the
    row, the column and the flag that corrects it.
    """
    sheet = exports.sizes(exports.read(grid.load(path)), how.columns)
    if how.intermediate and not sheet.curves:
        raise ValueError(
            f"{path} is a file of points, all of which are taken; --intermediate and --decaying: "
            "of run directories, folders of curves and exported charts"
        )
    fields = columns.resolve(sheet, how.columns, how.units, how.run_columns)
    sheet = _where(sheet, how.where)
    if sheet.curves:
        sheet = _measured(sheet, fields)
    left = list(sheet.left_out)
    counted, column = "given", fields.get("counting")
    cells_read = quantities.read(sheet, fields)
    sheet, cells_read, incomplete = _incomplete(sheet, cells_read, fields, how.drop_incomplete)
    left += incomplete
    if column is not None:
        counted = _counting_of(sheet, column.name)
    elif "params" in fields:
        counted = columns.counts(fields["params"].name)
    run, split = _by_size(_runs(sheet, fields, how.run_columns), cells_read.values.get("params"))
    names = {f: c.name for f, c in fields.items()}
    others = quantities.others(sheet, list(names.values()), quantities.decimal_comma(sheet, fields))
    notes = [*sheet.notes, *cells_read.notes]
    if counted != "given" and column is None:
        notes.append(f"column {names['params']!r}: N counts {counted} parameters, by its name")
    notes += [split] if split else []
    loss = fields["loss"].unit
    points = Points(
        cells_read.values,
        run,
        np.array([row.line for row in sheet.rows]),
        [row.place for row in sheet.rows],
        names,
        tuple(f for f, c in fields.items() if c.stated),
        counted,
        others,
        tuple(left),
        tuple(notes),
        "nats per token" if loss is None else loss.loss,
    )
    if sheet.curves and not how.intermediate:
        points = _ends(points)
    return _best(points, how.best_by)


def sizes(path: pathlib.Path) -> tuple[Array, Array, Array | None]:
    """(params [m], tokens [m], flops [m] or None) of a file without losses.

    Raises: as `read`.
    """
    sheet = grid.read(path)
    fields = columns.resolve(sheet, {}, {}, fields=("params", "tokens", "flops"))
    cells_read = quantities.read(sheet, fields)
    _incomplete(sheet, cells_read, fields, False, "")
    for lack in ("params", "tokens"):
        if lack not in fields:
            raise ValueError(f"{path}: no column for {lack}; it has {sheet.header}")
    names = {f: c.name for f, c in fields.items()}
    plausibility.plausible(cells_read.values, names, [row.place for row in sheet.rows], ())
    return cells_read.values["params"], cells_read.values["tokens"], cells_read.values.get("flops")


def _no_column(sheet: grid.Grid, column: str, flag: str) -> str:
    shown = ", ".join(repr(h) for h in sheet.header[:20])
    return f"{sheet.path}: no column {column!r} for {flag}; it has [{shown}]"


def _where(sheet: grid.Grid, where: Mapping[str, str]) -> grid.Grid:
    """The rows that have these texts, or numbers equal to them. Raises: ValueError for none."""
    for column, text in where.items():
        if column not in sheet.header:
            raise ValueError(_no_column(sheet, column, f"--where {column}={text}"))
        cells = sheet.column(column)
        rows = [row for row, cell in zip(sheet.rows, cells) if cell == text or _same(cell, text)]
        if not rows:
            there = sorted(set(cells))
            more = "" if len(there) <= 20 else f" and {len(there) - 20} more"
            raise ValueError(
                f"{sheet.path}: no row has {column} = {text!r} (--where); there are "
                f"{there[:20]}{more}"
            )
        sheet = sheet._replace(rows=rows)
    return sheet


def _same(cell: str, other: str) -> bool:
    try:
        return float(cell) == float(other)
    except ValueError:
        return False


def _measured(sheet: grid.Grid, fields: Mapping[str, columns.Column]) -> grid.Grid:
    """A curve's rows with a loss, after its first step: others are no points."""
    loss = sheet.column(fields["loss"].name)
    length = sheet.column(fields["tokens" if "tokens" in fields else "flops"].name)
    rows = [
        row for row, cell, done in zip(sheet.rows, loss, length) if cell and not _same(done, "0")
    ]
    skipped = len(sheet.rows) - len(rows)
    if not rows:
        name = fields["loss"].name
        raise ValueError(f"{sheet.path}, column {name!r}: no row after a first step has a loss")
    if not skipped:
        return sheet
    note = f"{skipped} rows of the curves have no loss, or are of step 0, and are no points"
    return sheet._replace(rows=rows, notes=(*sheet.notes, note))


def _incomplete(
    sheet: grid.Grid,
    cells_read: quantities.Numbers,
    fields: Mapping[str, columns.Column],
    drop: bool,
    flag: str = "; --drop-incomplete leaves such rows out",
) -> tuple[grid.Grid, quantities.Numbers, list[str]]:
    """The rows without a bad cell, and what was left out. Raises: ValueError unless `drop`."""
    bad: dict[int, str] = {}
    for cell in cells_read.bad:
        bad.setdefault(cell.row, f"column {cell.column!r}: {cell.reason}")
    for field, array in cells_read.values.items():
        for i in np.flatnonzero(array <= 0):
            text = sheet.column(fields[field].name)[i]
            bad.setdefault(
                int(i), f"column {fields[field].name!r}: {text!r}; a number above 0 is needed"
            )
    if drop and "loss" in fields and not fields["loss"].stated:
        for i in np.flatnonzero(plausibility.diverged(cells_read.values["loss"])):
            value = cells_read.values["loss"][i]
            bad.setdefault(int(i), f"column {fields['loss'].name!r}: {value:g} nats: it diverged")
    if not bad:
        return sheet, cells_read, []
    first = min(bad)
    if not drop:
        count = f" ({len(bad)} of {len(sheet.rows)} rows have such a cell)" if len(bad) > 1 else ""
        raise ValueError(f"{sheet.rows[first].place}, {bad[first]}{count}{flag}")
    keep = [i for i in range(len(sheet.rows)) if i not in bad]
    if not keep:
        raise ValueError(
            f"{sheet.rows[first].place}, {bad[first]}: none of {len(sheet.rows)} rows is complete"
        )
    shown = [f"row {sheet.rows[i].line}, {bad[i]}" for i in sorted(bad)[:SHOWN]]
    more = f"; and {len(bad) - SHOWN} more" if len(bad) > SHOWN else ""
    note = f"{len(bad)} of {len(sheet.rows)} rows are incomplete: {'; '.join(shown)}{more}"
    kept = {f: a[keep] for f, a in cells_read.values.items()}
    rows = [sheet.rows[i] for i in keep]
    return sheet._replace(rows=rows), cells_read._replace(values=kept, bad=[]), [note]


def _counting_of(sheet: grid.Grid, column: str) -> str:
    """The value of the file's counting column. Raises: ValueError where rows differ."""
    cells = sheet.column(column)
    for row, cell in zip(sheet.rows, cells):
        if cell != cells[0]:
            raise ValueError(
                f"{row.place}, column {column!r}: {cell!r}, where row {sheet.rows[0].line} counts "
                f"{cells[0]!r}; select one counting: --where {column}={cell}, or --by {column}"
            )
    return cells[0]


def _runs(sheet: grid.Grid, fields: Mapping[str, columns.Column], together: Sequence[str]) -> Array:
    """[n] the training run of each row; a row alone is one."""
    if together:
        cells = zip(*(sheet.column(c) for c in together))
        return np.array([", ".join(f"{c}={v}" for c, v in zip(together, row)) for row in cells])
    if "run" in fields:
        return np.array(sheet.column(fields["run"].name))
    return np.array([str(row.line) for row in sheet.rows])


def _by_size(run: Array, params: Array | None) -> tuple[Array, str]:
    """(runs of one size each, a note): a training run has one N, so that a name which several
    sizes share, such as a repetition's number, is no run's."""
    if params is None or len(set(run.tolist())) == len(run):
        return run, ""
    names, group = np.unique(run, return_inverse=True)
    least, most = np.full(len(names), np.inf), np.zeros(len(names))
    np.minimum.at(least, group, params)
    np.maximum.at(most, group, params)
    if (most > 1.05 * least).any():
        apart = np.array([f"{r}, N={n:.4g}" for r, n in zip(run, params)])
        name = str(names[np.argmax(most / least)])
        return apart, f"run {name!r} has several N: its rows are runs by their N too"
    return run, ""


def _pick(p: Points, keep: Array) -> Points:
    """The points at some indices."""
    return p._replace(
        numbers={f: v[keep] for f, v in p.numbers.items()},
        run=p.run[keep],
        rows=p.rows[keep],
        places=[p.places[i] for i in keep],
        columns={c: v[keep] for c, v in p.columns.items()},
    )


def _ends(p: Points) -> Points:
    """The last point of each run's curve."""
    length = p.numbers.get("tokens", p.numbers.get("flops"))
    assert length is not None  # two of params, tokens and flops are there
    last: dict[str, int] = {}
    for i, run in enumerate(p.run.tolist()):
        if run not in last or length[i] >= length[last[run]]:
            last[run] = i
    if len(last) == len(p.run):
        return p
    note = (
        f"the last point of each of {len(last)} training curves is taken; --intermediate takes all "
        f"{len(p.run)}"
    )
    return _pick(p, np.array(sorted(last.values())))._replace(notes=(*p.notes, note))


def _best(p: Points, by: Sequence[str]) -> Points:
    """The point of lowest loss among those with equal values of some fields or columns."""
    if not by:
        return p
    keys = []
    for name in by:
        field = next((f for f, c in p.names.items() if name in (f, c)), None)
        if field is not None and field in p.numbers:
            keys.append(p.numbers[field])
        elif name in p.columns or field == "run":
            keys.append(p.columns.get(name, p.run))
        else:
            known = sorted({*p.numbers, *p.names.values(), *p.columns})
            raise ValueError(f"--best-by {name}: no field and no column; there are {known}")
    best: dict[tuple[object, ...], int] = {}
    for i, key in enumerate(zip(*(k.tolist() for k in keys))):
        if key not in best or p.numbers["loss"][i] < p.numbers["loss"][best[key]]:
            best[key] = i
    dropped = len(p.run) - len(best)
    if not dropped:
        return p._replace(notes=(*p.notes, f"--best-by {' '.join(by)}: each is there once"))
    text = (
        f"{dropped} of {len(p.run)} rows: a row of the same {', '.join(by)} has a lower loss; "
        f"{len(best)} are the best of theirs (--best-by)"
    )
    kept = _pick(p, np.array(sorted(best.values())))
    return kept._replace(left_out=(*p.left_out, text))
