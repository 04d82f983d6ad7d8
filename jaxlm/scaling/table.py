"""A study's points: parameters N, tokens D, training FLOPs C and loss of runs that differ in size.

    t = table.read("runs.csv")                              # columns found by their usual names
    t = table.read("runs.csv", {"loss": "loss_c4_val"})     # or named
    t = table.read("runs/sweep", counting=Counting("matmul-only", "exact causal"))

What N and C count decides the exponent that is fitted: Porian et al. 2024 (section 3) take the
optimum's exponent from 0.84 to 0.71 on the same runs by counting the output matrix alone. So a
table carries its counting, and two countings in one table are refused.
"""

import csv
import math
import pathlib
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

# What `Counting.params` and `Counting.flops` may say; "given": the file's own, not known here.
PARAMS = ("total", "non-embedding", "matmul-only", "given")
FLOPS = ("6ND", "6ND+attention", "exact causal", "given")
# field of Table -> names of a column that holds it, in small letters and without punctuation.
ALIASES: dict[str, tuple[str, ...]] = {
    "params": ("n", "params", "parameters", "n_params", "params_n", "model_size", "size"),
    "tokens": ("d", "tokens", "n_tokens", "tokens_d", "training_tokens", "train_tokens"),
    "flops": ("c", "flops", "flop", "compute", "training_flop", "training_flops", "train_flops"),
    "loss": ("loss", "l", "val_loss", "validation_loss", "final_loss", "nll", "nats_per_token"),
    "unique": ("unique", "u", "unique_tokens", "unique_tokens_u", "tokens_u"),
    "run": ("run", "run_id", "run_name"),
    "counting": ("counting", "param_count", "params_counting"),
}
# C = 6 N D must hold to this, relative to the rows' own median factor: tables round N and D to
# three digits, and a run ends within a step of its budget; the attention's share is larger.
SAME_FACTOR = 0.03


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
    left_out: tuple[str, ...] = ()  # what was found and is not in the table, and why
    # {column of the file: [n]} of all columns that none of the fields above holds: float64 where
    # every cell is a number (nan where it is empty), else str
    columns: Mapping[str, np.ndarray] = {}


def take(t: Table, index: np.ndarray) -> Table:
    """The points that an index or a mask selects, in its order."""
    unique = None if t.unique is None else t.unique[index]
    fields = (t.params[index], t.tokens[index], t.flops[index], t.loss[index])
    columns = {name: values[index] for name, values in t.columns.items()}
    return Table(*fields, unique, t.run[index], t.counting, t.row[index], t.left_out, columns)


def make(
    params: np.ndarray,
    tokens: np.ndarray,
    loss: np.ndarray,
    flops: np.ndarray | None = None,
    unique: np.ndarray | None = None,
    run: np.ndarray | None = None,
    counting: Counting = Counting(),
) -> Table:
    """A Table of arrays [n], such as a simulation's; flops None is 6 N D.

    Raises: ValueError naming the element and field of what `read` would refuse.
    """
    c = 6 * np.asarray(params, float) * tokens if flops is None else flops
    n = len(c)
    row = np.arange(1, n + 1)
    runs = row.astype(str) if run is None else np.asarray(run).astype(str)
    x, d, c, y = (np.asarray(v, np.float64) for v in (params, tokens, c, loss))
    different = None if unique is None else np.asarray(unique, np.float64)
    t = Table(x, d, c, y, different, runs, counting, row)
    _check(t, "the arrays", dict(zip(ALIASES, ("params", "tokens", "flops", "loss", "unique"))))
    return t


def read(
    path: str | pathlib.Path,
    columns: Mapping[str, str] = {},
    counting: Counting | None = None,
    *,
    where: Mapping[str, str] = {},
    intermediate: bool = False,
    decaying: bool = False,
    drop_repeats: bool = False,
) -> Table:
    """The points of a CSV file, or of all finished runs in a directory of run directories.

    columns: {field: column of the file}, for fields params, tokens, flops, loss, unique, run; a
    field that is not named is found by ALIASES. Of params, tokens and flops any two suffice: the
    third is made by C = 6 N D. where: {column: text}, only rows that have that text there.
    counting: of a CSV what its numbers count (None: N as given; C = 6 N D must hold); of run
    directories how N and C are counted from each Config (None: total, 6ND).
    drop_repeats: keep the first of rows that are equal, where they are refused otherwise.

    Of run directories: N and C from config.json, D the positions trained on, and the last
    evaluation's nats per token. intermediate=True takes every evaluation, as points of one run.
    Before its end a run whose learning rate decays has a loss that a run of that length, decayed
    to the end, would not have (Hoffmann et al. 2022, section 3.1), so such runs are refused then;
    decaying=True takes them all the same.

    Raises: FileNotFoundError; ValueError naming the row (line of the file) and the column.
    """
    path = pathlib.Path(path).expanduser()
    if counting is not None:
        known(counting)
    if path.is_dir():
        if columns or where:
            raise ValueError(f"{path} is a directory of runs, which has no columns to name")
        # run directories need jaxlm's models; a table from a file does not
        from jaxlm.scaling import directories

        t = directories.read(path, counting or Counting("total"), intermediate, decaying)
        names = {f: f for f in ALIASES}
    else:
        if intermediate or decaying:
            raise ValueError(f"{path} is a file; intermediate, decaying: of run directories alone")
        t, names = _csv(path, columns, counting, where)
    t = _repeats(t, str(path), drop_repeats)
    if len(t.loss) < 2:
        raise ValueError(f"{path}: {len(t.loss)} point; a law needs several, of different size")
    _check(t, str(path), names)
    return t


