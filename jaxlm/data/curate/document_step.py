"""Interface of a curation step: it scores documents, and its thresholds decide by the scores.

A step is a frozen dataclass. Its fields are of two kinds: those named in `THRESHOLDS` decide what
is removed, all others decide the scores. A changed threshold reads the scores that are stored; any
other change computes them anew.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, ClassVar, NamedTuple, Protocol

Score = float | int | str | bool | None | list[Any]


class Scored(NamedTuple):
    """Scores of one document, as JSON holds them, and its text for the steps that follow; None
    where the step leaves the text as it is."""

    scores: Mapping[str, Score]
    text: str | None = None


class Removal(NamedTuple):
    """The reason for which a document goes: the rule's name, its score, the threshold that it
    missed, and of a copy or a contamination the id of the document or item that it repeats."""

    rule: str
    score: Score
    threshold: Score
    witness: str | None = None


# Texts of some documents -> the Scored of each, in order; it knows nothing of other documents.
Scorer = Callable[[Sequence[str]], list[Scored]]


class Step(Protocol):
    """A step that looks at each document by itself."""

    THRESHOLDS: ClassVar[frozenset[str]]

    @property
    def name(self) -> str:
        """Name of the step in reports and folders, unique in a recipe."""
        ...

    def problems(self) -> Iterator[str]:
        """Problems of the fields, in lines that name the field, its value and what fits."""
        ...

    def versions(self) -> Mapping[str, str]:
        """Versions of the libraries, and hashes of the files, that decide the scores."""
        ...

    def scorer(self) -> Scorer:
        """The Scorer, built once in each process. Raises: ImportError naming the extra."""
        ...

    def removal(self, scores: Mapping[str, Score]) -> Removal | None:
        """The reason to remove a document with these scores; None keeps it."""
        ...
