"""A file of runs as a grid of text cells, whatever its format, which its content decides.

comma, semicolon, tab, | or spaces between cells; JSON, one object a line or an array of them;
Parquet (needs the extra `parquet`); any of them compressed by gzip; a folder of such files, a
training curve each
"""

import csv
import gzip
import io
import json
import pathlib
import re
import zlib
from collections.abc import Sequence
from typing import Any, NamedTuple

SEPARATORS = ("\t", ";", "|", ",")
# Lines that decide which separator a file has.
SAMPLE = 50
SUFFIXES = (".csv", ".tsv", ".txt", ".json", ".jsonl", ".parquet", ".gz")


class Row(NamedTuple):
    """One row."""

    place: str  # the file's name and the row, for messages
    line: int  # of the file; of JSON arrays and Parquet the element from 1 on
    cells: list[str]


class Grid(NamedTuple):
    """A file's rows."""

    path: str
    header: list[str]
    rows: list[Row]
    separator: str = ","  # of a text table
    notes: tuple[str, ...] = ()  # what was done to the file to make these rows
    left_out: tuple[str, ...] = ()  # rows that were left out, and why
    curves: bool = False  # whether a run's rows are its training curve

    def column(self, name: str) -> list[str]:
        """The cells of a column."""
        at = self.header.index(name)
        return [row.cells[at] for row in self.rows]


def read(path: pathlib.Path) -> Grid:
    """The grid of a file.

    Raises: FileNotFoundError; ValueError naming the line, and what the file is instead;
    ImportError naming the extra that reads Parquet.
    """
    content = path.read_bytes()
    if content.startswith(b"\x1f\x8b"):
        try:
            content = gzip.decompress(content)
        except (OSError, EOFError, zlib.error) as error:
            raise ValueError(f"{path} is damaged: {error}") from None
    if content.startswith(b"PAR1"):
        return _parquet(path, content)
    text = _text(path, content)
    if text.lstrip().startswith("<"):
        raise ValueError(f"{path} is a page of HTML or XML, no table of runs; CSV, JSON or Parquet")
    if not text.strip():
        raise ValueError(f"{path} is empty: a header and a row for each run are needed")
    grid = _json(path, text) if text.lstrip()[0] in "[{" else _table(path, text)
    if not grid.rows:
        raise ValueError(f"{path} is empty: it has a header, and a row for each run is needed")
    return _check(grid)


def _check(grid: Grid) -> Grid:
    doubled = sorted({h for h in grid.header if grid.header.count(h) > 1})
    if doubled:
        raise ValueError(
            f"{grid.path}: the header has {doubled} twice; rename or remove one of the columns"
        )
    return grid


def _text(path: pathlib.Path, content: bytes) -> str:
    """The text of a file's bytes."""
    if content.startswith((b"\xff\xfe", b"\xfe\xff")):
        encoding = "utf-16"
    else:
        encoding = "utf-8-sig"
        if content.startswith(b"PK\x03\x04"):
            raise ValueError(f"{path} is a spreadsheet or an archive; save its table as CSV")
        if b"\0" in content[:4096]:
            raise ValueError(f"{path} is binary, no table of runs; CSV, JSON or Parquet is needed")
    try:
        return content.decode(encoding)
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise ValueError(
            f"{path} row {line}: byte 0x{content[error.start]:02x} is not {encoding[:6].upper()} "
            "text; save the file as UTF-8"
        ) from None


# --- Text tables -----------------------------------------------------------------------------


