"""Documents of a source, their split, and the source's fingerprint.

A source is a corpus name (corpora.py), a source of known entropy (`known:tree?seed=1`, known/), or
a file, a directory or a glob of

    .jsonl .jsonlines .ndjson   one JSON object a line, its text in a named field
    .parquet                    one document a row, its text in a named column
    anything else               UTF-8 text, one document a file

each but Parquet also as .gz or .zst. To read a file that bears a corpus' name, write `./pydocs`.
A directory that `jaxlm data curate` made has its documents in a folder of their own.
"""

import collections
import difflib
import hashlib
import json
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Literal

from jaxlm.data import synthetic
from jaxlm.data.sources import corpora, files

Document = corpora.Document

Split = Literal["train", "val"]

LINES = (".jsonl", ".jsonlines", ".ndjson")
# A curated directory: its manifest, and the folder of its documents.
CURATED, DOCUMENTS = "curation.json", "documents"
_BOM = b"\xef\xbb\xbf"
_SURROGATE = re.compile("[\ud800-\udfff]")


def documents(
    source: str | os.PathLike[str],
    field: str = "text",
    left: collections.Counter[str] | None = None,
) -> Iterator[Document]:
    """The documents of a source, in order: corpus order, or file by file sorted by path.

    Empty texts are left out, and counted in left["empty"] as they are read. Nothing else is
    changed: no newline translation, no stripping, no normalisation; only a byte-order mark is
    removed.

    Raises: FileNotFoundError for a missing path or an empty directory or glob, now and not at the
    first document. While reading, ValueError naming the file and line or byte: a missing field
    (with the keys found and the nearest), bad JSON, bytes that are not UTF-8, corrupt compression.
    """
    source = os.fspath(source)
    if source in corpora.CORPORA:
        return corpora.CORPORA[source].documents()
    if synthetic.named(source):
        texts_ = synthetic.texts(source)
        return (Document(text, f"{source}:{n}") for n, text in enumerate(texts_))
    _, paths = listing(source)
    if paths == [source] and files.content_name(source).endswith(".json"):
        raise ValueError(
            f"source {source!r}: .json is not a line format; rename it to .jsonl if it holds one "
            "object a line, or to .txt if the JSON itself is the text"
        )
    return _read_all(paths, field, collections.Counter() if left is None else left)


def listing(source: str) -> tuple[str, list[str]]:
    """The root and the files of documents of a source that is no corpus, sorted by path.

    Raises: as `files.listing`.
    """
    with files.remote(source):
        curated = files.exists(f"{source}/{CURATED}")
    return files.listing(f"{source}/{DOCUMENTS}" if curated else source)


def texts(
    source: str | os.PathLike[str], field: str, split_name: Split, holdout: float
) -> Iterator[str]:
    """The texts of one split, in order: what a tokenizer may be trained on is `train`."""
    every = documents(source, field)
    return (d.text for d in every if document_split(d, holdout) == split_name)


def _read_all(
    paths: Sequence[str], field: str, left: collections.Counter[str]
) -> Iterator[Document]:
    empty = True
    for path in paths:
        for document in file_documents(path, field):
            if document.text:
                empty = False
                yield document
            else:
                left["empty"] += 1
    if empty:
        raise ValueError(f"{nothing(paths)} no text")


def file_documents(path: str, field: str) -> Iterator[Document]:
    """The documents of one file in order, those with an empty text too. Raises: as `documents`."""
    name = files.content_name(path)
    if name.endswith(LINES):
        return _read_json_lines(path, field)
    return _read_parquet(path, field) if name.endswith(".parquet") else _read_text(path)


def nothing(paths: Sequence[str]) -> str:
    """The beginning of an error about files that hold nothing."""
    more = f" and {len(paths) - 1} other files hold" if len(paths) > 1 else " is empty: it holds"
    return f"data.source: {paths[0]}{more}"


def split(text: str, holdout: float) -> Split:
    """`val` for a fraction `holdout` of all texts, by the text's own hash.

    The same text is in the same split in every corpus, order and run; copies never straddle it.
    """
    digest = hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()
    return "val" if int.from_bytes(digest[:8], "big") < holdout * 2**64 else "train"


def document_split(document: Document, holdout: float) -> Split:
    """The split of a document: by its text, or by its cluster where it has one, so that no near
    copies straddle the splits."""
    return split(document.text if document.cluster is None else document.cluster, holdout)


def fingerprint(source: str | os.PathLike[str], field: str = "text") -> str:
    """A sha256 that changes whenever the documents could: over every file's name and content.

    Names are relative to the source, so that moving a directory changes nothing. Times and sizes
    are not trusted: the whole content is read, at about a gigabyte a second. For a source where
    that is too long, tokenise once and name the shards as the source: shards are not read again.
    For a corpus of the standard library it covers the library's sources.

    Raises: FileNotFoundError as `documents`.
    """
    source = os.fspath(source)
    if source in corpora.CORPORA:
        return corpora.CORPORA[source].fingerprint()
    if synthetic.named(source):
        return synthetic.fingerprint(source)
    root, paths = listing(source)
    total = hashlib.sha256(f"source/1\0{field}\0".encode())
    for path in paths:
        content = hashlib.sha256()
        with files.open_binary(path) as file:
            while data := file.read(1 << 20):
                content.update(data)
        total.update(f"{path[len(root) :].lstrip('/')}\0{content.hexdigest()}\0".encode())
    return total.hexdigest()


