"""Documents whose middle is moved to their end: a model of next tokens learns to fill it in.
Bavarian et al. 2022; Roziere et al. 2023 (Code Llama), section 2.3.

    document        begin the cat sat on the mat eos
    PSM             begin <PRE> the cat <SUF> the mat <MID> sat on eos
    SPM             begin <PRE> <SUF> the mat <MID> the cat sat on eos

The two cuts fall between tokens, anywhere in the document, each place as likely (the papers cut
between characters). SPM is the form of Bavarian et al. 2022, appendix D, in which the middle
follows its prefix. All tokens, the three marks too, are targets. Of a document that no row can hold
every piece is cut and moved on its own; a piece that is not the document's last ends its middle
with the end mark all the same.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from jaxlm.core import batch, check
from jaxlm.data import pack
from jaxlm.data.tokenizers import tokenizer as tokenizers

_EXTRA = 4  # marks a piece may gain: the three, and the end of the middle


@dataclass(frozen=True)
class Infill:
    """Move the middle of documents to their end. The names are those of special tokens in the
    tokenizer; Code Llama's are ▁<PRE>, ▁<SUF>, ▁<MID> and ▁<EOT>."""

    rate: float = 0.9
    """The fraction of documents that are changed."""
    spm: float = 0.5
    """The fraction of those in which the suffix comes before the prefix."""
    prefix: str = "<PRE>"
    """The mark before the prefix."""
    suffix: str = "<SUF>"
    """The mark before the suffix."""
    middle: str = "<MID>"
    """The mark before the middle."""
    end: str | None = None
    """The mark after the middle; None is the tokenizer's eos, as in Bavarian et al. 2022."""

    def problems(self) -> Iterator[str]:
        """Problems of the fields, in lines that name the field, its value and what fits."""
        return check.outside("data.infill", self, "rate", "spm", least=0, most=1)


def short(seq: int) -> Iterator[str]:
    """A line if rows of `seq` have no room for text and its marks."""
    return check.problem("data.seq", seq, seq > _EXTRA, f"above {_EXTRA} with data.infill")


class Marks(NamedTuple):
    """The ids of the marks; end and eos may be one."""

    prefix: int
    suffix: int
    middle: int
    end: int
    eos: int


def marks(infill: Infill, tokenizer: tokenizers.Tokenizer) -> Marks:
    """The ids of the marks.

    Raises: ValueError naming the mark that the tokenizer lacks, or that two fields share.
    """
    names = {n: getattr(infill, n) for n in ("prefix", "suffix", "middle")}
    ends = {} if infill.end is None else {"end": infill.end}
    for field, name in (names | ends).items():
        if name not in tokenizer.special:
            raise ValueError(
                f"data.infill.{field}: {name!r} given, but the {tokenizer.kind} tokenizer has no "
                f"such special token; it has {sorted(tokenizer.special)}. Train one with the extra "
                f"tokens {', '.join(names.values())}, or name its own"
            )
    ids = [tokenizer.special[name] for name in (names | ends).values()]
    eos = tokenizer.special["eos"]
    if len({*ids, eos}) <= len(ids):
        raise ValueError(
            f"data.infill: prefix, suffix, middle and end have the ids {ids}, eos {eos}; each must "
            "be its own (and end=None for an eos that ends the middle)"
        )
    return Marks(*ids[:3], ids[3] if ends else eos, eos)


class Reader(NamedTuple):
    """Rows of documents, some with their middle at the end, at random."""

    whole: pack.Reader
    infill: Infill
    marks: Marks

    @property
    def rows(self) -> pack.Rows:
        """The rows."""
        return self.whole.rows

    def read(self, numbers: np.ndarray, draws: list[tuple[int, ...]]) -> batch.Batch:
        """The batch [len(numbers), seq] of these rows. What is moved in row r is decided by
        draws[r] alone."""
        shape = (len(numbers), self.rows.seq)
        tokens, targets, segments, positions = (np.zeros(shape, np.int32) for _ in range(4))
        column = np.zeros(len(numbers), np.int64)
        rngs = [np.random.default_rng(draw) for draw in draws]
        for r, segment, start, size, text in self.whole.pieces(numbers):
            last = start + size + 1 == len(text)
            piece = self._moved(text[start : start + size + 1], last, rngs[r])
            place = slice(column[r], column[r] + len(piece) - 1)
            tokens[r, place] = piece[:-1]
            targets[r, place] = piece[1:]
            segments[r, place] = segment
            positions[r, place] = np.arange(len(piece) - 1)
            column[r] += len(piece) - 1
        weight = (segments > 0).astype(np.float32)
        return batch.Batch(tokens, targets, weight, segments, positions)

    def _moved(self, piece: np.ndarray, last: bool, rng: np.random.Generator) -> np.ndarray:
        """A piece [first, text..., eos if it is the document's last], perhaps rearranged. Its first
        token is no target: begin, or what the piece before it ended with."""
        text = piece[1:-1] if last else piece[1:]
        change, swap = rng.random(2)
        a, b = np.sort(rng.integers(0, len(text) + 1, 2))
        if change >= self.infill.rate or not len(text):
            return piece
        prefix, middle, suffix = text[:a], text[a:b], text[b:]
        at = self.marks
        ends = [at.end, at.eos] if last and at.end != at.eos else [at.end]
        if swap < self.infill.spm:
            parts = [piece[:1], [at.prefix, at.suffix], suffix, [at.middle], prefix, middle, ends]
        else:
            parts = [piece[:1], [at.prefix], prefix, [at.suffix], suffix, [at.middle], middle, ends]
        return np.concatenate(parts).astype(np.int64)


def reader(
    lengths: np.ndarray, source: pack.Documents, seq: int, infill: Infill, at: Marks
) -> Reader:
    """The Reader of documents of these lengths in tokens, in rows of `seq`, packed by best fit with
    room for the marks of every piece.

    Raises: ValueError where a row has no room for text, or no document has any.
    """
    most = seq - _EXTRA
    check.refuse("", short(seq))
    pairs = np.maximum(np.asarray(lengths, np.int64) - 1, 0)
    if not pairs.any():
        raise ValueError("no document of at least two tokens to pack")
    count = -(-pairs // most)
    doc = np.repeat(np.arange(len(pairs)), count)
    start = (np.arange(len(doc)) - np.repeat(np.cumsum(count) - count, count)) * most
    size = np.minimum(pairs[doc] - start, most)
    rows = pack.fitted(doc, start, size, size + _EXTRA, seq)
    return Reader(pack.Reader(rows, source), infill, at)


def prompt(infill: Infill, tokenizer: tokenizers.Tokenizer, prefix: str, suffix: str) -> list[int]:
    """The ids, begin included, that a model trained so continues with the text between these two,
    until it writes Marks.end (PSM). Raises: ValueError as `marks`."""
    at = marks(infill, tokenizer)
    return [
        tokenizers.begin(tokenizer), at.prefix, *tokenizer.encode(prefix), at.suffix,
        *tokenizer.encode(suffix), at.middle,
    ]  # fmt: skip
