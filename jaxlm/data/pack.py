"""Documents to rows of T: concatenate and split, or best fit. Both give random access to rows.

A document of n tokens [begin, text..., eos] is n - 1 pairs (input, target): eos is never an input,
begin never a target. Pairs, not tokens, fill a row, so that

    every token of every document but its first is a target exactly once.

A piece is a run of consecutive pairs of one document; a row is a list of pieces. Where a document
is cut, the last pair of one piece still has the next token as its target, and the next piece starts
with that token as its input. Each piece is a segment of its own with positions from 0.
"""

import bisect
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, Protocol

import numpy as np

from jaxlm.core import batch, check

Packing = Literal["concat", "best_fit"]
# Randomness of each row: numbers from which its random generator starts.
Draws = list[tuple[int, ...]]


@dataclass(frozen=True, eq=False)
class Rows:
    """Places of every row's pieces: piece p covers pairs start[p] .. start[p] + size[p] of doc[p].

    Row r holds the pieces first[r] .. first[r + 1]. doc, start, size [pieces] int64; first
    [rows + 1] int64.
    """

    seq: int
    doc: np.ndarray
    start: np.ndarray
    size: np.ndarray
    first: np.ndarray

    def __len__(self) -> int:
        return len(self.first) - 1


def pack(lengths: np.ndarray, seq: int, packing: Packing) -> Rows:
    """The rows of `seq` for documents of these lengths (in tokens, begin and eos included).

    Raises: ValueError for seq < 1, an unknown packing, or no documents of two tokens or more.
    """
    check.field("seq", seq, seq >= 1, "at least 1")
    check.field("packing", packing, packing in PACKERS, f"one of {list(PACKERS)}")
    pairs = np.maximum(np.asarray(lengths, np.int64) - 1, 0)
    if not pairs.any():
        raise ValueError("no document of at least two tokens to pack")
    return PACKERS[packing](pairs, seq)


def concat(pairs: np.ndarray, seq: int) -> Rows:
    """Rows of the documents laid end to end and cut every `seq` pairs; only the last is padded.

    Long documents are cut wherever a row ends.
    """
    ends = np.cumsum(pairs)
    total = int(ends[-1])
    # A piece begins where a document or a row begins.
    begins = np.union1d((ends - pairs)[pairs > 0], np.arange(0, total, seq))
    doc = np.searchsorted(ends, begins, side="right")
    size = np.diff(begins, append=total)
    first = np.searchsorted(begins, np.arange(0, total, seq))
    return Rows(seq, doc, begins - (ends - pairs)[doc], size, np.append(first, len(begins)))


