"""Shares of texts that repeat: paragraphs, lines, sequences of words (Gopher's table A1).

Sequences are counted over the words of many texts at once, since most texts are short.
"""

import itertools
import re
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

from jaxlm.data.curate.steps import english_words

TOP = (2, 3, 4)
REPEATED = (5, 6, 7, 8, 9, 10)
PARAGRAPHS, LINES = re.compile(r"\n{2,}"), re.compile(r"\n+")
# Bits of a key for a word's id; the rest of 64 tells the words before it, and the text.
WORD = 27
# Texts taken together, and their characters, a single longer text apart.
TEXTS, CHARACTERS = 2 ** (63 - 2 * WORD), 10**6


class Corpus(NamedTuple):
    """Words of some texts, one after the other."""

    words: list[str]
    columns: np.ndarray
    """uint64[5, N]: rows of `Vocabulary.table` for each word."""
    ids: np.ndarray
    """int64[N]"""
    text: np.ndarray
    """int64[N]: which text each word is of."""
    bounds: np.ndarray
    """int64[texts + 1]: where the words of each text begin, and N."""
    offsets: np.ndarray
    """int64[N + 1]: characters of the words before each, and of all."""


def corpus(ids: Sequence[Sequence[int]], vocabulary: english_words.Vocabulary) -> Corpus:
    """The Corpus of texts, given the ids of the words of each."""
    bounds = np.cumsum([0, *map(len, ids)])
    flat = np.fromiter(itertools.chain.from_iterable(ids), np.int64, bounds[-1])
    columns = vocabulary.table()[:, flat]
    return Corpus(
        words=[vocabulary.words[i] for i in flat],
        columns=columns,
        ids=flat,
        text=np.repeat(np.arange(len(ids)), np.diff(bounds)),
        bounds=bounds,
        offsets=totals(columns[english_words.LENGTH]),
    )


def groups(texts: Sequence[str]) -> Iterable[Sequence[str]]:
    """Texts in groups that fit a Corpus."""
    start = size = 0
    for end, text in enumerate(texts):
        if end > start and (end - start == TEXTS or size + len(text) > CHARACTERS):
            yield texts[start:end]
            start, size = end, 0
        size += len(text)
    if texts:
        yield texts[start:]


def totals(values: np.ndarray) -> np.ndarray:
    """int64[N + 1]: the sum of the values before each, and of all."""
    return np.concatenate([[0], np.cumsum(values.astype(np.int64))])


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


def shares(texts: Sequence[str], corpus: Corpus) -> list[dict[str, float]]:
    """Scores of the rules of repetition for each text; 0 of an empty one."""
    scores = [_parts(text) for text in texts]
    for prefix, sizes, counted in (
        ("top", TOP, _top(corpus)),
        ("repeated", REPEATED, _repeated(corpus)),
    ):
        for n, characters in zip(sizes, counted):
            for text, score, part in zip(texts, scores, characters.tolist()):
                score[f"{prefix}_{n}grams"] = part / max(1, len(text))
    return scores


def _parts(text: str) -> dict[str, float]:
    scores = {}
    for kind, parts in (
        ("paragraph", PARAGRAPHS.split(text.strip())),
        ("line", LINES.split(text)),
    ):
        count, characters = duplicates(parts)
        scores[f"repeated_{kind}s"] = count / len(parts)
        scores[f"repeated_{kind}_characters"] = characters / max(1, len(text))
    return scores


def _top(corpus: Corpus) -> Iterable[np.ndarray]:
    """int64[texts] for each n of TOP: characters in all occurrences of the text's most frequent
    n-gram, its words joined by blanks; of the first such n-gram where several are as frequent.

    An n-gram occurs twice only where its first n - 1 words do, so each n looks at what the one
    before left. A key is the number of these words among those that repeat, and the last word.
    """
    begin, end = corpus.bounds[:-1], corpus.bounds[1:]
    positions = np.flatnonzero(corpus.text[1:] == corpus.text[:-1])
    before = corpus.text[positions] << WORD | corpus.ids[positions]
    owner = None  # the text itself is in the first bits of `before`
    for n in TOP:
        keys = before << WORD | corpus.ids[positions + n - 1]
        runs, counts = _repeating(keys)
        texts = runs >> 2 * WORD if owner is None else owner[runs >> WORD]
        times, first = np.ones_like(begin), begin.copy()
        np.maximum.at(times, texts, counts)
        found = positions[_number(runs[counts == times[texts]], keys) >= 0][::-1]
        first[corpus.text[found]] = found  # the last assignment is the earliest occurrence
        last = np.minimum(first + n, len(corpus.ids))
        characters = corpus.offsets[last] - corpus.offsets[np.minimum(first, last)] + n - 1
        yield np.where(end - begin >= n, times * characters, 0)
        number = _number(runs, keys)
        stay = (number >= 0) & (positions + n < end[corpus.text[positions]])
        positions, before, owner = positions[stay], number[stay], texts


def _repeating(keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Keys that occur more than once, in ascending order, and how often."""
    ordered = np.sort(keys)
    edges = np.flatnonzero(ordered[1:] != ordered[:-1]) + 1
    edges = np.concatenate([[0], edges, [len(ordered)]])
    counts = np.diff(edges)
    several = counts > 1
    return ordered[edges[:-1][several]], counts[several]


def _number(runs: np.ndarray, keys: np.ndarray) -> np.ndarray:
    """Places of keys among runs, which ascend; -1 of a key that is not there."""
    if not len(runs):
        return np.full(len(keys), -1)
    places = np.minimum(np.searchsorted(runs, keys), len(runs) - 1)
    return np.where(runs[places] == keys, places, -1)


def _repeated(corpus: Corpus) -> Iterable[np.ndarray]:
    """int64[texts] for each n of REPEATED: characters of n-grams, words written together, that an
    earlier one equals, read from left to right without overlaps.

    Hashes tell where an n-gram may occur twice; equal n-grams have equal hashes, so none is missed,
    and those places alone are compared as strings.
    """
    word_hash, power = corpus.columns[[english_words.HASH, english_words.POWER]]
    salt = corpus.text.astype(np.uint64) * np.uint64(english_words.FACTOR)
    joined, offsets = "".join(corpus.words), corpus.offsets.tolist()
    hashes = word_hash
    for n in range(2, REPEATED[-1] + 1):
        hashes = hashes[:-1] * power[n - 1 :] + word_hash[n - 1 :]  # [N - n + 1]
        if n not in REPEATED:
            continue
        positions = np.flatnonzero(corpus.text[n - 1 :] == corpus.text[: len(hashes)])
        keys = hashes[positions] ^ salt[positions]
        positions = positions[_number(_repeating(keys)[0], keys) >= 0]
        characters, free, seen = np.zeros(len(corpus.bounds) - 1, np.int64), 0, set()
        for i, text in zip(positions.tolist(), corpus.text[positions].tolist()):
            if i < free:
                continue
            gram = text, joined[offsets[i] : offsets[i + n]]
            if gram in seen:
                characters[text] += len(gram[1])
                free = i + n
            else:
                seen.add(gram)
        yield characters
