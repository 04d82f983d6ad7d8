"""Packed rows of one source or several, in the order in which a run reads them."""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from jaxlm.core import batch
from jaxlm.data import pack
from jaxlm.data.corrupt import infill, mask, span
from jaxlm.data.rows import row_schedule

# Readers of batches of any rows; all but the first also read the numbers that decide their draws.
Reader = pack.Reader | mask.Reader | span.Reader | infill.Reader


class MixedRows:
    """The endless rows of a run. Each source is shuffled by itself, and read to its end before any
    of its rows is read again; row_schedule decides which source is next.

    readers: of each source by name, "" for one that is no mixture. changes: (first row, the
    sources' weights), by rising rows from 0. Instances can be pickled.
    """

    def __init__(
        self,
        readers: Mapping[str, Reader],
        changes: Sequence[tuple[int, Sequence[float]]],
        seed: int,
    ):
        self.names, self._readers = [*readers], [*readers.values()]
        self.sizes = [size(reader) for reader in self._readers]
        self.stages = row_schedule.stages(changes, self.sizes)
        seeds = [f"{seed}:{name}" if name else seed for name in self.names]
        self._orders = [row_order(held.rows, own) for held, own in zip(self.sizes, seeds)]

    def refuse_repeats(self, steps: Iterable[tuple[int, int]]) -> None:
        """Raises: ValueError if a step, (its first row, that of the next), takes more rows of a
        source than there are."""
        for ends in steps:
            before, after = (row_schedule.counts(self.stages, row) for row in ends)
            for name, held, a, b in zip(self.names, self.sizes, before, after, strict=True):
                pack.refuse_repeats(held.rows, b - a, name)

    def places(self, first: int, last: int) -> list[tuple[str, int]]:
        """(name of its source, number among the source's packed rows) of the rows first .. last."""
        due = row_schedule.read(self.stages, first, last)
        return [(self.names[source], int(self._orders[source][n])) for source, n in due]

    def read(self, first: int, last: int, draws: pack.Draws) -> batch.Batch | batch.Pairs:
        """The batch of the rows first .. last. draws: what decides each row's chance."""
        due = row_schedule.read(self.stages, first, last)
        home = np.array([source for source, _ in due])
        parts = []
        for source in np.unique(home).tolist():
            places = np.flatnonzero(home == source)
            rows = np.array([self._orders[source][due[place][1]] for place in places])
            own = [draws[place] for place in places]
            parts.append((places, read(self._readers[source], rows, own)))
        return pack.interleaved(parts)


def size(reader: Reader) -> row_schedule.Size:
    """The Size of a source's packed rows."""
    return row_schedule.Size(len(reader.rows), int(reader.rows.size.sum()))


def read(reader: Reader, rows: np.ndarray, draws: pack.Draws) -> batch.Batch | batch.Pairs:
    """The batch of these rows of one source; draws: what decides each row's chance."""
    return reader.read(rows) if isinstance(reader, pack.Reader) else reader.read(rows, draws)


def row_order(rows: int, seed: int | str) -> Any:
    """The endless order of the rows, by index: each once an epoch, every epoch shuffled anew.

    grain shuffles epoch e with seed + e. Seeds are hashed first, or the second epoch of seed 0
    would be the first of seed 1.
    """
    import grain

    spread = int.from_bytes(hashlib.sha256(f"rows:{seed}".encode()).digest()[:4], "big")
    return grain.MapDataset.range(rows).shuffle(spread).repeat()
