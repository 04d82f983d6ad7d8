"""Interface of a step that compares documents with one another.

It measures each shard of documents by itself, as arrays that are stored; a decision then reads the
arrays of all shards.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import ClassVar, NamedTuple, Protocol

import numpy as np

from jaxlm.data.curate import document_step

Arrays = Mapping[str, np.ndarray]
Measure = Callable[[Sequence[str]], Arrays]


class Documents(NamedTuple):
    """N documents in order of priority, in shards.

    ids: content hashes; source: int32[N]; size: int64[N], UTF-8 bytes of the text as read; first:
    int64[S + 1], of each shard its first document; arrays: of each shard what the step measured;
    cluster: of each document the component that it was in already, or its id.
    """

    ids: Sequence[str]
    source: np.ndarray
    size: np.ndarray
    first: np.ndarray
    arrays: Sequence[Arrays]
    cluster: Sequence[str]


class Corpus(NamedTuple):
    """The documents of a recipe, and those that are kept elsewhere (`against`).

    alive: bool[N], those that no step has removed yet; scores: (step, score) -> float[N], NaN where
    a document has none.
    """

    documents: Documents
    alive: np.ndarray
    against: Documents
    scores: Callable[[str, str], np.ndarray]


class Decision(NamedTuple):
    """Reasons of removals by document, scores of those documents that have any, and pairs of
    copies; a number from N on is one of `against`."""

    removals: Mapping[int, document_step.Removal]
    scores: Mapping[int, Mapping[str, document_step.Score]]
    links: Sequence[tuple[int, int]]


class CorpusStep(Protocol):
    """A step that looks at all documents."""

    THRESHOLDS: ClassVar[frozenset[str]]
    against: tuple[str, ...]

    @property
    def name(self) -> str:
        """Name of the step in reports and folders, unique in a recipe."""
        ...

    def problems(self) -> Iterator[str]:
        """Problems of the fields, in lines that name the field, its value and what fits."""
        ...

    def versions(self) -> Mapping[str, str]:
        """Versions of the libraries that decide the arrays."""
        ...

    def measure(self, seed: int) -> Measure:
        """The function that measures a shard. Raises: ImportError naming the extra."""
        ...

    def decide(self, corpus: Corpus) -> Decision:
        """Which documents go, and why."""
        ...


def row(documents: Documents, number: int) -> tuple[Arrays, int]:
    """(arrays of its shard, place in it) of a document."""
    home = int(np.searchsorted(documents.first, number, side="right")) - 1
    return documents.arrays[home], number - int(documents.first[home])


def rows(documents: Documents, name: str) -> Iterator[np.ndarray]:
    """The row of each document in an array with a row for each."""
    for arrays in documents.arrays:
        yield from np.asarray(arrays[name])


def joined(documents: Documents, name: str, like: np.ndarray) -> np.ndarray:
    """An array with a row for each document, of all shards; like: the same of no documents."""
    return np.concatenate([like, *(np.asarray(arrays[name]) for arrays in documents.arrays)])


def identity(corpus: Corpus, number: int) -> str:
    """The id of a document; a number from N on is one of `against`."""
    total = len(corpus.alive)
    inside = number < total
    return corpus.documents.ids[number] if inside else corpus.against.ids[number - total]


def none() -> Documents:
    """No documents."""
    empty = np.zeros(0, np.int64)
    return Documents([], empty, empty, np.zeros(1, np.int64), [], [])
