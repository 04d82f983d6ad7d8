"""`jaxlm data report`: documents, bytes and shares by source and step, and samples of removals."""

import collections
import hashlib
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from jaxlm.core import json_file
from jaxlm.data.curate import curated_files
from jaxlm.data.curate.report import explanation

_SAMPLES = 3
_EXCERPT = 70  # characters of a sample in the table


class Summary(NamedTuple):
    """A curated directory: its manifest, samples of removed documents by step, and of kept ones."""

    manifest: json_file.Record
    removed: Mapping[str, Sequence[dict[str, Any]]]
    kept: Sequence[dict[str, Any]]


def summary(folder: str | os.PathLike[str], samples: int = _SAMPLES) -> Summary:
    """The summary of a curated directory. Raises: FileNotFoundError, json_file.Damaged."""
    facts = explanation.manifest(folder)
    seed = facts["recipe"]["seed"]
    by_step: dict[str, list[dict[str, Any]]] = collections.defaultdict(list)
    for record in curated_files.records(folder, "removed"):
        # a few of many are kept in memory at a time
        chosen = by_step[record["step"]]
        chosen.append(record)
        if len(chosen) > 64 * samples:
            by_step[record["step"]] = _drawn(chosen, seed, samples)
    removed = {step: _drawn(records, seed, samples) for step, records in by_step.items()}
    kept: list[dict[str, Any]] = []
    for record in curated_files.records(folder, "documents"):
        kept.append(record)
        if len(kept) > 64 * samples:
            kept = _drawn(kept, seed, samples)
    return Summary(facts, removed, _drawn(kept, seed, samples))


def _drawn(records: Sequence[dict[str, Any]], seed: int, count: int) -> list[dict[str, Any]]:
    """A sample of records by the hash of their ids: the same whatever their order."""

    def place(record: dict[str, Any]) -> str:
        return hashlib.sha256(f"{seed}:{record['id']}".encode()).hexdigest()

    return sorted(records, key=place)[:count]


def lines(given: Summary) -> Iterator[str]:
    """The table for a terminal, then the samples."""
    facts = given.manifest
    yield f"{facts['documents']:,} documents, {facts['bytes']:,} bytes are kept"
    yield ""
    head = ("source", "step", "documents", "bytes", "removed", "share", "bytes removed")
    table = [head, *rows(facts["counts"])]
    widths = [max(len(row[i]) for row in table) for i in range(len(head))]
    for row in table:
        # names to the left, numbers to the right
        cells = [c.ljust(w) if i < 2 else c.rjust(w) for i, (c, w) in enumerate(zip(row, widths))]
        yield "  ".join(cells).rstrip()
    for step, records in given.removed.items():
        yield ""
        yield f"removed by {step}:"
        for record in records:
            text = " ".join(record["text"].split())[:_EXCERPT]
            yield f"  {record['id']} {record['rule']} {reason(record)}: {text}"


def rows(counts: Sequence[Mapping[str, Any]]) -> Iterator[tuple[str, ...]]:
    """Rows of the table: source, step, documents, bytes, removed, share, bytes removed."""
    for count in sorted(counts, key=lambda c: [d["source"] for d in counts].index(c["source"])):
        share = count["removed"] / max(1, count["documents"])
        numbers = (f"{count[name]:,}" for name in ("documents", "bytes", "removed"))
        last = (f"{share:.1%}", f"{count['removed_bytes']:,}")
        yield (count["source"], count["step"], *numbers, *last)


def reason(record: Mapping[str, Any]) -> str:
    """The score of a removed document, its threshold, and what it repeats."""
    values = [record["score"], record["threshold"]]
    score, threshold = (f"{v:.4g}" if isinstance(v, float) else str(v) for v in values)
    witness = f", repeats {record['witness']}" if record.get("witness") else ""
    return f"{score} (threshold {threshold}{witness})"