def _read_text(path: str) -> Iterator[Document]:
    data = b"".join(files.chunks(path)).removeprefix(_BOM)
    yield Document(_decode(data, path), path)


def _decode(data: bytes, where: str, offset: int = 0) -> str:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{where}: not UTF-8 text: byte 0x{data[error.start]:02x} at offset "
            f"{offset + error.start} ({error.reason}); convert the file to UTF-8 or leave it out "
            "of the source"
        ) from error


def _lines(pieces: Iterable[bytes]) -> Iterator[bytes]:
    line: list[bytes] = []  # parts of a line: joined once, since a line may have many
    for piece in pieces:
        first, *more = piece.split(b"\n")
        line.append(first)
        if more:
            yield b"".join(line)
            yield from more[:-1]
            line = more[-1:]
    if rest := b"".join(line):
        yield rest


def _read_json_lines(path: str, field: str) -> Iterator[Document]:
    folder = path.rpartition("/")[0]
    curated = folder.endswith(DOCUMENTS) and files.exists(
        f"{folder.removesuffix(DOCUMENTS)}{CURATED}"
    )
    for record, origin in json_lines(path):
        content = _field(record, field, origin)
        own = (record.get("id"), record.get("cluster")) if curated else ()
        yield Document(content, origin, *own)


def json_lines(path: str) -> Iterator[tuple[Any, str]]:
    """(JSON value, "path:line") of every line that is not empty. Raises: ValueError naming the line
    for bad JSON and for bytes that are not UTF-8."""
    offset = 0
    for number, line in enumerate(_lines(files.chunks(path)), start=1):
        origin = f"{path}:{number}"
        start, offset = offset, offset + len(line) + 1
        line = line.removeprefix(_BOM) if number == 1 else line
        content = _decode(line, origin, start)
        if not content.strip():
            continue
        try:
            value = json.loads(content)
        except RecursionError as error:
            raise ValueError(f"{origin}: JSON nested too deeply to be read") from error
        except json.JSONDecodeError as error:
            raise ValueError(
                f"{origin}: bad JSON at column {error.colno}: {error.msg}; expected one object a "
                f"line, got {content[:60]!r}"
            ) from error
        yield value, origin


def _field(record: Any, field: str, origin: str) -> str:
    if not isinstance(record, dict):
        raise ValueError(
            f"{origin}: expected a JSON object with a field {field!r}, got a "
            f"{type(record).__name__}"
        )
    if field not in record:
        raise ValueError(f"{origin}: no field {field!r}; {_nearest(field, list(record))}")
    return text(record[field], field, origin)


def text(value: Any, field: str, origin: str) -> str:
    """The value of a field, if it is a string that UTF-8 can hold. Raises: ValueError naming the
    place, the field and the reason."""
    if not isinstance(value, str):
        raise ValueError(
            f"{origin}: field {field!r} holds a {type(value).__name__}, expected a string"
        )
    if surrogate := _SURROGATE.search(value):
        # JSON can spell half a character ("\ud83d"); no UTF-8 text and no tokenizer can.
        raise ValueError(
            f"{origin}: field {field!r} holds the lone surrogate {surrogate.group()!r} at "
            f"character {surrogate.start()}: not text that UTF-8 can hold"
        )
    return value


def _nearest(field: str, keys: list[str]) -> str:
    near = difflib.get_close_matches(field, keys, n=1, cutoff=0.5)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    return f"it has {sorted(keys)}{hint} (set data.field)"


def _read_parquet(path: str, field: str) -> Iterator[Document]:
    for row, origin in parquet_rows(path, field):
        yield Document(text(row[field], field, origin), origin)


def parquet_rows(path: str, field: str | None = None) -> Iterator[tuple[dict[str, Any], str]]:
    """(row, "path:number") of every row, of all columns or of one.

    Raises: ImportError naming the extra; ValueError for another file, or without that column.
    """
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError as error:
        raise ImportError(
            f"{path}: reading Parquet needs pyarrow: pip install 'jaxlm[parquet]'"
        ) from error
    with files.open_binary(path) as file:
        try:
            table = parquet.ParquetFile(file)
        except (pyarrow.ArrowInvalid, OSError) as error:
            raise ValueError(f"{path}: not a readable Parquet file ({error})") from error
        names = table.schema_arrow.names
        if field is not None and field not in names:
            raise ValueError(f"{path}: no column {field!r}; {_nearest(field, names)}")
        wanted = names if field is None else [field]
        number = 0
        for batch in table.iter_batches(columns=wanted, batch_size=1024):
            for row in batch.to_pylist():
                number += 1
                yield row, f"{path}:{number}"
