"""C4's rules (Raffel et al. 2020, section 2.2), which keep lines, and documents with sentences.

Decisions and texts are those of datatrove 0.10.1's C4QualityFilter for English. C4's list of bad
words is not among them: `Profanity` has another measure.
"""

import dataclasses
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import ClassVar

from jaxlm.core import check
from jaxlm.data.curate.document_step import Removal, Score, Scored, Scorer
from jaxlm.data.curate.steps import english_words

CITATION = re.compile(r"\[\d*]|\[edit]|\[citation needed]")
LINE_ENDS = (".", "?", "!", '"', "'")
POLICIES = (
    "terms of use",
    "privacy policy",
    "cookie policy",
    "uses cookies",
    "use of cookies",
    "use cookies",
)


@dataclasses.dataclass(frozen=True)
class C4:
    """Keeps lines that end like a sentence and are no boilerplate; removes documents with too few
    sentences left, `lorem ipsum`, or a curly bracket."""

    citations: bool = False
    """Whether Wikipedia's marks of citations ([3], [edit]) stay in the lines."""
    least_line_words: int = 3
    """Words of a line, between white space; shorter lines go."""
    most_word_length: int = 1000
    """Characters; a line with a longer word goes."""
    terminal: bool = True
    """Whether lines go that do not end in a mark of `LINE_ENDS`, or end in three dots."""
    javascript: bool = True
    """Whether lines with this word go."""
    policies: bool = True
    """Whether lines with one of `POLICIES` go."""
    least_sentences: int | None = 5
    lorem_ipsum: bool = True
    """Whether documents with these words go."""
    curly_bracket: bool = True
    """Whether documents with a `{` go."""

    THRESHOLDS: ClassVar[frozenset[str]] = frozenset(
        {"least_sentences", "lorem_ipsum", "curly_bracket"}
    )

    @property
    def name(self) -> str:
        """Name of the step."""
        return "c4"

    def problems(self) -> Iterator[str]:
        """Problems of the fields."""
        yield from check.outside("", self, "least_line_words", "least_sentences", least=0)
        yield from check.outside("", self, "most_word_length", least=1)

    def versions(self) -> Mapping[str, str]:
        """Versions of what counts sentences."""
        return english_words.versions()

    def scorer(self) -> Scorer:
        """The Scorer, whose texts are the lines that stay. Raises: ImportError naming the extra."""
        vocabulary = english_words.vocabulary()

        def score(texts: Sequence[str]) -> list[Scored]:
            return [self._scored(text, vocabulary) for text in texts]

        return score

    def removal(self, scores: Mapping[str, Score]) -> Removal | None:
        """The line of a `lorem ipsum` or a curly bracket, whichever is first, or too few
        sentences."""
        lines = []
        for rule in ("lorem_ipsum", "curly_bracket"):
            line = scores[rule]
            if getattr(self, rule) and isinstance(line, int):
                lines.append((line, rule))
        if lines:
            line, rule = min(lines, key=lambda pair: pair[0])
            return Removal(rule, line, None)
        sentences = scores["sentences"]
        assert isinstance(sentences, int)
        if self.least_sentences is not None and sentences < self.least_sentences:
            return Removal("least_sentences", sentences, self.least_sentences)
        return None

    def _scored(self, text: str, vocabulary: english_words.Vocabulary) -> Scored:
        vocabulary.refresh()
        kept, sentences = [], 0
        lorem_ipsum = curly_bracket = None
        lines = text.splitlines()
        for number, line in enumerate(lines):
            line = line.strip()
            words = line.split()
            if len(line) > self.most_word_length and self._has_long_word(words):
                continue
            if not self.citations and "[" in line:
                line = CITATION.sub("", line)
            if self.terminal and (not line.endswith(LINE_ENDS) or line.endswith("...")):
                continue
            if len(words) < self.least_line_words:
                continue
            lower = line.lower()
            if lorem_ipsum is None and "lorem ipsum" in lower:
                lorem_ipsum = number
            if self.javascript and "javascript" in lower:
                continue
            if curly_bracket is None and "{" in line:
                curly_bracket = number
            if self.policies and any(policy in lower for policy in POLICIES):
                continue
            sentences += vocabulary.sentences(line)
            kept.append(line)
        clean = "\n".join(kept).strip()
        scores: dict[str, Score] = {
            "sentences": sentences,
            "lines": len(lines),
            "lines_kept": len(kept),
            "lorem_ipsum": lorem_ipsum,
            "curly_bracket": curly_bracket,
        }
        return Scored(scores, None if clean == text else clean)

    def _has_long_word(self, words: Sequence[str]) -> bool:
        return any(len(word) > self.most_word_length for word in words)