def known(counting: Counting) -> None:
    """Raises: ValueError for a counting that is none of PARAMS and FLOPS."""
    for field, names in (("params", PARAMS), ("flops", FLOPS)):
        value = getattr(counting, field)
        if value not in names:
            raise ValueError(f"counting.{field}: {value!r} is none of {', '.join(names)}")


def _csv(
    path: pathlib.Path,
    columns: Mapping[str, str],
    counting: Counting | None,
    where: Mapping[str, str],
) -> tuple[Table, dict[str, str]]:
    """The table of a CSV file, unchecked, and {field: its column}."""
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file)
            header = list(reader.fieldnames or ())
            lines = [(reader.line_num, row) for row in reader]
    except (csv.Error, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is no CSV file: {error}") from None
    if not header or not lines:
        raise ValueError(f"{path} is empty: a header and a row for each run are needed")
    names = _columns(str(path), header, columns)
    for column, text in where.items():
        if column not in header:
            raise ValueError(f"{path}: no column {column!r} to select by; it has {header}")
        there = sorted({row[column] or "" for _, row in lines})
        lines = [(n, row) for n, row in lines if row[column] == text]
        if not lines:
            raise ValueError(f"{path}: no row has {column} = {text!r}; there are {there[:20]}")
    rows = np.array([n for n, _ in lines])
    for n, row in lines:
        if None in row or None in row.values():
            raise ValueError(f"{path} row {n}: {_width(row)} cells, the header has {len(header)}")
    numbers = {
        field: np.array([_number(path, n, name, row[name]) for n, row in lines])
        for field, name in names.items()
        if field not in ("run", "counting")
    }
    _positive(str(path), numbers, names, rows)
    how = _counting(str(path), counting, names, lines, numbers, rows)
    n, d, c = _third(numbers)
    runs = [row[names["run"]] if "run" in names else str(n) for n, row in lines]
    others = {
        name: _cells([row[name] for _, row in lines])
        for name in header
        if name not in names.values()
    }
    unique, run = numbers.get("unique"), np.array(runs)
    return Table(n, d, c, numbers["loss"], unique, run, how, rows, columns=others), names


def _cells(texts: Sequence[str]) -> np.ndarray:
    """[n] float64 of texts that are all numbers or empty (nan), else the texts."""
    try:
        return np.array([float(text) if text.strip() else math.nan for text in texts])
    except ValueError:
        return np.array(texts)


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


def _width(row: Mapping[Any, Any]) -> int:
    return sum(v is not None for k, v in row.items() if k is not None) + len(row.get(None, ()))


def _columns(path: str, header: list[str], columns: Mapping[str, str]) -> dict[str, str]:
    """{field: its column}, those named first. Raises: ValueError for what is not there."""
    doubled = sorted({h for h in header if header.count(h) > 1})
    if doubled:
        raise ValueError(f"{path}: the header has {doubled} twice")
    for field, column in columns.items():
        if field not in ALIASES:
            raise ValueError(f"columns: no field {field!r}; there are {', '.join(ALIASES)}")
        if column not in header:
            raise ValueError(f"{path}: no column {column!r} for {field}; it has {header}")
    out = dict(columns)
    for field in ALIASES:
        found = [h for h in header if _plain(h) in ALIASES[field] and h not in columns.values()]
        if field in out or not found:
            continue
        if len(found) > 1:
            raise ValueError(
                f"{path}: columns {found} may all be {field}; name one: columns "
                f"{{{field!r}: {found[0]!r}}}"
            )
        out[field] = found[0]
    if "loss" not in out:
        raise ValueError(_missing(path, "loss", header))
    have = [f for f in ("params", "tokens", "flops") if f in out]
    if len(have) < 2:
        lack = next(f for f in ("params", "tokens", "flops") if f not in out)
        raise ValueError(
            f"{_missing(path, lack, header)}; two of params, tokens, flops are needed, "
            f"and {have or 'none'} found"
        )
    return out


def _missing(path: str, field: str, header: list[str]) -> str:
    near = [h for h in header if any(a in _plain(h).split("_") for a in (field, *ALIASES[field]))]
    hint = f"such as {field} = {near[0]!r}" if near else f"it has {header}"
    return f"{path}: no column for {field} ({', '.join(ALIASES[field][:4])}, ...); name it, {hint}"


def _plain(name: str) -> str:
    """A header's name in small letters, with `_` for all that is no letter and no digit."""
    return re.sub(r"[^a-z0-9]+", "_", name.strip().lower()).strip("_")


def _number(path: pathlib.Path, row: int, column: str, text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        raise ValueError(f"{path} row {row}, column {column!r}: {text!r} is no number") from None
    if not math.isfinite(value):
        raise ValueError(f"{path} row {row}, column {column!r}: {text}; a finite number is needed")
    return value


def _counting(
    path: str,
    asked: Counting | None,
    names: Mapping[str, str],
    lines: Sequence[tuple[int, Mapping[str, str]]],
    numbers: Mapping[str, np.ndarray],
    rows: np.ndarray,
) -> Counting:
    """What the file's numbers count. Raises: ValueError where they count differently."""
    params = asked.params if asked else "given"
    if "counting" in names:
        column = names["counting"]
        first = lines[0][1][column]
        for row, line in lines:
            if line[column] != first:
                raise ValueError(
                    f"{path} row {row}, column {column!r}: {line[column]!r}, where row "
                    f"{lines[0][0]} counts {first!r}; select one counting"
                )
        if first in PARAMS:
            if asked and asked.params != first:
                raise ValueError(
                    f"{path} row {lines[0][0]}, column {column!r}: {first!r}, where "
                    f"{asked.params!r} is asked for"
                )
            params = first
    if len({"params", "tokens", "flops"} & set(numbers)) < 3:
        if asked and "flops" in numbers and asked.flops != "6ND":
            lack = "params" if "params" not in numbers else "tokens"
            raise ValueError(
                f"{path}: no column for {lack}, which C = 6 N D gives from {names['flops']!r}; "
                f"under the counting {asked.flops!r} it needs each run's Config"
            )
        return Counting(params, "6ND")
    if asked and asked.flops != "6ND":
        return Counting(params, asked.flops)
    factor = numbers["flops"] / (numbers["params"] * numbers["tokens"])
    usual = float(np.median(factor))
    worst = int(np.argmax(np.abs(np.log(factor / usual))))
    if abs(factor[worst] / usual - 1) > SAME_FACTOR:
        raise ValueError(
            f"{path} row {rows[worst]}, column {names['flops']!r}: C = {factor[worst]:.4g} N D, "
            f"of most rows {usual:.4g} N D: mixed conventions; if C counts more than 6 N D, say "
            "which counting it is"
        )
    return Counting(params, "6ND" if abs(usual / 6 - 1) <= SAME_FACTOR else "given")


def _positive(
    path: str, numbers: Mapping[str, np.ndarray], names: Mapping[str, str], rows: np.ndarray
) -> None:
    for field, values in numbers.items():
        bad = ~(np.isfinite(values) & (values > 0))
        if bad.any():
            i = int(np.argmax(bad))
            raise ValueError(
                f"{path} row {rows[i]}, column {names.get(field, field)!r}: {values[i]:g}; a "
                "number above 0 is needed"
            )


def _check(t: Table, path: str, names: Mapping[str, str]) -> None:
    """Raises: ValueError for values no run can have, naming the row and the column."""
    numbers = {"params": t.params, "tokens": t.tokens, "flops": t.flops, "loss": t.loss}
    for field, values in (*numbers.items(), ("run", t.run)):
        if values.shape != t.row.shape:
            raise ValueError(f"{path}: {field} has shape {values.shape}, others {t.row.shape}")
    if t.unique is not None:
        numbers["unique"] = t.unique
    _positive(path, numbers, names, t.row)
    if t.unique is not None and (t.unique > t.tokens * (1 + 1e-9)).any():
        i = int(np.argmax(t.unique / t.tokens))
        raise ValueError(
            f"{path} row {t.row[i]}, column {names['unique']!r}: {t.unique[i]:g} unique tokens of "
            f"{t.tokens[i]:g} trained on"
        )
    first: dict[tuple[str, float], int] = {}
    for i, key in enumerate(zip(t.run.tolist(), t.tokens.tolist())):
        if key in first:
            raise ValueError(
                f"{path} row {t.row[i]}, column {names.get('run', 'run')!r}: run {key[0]!r} is at "
                f"{key[1]:g} tokens in row {t.row[first[key]]} too; a run has one loss there"
            )
        first[key] = i


def _repeats(t: Table, path: str, drop: bool) -> Table:
    """The table without rows that repeat another. Raises: ValueError unless `drop`."""
    first: dict[tuple[float, ...], int] = {}
    keep, left = [], []
    columns = [t.params, t.tokens, t.flops, t.loss, *([] if t.unique is None else [t.unique])]
    for i, key in enumerate(zip(*(c.tolist() for c in columns))):
        if key not in first:
            first[key] = i
            keep.append(i)
            continue
        text = f"row {t.row[i]} ({t.run[i]}) repeats row {t.row[first[key]]} ({t.run[first[key]]})"
        if not drop:
            raise ValueError(
                f"{path} {text} in N, D, C and column 'loss' = {key[3]:g}: the same run twice; "
                "remove one, or ask for repeats to be dropped"
            )
        left.append(f"{text}: the same N, D, C and loss")
    t = take(t, np.array(keep)) if left else t
    return t._replace(left_out=(*t.left_out, *left))
