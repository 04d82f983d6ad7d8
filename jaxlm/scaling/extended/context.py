"""Context of the extended analyses: the study that they belong to, and its columns of numbers."""

import dataclasses

import numpy as np

from jaxlm.scaling import table


@dataclasses.dataclass(frozen=True)
class Setting:
    """Settings that all analyses share with the study they belong to."""

    target: float
    """FLOPs extrapolated to."""
    per: float
    """C / (N D)."""
    holdout: float
    """FLOPs from which runs are held out."""
    delta: float
    """Huber's delta, for laws of loss."""
    replicates: int
    """Replicates of every bootstrap."""
    level: float
    """Level of every interval."""
    seed: int
    """Seed of all resampling."""
    clusters: bool
    """Whether whole runs are resampled."""


def positive(t: table.Table, name: str, flag: str, what: str) -> np.ndarray:
    """[n] float64 of the table's column `name`.

    Raises: ValueError naming the flag, the column and the row where it is absent, has text, or is
    not above 0; `what` describes what it should be.
    """
    if name not in t.columns:
        raise ValueError(f"{flag}: no column {name!r}; the file has {', '.join(t.columns)}")
    values = t.columns[name]
    if values.dtype.kind != "f":
        raise ValueError(f"{flag}: column {name!r} has text, such as {str(values[0])!r}")
    bad = np.flatnonzero(~(np.isfinite(values) & (values > 0)))
    if bad.size:
        raise ValueError(
            f"{flag}: row {t.row[bad[0]]}, column {name!r}: {values[bad[0]]:g}; {what} above 0 is "
            "needed in every row"
        )
    return values
