"""Sources of a recipe as shards of texts in the work folder, with an id for each document."""

import hashlib
import os
import pathlib
from collections.abc import Iterator
from typing import Any, NamedTuple

from jaxlm.data import synthetic
from jaxlm.data.curate import recipe, workspace
from jaxlm.data.sources import corpora, files, source

FORMAT = "read/1"
_SHARD = 4 << 20  # characters of a shard in the work folder
_PART = 64 << 20  # bytes of files that one task reads
_ID = 20  # hex digits


class Shard(NamedTuple):
    """Documents in order: the key of their texts, and of their (id, origin, bytes, cluster)."""

    texts: str
    documents: str


class Part(NamedTuple):
    """Files of a source that one task reads; none for a corpus."""

    source: recipe.Source
    root: str
    paths: tuple[str, ...]


class Read(NamedTuple):
    """The shards of a part, its count of empty texts, and (name, content hash) of its files."""

    shards: list[Shard]
    empty: int
    files: list[tuple[str, str]]


def parts(given: recipe.Source) -> Iterator[Part]:
    """Parts of a source in order. Raises: FileNotFoundError as `source.listing`."""
    if given.path in corpora.CORPORA or synthetic.named(given.path):
        yield Part(given, "", ())
        return
    root, paths = source.listing(given.path)
    chosen: list[str] = []
    size = 0
    for path in paths:
        # the size of a remote file takes a request: each is a part
        length = _PART if "://" in path else os.path.getsize(os.path.expanduser(path))
        if chosen and size + length > _PART:
            yield Part(given, root, tuple(chosen))
            chosen, size = [], 0
        chosen.append(path)
        size += length
    yield Part(given, root, tuple(chosen))


def read(work: workspace.Workspace, part: Part, longest: int) -> Read:
    """The shards of a part, which are read once.

    Raises: ValueError naming the place of a document that is longer than `longest` characters, and
    as `source.documents`; WriteError.
    """
    hashes = [(path[len(part.root) :].lstrip("/"), _content(path)) for path in part.paths]
    if not part.paths:
        hashes = [(part.source.path, source.fingerprint(part.source.path))]
    facts = [text for pair in hashes for text in pair]
    key = recipe.key(FORMAT, str(longest), part.source.field, *part.paths, *facts)
    if work.has("read", key):
        saved = work.json("read", key)
        return Read([Shard(*shard) for shard in saved["shards"]], saved["empty"], hashes)
    shards, empty = [], 0
    texts: list[str] = []
    listed: list[Any] = []
    size = 0
    for document in _documents(part):
        if not document.text:
            empty += 1
            continue
        _refuse_long(document, longest)
        texts.append(document.text)
        listed.append(_listed(document))
        size += len(document.text)
        if size >= _SHARD:
            shards.append(_put(work, texts, listed))
            texts, listed, size = [], [], 0
    if texts:
        shards.append(_put(work, texts, listed))
    work.put_json("read", key, {"shards": shards, "empty": empty})
    return Read(shards, empty, hashes)


def fingerprint(given: recipe.Source, hashes: list[tuple[str, str]]) -> str:
    """`source.fingerprint` of a source, from the hashes of its files."""
    if given.path in corpora.CORPORA or synthetic.named(given.path):
        return hashes[0][1]
    total = hashlib.sha256(f"source/1\0{given.field}\0".encode())
    for name, content in hashes:
        total.update(f"{name}\0{content}\0".encode())
    return total.hexdigest()


def _content(path: str) -> str:
    content = hashlib.sha256()
    with files.open_binary(path) as file:
        while data := file.read(1 << 20):
            content.update(data)
    return content.hexdigest()


def _documents(part: Part) -> Iterator[source.Document]:
    if not part.paths:
        yield from source.documents(part.source.path)
    for path in part.paths:
        yield from source.file_documents(path, part.source.field)


def _refuse_long(document: source.Document, longest: int) -> None:
    if len(document.text) > longest:
        raise ValueError(
            f"{document.origin}: a document of {len(document.text):,} characters; recipe.longest "
            f"is {longest:,}: set it higher, or cut the document"
        )


def document_id(document: source.Document) -> str:
    """The id of a document: of its text as read; of one that was curated, that it was given."""
    data = document.text.encode("utf-8", "surrogateescape")
    return document.id or hashlib.sha256(data).hexdigest()[:_ID]


def _listed(document: source.Document) -> list[Any]:
    """[id, origin, bytes, cluster] of a document."""
    own = document_id(document)
    size = len(document.text.encode("utf-8", "surrogateescape"))
    return [own, document.origin, size, document.cluster or own]


def _put(work: workspace.Workspace, texts: list[str], listed: list[Any]) -> Shard:
    key = work.put_texts(texts)
    about = recipe.key(key, *(str(line) for line in listed))
    if not work.has("documents", about):
        work.put_json("documents", about, listed)
    return Shard(key, about)


def present(path: str | os.PathLike[str]) -> bool:
    """Whether a path is a curated directory."""
    return (pathlib.Path(path).expanduser() / source.CURATED).is_file()
