"""Rendered text to tokens, with the characters that each token stands for.

    text      <|im_start|>assistant\\n"Yes<|im_end|>\\n
    segments  <|im_start|> | assistant\\n"Yes | <|im_end|> | \\n

A special token that a template wrote is one id. The text between two of them is encoded as a whole,
as every tokenizer does: what an answer begins with is encoded behind the end of its prompt. Where
the answer begins is a place among characters, and decides no id.
"""

import bisect
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
        """How many tokens end at a character or before it."""
        return bisect.bisect_right(self.ends, place)

    def begun(self, place: int) -> int:
        """How many tokens begin before a character."""
        return bisect.bisect_left(self.starts, place)


def pattern(marks: Mapping[str, tokenizers.Mark]) -> re.Pattern[str]:
    """A pattern that matches the special tokens, the longest first."""
    return re.compile("|".join(map(re.escape, sorted(marks, key=len, reverse=True))))


def encode(tokenizer: tokenizers.Tokenizer, text: str, silent: str = "") -> Text:
    """The tokens of a text whose special tokens, as spelled in `tokenizer.marks`, are special.
    silent: a character that is left out of the text; it breaks names that are no special tokens."""
    marks = tokenizer.marks
    ids: list[int] = []
    starts: list[int] = []
    ends: list[int] = []

    def part(start: int, end: int, trim: tuple[bool, bool]) -> None:
        kept = [i for i in range(start, end) if text[i] != silent]
        piece = "".join([text[i] for i in kept])
        left = len(piece) - len(piece.lstrip(_WHITE)) if trim[0] else 0
        right = len(piece.rstrip(_WHITE)) if trim[1] else len(piece)
        kept, piece = kept[left:right], piece[left:right]
        if not piece:
            return
        found = tokenizer.locate(piece, start == 0)
        first, last = _widened(found)
        ids.extend(found.ids)
        starts.extend(kept[min(i, len(kept) - 1)] for i in first)
        ends.extend(kept[i - 1] + 1 if i else kept[0] for i in last)

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


def _widened(found: tokenizers.Located) -> tuple[list[int], list[int]]:
    """The characters of each token. One without any (a byte that does not complete a character, a
    space that the tokenizer puts before a text) gets those of the next."""
    starts, ends = list(found.starts), list(found.ends)
    for i in range(len(ends) - 2, -1, -1):
        if ends[i] <= starts[i]:
            ends[i] = max(ends[i + 1], starts[i]) if starts[i + 1] <= starts[i] else starts[i]
    return np.minimum.accumulate(starts[::-1])[::-1].tolist(), np.maximum.accumulate(ends).tolist()
