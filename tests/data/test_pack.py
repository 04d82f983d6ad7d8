"""Packing laws, against slow and obvious oracles."""

import time

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st

from jaxlm.core import batch
from jaxlm.data import pack

quick = hypothesis.settings(
    max_examples=80,
    derandomize=True,
    deadline=None,
    database=None,
    suppress_health_check=list(hypothesis.HealthCheck),
)
documents = st.lists(st.integers(2, 30), min_size=1, max_size=25)


class Texts:
    """Documents whose every token is unique: token = 100 * document + place + 1."""

    def __init__(self, lengths):
        self.lengths = lengths

    def docs(self, numbers):
        return [
            np.arange(1, self.lengths[n] + 1, dtype=np.uint16) + np.uint16(100 * n) for n in numbers
        ]


def read_all(lengths, seq, packing):
    rows = pack.pack(np.array(lengths), seq, packing)
    return rows, pack.Reader(rows, Texts(lengths)).read(np.arange(len(rows)))


def test_the_example_of_core_batch():
    """[a b c eos] and [d e eos] in one row of 6, as Batch's docstring shows."""
    for packing in ("concat", "best_fit"):
        _, found = read_all([4, 3], 6, packing)
        expected = batch.Batch(
            tokens=[[1, 2, 3, 101, 102, 0]],
            targets=[[2, 3, 4, 102, 103, 0]],
            weight=[[1, 1, 1, 1, 1, 0]],
            segments=[[1, 1, 1, 2, 2, 0]],
            positions=[[0, 1, 2, 0, 1, 0]],
        )
        for ours, right in zip(found, expected, strict=True):
            np.testing.assert_array_equal(ours, right)
        assert [a.dtype for a in found] == [np.int32, np.int32, np.float32, np.int32, np.int32]


@pytest.mark.parametrize("packing", list(pack.PACKERS))
def test_every_token_but_a_documents_first_is_a_target_exactly_once(packing):
    @quick
    @hypothesis.given(documents, st.integers(1, 16))
    def law(lengths, seq):
        _, found = read_all(lengths, seq, packing)
        held = found.weight > 0
        expected = sorted(100 * n + i + 1 for n, size in enumerate(lengths) for i in range(1, size))
        assert sorted(found.targets[held].tolist()) == expected
        # The input of a target is the token before it; an end is never an input.
        np.testing.assert_array_equal(found.tokens[held] + 1, found.targets[held])
        ends = {100 * n + size for n, size in enumerate(lengths)}
        assert not ends & set(found.tokens[held].tolist())
        for array in found:
            assert not array[~held].any()  # padding is zero everywhere

    law()


