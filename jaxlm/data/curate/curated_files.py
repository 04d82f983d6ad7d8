"""Files of a curated directory.

OUT/curation.json            recipe, fingerprints, versions, counts; every file's size and hash
OUT/documents/00000.jsonl.gz id, text, source, origin, cluster: what data.source reads
OUT/removed/00000.jsonl.gz   the same and step, rule, score, threshold, witness
OUT/scores/00000.jsonl.gz    id, source, step that removed it, scores by step: every document
"""

import gzip
import hashlib
import json
import os
import pathlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from jaxlm.core import io
from jaxlm.data.curate.workspace import Workspace

FOLDERS = ("documents", "removed", "scores")


class Rows(NamedTuple):
    """Some documents of a shard: keys of its texts and documents, the source's name, and by
    document its place in the shard and further fields. scores: (step, key) of the shard's."""

    texts: str
    documents: str
    source: str
    places: Sequence[int]
    fields: Sequence[Mapping[str, Any]]
    scores: Sequence[tuple[str, str]] = ()


class File(NamedTuple):
    """A file that was written: name below the directory, bytes, SHA-256, and documents."""

    name: str
    size: int
    sha256: str
    documents: int


def write(work: Workspace, root: str, name: str, rows: Sequence[Rows]) -> File:
    """Write one file of documents. Raises: io.WriteError naming it."""
    path = pathlib.Path(root, name)
    lines = [line for part in rows for line in _lines(work, part)]
    content = "".join(lines).encode("utf-8", "surrogateescape")
    if name.endswith(".gz"):
        content = gzip.compress(content, 6, mtime=0)
    io.write_bytes(path, content)
    return File(name, len(content), hashlib.sha256(content).hexdigest(), len(lines))


def _lines(work: Workspace, rows: Rows) -> Iterator[str]:
    listed = work.json("documents", rows.documents)
    texts = None if rows.scores else work.texts(rows.texts)
    scores = [(step, work.scores(key)) for step, key in rows.scores if key]
    encode = json.JSONEncoder(ensure_ascii=False).encode
    for place, fields in zip(rows.places, rows.fields, strict=True):
        record: dict[str, Any] = {"id": listed[place][0]}
        if texts is not None:
            record |= {"text": texts[place], "source": rows.source, "origin": listed[place][1]}
        else:
            record |= {"source": rows.source}
        own = {step: by_place[place] for step, by_place in scores}
        merged = dict(fields)
        if rows.scores:
            merged["scores"] = own | merged.get("scores", {})
        yield f"{encode(record | merged)}\n"


def cut(rows: Iterable[tuple[Rows, Sequence[int]]], most: int) -> Iterator[list[Rows]]:
    """Rows of shards with the size of each document, as the rows of files of about `most` bytes."""
    file: list[Rows] = []
    size = 0
    for part, sizes in rows:
        start = 0
        for end, length in enumerate(sizes, start=1):
            size += length
            if size >= most:
                yield [*file, _part(part, start, end)]
                file, start, size = [], end, 0
        if start < len(part.places):
            file.append(_part(part, start, len(part.places)))
    if file:
        yield file


def _part(rows: Rows, start: int, end: int) -> Rows:
    return rows._replace(places=rows.places[start:end], fields=rows.fields[start:end])


def records(folder: str | os.PathLike[str], kind: str) -> Iterator[dict[str, Any]]:
    """The records of the files of one kind, in order."""
    for path in sorted((pathlib.Path(folder).expanduser() / kind).iterdir()):
        content = path.read_bytes()
        data = gzip.decompress(content) if path.suffix == ".gz" else content
        yield from (json.loads(line) for line in data.split(b"\n") if line)
