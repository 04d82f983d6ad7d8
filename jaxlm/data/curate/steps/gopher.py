"""Gopher's rules of quality and repetition (Rae et al. 2021, section A1.1 and table A1).

Decisions are those of datatrove 0.10.1's GopherQualityFilter and GopherRepetitionFilter for
English, which cut words as spaCy does.
"""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import ClassVar

import numpy as np

from jaxlm.data.curate.document_step import Removal, Score, Scored, Scorer
from jaxlm.data.curate.steps import bounds, english_words, repetition

STOP_WORDS = ("the", "be", "to", "of", "and", "that", "have", "with")
ELLIPSES = ("...", "…")
BULLETS = ("•", "-")
# In the order in which they are asked; each is named as its field.
QUALITY = (
    "least_words",
    "most_words",
    "least_mean_length",
    "most_mean_length",
    "most_hashes",
    "most_ellipses",
    "most_bullet_lines",
    "most_ellipsis_lines",
    "least_alphabetic",
    "least_stop_words",
)
REPETITION = (
    "least_characters",
    "most_repeated_paragraphs",
    "most_repeated_paragraph_characters",
    "most_repeated_lines",
    "most_repeated_line_characters",
    *(f"most_top_{n}grams" for n in repetition.TOP),
    *(f"most_repeated_{n}grams" for n in repetition.REPEATED),
)


@dataclasses.dataclass(frozen=True)
class Gopher:
    """Removes what is too short, too long, no prose, or repeats itself. Thresholds are as
    published, each a rule of its own (`bounds`); None switches one off."""

    least_words: float | None = 50
    """Words, those of punctuation alone not counted."""
    most_words: float | None = 100_000
    least_mean_length: float | None = 3
    """Characters of a word, in the mean over the same words."""
    most_mean_length: float | None = 10
    most_hashes: float | None = 0.1
    """`#` to a word."""
    most_ellipses: float | None = 0.1
    """Ellipses to a word."""
    most_bullet_lines: float | None = 0.9
    """Share of lines that begin with a bullet or a hyphen."""
    most_ellipsis_lines: float | None = 0.3
    """Share of lines that end with an ellipsis."""
    least_alphabetic: float | None = 0.8
    """Share of words with a letter."""
    least_stop_words: float | None = 2
    """Different words of `STOP_WORDS`, in lower case."""
    least_characters: float | None = 1
    most_repeated_paragraphs: float | None = 0.30
    """Share of paragraphs that an earlier one equals."""
    most_repeated_paragraph_characters: float | None = 0.20
    """Characters of these to a character of the text; so also below."""
    most_repeated_lines: float | None = 0.30
    most_repeated_line_characters: float | None = 0.20
    most_top_2grams: float | None = 0.20
    """Characters in occurrences of the most frequent sequence of two words."""
    most_top_3grams: float | None = 0.18
    most_top_4grams: float | None = 0.16
    most_repeated_5grams: float | None = 0.15
    """Characters in sequences of five words that an earlier one equals."""
    most_repeated_6grams: float | None = 0.14
    most_repeated_7grams: float | None = 0.13
    most_repeated_8grams: float | None = 0.12
    most_repeated_9grams: float | None = 0.11
    most_repeated_10grams: float | None = 0.10

    THRESHOLDS: ClassVar[frozenset[str]] = frozenset(QUALITY + REPETITION)

    @property
    def name(self) -> str:
        """Name of the step."""
        return "gopher"

    def problems(self) -> Iterator[str]:
        """Problems of the thresholds."""
        yield from bounds.problems(self, QUALITY + REPETITION)

    def versions(self) -> Mapping[str, str]:
        """Versions of what cuts words."""
        return english_words.versions()

    def scorer(self) -> Scorer:
        """The Scorer. Raises: ImportError naming the extra."""
        vocabulary = english_words.vocabulary()

        def score(texts: Sequence[str]) -> list[Scored]:
            groups = repetition.groups(texts)
            return [scored for group in groups for scored in _scored(group, vocabulary)]

        return score

    def removal(self, scores: Mapping[str, Score]) -> Removal | None:
        """The first rule that is missed."""
        return next(bounds.missed(self, QUALITY + REPETITION, scores), None)


def _scored(texts: Sequence[str], vocabulary: english_words.Vocabulary) -> Iterator[Scored]:
    vocabulary.refresh()
    ids = [vocabulary.ids(text) for text in texts]
    stop_words = {vocabulary.index(word) for word in STOP_WORDS}
    corpus = repetition.corpus(ids, vocabulary)
    repeated = repetition.shares(texts, corpus)
    symbols = corpus.columns[english_words.SYMBOLS]
    length = corpus.columns[english_words.LENGTH] * (1 - symbols)
    alphabetic = corpus.columns[english_words.ALPHABETIC]
    # [texts, 3]: sums over the words of each text
    sums = [np.diff(repetition.totals(c)[corpus.bounds]) for c in (symbols, length, alphabetic)]
    for text, own, counts, shares in zip(texts, ids, np.stack(sums, 1).tolist(), repeated):
        yield Scored(_quality(text, own, *counts, stop_words) | shares)


def _quality(
    text: str, ids: Sequence[int], symbols: int, length: int, alphabetic: int, stop_words: set[int]
) -> dict[str, Score]:
    """Scores of the rules of quality; None where they have no words or lines to divide by.

    symbols, alphabetic: words of punctuation alone, and with a letter. length: characters of the
    words that are not punctuation alone.
    """
    words = len(ids) - symbols
    lines = text.splitlines()
    bullets = sum(line.lstrip().startswith(BULLETS) for line in lines)
    ends = sum(line.rstrip().endswith(ELLIPSES) for line in lines)
    return {
        "characters": len(text),
        "words": words,
        "mean_length": _share(length, words),
        "hashes": _share(text.count("#"), len(ids)),
        "ellipses": _share(sum(map(text.count, ELLIPSES)), len(ids)),
        "bullet_lines": _share(bullets, len(lines)),
        "ellipsis_lines": _share(ends, len(lines)),
        "alphabetic": _share(alphabetic, len(ids)),
        "stop_words": len(stop_words.intersection(ids)),
    }


def _share(part: int, whole: int) -> float | None:
    return part / whole if whole else None
