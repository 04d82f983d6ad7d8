"""Records: the JSON objects (or Parquet rows) of a source, in order, with where each is from.

    .jsonl .jsonlines .ndjson   one JSON object a line
    .json                       a list of objects
    .parquet                    one object a row

each but Parquet also as .gz or .zst. What a record means is its reader's business (chat, prefer,
prompts).
"""

import difflib
import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from jaxlm.data.sources import files, source
from jaxlm.data.synthetic import bradley_terry


class Record(NamedTuple):
    """value: the object. origin: the file and line (or place in the list) it is from."""

    value: dict[str, Any]
    origin: str


def read(name: str | os.PathLike[str]) -> Iterator[Record]:
    """The records of a file, a directory or a glob, in order; files sorted by path. Or those of a
    generated source (bradley_terry.SOURCES).

    Raises: FileNotFoundError for a missing path, now; while reading, ValueError naming the file and
    place for bad JSON, what is no object, and a source that holds no record.
    """
    name = os.fspath(name)
    if name in bradley_terry.SOURCES:
        return (Record(v, f"{name}:{i}") for i, v in enumerate(bradley_terry.SOURCES[name]()))
    _, paths = files.listing(name)
    return _read_all(paths)


def fingerprint(name: str) -> str:
    """A sha256 over every file's name and content, as `source.fingerprint`."""
    if name in bradley_terry.SOURCES:
        return bradley_terry.fingerprint(name)
    return source.fingerprint(name, "")


def text(record: Record, *names: str) -> str:
    """The string in the first of these fields that the record has.

    Raises: ValueError naming the record's place, its fields and the nearest, or the wrong type.
    """
    for name in names:
        if name in record.value:
            return source.text(record.value[name], name, record.origin)
    raise missing(record, *names)


def missing(record: Record, *names: str) -> ValueError:
    """The error of a record that has none of these fields."""
    near = difflib.get_close_matches(names[0], list(record.value), n=1, cutoff=0.5)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    wanted = " or ".join(repr(n) for n in names)
    return ValueError(f"{record.origin}: no field {wanted}; it has {sorted(record.value)}{hint}")


def key(value: Any) -> str:
    """A text that is equal for equal JSON values: what `source.split` splits records by."""
    return json.dumps(value, sort_keys=True, ensure_ascii=False)


def digest(parts: Sequence[Any]) -> str:
    """A sha256 over JSON values: the identity of data prepared from records and settings."""
    return hashlib.sha256(key(list(parts)).encode("utf-8", "surrogatepass")).hexdigest()


def _read_all(paths: list[str]) -> Iterator[Record]:
    empty = True
    for path in paths:
        for record in _read_file(path):
            empty = False
            yield record
    if empty:
        raise ValueError(f"{source.nothing(paths)} no record")


def _read_file(path: str) -> Iterator[Record]:
    name = files.content_name(path)
    if name.endswith(source.LINES):
        yield from (Record(_object(v, o), o) for v, o in source.json_lines(path))
    elif name.endswith(".json"):
        yield from _read_list(path)
    elif name.endswith(".parquet"):
        yield from (Record(v, o) for v, o in source.parquet_rows(path))
    else:
        raise ValueError(f"{path}: records are read from .jsonl, .json or .parquet (.gz, .zst)")


def _read_list(path: str) -> Iterator[Record]:
    try:
        values = json.loads(b"".join(files.chunks(path)).decode("utf-8-sig"))
    except RecursionError as error:
        raise ValueError(f"{path}: JSON nested too deeply to be read") from error
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(f"{path}: not readable as JSON ({error})") from error
    if not isinstance(values, list):
        raise ValueError(
            f"{path}: a {type(values).__name__} where a list of objects is needed; rename it to "
            ".jsonl if it holds one object a line"
        )
    for number, value in enumerate(values):
        origin = f"{path}[{number}]"
        yield Record(_object(value, origin), origin)


def _object(value: Any, origin: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ValueError(f"{origin}: expected a JSON object, got a {type(value).__name__}")
    return value
