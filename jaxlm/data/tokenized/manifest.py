"""The manifest of a shards directory: what was tokenised, with what, and what must be there."""

import os
import pathlib
from typing import Any, NamedTuple

from jaxlm.core import json_file

FORMAT = 1
FILE = "manifest.json"


class Shard(NamedTuple):
    """One ArrayRecord file: its name, its size and crc32 as written, and what it holds."""

    file: str
    size: int
    crc32: int
    documents: int
    tokens: int
    bytes: int  # UTF-8 bytes of the documents' text


class Index(NamedTuple):
    """A split's index file: uint32 [documents, 2], tokens and text bytes of each document."""

    file: str
    size: int
    crc32: int


class Split(NamedTuple):
    """One split: its index, its shards in document order, and their totals."""

    lengths: Index
    shards: list[Shard]
    documents: int
    tokens: int
    bytes: int


class Manifest(NamedTuple):
    """Everything a run needs before it reads a token.

    `tokens` count what the records hold: begin, text, eos. `python` is the interpreter's release
    for a corpus of the standard library, whose text depends on it, else None.
    """

    format: int
    source: str
    field: str
    fingerprint: str
    python: str | None
    holdout: float
    tokenizer: str  # hash
    tokenizer_kind: str
    vocab: int
    begin: int
    eos: int
    dtype: str
    splits: dict[str, Split]
    empty: int = 0  # texts of the source that were left out


def write(manifest: Manifest, folder: str | os.PathLike[str]) -> None:
    """Write manifest.json into the folder."""
    splits = {}
    for name, split in manifest.splits.items():
        shards = [shard._asdict() for shard in split.shards]
        splits[name] = split._asdict() | {"lengths": split.lengths._asdict(), "shards": shards}
    text = json_file.sealed(manifest._asdict() | {"splits": splits})
    pathlib.Path(folder, FILE).write_text(text, "utf-8")


def read(folder: str | os.PathLike[str]) -> Manifest:
    """The manifest of a shards directory.

    Raises: FileNotFoundError without one; json_file.Damaged for one that is not ours or not as it
    was written; ValueError for another format.
    """
    folder = pathlib.Path(folder)
    path = folder / FILE
    if not path.is_file():
        raise FileNotFoundError(
            f"shards {str(folder)!r}: no {FILE}; make shards with `jaxlm data tokenize`"
        )
    try:
        facts = json_file.read_object(path)
        version = facts["format"]
        if version != FORMAT:
            raise ValueError(
                f"{path}: format {version}, this version reads {FORMAT}; tokenise the source again"
            )
        splits = {name: _split(split) for name, split in facts.pop("splits").items()}
        files = []
        for split in splits.values():
            files += [part.file for part in (split.lengths, *split.shards)]
        for file in files:
            if not (folder / file).resolve().is_relative_to(folder.resolve()):
                raise ValueError(f"{path}: {file!r} is outside this directory")
        return Manifest(**facts, splits=splits)
    except (KeyError, TypeError, AttributeError) as error:
        raise json_file.Damaged(f"{path}: not a manifest of shards ({error!r})") from error


def _split(facts: dict[str, Any]) -> Split:
    shards = [Shard(**shard) for shard in facts.pop("shards")]
    return Split(lengths=Index(**facts.pop("lengths")), shards=shards, **facts)


def present(source: str) -> bool:
    """Whether `source` is a directory of shards."""
    return "://" not in source and (pathlib.Path(source).expanduser() / FILE).is_file()
