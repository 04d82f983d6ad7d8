"""Rendered text to tokens, with the characters of each token.

    text      <|im_start|>assistant\\n"Yes<|im_end|>\\n
    segments  <|im_start|> | assistant\\n"Yes | <|im_end|> | \\n

A special token that a template wrote is one id. The text between two of them is encoded as a whole,
as every tokenizer does: the beginning of an answer is encoded after the end of its prompt. Where
the answer begins is a place among characters, and decides no id.
"""

import bisect
import functools
import re
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from jaxlm.data.tokenizers import tokenizer as tokenizers

# White space as Unicode and the tokenizers library define it; Python's also strips U+001C to 1F.
_WHITE = (
    "\t\n\x0b\x0c\r \x85\xa0\u1680\u2000\u2001\u2002\u2003\u2004\u2005\u2006\u2007\u2008\u2009"
    "\u200a\u2028\u2029\u202f\u205f\u3000"
)


class Text(NamedTuple):
    """ids: the tokens of a text. starts, ends: the characters of each, neither ever falling."""

    ids: list[int]
    starts: list[int]
    ends: list[int]

    def before(self, place: int) -> int:
        """Number of tokens that end at a character or before it."""
        return bisect.bisect_right(self.ends, place)

    def begun(self, place: int) -> int:
        """Number of tokens that begin before a character."""
        return bisect.bisect_left(self.starts, place)


def pattern(marks: Mapping[str, tokenizers.Mark]) -> re.Pattern[str]:
    """A pattern that matches the special tokens, the longest first."""
    return _pattern(tuple(marks))


@functools.lru_cache(16)
def _pattern(names: tuple[str, ...]) -> re.Pattern[str]:
    return re.compile("|".join(map(re.escape, sorted(names, key=len, reverse=True))))


def encode(tokenizer: tokenizers.Tokenizer, text: str, silent: str = "") -> Text:
    """The tokens of a text whose special tokens, as spelled in `tokenizer.marks`, are special.
    silent: a character that is left out of the text; it breaks names that are no special tokens."""
    marks = tokenizer.marks
    ids: list[int] = []
    starts: list[int] = []
    ends: list[int] = []

    def part(start: int, end: int, trim: tuple[bool, bool]) -> None:
        piece = text[start:end]
        kept = np.arange(start, end)  # where each character of the piece is in the text
        if silent and silent in piece:
            kept = np.array([i for i in range(start, end) if text[i] != silent], np.int64)
            piece = piece.replace(silent, "")
        left = len(piece) - len(piece.lstrip(_WHITE)) if trim[0] else 0
        right = len(piece.rstrip(_WHITE)) if trim[1] else len(piece)
        kept, piece = kept[left:right], piece[left:right]
        if not piece:
            return
        located = tokenizer.locate(piece, start == 0)
        first, last = _widened(located)
        ids.extend(located.ids)
        starts.extend(kept[np.minimum(first, len(kept) - 1)].tolist())
        ends.extend(np.where(last > 0, kept[last - 1] + 1, kept[0]).tolist())

    at, right = 0, False
    for match in pattern(marks).finditer(text):
        mark = marks[match.group()]
        part(at, match.start(), (right, mark.left))
        ids.append(mark.id)
        starts.append(match.start())
        ends.append(match.end())
        at, right = match.end(), mark.right
    part(at, len(text), (right, False))
    return Text(ids, starts, ends)


def _widened(located: tokenizers.Located) -> tuple[np.ndarray, np.ndarray]:
    """The characters of each token. One without any (a byte that does not complete a character, a
    space that the tokenizer puts before a text) gets those of the next."""
    starts, ends = np.array(located.starts, np.int64), np.array(located.ends, np.int64)
    for i in np.flatnonzero(ends <= starts)[::-1]:
        following = i + 1 < len(ends) and starts[i + 1] <= starts[i]
        ends[i] = max(ends[i + 1], starts[i]) if following else starts[i]
    return np.minimum.accumulate(starts[::-1])[::-1], np.maximum.accumulate(ends)