@pytest.mark.parametrize("packing", list(pack.PACKERS))
def test_segments_hold_one_document_each_with_positions_from_zero(packing):
    @quick
    @hypothesis.given(documents, st.integers(1, 16))
    def law(lengths, seq):
        _, found = read_all(lengths, seq, packing)
        for row in range(len(found.tokens)):
            segments = found.segments[row]
            numbers = [s for s in dict.fromkeys(segments.tolist()) if s]
            assert numbers == list(range(1, len(numbers) + 1))
            assert sorted(segments.tolist(), key=lambda s: (s == 0, s)) == segments.tolist()
            for number in numbers:
                at = segments == number
                tokens = found.tokens[row][at]
                assert len({int(t - 1) // 100 for t in tokens}) == 1
                np.testing.assert_array_equal(np.diff(tokens), 1)
                np.testing.assert_array_equal(found.positions[row][at], np.arange(at.sum()))

    law()


def test_concat_pads_only_the_last_row():
    lengths = [5, 9, 2, 30, 3]
    rows, found = read_all(lengths, 7, "concat")
    pairs = sum(lengths) - len(lengths)
    assert len(rows) == -(-pairs // 7)
    assert found.weight[:-1].all()
    assert found.weight.sum() == pairs
    order = found.targets[found.weight > 0].tolist()
    assert order == sorted(order)  # laid end to end, in order


def best_fit_by_the_book(lengths, seq):
    """How full best-fit decreasing leaves its rows, one piece at a time."""
    pieces = []
    for size in lengths:
        pieces += [seq] * ((size - 1) // seq) + [(size - 1) % seq]
    room = []
    for piece in sorted((p for p in pieces if p), reverse=True):
        fits = [i for i, left in enumerate(room) if left >= piece]
        if fits:
            room[min(fits, key=lambda i: (room[i], i))] -= piece
        else:
            room.append(seq - piece)
    return sorted(room)


def test_best_fit_is_best_fit_decreasing():
    @quick
    @hypothesis.given(documents, st.integers(1, 24))
    def law(lengths, seq):
        rows, found = read_all(lengths, seq, "best_fit")
        room = sorted((seq - found.weight.sum(axis=1).astype(int)).tolist())
        assert room == best_fit_by_the_book(lengths, seq)
        assert len(rows) == len(room)

    law()


def test_best_fit_cuts_only_documents_that_do_not_fit():
    @quick
    @hypothesis.given(documents, st.integers(1, 24))
    def law(lengths, seq):
        rows, _ = read_all(lengths, seq, "best_fit")
        pieces = np.bincount(rows.doc, minlength=len(lengths))
        for size, count in zip(lengths, pieces, strict=True):
            assert count == -(-(size - 1) // seq)
        assert (rows.start % seq == 0).all()

    law()


def test_rows_are_read_at_random_and_repeatedly():
    rows, whole = read_all([5, 9, 2, 30, 3], 7, "concat")
    wanted = np.array([3, 0, 3, 1])
    found = pack.Reader(rows, Texts([5, 9, 2, 30, 3])).read(wanted)
    for ours, right in zip(found, whole, strict=True):
        np.testing.assert_array_equal(ours, right[wanted])
    nothing = pack.Reader(rows, Texts([5])).read(np.arange(0))
    assert [array.shape for array in nothing] == [(0, 7)] * 5


@pytest.mark.parametrize("packing", list(pack.PACKERS))
def test_shorter_rows_restart_documents(packing):
    """Cut rows are what slow relabelling makes of them; tokens, targets, weights only reshape."""

    @quick
    @hypothesis.given(documents, st.sampled_from([1, 2, 3, 4, 6, 12]))
    def law(lengths, seq):
        _, long = read_all(lengths, 12, packing)
        short = pack.shorten(long, seq)
        for name in ("tokens", "targets", "weight"):
            np.testing.assert_array_equal(getattr(short, name).ravel(), getattr(long, name).ravel())
        for row, before in zip(range(len(short.tokens)), long.segments.reshape(-1, seq)):
            seen: dict[int, int] = {}
            for column, segment in enumerate(before.tolist()):
                count = seen.get(segment, 0)
                seen[segment] = count + 1
                number = list(seen).index(segment) + 1 if segment else 0
                assert short.segments[row, column] == number
                assert short.positions[row, column] == (count if segment else 0)

    law()


def test_bad_arguments_are_named():
    lengths = np.array([5, 6])
    with pytest.raises(ValueError, match="seq: 0 given; it must be at least 1"):
        pack.pack(lengths, 0, "concat")
    with pytest.raises(ValueError, match="packing: 'first_fit' given; it must be one of"):
        pack.pack(lengths, 4, "first_fit")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="no document of at least two tokens"):
        pack.pack(np.array([1, 1]), 4, "concat")
    _, found = read_all([5, 6], 4, "concat")
    with pytest.raises(ValueError, match="seq=3 does not divide the row length 4"):
        pack.shorten(found, 3)


@pytest.mark.parametrize("packing", list(pack.PACKERS))
def test_two_hundred_thousand_documents_take_about_a_second(packing):
    lengths = np.random.default_rng(0).lognormal(6, 1.2, 200_000).astype(np.int64) + 2
    start = time.process_time()
    rows = pack.pack(lengths, 1024, packing)
    assert time.process_time() - start < 5
    assert rows.size.sum() == (lengths - 1).sum()
    full = np.add.reduceat(rows.size, rows.first[:-1])
    assert full.max() <= 1024 and full.mean() > 0.999 * 1024
