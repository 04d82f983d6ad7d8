"""Cells as numbers: thousands separators, decimal commas, and units such as `33.6M`."""

import math
import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from jaxlm.scaling.reading import columns, grid, units

_CELL = re.compile(
    r"(?P<number>[+-]?(?:\d(?:[\d.,'_ \u00a0\u202f\u2009]*[\d.])?|[.,]\d+)(?:[eE][+-]?\d+)?)"
    r"\s*(?P<unit>[A-Za-z%][A-Za-z%\d /\-_^]*)?"
)
_THOUSANDS = re.compile(r"[+-]?\d{1,3}([,'_ \u00a0\u202f\u2009]\d{3})+(\.\d+)?")
_EUROPEAN = re.compile(r"[+-]?\d{1,3}(\.\d{3})+(,\d+)?")
# Below this a number without a unit, next to cells that have one, is not meant as it is.
BARE = {"params": 1e3, "tokens": 1e3, "unique": 1e3, "flops": 1e9}


class Cell(NamedTuple):
    """A cell that is no number of its field."""

    row: int  # index of the row
    column: str
    text: str
    reason: str


class Numbers(NamedTuple):
    """The fields of a file as numbers in parameters, tokens, FLOPs and nats."""

    values: dict[str, np.ndarray]  # field -> [n] float64, nan where the cell is none
    bad: list[Cell]
    notes: tuple[str, ...]  # the units that were found


def read(sheet: grid.Grid, names: Mapping[str, columns.Column]) -> Numbers:
    """The number fields of a grid."""
    fields = [f for f in names if f in columns.NUMBERS]
    comma = _decimal_comma(sheet, [names[f].name for f in fields])
    values, bad, notes = {}, [], []
    for field in fields:
        numbers, wrong, seen = _column(sheet, field, names[field], comma)
        values[field] = numbers
        bad += wrong
        column = names[field]
        if column.unit is not None and not (column.stated and column.unit.factor == 1):
            notes.append(_note(field, column))
        if seen:
            notes.append(f"column {column.name!r}: cells with units, {', '.join(sorted(seen))}")
    if "loss_se" in values and names["loss_se"].unit is None and names["loss"].unit is not None:
        # in the loss's unit; of a perplexity the error of its logarithm is the relative one
        unit = names["loss"].unit
        values["loss_se"] *= np.exp(-values["loss"]) if unit.log else unit.factor
    if comma:
        notes.append("numbers have decimal commas")
    return Numbers(values, sorted(bad, key=lambda c: c.row), tuple(notes))


def _note(field: str, column: columns.Column) -> str:
    unit = column.unit
    assert unit is not None
    if unit.log:
        return f"column {column.name!r}: {unit.text}, its logarithm taken as nats per token"
    if field in ("loss", "loss_se"):
        more = "" if unit.factor == 1 else f", times {unit.factor:.4g}"
        return f"column {column.name!r}: {unit.text}, taken as {unit.loss}{more}"
    return f"column {column.name!r}: in {unit.text}, times {unit.factor:g}"


def others(sheet: grid.Grid, taken: Sequence[str], comma: bool = False) -> dict[str, np.ndarray]:
    """{column: [n]} of columns that are not taken: float64 where all cells are numbers or empty
    (nan), else str."""
    return {
        name: _plain_cells(sheet.column(name), comma) for name in sheet.header if name not in taken
    }


def decimal_comma(sheet: grid.Grid, names: Mapping[str, columns.Column]) -> bool:
    """Whether a grid's numbers have decimal commas."""
    return _decimal_comma(sheet, [names[f].name for f in names if f in columns.NUMBERS])


def _plain_cells(texts: Sequence[str], comma: bool) -> np.ndarray:
    """[n] float64 of texts that are all numbers or empty (nan), else the texts."""
    try:
        return np.array(
            [float(t.replace(",", ".") if comma else t) if t.strip() else math.nan for t in texts]
        )
    except ValueError:
        return np.array(texts)


