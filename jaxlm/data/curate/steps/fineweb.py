"""FineWeb's rules (Penedo et al. 2024, section 3.5).

Decisions are those of datatrove 0.10.1's FineWebQualityFilter for English.
"""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import ClassVar

from jaxlm.core import check
from jaxlm.data.curate.document_step import Removal, Score, Scored, Scorer
from jaxlm.data.curate.steps import bounds, english_words, punctuation, repetition

RULES = (
    "least_lines",
    "least_punctuated",
    "most_short_lines",
    "most_repeated_characters",
    "most_newlines",
)


@dataclasses.dataclass(frozen=True)
class FineWeb:
    """Removes lists, tables and menus: few lines that end in punctuation, many that are short or
    repeat, many line breaks to a word. Thresholds as published; None switches a rule off."""

    short: int = 30
    """Characters of a line that is called short."""
    least_lines: float | None = 1
    """Lines that are not blank."""
    least_punctuated: float | None = 0.12
    """Share of lines that end in punctuation."""
    most_short_lines: float | None = 0.67
    most_repeated_characters: float | None = 0.01
    """Share of characters in lines that an earlier one equals."""
    most_newlines: float | None = 0.3
    """Line breaks to a word."""

    THRESHOLDS: ClassVar[frozenset[str]] = frozenset(RULES)

    @property
    def name(self) -> str:
        """Name of the step."""
        return "fineweb"

    def problems(self) -> Iterator[str]:
        """Problems of the fields."""
        yield from check.outside("", self, "short", least=0)
        yield from bounds.problems(self, RULES)

    def versions(self) -> Mapping[str, str]:
        """Versions of what cuts words."""
        return english_words.versions()

    def scorer(self) -> Scorer:
        """The Scorer. Raises: ImportError naming the extra."""
        vocabulary = english_words.vocabulary()

        def score(texts: Sequence[str]) -> list[Scored]:
            return [self._scored(text, vocabulary) for text in texts]

        return score

    def removal(self, scores: Mapping[str, Score]) -> Removal | None:
        """The first rule that is missed."""
        return next(bounds.missed(self, RULES, scores), None)

    def _scored(self, text: str, vocabulary: english_words.Vocabulary) -> Scored:
        vocabulary.refresh()
        lines = [line for line in text.split("\n") if line and not line.isspace()]
        count, newlines = len(lines), text.count("\n")
        scores: dict[str, Score] = dict.fromkeys(rule.partition("_")[2] for rule in RULES)
        if lines:
            words = len(vocabulary.ids(text))
            scores |= {
                "punctuated": sum(line[-1] in punctuation.LINE_ENDS for line in lines) / count,
                "short_lines": sum(len(line) <= self.short for line in lines) / count,
                "repeated_characters": repetition.duplicates(lines)[1] / (len(text) - newlines),
                "newlines": newlines / words,
            }
        return Scored(scores | {"lines": count})
