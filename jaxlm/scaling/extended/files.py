"""Columns of a CSV file whose rows are no points of (N, D, loss)."""

import csv
import math
import pathlib
from collections.abc import Sequence

import numpy as np


def read(path: pathlib.Path) -> dict[str, np.ndarray]:
    """{column: [n]}: float64 where every cell is a number or empty (nan), else the texts.

    Raises: FileNotFoundError; ValueError naming the file and the row.
    """
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file)
            rows = list(reader)
    except (csv.Error, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is no CSV file: {error}") from None
    if not rows:
        raise ValueError(f"{path} is empty: a header and a row for each run are needed")
    for i, row in enumerate(rows):
        if None in row or None in row.values():
            raise ValueError(f"{path} row {i + 2}: its cells are not those of the header")
    return {name: _cells([row[name] for row in rows]) for name in rows[0]}


def _cells(texts: Sequence[str]) -> np.ndarray:
    try:
        return np.array([float(text) if text.strip() else math.nan for text in texts])
    except ValueError:
        return np.array(texts)