def _decimal_comma(sheet: grid.Grid, names: Sequence[str]) -> bool:
    """Whether 4,05 is a number: it is where a comma does not separate cells, and cells have one
    that cannot separate thousands."""
    if sheet.separator == ",":
        return False
    cells = [c for name in names for c in sheet.column(name) if "," in c]
    return (
        any(not _THOUSANDS.fullmatch(c) for c in cells)
        or all(c.count(",") == 1 and c.split(",")[0].lstrip("+-") == "0" for c in cells)
        and bool(cells)
        or _small(cells)
    )


def _small(cells: Sequence[str]) -> bool:
    """Whether all cells have one comma and three digits after it: losses such as 3,142."""
    return bool(cells) and all(re.fullmatch(r"\d{1,2},\d{3}", c) for c in cells)


def _column(
    sheet: grid.Grid, field: str, column: columns.Column, comma: bool
) -> tuple[np.ndarray, list[Cell], set[str]]:
    """(values [n], cells that are none, the units in cells)."""
    values = np.full(len(sheet.rows), np.nan)
    bad: list[Cell] = []
    seen: dict[str, int] = {}
    bare: list[int] = []
    for i, text in enumerate(sheet.column(column.name)):
        try:
            number, unit = _parse(field, text, comma)
            if not math.isfinite(number * (column.unit or unit or units.ONE).factor):
                raise ValueError(f"{text}; a finite number is needed")
            if unit is not None and column.unit is not None and unit.factor != column.unit.factor:
                raise ValueError(
                    f"{text!r} has the unit {unit.text!r}, the column {column.unit.text!r}"
                )
        except ValueError as error:
            bad.append(Cell(i, column.name, text, str(error)))
            continue
        if unit is not None and unit.text and column.unit is None:
            seen.setdefault(unit.text, i)
        elif column.unit is None:
            bare.append(i)
        used = column.unit or unit
        values[i] = number if used is None else number * used.factor
        if used is not None and used.log:
            values[i] = math.log(values[i]) if values[i] > 0 else -math.inf
    if seen and field in BARE:
        unit, first = next(iter(seen.items()))
        for i in bare:
            if values[i] < BARE[field]:
                text = sheet.rows[i].cells[sheet.header.index(column.name)]
                reason = (
                    f"{text!r} without a unit, where row {sheet.rows[first].line} has {unit!r}; "
                    "write its unit"
                )
                bad.append(Cell(i, column.name, text, reason))
    return values, bad, set(seen)


def _parse(field: str, text: str, comma: bool) -> tuple[float, units.Unit | None]:
    """(number, its unit). Raises: ValueError saying why a text is no number of the field."""
    if not text:
        raise ValueError("'' is no number: the cell is empty")
    try:
        value = float(text)
    except ValueError:
        value = None
    # 1.000 next to 4,05 is a thousand; no loss is
    thousands = comma and _EUROPEAN.fullmatch(text) and field not in ("loss", "loss_se")
    if value is not None and not thousands:
        if comma and "." in text and "e" not in text.lower() and not text.endswith(".0"):
            raise ValueError(f"{text!r} has a decimal point, where other cells have commas")
        return value, None
    match = _CELL.fullmatch(text)
    if match is None:
        raise ValueError(f"{text!r} is no number")
    number = _number(match["number"], comma)
    if number is None:
        what = "is no number"
        if "," in text:
            what = "is no number: its comma is no thousands separator, and a decimal point is used"
        raise ValueError(f"{text!r} {what}")
    if match["unit"] is None:
        return number, None
    if "%" in match["unit"]:
        raise ValueError(f"{text!r} is a percentage, not a number of {field}")
    unit = units.unit(field, match["unit"])
    if unit is None:
        raise ValueError(
            f"{text!r} is no number: {match['unit']!r} is no unit of {field}, such as "
            f"{units.examples(field)}"
        )
    return number, unit


def _number(text: str, comma: bool) -> float | None:
    """The number of digits with separators; None where they do not fit."""
    if comma:
        if _EUROPEAN.fullmatch(text):
            text = text.replace(".", "")
        text = text.replace(",", ".") if text.count(",") <= 1 else text
    elif _THOUSANDS.fullmatch(text):
        text = text.replace(",", "")
    text = re.sub(r"(?<=\d)['_ \u00a0\u202f\u2009](?=\d{3})", "", text)
    try:
        return float(text)
    except ValueError:
        return None
