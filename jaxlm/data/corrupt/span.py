"""Pairs of a text with holes and what is missing in it. Raffel et al. 2020, section 3.1.4.

    text     Thank you for inviting me to your party last week
    source   Thank you <0> me to your party <1> week eos
    targets  <0> for inviting <1> last eos

A piece of n tokens loses round(rate * n) of them in round(missing / mean) spans, each of one token
at least, of random lengths that any division of the missing tokens is as likely for; so are the
lengths of the text between them. As in the paper's own code a piece ends with a span, and sentinels
count from the first in every piece.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from jaxlm.core import batch, check
from jaxlm.data import pack
from jaxlm.data.tokenizers import tokenizer as tokenizers


@dataclass(frozen=True)
class Span:
    """Cut spans out of texts for a decoder to write."""

    rate: float = 0.15
    """The fraction of a text's tokens that is missing."""
    mean: float = 3.0
    """The mean number of tokens in a span."""
    sentinel: int | None = None
    """The first sentinel's id, those that follow counting down (T5: 32099); ids that text never
    yields. None takes the tokenizer's <extra_id_0>, <extra_id_1>, ..."""
    start: int = 0
    """First token of the decoder: `start` of the model."""

    def problems(self) -> Iterator[str]:
        """Problems of the fields, in lines that name the field, its value and what fits."""
        yield from check.outside("data.corrupt", self, "rate", above=0, below=1)
        yield from check.outside("data.corrupt", self, "mean", least=1)
        yield from check.outside("data.corrupt", self, "start", least=0)


