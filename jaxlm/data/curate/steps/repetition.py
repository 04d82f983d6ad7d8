"""Shares of a text that repeat: paragraphs, lines, sequences of words (Gopher's table A1)."""

import itertools
import re
from collections import Counter
from collections.abc import Iterable, Sequence

import numpy as np

from jaxlm.data.curate.steps import english_words

TOP = (2, 3, 4)
REPEATED = (5, 6, 7, 8, 9, 10)
PARAGRAPHS, LINES = re.compile(r"\n{2,}"), re.compile(r"\n+")


def duplicates(parts: Iterable[str]) -> tuple[int, int]:
    """Parts that an earlier one equals: their number, and their characters."""
    seen, count, characters = set(), 0, 0
    for part in parts:
        if part in seen:
            count += 1
            characters += len(part)
        else:
            seen.add(part)
    return count, characters


def shares(
    text: str, ids: Sequence[int], vocabulary: english_words.Vocabulary
) -> dict[str, float]:
    """Scores of the rules of repetition; 0 of an empty text.

    ids: those of its words (`Vocabulary.ids`).
    """
    size = max(1, len(text))
    scores = {}
    for kind, parts in (
        ("paragraph", PARAGRAPHS.split(text.strip())),
        ("line", LINES.split(text)),
    ):
        count, characters = duplicates(parts)
        scores[f"repeated_{kind}s"] = count / len(parts)
        scores[f"repeated_{kind}_characters"] = characters / size
    words = [vocabulary.words[i] for i in ids]
    for n, characters in zip(TOP, _top(words, ids)):
        scores[f"top_{n}grams"] = characters / size
    for n, characters in zip(REPEATED, _repeated(words, ids, vocabulary)):
        scores[f"repeated_{n}grams"] = characters / size
    return scores


def _top(words: Sequence[str], ids: Sequence[int]) -> Iterable[int]:
    """Characters in all occurrences of the most frequent n-gram, words joined by blanks, for each
    n of TOP; the first such n-gram where several are as frequent."""
    # An n-gram occurs twice only where the one before it, a word shorter, does.
    starts: Iterable[int] = range(len(ids))
    for n in TOP:
        if len(ids) < n:
            yield 0
            continue
        starts = [i for i in starts if i <= len(ids) - n]
        columns = [ids[k:] for k in range(n)]
        if len(starts) == len(ids) - n + 1:
            grams = list(zip(*columns))
        else:
            grams = [tuple(ids[i : i + n]) for i in starts]
        counts = Counter(grams)
        first, times = 0, 1
        if counts:
            gram, times = max(counts.items(), key=lambda item: item[1])
            first = starts[grams.index(gram)] if times > 1 else 0
        yield times * (sum(map(len, words[first : first + n])) + n - 1)
        starts = [i for i, gram in zip(starts, grams) if counts[gram] > 1]


def _repeated(
    words: Sequence[str], ids: Sequence[int], vocabulary: english_words.Vocabulary
) -> Iterable[int]:
    """Characters of n-grams, words written together, that an earlier one equals, read from left to
    right without overlaps, for each n of REPEATED.

    Hashes of all n-grams, sorted, tell first whether any occurs twice; equal n-grams have equal
    hashes, so that none is missed.
    """
    table = vocabulary.table()
    index = np.asarray(ids, np.int64)
    word_hash, power = table[english_words.HASH][index], table[english_words.POWER][index]
    hashes, joined, ends = word_hash, "", []
    for n in range(2, REPEATED[-1] + 1):
        if len(ids) >= n:
            hashes = hashes[:-1] * power[n - 1 :] + word_hash[n - 1 :]  # [words - n + 1]
        if n not in REPEATED:
            continue
        ordered = np.sort(hashes)
        if len(ids) < n or not np.any(ordered[1:] == ordered[:-1]):
            yield 0
            continue
        if not joined:
            joined = "".join(words)
            ends = list(itertools.accumulate(map(len, words), initial=0))
        yield _repeated_characters(joined, ends, n)


def _repeated_characters(joined: str, ends: Sequence[int], n: int) -> int:
    """ends: offsets in joined where words begin, and its length."""
    seen, characters, i = set(), 0, 0
    while i < len(ends) - n:
        gram = joined[ends[i] : ends[i + n]]
        if gram in seen:
            characters += len(gram)
            i += n
        else:
            seen.add(gram)
            i += 1
    return characters
