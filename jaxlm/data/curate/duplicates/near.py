"""Near duplicates: MinHash proposes, a comparison with the document that stays decides.

A document is removed only if it is as similar as the threshold to a document that is kept. Nothing
is removed for being similar to one that is itself removed, so a chain of small changes does not
pull in what has little in common with the document at its end, and documents of one template stay
as long as their own content makes them differ. The pairs, removed documents included, join
documents into the components by which a holdout is drawn.
"""

import dataclasses
import importlib.metadata
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar, Literal

import numpy as np

from jaxlm.core import check
from jaxlm.data.curate import corpus_step
from jaxlm.data.curate.document_step import Removal, Score
from jaxlm.data.curate.duplicates import lsh, shingles

# Standard deviations below the threshold at which the signatures' estimate rules a pair out.
_DOUBT = 4.0


@dataclasses.dataclass(frozen=True)
class Near:
    """Removes documents that are nearly the same as one that stays."""

    threshold: float = 0.8
    """Similarity from which on a document is a copy."""
    measure_by: Literal["jaccard", "containment"] = "jaccard"
    """Similarity of two documents' shingles: shared of all, or shared of those of the document that
    would go. Pairs are proposed by the former in either case."""
    words: int = 5
    """Words of a shingle."""
    bands: int = 16
    """Bands of a signature; agreement in one proposes a pair."""
    rows: int = 8
    """Slots of a band."""
    quality: tuple[str, str] | None = None
    """(step, score) of the copy to keep among those of a source: the highest. None: the longest."""
    against: tuple[str, ...] = ()
    """Directories, files or corpora that are kept already: their near copies go."""
    field: str = "text"
    """The field of .jsonl or column of .parquet that holds the text of `against`."""

    THRESHOLDS: ClassVar[frozenset[str]] = frozenset(
        {"threshold", "measure_by", "quality", "against", "field"}
    )

    @property
    def name(self) -> str:
        """Name of the step in reports and folders."""
        return "near"

    def problems(self) -> Iterator[str]:
        """Problems of the fields, in lines that name the field, its value and what fits."""
        yield from check.outside("near", self, "threshold", above=0, most=1)
        yield from check.outside("near", self, "words", "bands", "rows", least=1)
        yield from check.choices("near", self)

    def versions(self) -> Mapping[str, str]:
        """Version of rensa. Raises: ImportError naming the extra."""
        _library()
        return {"rensa": importlib.metadata.version("rensa")}

    def measure(self, seed: int) -> corpus_step.Measure:
        """Arrays of a shard: `shingles` uint64[all], their `offsets` int64[texts + 1] and `lengths`
        int64[texts]; `signatures` uint32[texts, bands x rows], their `bands` uint64[texts, bands];
        `sets` uint8[texts, 16], a digest of each text's shingles. Raises: ImportError naming the
        extra."""
        rensa, slots = _library(), self.bands * self.rows
        known = shingles.WordHashes()

        def measured(texts: Sequence[str]) -> corpus_step.Arrays:
            flat, offsets = shingles.shingles(texts, self.words, known)
            sets = [flat[a:b] for a, b in zip(offsets[:-1], offsets[1:])]
            # Arrays, not words: the library would hash the letters of a str one by one.
            digests = rensa.CMinHash.digests64_from_token_hash_sets(sets, num_perm=slots, seed=seed)
            signatures = np.array(digests, np.uint64).astype(np.uint32).reshape(-1, slots)
            named = b"".join(shingles.digest128(s.tobytes()) for s in sets)
            return {
                "shingles": flat,
                "offsets": offsets,
                "lengths": np.diff(offsets),
                "signatures": signatures,
                "bands": lsh.bands(signatures, self.bands),
                "sets": np.frombuffer(named, np.uint8).reshape(-1, 16),
            }

        return measured

    def decide(self, corpus: corpus_step.Corpus) -> corpus_step.Decision:
        """Removes near copies; the witness is the most similar document that stays."""
        return _Decision(self, corpus).result()


def _library() -> Any:
    try:
        import rensa
    except ImportError as error:
        raise ImportError("the step Near needs rensa: pip install 'jaxlm[curate]'") from error
    return rensa