def best_fit(pairs: np.ndarray, seq: int) -> Rows:
    """Rows by best-fit decreasing; no document of up to `seq` pairs is cut. Ding et al. 2024.

    Longer documents are first cut into pieces of `seq` and a rest ("Fewer Truncations Improve
    Language Modeling", section 3). Each piece, longest first, goes to the row with the least room
    that still takes it. Pieces of one length are placed together, group by group of rows with
    equal room, so that millions take seconds.
    """
    count = -(-pairs // seq)
    doc = np.repeat(np.arange(len(pairs)), count)
    start = (np.arange(len(doc)) - np.repeat(np.cumsum(count) - count, count)) * seq
    size = np.minimum(pairs[doc] - start, seq)
    return fitted(doc, start, size, size, seq)


def fitted(
    doc: np.ndarray, start: np.ndarray, size: np.ndarray, room: np.ndarray, seq: int
) -> Rows:
    """The Rows of these pieces, of which each takes up `room` of its row's `seq`."""
    order = np.argsort(-room, kind="stable")
    row = np.empty(len(doc), np.int64)
    row[order] = _place(room[order], seq)
    by_row = np.argsort(row, kind="stable")
    first = np.searchsorted(row[by_row], np.arange(int(row.max()) + 2))
    return Rows(seq, doc[by_row], start[by_row], size[by_row], first)


def _place(sizes: np.ndarray, seq: int) -> np.ndarray:
    """The row of each piece, for sizes in decreasing order."""
    rows = np.empty(len(sizes), np.int64)
    room: dict[int, deque[np.ndarray]] = {}  # room left -> groups of rows, oldest first
    rooms: list[int] = []  # the keys of `room`, sorted
    opened = done = 0

    def put(left: int, group: np.ndarray) -> None:
        if left and len(group):
            if left not in room:
                room[left] = deque()
                bisect.insort(rooms, left)
            room[left].append(group)

    distinct, counts = np.unique(sizes, return_counts=True)
    for size, count in zip(distinct[::-1].tolist(), counts[::-1].tolist(), strict=True):
        while count:
            at = bisect.bisect_left(rooms, size)
            left = rooms[at] if at < len(rooms) else seq
            # The row with least room keeps least room after a piece: it is filled to the end.
            each = left // size
            if at < len(rooms):
                group = room[left].popleft()
                if not room[left]:
                    del room[left], rooms[at]
            else:
                group = np.arange(opened, opened - (-count // each))
                opened += len(group)
            full = min(len(group), count // each)
            placed = full * each
            rows[done : done + placed] = np.repeat(group[:full], each)
            put(left - each * size, group[:full])
            done, count, group = done + placed, count - placed, group[full:]
            if count and len(group):  # too few pieces to fill the next row of the group
                rows[done : done + count] = group[0]
                put(left - count * size, group[:1])
                done, count, group = done + count, 0, group[1:]
            if len(group):  # rows not needed go back, still the oldest of their room
                if left not in room:
                    put(left, group)
                else:
                    room[left].appendleft(group)
    return rows


PACKERS = {"concat": concat, "best_fit": best_fit}


class Documents(Protocol):
    """A source of tokens: shards.Shards, or a list in a test."""

    def docs(self, numbers: Sequence[int]) -> list[np.ndarray]:
        """The tokens of these documents, in the order given."""
        ...


class Reader(NamedTuple):
    """Rows and the documents that fill them: a batch of any rows, at random."""

    rows: Rows
    source: Documents

    def read(self, numbers: np.ndarray) -> batch.Batch:
        """The batch [len(numbers), seq] of these rows, in the order given; see core/batch.py."""
        shape = (len(numbers), self.rows.seq)
        tokens, targets, segments, positions = (np.zeros(shape, np.int32) for _ in range(4))
        column = np.zeros(len(numbers), np.int64)
        for r, segment, start, size, text in self.pieces(numbers):
            place = slice(column[r], column[r] + size)
            tokens[r, place] = text[start : start + size]
            targets[r, place] = text[start + 1 : start + size + 1]
            segments[r, place] = segment
            positions[r, place] = np.arange(size)
            column[r] += size
        weight = (segments > 0).astype(np.float32)
        return batch.Batch(tokens, targets, weight, segments, positions)

    def pieces(self, numbers: np.ndarray) -> Iterator[tuple[int, int, int, int, np.ndarray]]:
        """(place in `numbers`, segment from 1, start, size, the document's tokens) of every piece
        of these rows, in order."""
        rows = self.rows
        spans = [(int(rows.first[r]), int(rows.first[r + 1])) for r in numbers]
        # [pieces of all rows]
        pieces = np.concatenate([np.arange(a, b) for a, b in spans] or [np.arange(0)])
        needed, where = np.unique(rows.doc[pieces], return_inverse=True)
        texts = self.source.docs(needed.tolist())
        at = 0
        for r, (a, b) in enumerate(spans):
            for segment, piece in enumerate(range(a, b), start=1):
                start, size = int(rows.start[piece]), int(rows.size[piece])
                yield r, segment, start, size, texts[where[at]]
                at += 1


def refuse_repeats(rows: int, batch: int, of: str = "") -> None:
    """Raises: ValueError if a batch needs more rows than there are: it would hold some twice. of:
    their source in a mixture."""
    if rows < batch:
        part = f" of {of!r} in data.mix" if of else ""
        raise ValueError(
            f"data.batch: a step takes {batch} rows{part}, and there are only {rows} to train on: "
            f"every step would hold some of them several times; {rows} or fewer fit, or give more "
            "data"
        )


def interleaved(parts: Sequence[tuple[np.ndarray, Any]]) -> Any:
    """One batch of several: row i of a part is row places[i] of it, for parts (places, batch)."""
    if len(parts) == 1:
        return parts[0][1]
    order = np.argsort(np.concatenate([places for places, _ in parts]))
    arrays = zip(*(part for _, part in parts), strict=True)
    return type(parts[0][1])(*(np.concatenate(same)[order] for same in arrays))


def shorten(long: batch.Batch, seq: int) -> batch.Batch:
    """The batch [B * T / seq, seq] of the rows of [B, T] cut into rows of `seq`.

    A document that goes on in the next row restarts there at position 0; segments count from 1 in
    every row again.

    Raises: ValueError if seq does not divide T.
    """
    width = long.tokens.shape[1]
    if width % seq:
        raise ValueError(f"seq={seq} does not divide the row length {width}")
    if seq == width:
        return long
    short = batch.Batch(*(array.reshape(-1, seq) for array in long))  # [B * T / seq, seq] each
    held = short.segments > 0
    segments = np.where(held, short.segments - short.segments[:, :1] + 1, 0)
    column = np.arange(seq)
    begins = np.diff(segments, axis=1, prepend=-1) != 0
    begin = np.maximum.accumulate(np.where(begins, column, 0), axis=1)
    positions = np.where(held, column - begin, 0)
    return short._replace(segments=segments.astype(np.int32), positions=positions.astype(np.int32))