def missing(span: Span, size: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(missing tokens, spans) of pieces of these sizes (at least 1), int64 of their shape."""
    size = np.asarray(size, np.int64)
    gone = np.clip(np.round(span.rate * size).astype(np.int64), 1, np.maximum(size - 1, 1))
    count = np.maximum(np.round(gone / span.mean).astype(np.int64), 1)
    return gone, np.minimum(count, np.maximum(size - gone, 1))


def lengths(span: Span, size: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(source tokens, target tokens) of pieces of these sizes, sentinels and eos included."""
    gone, count = missing(span, size)
    return np.asarray(size, np.int64) - gone + count + 1, gone + count + 1


def piece(span: Span, seq: int) -> int:
    """The most tokens of text whose source fits into `seq`: 568 for T5's 512.

    Raises: ValueError where not even two tokens fit.
    """
    sizes = np.arange(2, max(3, int(2 * seq / (1 - span.rate)) + 3))
    fits = sizes[lengths(span, sizes)[0] <= seq]
    check.field("data.seq", seq, len(fits) > 0, "at least 4, the source of two tokens with a span")
    return int(fits[-1])


def target_length(span: Span, seq: int) -> int:
    """Tokens of a target row for source rows of `seq`: as the longest piece needs."""
    return int(lengths(span, np.array(piece(span, seq)))[1])


def sentinels(span: Span, seq: int, tokenizer: tokenizers.Tokenizer) -> np.ndarray:
    """The ids of the sentinels that the longest piece needs, in order.

    Raises: ValueError where there are too few, or where they are tokens of text.
    """
    need = int(missing(span, np.array(piece(span, seq)))[1])
    special = tokenizer.special
    if span.sentinel is None:
        names = [f"<extra_id_{i}>" for i in range(need)]
        absent = [name for name in names if name not in special]
        if absent:
            raise ValueError(
                "data.corrupt.sentinel: None given, which takes the tokenizer's, and the "
                f"{tokenizer.kind} tokenizer has no {absent[0]}; data.seq={seq} needs {need}: "
                f"train one with extra tokens <extra_id_0> .. <extra_id_{need - 1}>, or give an id "
                f"after its last, such as {tokenizer.vocab + need - 1}, with a model.vocab above it"
            )
        return np.array([special[name] for name in names])
    chosen = span.sentinel - np.arange(need)
    text = [i for i in chosen if i < 0 or (i < tokenizer.vocab and i not in special.values())]
    if text:
        raise ValueError(
            f"data.corrupt.sentinel: {span.sentinel} given, but data.seq={seq} needs {need} "
            f"sentinels down to {chosen[-1]}, and {text[0]} is a token of text; it must be at "
            f"least {tokenizer.vocab + need - 1}"
        )
    return chosen


class Reader:
    """Rows of pairs, at random."""

    def __init__(self, pieces: pack.Reader, span: Span, sentinels: np.ndarray, eos: int):
        self.rows, self._whole, self._span = pieces.rows, pieces, span
        self._sentinels, self._eos = sentinels, eos
        self._width = target_length(span, self.rows.seq)

    def read(self, numbers: np.ndarray, draws: pack.Draws) -> batch.Pairs:
        """The batch of these rows. What is cut out of row r is decided by draws[r] alone."""
        source = _Rows(len(numbers), self.rows.seq)
        target = _Rows(len(numbers), self._width)
        rngs = [np.random.default_rng(draw) for draw in draws]
        for r, segment, start, size, text in self._whole.pieces(numbers):
            kept, gone = self._cut(text[start : start + size], rngs[r])
            source.add(r, segment, kept)
            target.add(r, segment, gone)
        first = (target.segments > 0) & (target.positions == 0)
        tokens = np.where(first, self._span.start, np.roll(target.tokens, 1, axis=1))
        tokens = np.where(target.segments > 0, tokens, 0).astype(np.int32)
        weight = (target.segments > 0).astype(np.float32)
        return batch.Pairs(
            tokens,
            target.tokens,
            weight,
            target.segments,
            target.positions,
            source.tokens,
            source.segments,
            source.positions,
        )

    def _cut(self, text: np.ndarray, rng: np.random.Generator) -> tuple[list, list]:
        """(source, target) of one piece."""
        gone, count = (int(n) for n in missing(self._span, np.array(len(text))))
        holes, between = _divide(gone, count, rng), _divide(len(text) - gone, count, rng)
        kept: list = []
        cut: list = []
        at = 0
        for mark, keep, hole in zip(self._sentinels, between, holes):
            kept += [*text[at : at + keep], mark]
            cut += [mark, *text[at + keep : at + keep + hole]]
            at += keep + hole
        return [*kept, self._eos], [*cut, self._eos]


def _divide(total: int, parts: int, rng: np.random.Generator) -> np.ndarray:
    """`total` as a sum of `parts` numbers of at least 1, every such sum as likely."""
    if parts < 2:
        return np.array([total])
    cuts = np.sort(rng.choice(total - 1, parts - 1, replace=False)) + 1
    return np.diff(cuts, prepend=0, append=total)


class _Rows:
    """tokens, segments, positions int32[rows, width], filled from the left."""

    def __init__(self, rows: int, width: int):
        self.tokens, self.segments, self.positions = np.zeros((3, rows, width), np.int32)
        self._filled = [0] * rows

    def add(self, r: int, segment: int, tokens: list) -> None:
        """Appends a segment to row r."""
        place = slice(self._filled[r], self._filled[r] + len(tokens))
        self.tokens[r, place] = tokens
        self.segments[r, place] = segment
        self.positions[r, place] = np.arange(len(tokens))
        self._filled[r] += len(tokens)


def reader(
    lengths_in: np.ndarray,
    source: pack.Documents,
    seq: int,
    span: Span,
    sentinels: np.ndarray,
    eos: int,
) -> Reader:
    """The Reader of documents of these lengths in tokens, begin and eos included, in source rows of
    `seq`. Pieces are packed by best fit so that sources and targets both fit their rows.

    Raises: ValueError if no document has text.
    """
    text = np.maximum(np.asarray(lengths_in, np.int64) - 2, 0)
    if not text.any():
        raise ValueError("no document with text to cut spans from")
    each = piece(span, seq)
    count = -(-text // each)
    doc = np.repeat(np.arange(len(text)), count)
    start = (np.arange(len(doc)) - np.repeat(np.cumsum(count) - count, count)) * each
    size = np.minimum(text[doc] - start, each)
    kept, gone = lengths(span, size)
    room = np.maximum(kept, -(-gone * seq // target_length(span, seq)))
    rows = pack.fitted(doc, start + 1, size, room, seq)
    return Reader(pack.Reader(rows, source), span, sentinels, eos)