class _Decision:
    """One pass over the documents in the order in which they may stay."""

    def __init__(self, given: Near, corpus: corpus_step.Corpus):
        self._near, self._corpus = given, corpus
        self._total = len(corpus.alive)
        self._groups = self._same(self._order())
        firsts = [group[0] for group in self._groups]
        self._firsts = np.array(firsts, np.int64)
        slots = given.bands * given.rows
        self._signatures = self._rows("signatures", np.zeros((0, slots), np.uint32))
        self._sizes = self._rows("lengths", np.zeros(0, np.int64))
        self._kept = np.ones(len(firsts), bool)
        self._label = np.arange(len(firsts))  # of its component
        self._members = {i: [i] for i in range(len(firsts))}
        self.removals: dict[int, Removal] = {}
        self.scores: dict[int, Mapping[str, Score]] = {}
        self.links: list[tuple[int, int]] = []

    def _order(self) -> np.ndarray:
        """Documents that live, the first to stay first: those of `against`, then by the source's
        priority, quality, length and id."""
        corpus, total = self._corpus, self._total
        alive = np.flatnonzero(corpus.alive)
        quality = np.zeros(total)
        if self._near.quality is not None:
            quality = np.nan_to_num(corpus.scores(*self._near.quality), nan=-math.inf)
        sizes, ids = corpus.documents.size, np.array(corpus.documents.ids)
        keys = (ids[alive], -sizes[alive], -quality[alive], corpus.documents.source[alive])
        old = np.arange(total, total + len(corpus.against.ids))
        return np.concatenate([old, alive[np.lexsort(keys)]])

    def _same(self, order: np.ndarray) -> list[list[int]]:
        digests = [*corpus_step.rows(self._corpus.documents, "sets")]
        digests += corpus_step.rows(self._corpus.against, "sets")
        groups: dict[bytes, list[int]] = {}
        for number in order.tolist():
            groups.setdefault(digests[number].tobytes(), []).append(number)
        return [*groups.values()]

    def _rows(self, name: str, like: np.ndarray) -> np.ndarray:
        documents = corpus_step.joined(self._corpus.documents, name, like)
        old = corpus_step.joined(self._corpus.against, name, like)
        return np.concatenate([documents, old])[self._firsts]

    def _set(self, group: int) -> np.ndarray:
        """The shingles of a group's documents."""
        number = self._groups[group][0]
        documents, place = self._corpus.documents, number
        if number >= self._total:
            documents, place = self._corpus.against, number - self._total
        arrays, at = corpus_step.row(documents, place)
        low, high = arrays["offsets"][at : at + 2].tolist()
        return np.asarray(arrays["shingles"][low:high])

    def result(self) -> corpus_step.Decision:
        bands = self._rows("bands", np.zeros((0, self._near.bands), np.uint64))
        index = lsh.Index(bands)
        suspects = index.suspects()
        # only sets that share a band with an earlier one can go
        for group in suspects.tolist():
            self._judge(group, index.earlier(group))
        for group, members in enumerate(self._groups):
            if len(members) > 1:
                self._repeat(group, members)
        return corpus_step.Decision(self.removals, self.scores, self.links)

    def _judge(self, group: int, candidates: np.ndarray) -> None:
        """Compare a group with the earlier ones that were proposed: first with those that stay."""
        first = self._groups[group][0]
        candidates = self._likely(group, candidates)
        staying = candidates[self._kept[candidates]]
        similar = self._similarity(group, staying)
        if len(staying) and first < self._total:
            best = int(np.argmax(similar))
            self.scores[first] = {"similarity": round(float(similar[best]), 6)}
            if similar[best] >= self._near.threshold:
                self._kept[group] = False
                self._remove(first, float(similar[best]), self._groups[staying[best]][0])
        self._join(group, staying[similar >= self._near.threshold])
        # copies that went may link what stays to another that stays
        gone = candidates[~self._kept[candidates]]
        gone = gone[self._label[gone] != self._label[group]]
        self._join(group, gone[self._similarity(group, gone) >= self._near.threshold])

    def _remove(self, number: int, score: float, owner: int) -> None:
        witness = corpus_step.identity(self._corpus, owner)
        rule = self._near.measure_by
        self.removals[number] = Removal(rule, round(score, 6), self._near.threshold, witness)

    def _join(self, group: int, others: np.ndarray) -> None:
        for other in others.tolist():
            self.links.append((self._groups[other][0], self._groups[group][0]))
            small, large = sorted(
                (int(self._label[other]), int(self._label[group])),
                key=lambda label: len(self._members[label]),
            )
            if small != large:
                self._label[self._members[small]] = large
                self._members[large] += self._members.pop(small)

    def _repeat(self, group: int, members: Sequence[int]) -> None:
        """Remove all but the first of documents with one set of shingles, or all as that one."""
        first = self.removals.get(members[0])
        for number in members[1:]:
            self.links.append((members[0], number))
            if number >= self._total:
                continue
            if first is not None:
                self.removals[number] = first
                self.scores[number] = self.scores[members[0]]
            else:
                self.scores[number] = {"similarity": 1.0}
                self._remove(number, 1.0, members[0])

    def _likely(self, group: int, candidates: np.ndarray) -> np.ndarray:
        """Candidates that the signatures do not rule out."""
        slots = self._signatures.shape[1]
        estimates = (self._signatures[candidates] == self._signatures[group]).mean(axis=1)
        least = self._least(group, candidates)
        doubt = _DOUBT * np.sqrt(least * (1 - least) / slots)
        return candidates[estimates >= least - doubt]

    def _least(self, group: int, candidates: np.ndarray) -> np.ndarray:
        """The Jaccard similarity that a pair of the threshold has at least."""
        threshold = self._near.threshold
        if self._near.measure_by == "jaccard":
            return np.full(len(candidates), threshold)
        own, other = self._sizes[group], self._sizes[candidates]
        return threshold * own / (own + other - np.minimum(threshold * own, other))

    def _similarity(self, group: int, others: np.ndarray) -> np.ndarray:
        """float64[others] exact similarities of a group to others."""
        if not len(others):
            return np.zeros(0)
        own = self._set(group)
        sets = [self._set(other) for other in others.tolist()]
        flat = np.concatenate(sets)
        places = np.minimum(np.searchsorted(own, flat), len(own) - 1)
        starts = np.cumsum([0, *map(len, sets[:-1])])
        shared = np.add.reduceat((own[places] == flat).astype(np.int64), starts)
        if self._near.measure_by == "containment":
            return shared / len(own)
        return shared / (len(own) + self._sizes[others] - shared)
