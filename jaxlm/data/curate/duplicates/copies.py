"""Exact duplicates: of documents with the same text, the first by priority stays."""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import ClassVar

import numpy as np

from jaxlm.data.curate import corpus_step
from jaxlm.data.curate.document_step import Removal
from jaxlm.data.curate.duplicates import shingles


@dataclasses.dataclass(frozen=True)
class Exact:
    """Removes documents whose text, as the steps before left it, is that of an earlier one."""

    against: tuple[str, ...] = ()
    """Directories, files or corpora that are kept already: what is in them goes."""
    field: str = "text"
    """The field of .jsonl or column of .parquet that holds the text of `against`."""

    THRESHOLDS: ClassVar[frozenset[str]] = frozenset({"against", "field"})

    @property
    def name(self) -> str:
        """Name of the step in reports and folders."""
        return "exact"

    def problems(self) -> Iterator[str]:
        """Problems of the fields: none."""
        yield from ()

    def versions(self) -> Mapping[str, str]:
        """Versions of the libraries that decide the arrays: none."""
        return {}

    def measure(self, seed: int) -> corpus_step.Measure:
        """{"text": uint8[texts, 16]}, a digest of each text."""
        return _digests

    def decide(self, corpus: corpus_step.Corpus) -> corpus_step.Decision:
        """Removes each living document whose text an earlier living one has, or one of `against`;
        the witness is that one."""
        documents, total = corpus.documents, len(corpus.alive)
        first: dict[bytes, int] = {}
        for number, digest in enumerate(corpus_step.rows(corpus.against, "text")):
            first.setdefault(digest.tobytes(), total + number)
        removals: dict[int, Removal] = {}
        links = []
        for number, digest in enumerate(corpus_step.rows(documents, "text")):
            if not corpus.alive[number]:
                continue
            owner = first.setdefault(digest.tobytes(), number)
            if owner != number:
                witness = corpus_step.identity(corpus, owner)
                removals[number] = Removal("copy", 1.0, 1.0, witness)
                links.append((owner, number))
        return corpus_step.Decision(removals, {}, links)


def _digests(texts: Sequence[str]) -> corpus_step.Arrays:
    data = b"".join(shingles.digest128(t.encode("utf-8", "surrogateescape")) for t in texts)
    return {"text": np.frombuffer(data, np.uint8).reshape(-1, 16)}
