"""Order in which a mixture reads the rows of its sources: a function of the position alone.

Nothing is drawn. The j-th row of source k (j = 0, 1, ...) is due at time (j + 1/2) / r_k, with r_k
the source's share of rows, and rows are read as they are due: the divisor method of Webster and
Sainte-Lague. After n rows each of K sources has had n r_k of them, to within r_k K / 2 + 1 / 2, and
the sources alternate as evenly as they can.

Times are integers, so that the order is the same on every machine: source k is due at the odd
multiples of a half-period p_k, in proportion to 1 / r_k.

    p = (2, 3):   2  3  6  9  10  14  15  18  21  22  ...
    source        0  1  0  1   0   0   1   0   1   0
"""

import heapq
import math
from collections.abc import Iterator, Sequence
from fractions import Fraction
from typing import NamedTuple

_SHORTEST = 1 << 40  # half-period of the source read most often: shares are right to 2e-12


class Size(NamedTuple):
    """Packed rows of a source, and tokens in all of them, padding not counted."""

    rows: int
    tokens: int


class Stage(NamedTuple):
    """Rows from `first_row` on, to the next stage. before: rows of each source that were read
    until there. periods: the half-period of each, 0 where nothing is read."""

    first_row: int
    before: tuple[int, ...]
    periods: tuple[int, ...]


def stages(changes: Sequence[tuple[int, Sequence[float]]], sizes: Sequence[Size]) -> list[Stage]:
    """The stages of a mixture. changes: (first row, the sources' weights), by rising rows from 0.

    A weight is a share of tokens. Rows of different sources are filled differently, so that a
    source's share of rows is in proportion to weight / (tokens in a row of it on average).
    """
    out: list[Stage] = []
    for first_row, weights in changes:
        before = tuple(counts(out, first_row)) if out else (0,) * len(sizes)
        out.append(Stage(first_row, before, _periods(weights, sizes)))
    return out


def _periods(weights: Sequence[float], sizes: Sequence[Size]) -> tuple[int, ...]:
    rates = [
        Fraction(weight) * size.rows / size.tokens
        for weight, size in zip(weights, sizes, strict=True)
    ]
    most = max(rates)
    return tuple(round(_SHORTEST * most / rate) if rate else 0 for rate in rates)


def counts(stages: Sequence[Stage], row: int) -> list[int]:
    """Rows of each source among the first `row`."""
    stage = _stage_at(stages, row)
    local = _counts(stage.periods, row - stage.first_row)
    return [before + count for before, count in zip(stage.before, local, strict=True)]


def read(stages: Sequence[Stage], first: int, last: int) -> list[tuple[int, int]]:
    """(source, number among the rows that are read of it) of the rows first .. last of the run."""
    out: list[tuple[int, int]] = []
    while first < last:
        stage = _stage_at(stages, first)
        later = [other.first_row for other in stages if other.first_row > first]
        end = min([last, *later])
        due = _due(stage.periods, _counts(stage.periods, first - stage.first_row))
        for _ in range(end - first):
            source, number = next(due)
            out.append((source, stage.before[source] + number))
        first = end
    return out


def _stage_at(stages: Sequence[Stage], row: int) -> Stage:
    return [stage for stage in stages if stage.first_row <= row][-1]


def _counts(periods: Sequence[int], rows: int) -> list[int]:
    """Rows of each source among the first `rows` of a stage.

    Until time t at most t sum(1 / 2p) + K / 2 rows are due, of K sources. So what is due until the
    t of rows - K / 2 is among the first `rows`, and at most K more are.
    """
    active = [p for p in periods if p]
    pace = sum(Fraction(1, 2 * p) for p in active)
    time = max(math.floor((rows - Fraction(len(active), 2)) / pace), 0)
    out = [(time // p + 1) // 2 if p else 0 for p in periods]
    due = _due(periods, out)
    for _ in range(rows - sum(out)):
        source, number = next(due)
        out[source] = number + 1
    return out


def _due(periods: Sequence[int], counts: Sequence[int]) -> Iterator[tuple[int, int]]:
    """(source, number) of the rows that are due after these many of each; of two at one time the
    earlier source is first."""
    heap = [((2 * n + 1) * p, k, n) for k, (p, n) in enumerate(zip(periods, counts)) if p]
    heapq.heapify(heap)
    while True:
        time, source, number = heap[0]
        yield source, number
        heapq.heapreplace(heap, (time + 2 * periods[source], source, number + 1))
