"""Lines and paragraphs that many documents of a source have: menus, notices, licences.

Such a unit stays in the first document that has it, and in exact copies of that one; all others
lose it. Documents are counted once each text, whether or not another step removes them, so that the
texts that result do not depend on any threshold.
"""

import dataclasses
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar, Literal

import numpy as np

from jaxlm.core import check
from jaxlm.data.curate import corpus_step
from jaxlm.data.curate.document_step import Removal, Score, Scored
from jaxlm.data.curate.duplicates import shingles

_BREAKS = {"line": re.compile(r"\n"), "paragraph": re.compile(r"\n[^\S\n]*\n\s*")}
_SHOWN = 20  # removed units of a document that its scores list

# (hash of the unit, id of the document that keeps it, digest of that document's text in hex)
Owner = tuple[int, str, str]


@dataclasses.dataclass(frozen=True)
class Lines:
    """Removes repeated lines or paragraphs, and documents that consist of little else."""

    unit: Literal["line", "paragraph"] = "line"
    """The unit that is counted: a line, or what empty lines separate."""
    most: int = 3
    """Documents of a source that may have the same unit; of one that more have, the first keeps
    it."""
    least: int = 20
    """Characters of the shortest unit that is counted, space at its ends aside."""
    most_removed: float = 0.8
    """Share of a document's characters that may be removed; one that loses more goes."""

    THRESHOLDS: ClassVar[frozenset[str]] = frozenset({"most_removed"})
    against: ClassVar[tuple[str, ...]] = ()

    @property
    def name(self) -> str:
        """Name of the step in reports and folders."""
        return f"repeated_{self.unit}s"

    def problems(self) -> Iterator[str]:
        """Problems of the fields, in lines that name the field, its value and what fits."""
        yield from check.choices("lines", self)
        yield from check.outside("lines", self, "most", "least", least=1)
        yield from check.outside("lines", self, "most_removed", least=0, most=1)

    def versions(self) -> Mapping[str, str]:
        """Versions of the libraries that decide the scores: none."""
        return {}

    def measure(self, seed: int) -> corpus_step.Measure:
        """Arrays of a shard: the distinct `units` of each text, uint64[all], their `offsets`
        int64[texts + 1], and a digest of each text, `text` uint8[texts, 16]."""
        return self._measured

    def _measured(self, texts: Sequence[str]) -> corpus_step.Arrays:
        sets = [np.unique(np.array([h for h, *_ in self._units(t)], np.uint64)) for t in texts]
        named = b"".join(_digest(text) for text in texts)
        return {
            "units": np.concatenate([np.zeros(0, np.uint64), *sets]),
            "offsets": np.cumsum([0, *map(len, sets)], dtype=np.int64),
            "text": np.frombuffer(named, np.uint8).reshape(-1, 16),
        }

    def _units(self, text: str) -> Iterator[tuple[int, int, int]]:
        """(hash, start, end) of the units that are counted; the break after a unit is of it."""
        start = 0
        ends = [match.end() for match in _BREAKS[self.unit].finditer(text)]
        for end in [*ends, len(text)]:
            content = text[start:end].strip()
            if len(content) >= self.least:
                yield shingles.hash64(content), start, end
            start = end

    def repeated(self, documents: corpus_step.Documents) -> list[list[Owner]]:
        """Owners of the units of each shard that too many documents of its source have."""
        owners: dict[int, dict[int, Owner]] = {}
        for number in np.unique(documents.source).tolist():
            owners[number] = self._repeated(documents, number)
        shards = []
        for arrays, first in zip(documents.arrays, documents.first.tolist()):
            known = owners[int(documents.source[first])]
            listed = np.array(sorted(known), np.uint64)
            inside = np.intersect1d(arrays["units"], listed)
            shards.append([known[unit] for unit in inside.tolist()])
        return shards

    def _repeated(self, documents: corpus_step.Documents, number: int) -> dict[int, Owner]:
        units, holders = [np.zeros(0, np.uint64)], [np.zeros(0, np.int64)]
        seen: set[bytes] = set()
        for shard, arrays in enumerate(documents.arrays):
            low = int(documents.first[shard])
            if documents.source[low] != number:
                continue
            new = np.zeros(len(arrays["text"]), bool)
            for place, digest in enumerate(arrays["text"]):
                new[place] = digest.tobytes() not in seen
                seen.add(digest.tobytes())
            lengths = np.diff(arrays["offsets"])
            units.append(arrays["units"][np.repeat(new, lengths)])
            holders.append(np.repeat((low + np.arange(len(new)))[new], lengths[new]))
        every, holder = np.concatenate(units), np.concatenate(holders)
        distinct, first, counts = np.unique(every, return_index=True, return_counts=True)
        chosen = counts > self.most
        owners = {}
        pairs = zip(distinct[chosen].tolist(), holder[first[chosen]].tolist(), strict=True)
        for unit, owner in pairs:
            arrays, at = corpus_step.row(documents, owner)
            owners[unit] = (unit, documents.ids[owner], arrays["text"][at].tobytes().hex())
        return owners

    def rewrite(self, texts: Sequence[str], owners: Sequence[Owner]) -> list[Scored]:
        """Texts without the units that other documents keep, and the scores: `share` of the
        characters removed, and `units`, the first [start, end, id of the document that keeps
        it]."""
        known = {unit: (witness, digest) for unit, witness, digest in owners}
        return [self._rewritten(text, known) for text in texts]

    def _rewritten(self, text: str, known: Mapping[int, tuple[str, str]]) -> Scored:
        own = _digest(text).hex()
        removed: list[list[Any]] = []
        kept: list[str] = []
        last = 0
        for unit, start, end in self._units(text):
            witness, digest = known.get(unit, ("", own))
            if digest != own:
                removed.append([start, end, witness])
                kept.append(text[last:start])
                last = end
        rest = "".join([*kept, text[last:]])
        share = sum(end - start for start, end, _ in removed) / max(1, len(text))
        if removed and not rest.strip():
            share = 1.0
        scores = {"share": round(share, 6), "units": removed[:_SHOWN]}
        return Scored(scores, rest if removed else None)

    def removal(self, scores: Mapping[str, Score]) -> Removal | None:
        """The reason to remove a document of which too much is repeated."""
        share, units = scores["share"], scores["units"]
        assert isinstance(share, float) and isinstance(units, list)
        if not units or (share <= self.most_removed and share < 1):
            return None
        return Removal("share", share, self.most_removed, units[0][2])


def _digest(text: str) -> bytes:
    return shingles.digest128(text.encode("utf-8", "surrogateescape"))
