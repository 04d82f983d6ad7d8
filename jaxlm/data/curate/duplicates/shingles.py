"""Words of a text, and hashes of its word n-grams (shingles).

Words are lower-cased runs of letters and digits; numbers are kept as they are. In scripts that
write no spaces each character is a word. A text with fewer words than a shingle is one shingle, all
of it; one without any word is the hash of its characters.
"""

import hashlib
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
_MULTIPLY, _MIX = np.uint64(0x9E3779B97F4A7C15), np.uint64(0xBF58476D1CE4E5B9)
_LAST = np.uint64(0x94D049BB133111EB)


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


def word_hashes(text: str, known: WordHashes) -> np.ndarray:
    """uint64[words] hashes of a text's words in order; of a text without words, one of it all."""
    hashes = [known[word] for word in words(text)] or [hash64(text.strip())]
    return np.array(hashes, np.uint64)


def ngrams(hashes: np.ndarray, n: int) -> np.ndarray:
    """uint64[max(1, words - n + 1)] hashes of word n-grams in order, from hashes of the words."""
    n = min(n, len(hashes))
    grams = np.zeros(len(hashes) - n + 1, np.uint64)
    for place in range(n):
        grams = (grams ^ hashes[place : place + len(grams)]) * _MULTIPLY
        grams ^= grams >> np.uint64(29)
    if n:
        grams = (grams ^ (grams >> np.uint64(30)) ^ np.uint64(n)) * _MIX
        grams = (grams ^ (grams >> np.uint64(27))) * _LAST
    return grams ^ (grams >> np.uint64(31))


def shingles(texts: Sequence[str], n: int, known: WordHashes) -> tuple[np.ndarray, np.ndarray]:
    """The set of shingles of each text: uint64[all], each text's sorted and distinct, and
    int64[texts + 1], where each text's begin."""
    sets = [np.unique(ngrams(word_hashes(text, known), n)) for text in texts]
    offsets = np.cumsum([0, *map(len, sets)], dtype=np.int64)
    return np.concatenate(sets) if sets else np.zeros(0, np.uint64), offsets


def digest128(data: bytes) -> bytes:
    """128 bits of BLAKE2b: equal for equal bytes alone, as far as anyone will meet."""
    return hashlib.blake2b(data, digest_size=16).digest()