def _table(path: pathlib.Path, text: str) -> Grid:
    """The grid of lines of cells."""
    lines = text.splitlines(keepends=True)
    first = lines[0].strip().lower()
    stated = first[4:] if re.fullmatch(r"sep=.", first) else None
    skipped = 1 if stated else 0
    # a comment; numpy writes its header as one
    while skipped < len(lines) and (
        not lines[skipped].strip()
        or lines[skipped].startswith("#")
        and skipped + 1 < len(lines)
        and not _numbers(lines[skipped + 1])
    ):
        skipped += 1
    lines = lines[skipped:]
    if not lines:
        raise ValueError(f"{path} is empty: a header and a row for each run are needed")
    lines[0] = lines[0].lstrip("# ") if lines[0].startswith("#") else lines[0]
    separator = stated or _separator(lines)
    if separator == " ":
        cells = [(i, line.split()) for i, line in enumerate(lines, 1)]
    else:
        reader = csv.reader(io.StringIO("".join(lines), newline=""), delimiter=separator)
        try:
            cells = [(reader.line_num, row) for row in reader]
        except csv.Error as error:
            raise ValueError(f"{path} row {reader.line_num + skipped}: {error}") from None
    header = [h.strip() for h in cells[0][1]]
    if _numbers(lines[0]):
        raise ValueError(
            f"{path} row {skipped + 1}: {', '.join(header[:4])} are numbers, where names of "
            "columns are needed, such as N,D,loss"
        )
    rows = [(n + skipped, row) for n, row in cells[1:] if any(c.strip() for c in row)]
    rows = [(n, row[: _width(row, len(header))]) for n, row in rows]
    # an end of line after a last separator is no column
    if header[-1] == "" and all(len(r) < len(header) or not r[-1].strip() for _, r in rows):
        header = header[:-1]
        rows = [(n, r[: len(header)]) for n, r in rows]
    for n, row in rows:
        if len(row) != len(header):
            raise ValueError(f"{path} row {n}: {len(row)} cells, the header has {len(header)}")
    table_rows = [Row(f"{path} row {n}", n, [c.strip() for c in row]) for n, row in rows]
    return Grid(str(path), header, table_rows, separator)


def _width(row: Sequence[str], least: int) -> int:
    """Number of cells in a row, without empty ones beyond the header."""
    width = len(row)
    while width > least and not row[width - 1].strip():
        width -= 1
    return width


def _numbers(line: str) -> bool:
    """Whether all cells of a line are numbers."""
    cells = [c for c in re.split(r"[\t;|, ]+", line.strip()) if c]
    return bool(cells) and all(re.fullmatch(r"[+-]?[\d.]+(e[+-]?\d+)?", c.lower()) for c in cells)


def _separator(lines: Sequence[str]) -> str:
    """The separator that most lines have as often as the header; spaces where none is."""
    sample = [line for line in lines[:SAMPLE] if line.strip()]
    best, chosen = (0.0, 0), " "
    for separator in SEPARATORS:
        counts = [len(row) for row in csv.reader(sample, delimiter=separator) if row]
        if counts and counts[0] > 1:
            share = sum(c == counts[0] for c in counts) / len(counts)
            best, chosen = max((best, chosen), ((share, counts[0]), separator))
    return chosen if best[1] or len(sample[0].split()) > 1 else ","


# --- JSON and Parquet ------------------------------------------------------------------------


def _json(path: pathlib.Path, text: str) -> Grid:
    """The grid of an array of objects, of an object a line, or of an object of columns."""
    try:
        value = json.loads(text)
        places = None
    except RecursionError:
        raise ValueError(f"{path}: JSON nested too deeply to be read") from None
    except ValueError as error:
        lines = [(i, line) for i, line in enumerate(text.splitlines(), 1) if line.strip()]
        if len(lines) < 2 or text.lstrip()[0] == "[":
            raise ValueError(f"{path} is no JSON: {error}") from None
        value, places = [], [i for i, _ in lines]
        for i, line in lines:
            try:
                value.append(json.loads(line))
            except (ValueError, RecursionError) as reason:
                raise ValueError(f"{path} row {i} is no JSON: {reason}") from None
    if isinstance(value, dict):
        value = _of_columns(value)
    places = list(range(1, len(value) + 1)) if places is None else places
    for i, record in zip(places, value):
        if not isinstance(record, dict):
            raise ValueError(
                f"{path} row {i}: a JSON {type(record).__name__}; an object with a name for each "
                'number is needed, such as {"params": 1e8, "tokens": 2e9, "loss": 3.1}'
            )
    return _records(str(path), [(i, _flat(record)) for i, record in zip(places, value)])


