"""Span corruption: lengths as T5's own code has them, nothing lost, rows that fit."""

import re

import numpy as np
import pytest

from jaxlm.data import pretraining, tokenizers
from jaxlm.data.corrupt import span
from tests.data.corrupt.test_mask import Texts

BYTES = tokenizers.load("bytes")
SPAN = span.Span(sentinel=999)


def reader(lengths, seq, settings=SPAN):
    texts = Texts(lengths)
    marks = span.sentinels(settings, seq, BYTES)
    return span.reader(texts.lengths, texts, seq, settings, marks, 258), texts


def test_the_lengths_of_t5():
    # Raffel et al. 2020's code: 568 tokens of text make 512 of source and 114 of target
    assert span.piece(span.Span(), 512) == 568
    assert span.target_length(span.Span(), 512) == 114
    assert [int(n) for n in span.missing(span.Span(), np.array(568))] == [85, 28]
    # a text of two tokens or more keeps one, and no two spans touch
    gone, spans = span.missing(span.Span(rate=0.9), np.array([1, 2, 3, 20]))
    assert gone.tolist() == [1, 1, 2, 18] and spans.tolist() == [1, 1, 1, 2]


@pytest.mark.parametrize("settings", [SPAN, span.Span(0.5, 3.0, 999), span.Span(0.15, 1.0, 999)])
def test_source_and_target_together_are_the_text(settings):
    r = np.random.default_rng(1)
    lengths = [*r.integers(2, 200, 60), 2, 3, 4, 5]
    found, texts = reader(lengths, 64, settings)
    rows = len(found.rows)
    batch = found.read(np.arange(rows), [(0, 0, i) for i in range(rows)])
    assert batch.source.shape == (rows, 64)
    assert batch.tokens.shape == (rows, span.target_length(settings, 64))
    pieces = []
    for r in range(rows):
        assert set(batch.segments[r]) - {0} == set(batch.source_segments[r]) - {0}
        for s in range(1, batch.segments[r].max() + 1):
            source = batch.source[r][batch.source_segments[r] == s].tolist()
            target = batch.targets[r][batch.segments[r] == s].tolist()
            assert source.pop() == target.pop() == 258
            pieces.append(_whole(source, target))
    want = [piece for text in texts.docs(range(len(lengths))) for piece in _cut(text, settings)]
    assert sorted(pieces) == sorted(want)


def _cut(text, settings):
    each = span.piece(settings, 64)
    inner = text[1:-1].tolist()
    return [inner[i : i + each] for i in range(0, len(inner), each)]


def _whole(source, target):
    """The text: every sentinel of the source replaced by what follows it in the target."""
    spans, mark = {}, None
    for token in target:
        if token > 258:
            assert token == 999 - len(spans)  # sentinels count down from the first
            mark, spans[token] = token, []
        else:
            spans[mark].append(token)
    assert all(spans.values())
    return [t for token in source for t in (spans[token] if token > 258 else [token])]


def test_the_decoder_reads_its_targets_one_later():
    found, _ = reader([40, 30, 20], 64, span.Span(sentinel=999, start=7))
    batch = found.read(np.arange(1), [(0, 0, 0)])
    held = batch.segments > 0
    first = held & (batch.positions == 0)
    assert (batch.tokens[first] == 7).all()
    later = held & (batch.positions > 0)
    np.testing.assert_array_equal(batch.tokens[later], np.roll(batch.targets, 1, 1)[later])
    np.testing.assert_array_equal(batch.weight, held)


def test_the_missing_share_and_the_draw():
    found, _ = reader([2 + 70 * 50], 64)
    n = len(found.rows)
    a, b, c = (found.read(np.arange(n), [(seed, 0, i) for i in range(n)]) for seed in (0, 0, 1))
    assert all((x == y).all() for x, y in zip(a, b, strict=True))
    assert (a.source != c.source).any()
    gone = ((a.targets < 256) & (a.segments > 0)).sum()
    assert gone / (70 * 50) == pytest.approx(0.15, abs=0.01)


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        (span.Span(), r"data\.corrupt\.sentinel: None given, .*the tokenizer's.*needs 3"),
        (span.Span(sentinel=100), r"data\.corrupt\.sentinel: 100 given.*is a token of text"),
    ],
)
def test_sentinels_that_are_none(settings, told):
    with pytest.raises(ValueError, match=told):
        span.sentinels(settings, 64, BYTES)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (
            {"packing": "concat"},
            "data.packing: 'concat' given; .* 'best_fit' with data.corrupt=Span",
        ),
        (
            {"curriculum": ((0, 32),), "batch": 32},
            r"data.curriculum: .* \(\) with data.corrupt=Span",
        ),
        ({"seq": 2}, "data.seq: 2 given; it must be at least 4"),
    ],
)
def test_data_that_does_not_fit(change, told):
    (line,) = pretraining.Data(**{"seq": 64, "corrupt": SPAN, **change}).problems()
    assert re.match(told, line)
