"""Columns of a file whose rows are no points of (N, D, loss), of any format that a study reads."""

import pathlib

import numpy as np

from jaxlm.scaling.reading import grid, quantities


def read(path: pathlib.Path) -> dict[str, np.ndarray]:
    """{column: [n]}: float64 where every cell is a number or empty (nan), else the texts.

    Raises: FileNotFoundError; ValueError naming the file and the row.
    """
    return quantities.others(grid.read(path), ())
