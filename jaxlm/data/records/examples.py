"""Examples to batches: a stateless function of (seed, step), as `pretraining` is for text.

An example is a row of a `Rows`: a conversation, a preference, a prompt. Step s reads the examples
s * B .. (s + 1) * B of the endlessly repeated, shuffled rows.
"""

from collections.abc import Generator, Iterator
from typing import Any, NamedTuple, Protocol

import numpy as np

from jaxlm.core import check
from jaxlm.core.batch import Batch
from jaxlm.data import pack, tally
from jaxlm.data.rows import mixed_rows, prefetch


class Rows(Protocol):
    """Examples with random access. What `read` returns is a NamedTuple of arrays [n, ...] (or
    None), of which a row of zeros has no weight. Instances can be pickled."""

    def __len__(self) -> int:
        """Number of rows."""
        ...

    def read(self, rows: np.ndarray) -> Any:
        """The batch of these rows, int64[n]."""
        ...


class Packed:
    """The rows of packed text, as examples."""

    def __init__(self, reader: pack.Reader):
        self._reader = reader

    def __len__(self) -> int:
        return len(self._reader.rows)

    def read(self, rows: np.ndarray) -> Batch:
        """The batch of these rows, int64[n]."""
        return self._reader.read(rows)


class Split(NamedTuple):
    """Rows trained on, rows held out (None if there are none), and the facts that decide both:
    with (seed, step) they decide every batch. facts are JSON. tally: counts of the source."""

    train: Rows
    val: Rows | None
    facts: dict[str, Any]
    tally: tally.Tally

    def rows(self) -> dict[str, int]:
        """The numbers of rows, as env.json records them."""
        return {
            "train_rows": len(self.train),
            "val_rows": 0 if self.val is None else len(self.val),
        }


class Steps:
    """The batches of a run by step, of which it gives the rows of one process: the p-th of P equal
    slices."""

    def __init__(
        self, rows: Rows, batch: int, seed: int, first: int, process_index: int, process_count: int
    ):
        if not len(rows):
            raise ValueError("data.source: no example is left to train on")
        fits = f"a multiple of the {process_count} processes"
        check.field("data.batch", batch, batch % process_count == 0, fits)
        pack.refuse_repeats(len(rows), batch)
        self._rows, self._batch, self._first = rows, batch, first
        self._each = batch // process_count
        self._offset = process_index * self._each
        self._order = mixed_rows.row_order(len(rows), seed)

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Arrive in another process: a worker, which must not outlive the run it reads for."""
        self.__dict__.update(state)
        prefetch.end_with_parent()

    def __len__(self) -> int:
        return prefetch.ENDLESS

    def __getitem__(self, index: int) -> Any:
        at = (self._first + int(index)) * self._batch + self._offset
        return self._rows.read(np.array([self._order[at + i] for i in range(self._each)]))


def batches(
    rows: Rows,
    batch: int,
    seed: int,
    start_step: int = 0,
    process_index: int = 0,
    process_count: int = 1,
    workers: int = 0,
) -> Generator[Any]:
    """The endless batches from `start_step` on, read ahead; this process' slice of each.

    Laws as those of `pretraining.batches`. Raises: ValueError if a batch takes more rows than there
    are, or does not divide over the processes.
    """
    steps = Steps(rows, batch, seed, start_step, process_index, process_count)
    return prefetch.read_ahead(steps, workers)


def val_batches(
    rows: Rows, batch: int, process_index: int = 0, process_count: int = 1
) -> Iterator[Any]:
    """One pass over the rows in order; the last batch is filled up with rows of zeros."""
    each = batch // process_count
    for start in range(0, len(rows), batch):
        wanted = np.arange(start, start + batch)[process_index * each : (process_index + 1) * each]
        yield filled(rows.read(wanted[wanted < len(rows)]), each)


def filled(part: Any, rows: int) -> Any:
    """The batch with rows of zeros after its own, `rows` in all."""

    def fill(x: np.ndarray) -> np.ndarray:
        return np.pad(x, [(0, rows - len(x))] + [(0, 0)] * (x.ndim - 1))

    return type(part)(*(None if x is None else fill(x) for x in part))