def _of_columns(value: dict[str, Any]) -> list[Any]:
    """The records of {column: [cells]}, of {column: {"0": cell}}, of {run: record}, or the list
    inside an object."""
    records = [v for v in value.values() if isinstance(v, dict)]
    if len(records) == len(value) > 1 and not all(k.isdigit() for r in records for k in r):
        return [{"run": run, **record} for run, record in value.items()]
    kinds = {type(v) for v in value.values()}
    lengths = {len(v) for v in value.values() if isinstance(v, list | dict)}
    if kinds and kinds <= {list, dict} and len(kinds) == 1 and len(lengths) == 1 and len(value) > 1:
        lists = [list(v.values()) if isinstance(v, dict) else v for v in value.values()]
        if not any(isinstance(cell, list | dict) for v in lists for cell in v):
            return [dict(zip(value, row)) for row in zip(*lists)]
    tables = [v for v in value.values() if isinstance(v, list) and v and isinstance(v[0], dict)]
    return tables[0] if len(tables) == 1 else [value]


def _flat(record: dict[str, Any], before: str = "") -> dict[str, str]:
    """{name: text} of an object; of an object inside, name.name."""
    out = {}
    for name, value in record.items():
        if isinstance(value, dict):
            out |= _flat(value, f"{before}{name}.")
        else:
            out[before + name] = _cell(value)
    return out


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, str):
        return value.strip()
    if isinstance(value, bool | float | int):
        return repr(value)
    return json.dumps(value, default=str)


def _records(path: str, records: Sequence[tuple[int, dict[str, str]]]) -> Grid:
    """The grid of records; a name that a record lacks is an empty cell."""
    header = list(dict.fromkeys(name for _, record in records for name in record))
    rows = [Row(f"{path} row {i}", i, [r.get(name, "") for name in header]) for i, r in records]
    return Grid(path, header, rows)


def _parquet(path: pathlib.Path, content: bytes) -> Grid:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError as error:
        raise ImportError(
            f"{path}: reading Parquet needs pyarrow: pip install 'jaxlm[parquet]'"
        ) from error
    try:
        records = parquet.read_table(io.BytesIO(content)).to_pylist()
    except (pyarrow.ArrowException, OSError) as error:
        raise ValueError(
            f"{path} is a damaged Parquet file: {' '.join(str(error).split())}"
        ) from None
    if not records:
        raise ValueError(f"{path} is empty: it has columns, and a row for each run is needed")
    return _records(str(path), [(i, _flat(record)) for i, record in enumerate(records, 1)])


# --- Folders ---------------------------------------------------------------------------------


def load(path: pathlib.Path) -> Grid:
    """The grid of a file, or of a folder of tables. Raises: as `read`."""
    return folder(path) if path.is_dir() else read(path)


def folder(path: pathlib.Path) -> Grid:
    """The grid of all tables right in a folder, a training run's curve each.

    A column `run` is added, the file's name without its ending.

    Raises: ValueError as `read`; for a folder without tables, and for files that have other
    columns than the first.
    """
    files = sorted(p for p in path.iterdir() if p.is_file() and p.suffix.lower() in SUFFIXES)
    files = [p for p in files if not p.name.startswith(".")]
    if not files:
        raise ValueError(
            f"{path} holds no run directory (none has a config.json) and no table "
            f"({', '.join(SUFFIXES)})"
        )
    header: list[str] = []
    rows: list[Row] = []
    for file in files:
        grid = read(file)
        if not header:
            header, separator = grid.header, grid.separator
        if set(grid.header) != set(header):
            lack = sorted(set(header) ^ set(grid.header))
            raise ValueError(
                f"{file}: its columns are not those of {files[0].name}: {lack} is in one alone; a "
                "folder holds a curve in each file, with the same columns"
            )
        order = [grid.header.index(h) for h in header]
        rows += [r._replace(cells=[r.cells[i] for i in order]) for r in grid.rows]
        if "run" not in header:
            name = re.sub(r"(\.(csv|tsv|txt|jsonl?|parquet|gz))+$", "", file.name, flags=re.I)
            rows[-len(grid.rows) :] = [
                r._replace(cells=[*r.cells, name]) for r in rows[-len(grid.rows) :]
            ]
    numbered = [r._replace(line=i) for i, r in enumerate(rows, 1)]
    more = [] if "run" in header else ["run"]
    note = f"{len(files)} files, a training run each, named by its file"
    notes = (note,) if more else ()
    return Grid(str(path), [*header, *more], numbered, separator, notes, curves=True)
