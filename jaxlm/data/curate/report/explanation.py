"""`jaxlm data why`: the step, rule, score and threshold that decided about a document, and the text
that it shares with the document or item that it repeats."""

import os
import pathlib
from collections.abc import Iterator
from typing import Any, NamedTuple

from jaxlm.core import json_file
from jaxlm.data.curate import curated_files, reading, recipe
from jaxlm.data.curate.duplicates import shingles
from jaxlm.data.records import task_items
from jaxlm.data.sources import source

_SHINGLE = 3  # words of the shortest run that counts as shared
_SHOWN = 600  # characters of a text that is shown


class Verdict(NamedTuple):
    """One occurrence of a document: its record, the scores of all steps, and of a copy or a
    contamination the text that it repeats, where that is, and the longest run of words of both."""

    record: dict[str, Any]
    scores: dict[str, Any]
    witness: str | None = None
    place: str | None = None
    shared: str | None = None


def manifest(folder: str | os.PathLike[str]) -> json_file.Record:
    """The manifest of a curated directory. Raises: FileNotFoundError, json_file.Damaged."""
    path = pathlib.Path(folder).expanduser() / source.CURATED
    if not path.is_file():
        raise FileNotFoundError(
            f"{folder} is no curated directory: it has no {source.CURATED}; make one with `jaxlm "
            "data curate RECIPE --out DIR`"
        )
    return json_file.read_object(path)


def verdicts(folder: str | os.PathLike[str], document: str) -> list[Verdict]:
    """Every occurrence of a document, by its id or the beginning of it, kept ones first.

    Raises: ValueError where no document has that id, and for a beginning that several have.
    """
    facts = manifest(folder)
    records = [r for kind in ("documents", "removed") for r in _having(folder, kind, document)]
    ids = sorted({record["id"] for record in records})
    if len(ids) != 1:
        reason = f"{len(ids)} documents begin so: {ids[:5]}" if ids else "no document has it"
        raise ValueError(f"id {document!r} in {folder}: {reason}; ids are in its documents/ files")
    scored = {(r["source"], r["step"]): r["scores"] for r in _having(folder, "scores", ids[0])}
    return [_explained(folder, facts, r, scored[r["source"], r.get("step")]) for r in records]


def _having(folder: str | os.PathLike[str], kind: str, start: str) -> list[dict[str, Any]]:
    return [r for r in curated_files.records(folder, kind) if start and r["id"].startswith(start)]


def _explained(
    folder: str | os.PathLike[str],
    facts: json_file.Record,
    record: dict[str, Any],
    scores: dict[str, Any],
) -> Verdict:
    witness = record.get("witness")
    if witness is None:
        return Verdict(record, scores)
    for place, text in _texts(folder, facts, record["step"], witness):
        return Verdict(record, scores, text, place, shared_run(record["text"], text))
    return Verdict(record, scores)


def _texts(
    folder: str | os.PathLike[str], facts: json_file.Record, step: str, witness: str
) -> Iterator[tuple[str, str]]:
    """(place, text) of a witness: kept here, removed here by a later step, kept elsewhere, or an
    item of a task."""
    for kind in ("documents", "removed"):
        for record in _having(folder, kind, witness):
            later = f", which {record['step']} removed later" if kind == "removed" else ""
            yield f"{record['source']}: {record['origin']}{later}", record["text"]
    for cfg in facts["recipe"]["steps"]:
        for path in cfg.get("against", ()):
            given = recipe.Source(path, path, cfg["field"])
            for document in source.documents(given.path, given.field):
                if reading.document_id(document) == witness:
                    yield f"{path}: {document.origin}", document.text
        for path in cfg.get("tasks", ()):
            for item in task_items.items(path):
                if item.id == witness:
                    yield f"{path}: {item.task}", item.text


def shared_run(text: str, other: str) -> str | None:
    """The longest part of a text whose words are a run of the other's; None without one of three
    words."""
    places: dict[str, list[int]] = {}
    for place, word in enumerate(shingles.words(other)):
        places.setdefault(word, []).append(place)
    spans = shingles.spans(text)
    best, end = 0, 0
    before: dict[int, int] = {}  # place in the other text -> length of the run that ends there
    for number, (start, stop) in enumerate(spans):
        word = text[start:stop].lower()
        runs = {place: before.get(place - 1, 0) + 1 for place in places.get(word, ())}
        if runs and (longest := max(runs.values())) > best:
            best, end = longest, number
        before = runs
    if best < min(_SHINGLE, len(spans)) or not best:
        return None
    return text[spans[end - best + 1][0] : spans[end][1]]


def lines(verdict: Verdict) -> Iterator[str]:
    """An explanation for a person to read."""
    record = verdict.record
    yield f"{record['id']} from {record['source']} ({record['origin']})"
    if "step" not in record:
        yield f"  kept, in cluster {record['cluster']}"
    else:
        score, threshold = _value(record["score"]), _value(record["threshold"])
        yield f"  removed by {record['step']}: {record['rule']} {score}, threshold {threshold}"
    if record.get("witness"):
        yield f"  it repeats {record['witness']} ({verdict.place or 'not found any more'})"
    if verdict.shared:
        yield f"  shared text: {cut(verdict.shared)!r}"
    for step, scores in verdict.scores.items():
        yield f"  scores of {step}: {', '.join(f'{k} {_value(v)}' for k, v in scores.items())}"


def cut(text: str, most: int = _SHOWN) -> str:
    """A text, or its beginning and the count of characters left out."""
    return text if len(text) <= most else f"{text[:most]}... ({len(text) - most:,} more)"


def _value(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else cut(str(value), 120)
