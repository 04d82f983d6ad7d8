"""Decontamination: how much of an evaluation item a document covers.

The measure is the share of the item's rare word n-grams, those found in at most `shared` items,
that the document has. N-grams of many items (the frame of a question, a choice of answers) say
nothing; the length of the document says nothing either, so that an item is found in a page of other
text. A part of an item, its question or both together, counts once it has `least` rare n-grams. An
item with fewer (it is short, or a template) is found where a document has its words and no others.
"""

import collections
import dataclasses
import hashlib
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import ClassVar

import numpy as np

from jaxlm.core import check
from jaxlm.data.curate.document_step import Removal, Score, Scored, Scorer
from jaxlm.data.curate.duplicates import shingles
from jaxlm.data.records import task_items


@dataclasses.dataclass(frozen=True)
class Decontaminate:
    """Removes documents that hold items of evaluation tasks."""

    tasks: tuple[str, ...]
    """Files of tasks, as `data/records/task_items.py` reads them."""
    threshold: float = 0.5
    """Share of an item's rare n-grams from which on a document holds it."""
    words: int = 5
    """Words of an n-gram."""
    shared: int = 5
    """Items that may have an n-gram; one that more have is ignored."""
    least: int = 2
    """Rare n-grams that a part of an item needs to be looked for inside other text."""

    THRESHOLDS: ClassVar[frozenset[str]] = frozenset({"threshold"})

    @property
    def name(self) -> str:
        """Name of the step in reports and folders."""
        return "decontaminate"

    def problems(self) -> Iterator[str]:
        """Problems of the fields, in lines that name the field, its value and what fits."""
        yield from check.problem("decontaminate.tasks", self.tasks, bool(self.tasks), "some files")
        yield from check.outside("decontaminate", self, "threshold", above=0, most=1)
        yield from check.outside("decontaminate", self, "words", "shared", "least", least=1)
        for path in self.tasks:
            missing = not pathlib.Path(path).expanduser().is_file()
            yield from check.problem("decontaminate.tasks", path, not missing, "a file")

    def versions(self) -> Mapping[str, str]:
        """Hashes of the task files."""
        return {path: _hash(path) for path in self.tasks}

    def scorer(self) -> Scorer:
        """Scores: `share` of the item that a document covers most, and that `item`'s id, None where
        it covers none."""
        return Index(self, [item for path in self.tasks for item in task_items.items(path)]).score

    def removal(self, scores: Mapping[str, Score]) -> Removal | None:
        """The reason to remove a document that covers an item."""
        share, item = scores["share"], scores["item"]
        assert isinstance(share, float)
        if share < self.threshold:
            return None
        return Removal("share", share, self.threshold, str(item))


class Index:
    """Rare n-grams of items, and the items that have them."""

    def __init__(self, given: Decontaminate, items: Sequence[task_items.Item]):
        self._words = given.words
        self._known = shingles.WordHashes()
        self._items = [item.id for item in items]
        self._whole: dict[bytes, int] = {}  # digest of all words -> item
        sets = [self._parts(number, item) for number, item in enumerate(items)]
        counts = collections.Counter(gram for parts in sets for gram in parts[-1].tolist())
        common = {gram for gram, count in counts.items() if count > given.shared}
        grams, entries, owners, totals = [], [], [], []
        for number, parts in enumerate(sets):
            for part in parts:
                own = np.array([g for g in part.tolist() if g not in common], np.uint64)
                if len(own) >= given.least:
                    grams.append(own)
                    entries.append(np.full(len(own), len(owners)))
                    owners.append(number)
                    totals.append(len(own))
        self._owners, self._totals = owners, totals
        every = np.concatenate([np.zeros(0, np.uint64), *grams])
        order = np.argsort(every, kind="stable")
        self._entries = np.concatenate([np.zeros(0, np.int64), *entries])[order]
        self._grams, self._starts = np.unique(every[order], return_index=True)
        self._starts = np.append(self._starts, len(every))

    def _parts(self, number: int, item: task_items.Item) -> list[np.ndarray]:
        """Sets of n-grams of the question, and of question and answer."""
        listed = [shingles.word_hashes(t, self._known) for t in (item.question, item.text)]
        for hashes in listed:
            self._whole.setdefault(_all(hashes), number)
        flat, offsets = shingles.sets(listed, self._words)
        return [flat[: offsets[1]], flat[offsets[1] :]]

    def score(self, texts: Sequence[str]) -> list[Scored]:
        """The Scored of some documents: of the items that one covers, that which it covers most."""
        scored = []
        for shares in self.shares(texts):
            item = max(shares, key=lambda name: shares[name], default=None)
            share = 0.0 if item is None else round(shares[item], 6)
            scored.append(Scored({"share": share, "item": item}))
        return scored

    def shares(self, texts: Sequence[str]) -> Iterator[dict[str, float]]:
        """{item: share of it} of each text, for the items of which it has anything."""
        listed = [shingles.word_hashes(text, self._known) for text in texts]
        flat, offsets = shingles.sets(listed, self._words)
        places = np.searchsorted(self._grams, flat)
        places[places == len(self._grams)] = 0
        rare = self._grams[places] == flat if len(self._grams) else np.zeros(len(flat), bool)
        bounds = zip(offsets[:-1].tolist(), offsets[1:].tolist(), strict=True)
        for hashes, (low, high) in zip(listed, bounds, strict=True):
            yield self._covered(_all(hashes), places[low:high][rare[low:high]].tolist())

    def _covered(self, whole: bytes, places: list[int]) -> dict[str, float]:
        """The shares of a text with some of the rare n-grams; whole: of all its words."""
        if whole in self._whole:
            return {self._items[self._whole[whole]]: 1.0}
        if not places:
            return {}
        pieces = [self._entries[self._starts[p] : self._starts[p + 1]] for p in places]
        entries, counts = np.unique(np.concatenate(pieces), return_counts=True)
        shares: dict[str, float] = {}
        for entry, count in zip(entries.tolist(), counts.tolist()):
            item = self._items[self._owners[entry]]
            shares[item] = max(shares.get(item, 0.0), count / self._totals[entry])
        return shares


def _all(hashes: Sequence[int]) -> bytes:
    """A digest of all words in order."""
    return shingles.digest128(np.array(hashes, np.uint64).tobytes())


def _hash(path: str) -> str:
    return hashlib.sha256(pathlib.Path(path).expanduser().read_bytes()).hexdigest()
