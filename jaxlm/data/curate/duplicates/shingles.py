"""Words of a text, and hashes of its word n-grams (shingles).

Words are lower-cased runs of letters and digits; numbers are kept as they are. In scripts that
write no spaces each character is a word. A text with fewer words than a shingle is one shingle, all
of it; one without any word is the hash of its characters.
"""

import hashlib
import itertools
import re
from collections.abc import Sequence

import numpy as np

# Thai to Lao, Myanmar, Khmer; kana, ideographs, compatibility ideographs; those beyond 16 bits.
_UNSPACED = (
    "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
    "\U00020000-\U0003ffff"
)
_WORD = re.compile(f"[^\\W{_UNSPACED}]+|[{_UNSPACED}]")
# Odd constants of splitmix64 (Steele, Lea, Flood 2014).
_MULTIPLY, _MIX, _LAST = 0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB


class WordHashes(dict[str, int]):
    """{word: 64-bit hash}, filled as words are met, forgotten when it has too many."""

    MOST = 1 << 20

    def __missing__(self, word: str) -> int:
        if len(self) >= self.MOST:
            self.clear()
        self[word] = value = hash64(word)
        return value


def hash64(text: str) -> int:
    """The first 64 bits of BLAKE2b of a text."""
    data = text.encode("utf-8", "surrogatepass")
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "little")


def words(text: str) -> list[str]:
    """The words of a text, in small letters."""
    return _WORD.findall(text.lower())


def spans(text: str) -> list[tuple[int, int]]:
    """(start, end) of the words of a text."""
    return [match.span() for match in _WORD.finditer(text)]


def word_hashes(text: str, known: WordHashes) -> list[int]:
    """Hashes of a text's words in order; of a text without words, one of it all."""
    return [*map(known.__getitem__, words(text))] or [hash64(text.strip())]


def ngrams(hashes: np.ndarray, n: int) -> np.ndarray:
    """uint64[words - n + 1] hashes of word n-grams in order, from hashes of at least n words."""
    grams = np.zeros(len(hashes) - n + 1, np.uint64)
    for place in range(n):
        grams = (grams ^ hashes[place : place + len(grams)]) * np.uint64(_MULTIPLY)
        grams ^= grams >> np.uint64(29)
    grams = (grams ^ (grams >> np.uint64(30)) ^ np.uint64(n)) * np.uint64(_MIX)
    grams = (grams ^ (grams >> np.uint64(27))) * np.uint64(_LAST)
    return grams ^ (grams >> np.uint64(31))


def shingles(texts: Sequence[str], n: int, known: WordHashes) -> tuple[np.ndarray, np.ndarray]:
    """The set of shingles of each text: uint64[all], each text's sorted and distinct, and
    int64[texts + 1], where each text's begin."""
    return sets([word_hashes(text, known) for text in texts], n)


def sets(listed: Sequence[Sequence[int]], n: int) -> tuple[np.ndarray, np.ndarray]:
    """`shingles` of texts by the hashes of their words."""
    lengths = np.array([*map(len, listed)], np.int64)
    flat = np.fromiter(itertools.chain.from_iterable(listed), np.uint64, int(lengths.sum()))
    ends = np.cumsum(lengths)
    # n-grams of all texts at once; those that straddle two texts are passed over
    grams = ngrams(flat, n) if len(flat) >= n else flat[:0]
    offsets = np.cumsum([0, *np.maximum(lengths - n + 1, 1)])
    out = np.empty(offsets[-1], np.uint64)
    pairs = zip((ends - lengths).tolist(), ends.tolist(), offsets.tolist())
    for start, end, low in pairs:
        if end - start >= n:
            part = out[low : low + end - start - n + 1]
            part[:] = grams[start : end - n + 1]
            part.sort()
        else:
            out[low] = ngrams(flat[start:end], end - start)[0]
    new = np.ones(len(out), bool)
    new[1:] = out[1:] != out[:-1]
    new[offsets[:-1]] = True
    counts = np.add.reduceat(new, offsets[:-1], dtype=np.int64) if len(listed) else lengths
    return out[new], np.cumsum([0, *counts.tolist()], dtype=np.int64)


def digest128(data: bytes) -> bytes:
    """128 bits of BLAKE2b: equal for equal bytes alone, as far as anyone will meet."""
    return hashlib.blake2b(data, digest_size=16).digest()
