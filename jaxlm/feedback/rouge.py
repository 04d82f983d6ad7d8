"""ROUGE-L: overlap of two texts, by their longest common subsequence of words.

Lin 2004 ("ROUGE"), section 3.1, with beta 1: F = 2 L / (m + n). Words are runs of a-z and 0-9 in
lower case, without stemming, as in google-research's `rouge_score`.
"""

import collections
import re
from collections.abc import Sequence
from typing import NamedTuple

_WORD = re.compile("[a-z0-9]+")


class Near(NamedTuple):
    """score: the largest F. text: the text that has it, "" if there is none."""

    score: float
    text: str


def words(text: str) -> list[str]:
    """The words of a text."""
    return _WORD.findall(text.lower())


def common(a: Sequence[str], b: Sequence[str]) -> int:
    """The length of the longest common subsequence, a word of b at a time over all of a.

    Bit i of `left` is 0 where the subsequence grew at a[i] (Hyyro 2004, "Bit-parallel LCS-length
    computation revisited").
    """
    at: dict[str, int] = {}
    for i, word in enumerate(a):
        at[word] = at.get(word, 0) | 1 << i
    every = (1 << len(a)) - 1
    left = every
    for word in b:
        hit = left & at.get(word, 0)
        left = (left + hit | left - hit) & every
    return len(a) - left.bit_count()


def score(a: Sequence[str], b: Sequence[str]) -> float:
    """F of two lists of words; 0 if one is empty."""
    return 2 * common(a, b) / (len(a) + len(b)) if a and b else 0.0


class Pool:
    """Texts that new ones are compared with."""

    def __init__(self, texts: Sequence[str] = ()):
        self._texts: list[str] = []
        self._words: list[list[str]] = []
        self._counts: list[collections.Counter[str]] = []
        for text in texts:
            self.add(text)

    def add(self, text: str) -> None:
        """Compare with this text, too, from now on."""
        self._texts.append(text)
        self._words.append(words(text))
        self._counts.append(collections.Counter(self._words[-1]))

    def nearest(self, text: str) -> Near:
        """The text with the largest F, the first of equals."""
        mine = words(text)
        count, best = collections.Counter(mine), Near(0.0, "")
        for theirs, words_, other in zip(self._texts, self._words, self._counts):
            if not mine or not words_:
                continue
            # the order of words can only lessen what is shared
            bound = 2 * (count & other).total() / (len(mine) + len(words_))
            if bound > best.score and (shared := score(mine, words_)) > best.score:
                best = Near(shared, theirs)
        return best
