"""Pre-tokenised shards: ArrayRecord files, an index of lengths, a manifest. Training reads these.

    OUT/manifest.json
    OUT/train/index.npy              uint32 [documents, 2]: tokens, text bytes
    OUT/train/00000.array_record     one document a record: [begin, text..., eos], uint16 or uint32
    OUT/val/...

`begin` is bos, or eos for a tokenizer without bos: the first token of the text is predicted too.
"""

import collections
import importlib
import multiprocessing
import os
import pathlib
import platform
import signal
import zlib
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxlm.core import atomic, check
from jaxlm.core.remote import objects
from jaxlm.data.sources import source
from jaxlm.data.tokenized import manifest
from jaxlm.data.tokenizers import tokenizer as interface

SPLITS: tuple[source.Split, ...] = ("train", "val")
_SHARD_TEXT = 32 << 20  # characters in a shard: it is cut by this alone, whatever the workers
# One document a chunk, so that a document is read without its neighbours; uncompressed, since
# reading is random and small: 6 us a document against 25 us with zstd, at 1.7 times the size.
_OPTIONS = "group_size:1,uncompressed"


# --- Writing ---------------------------------------------------------------------------------


def _library() -> Any:
    # Slow to load, and an extension module that type checkers do not see.
    return importlib.import_module("array_record.python.array_record_module")


class _Task(NamedTuple):
    """One shard to write: the texts go to a worker, the counts come back."""

    path: str
    texts: list[str]
    tokenizer: interface.Tokenizer
    dtype: str


class _Written(NamedTuple):
    shard: manifest.Shard
    lengths: Any  # uint32 [documents, 2]


def tokenize(
    source_name: str | os.PathLike[str],
    field: str,
    tokenizer: interface.Tokenizer,
    out_dir: str | os.PathLike[str],
    holdout: float,
    workers: int = 0,
) -> manifest.Manifest:
    """Tokenise a source into a new directory of shards; its manifest.

    With `workers` > 0 that many processes encode and write, a shard each; the result is the same,
    byte for byte. It appears under its name whole or not at all.

    Raises: FileExistsError if `out_dir` exists; ValueError for a holdout outside [0, 1), for an
    empty split, and whatever is wrong with the source.
    """
    objects.refuse(out_dir)
    target = pathlib.Path(out_dir).expanduser()
    if target.exists():
        raise FileExistsError(f"out_dir {str(target)!r} exists; name a new directory")
    check.field("holdout", holdout, 0 <= holdout < 1, "in [0, 1), such as 0.05")
    check.field("workers", workers, workers >= 0, "at least 0 (this process)")
    source_name = os.fspath(source_name)
    fingerprint = source.fingerprint(source_name, field)
    facts = Facts(source_name, field, fingerprint, tokenizer, holdout)
    return write(facts, target, workers)


class Facts(NamedTuple):
    """Facts that decide the content of shards."""

    source: str
    field: str
    fingerprint: str
    tokenizer: interface.Tokenizer
    holdout: float


def write(facts: Facts, target: str | os.PathLike[str], workers: int) -> manifest.Manifest:
    """`tokenize` of what is known to be right. Raises: OSError where `target` is there already."""
    with atomic.folder(pathlib.Path(target)) as temporary:
        return _write_all(facts, temporary, workers)


def _write_all(facts: Facts, folder: pathlib.Path, workers: int) -> manifest.Manifest:
    tokenizer, holdout = facts.tokenizer, facts.holdout
    dtype = "uint16" if tokenizer.vocab <= 1 << 16 else "uint32"
    left: collections.Counter[str] = collections.Counter()
    texts = source.documents(facts.source, facts.field, left)
    for name in SPLITS:
        (folder / name).mkdir(parents=True)
    tasks = (
        _Task(str(folder / name / f"{number:05}.array_record"), texts, tokenizer, dtype)
        for name, number, texts in _cut(texts, holdout)
    )
    written: dict[str, list[_Written]] = {name: [] for name in SPLITS}
    for done in _run(tasks, workers):
        written[done.shard.file.split("/")[0]].append(done)
    splits = {name: _finish_split(folder, name, done) for name, done in written.items() if done}
    if missing := [name for name in SPLITS if name not in splits and (holdout or name == "train")]:
        count = sum(split.documents for split in splits.values())
        raise ValueError(
            f"source {facts.source!r}: no document falls into the {missing[0]!r} split with "
            f"holdout={holdout}; it has {count} (a .txt file is one). Give it more, or a larger "
            "data.holdout; or set data.holdout to 0 and eval_every to None, and score all of it "
            "with `jaxlm eval --split train`"
        )
    stdlib = facts.source in ("pydocs", "pysrc")
    facts_written = manifest.Manifest(
        format=manifest.FORMAT,
        source=facts.source,
        field=facts.field,
        fingerprint=facts.fingerprint,
        python=platform.python_version() if stdlib else None,
        holdout=holdout,
        tokenizer=tokenizer.hash,
        tokenizer_kind=tokenizer.kind,
        vocab=tokenizer.vocab,
        begin=interface.begin(tokenizer),
        eos=tokenizer.special["eos"],
        dtype=dtype,
        splits=splits,
        empty=left["empty"],
    )
    manifest.write(facts_written, folder)
    return facts_written


def _cut(
    documents: Iterator[source.Document], holdout: float
) -> Iterator[tuple[str, int, list[str]]]:
    """(split, shard number, texts) of each shard, as its texts are complete."""
    texts: dict[str, list[str]] = {name: [] for name in SPLITS}
    size, number = dict.fromkeys(SPLITS, 0), dict.fromkeys(SPLITS, 0)
    for document in documents:
        name = source.document_split(document, holdout)
        texts[name].append(document.text)
        size[name] += len(document.text)
        if size[name] >= _SHARD_TEXT:
            yield name, number[name], texts[name]
            texts[name], size[name], number[name] = [], 0, number[name] + 1
    for name in SPLITS:
        if texts[name]:
            yield name, number[name], texts[name]


def _run(tasks: Iterator[_Task], workers: int) -> Iterator[_Written]:
    if not workers:
        yield from map(_write_shard, tasks)
        return
    # spawn: a fork of a process that runs threads (jax, grain) may hang.
    ignore = (signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for this process, which ends them
    with multiprocessing.get_context("spawn").Pool(workers, signal.signal, ignore) as pool:
        # A task holds a shard's text: keep few in memory, and results in order.
        waiting: list[Any] = []
        for task in tasks:
            waiting.append(pool.apply_async(_write_shard, (task,)))
            if len(waiting) > 2 * workers:
                yield waiting.pop(0).get()
        for result in waiting:
            yield result.get()


def _write_shard(task: _Task) -> _Written:
    begin, eos = interface.begin(task.tokenizer), task.tokenizer.special["eos"]
    writer = _library().ArrayRecordWriter(task.path, _OPTIONS)
    lengths = np.empty((len(task.texts), 2), np.uint32)
    for i in range(0, len(task.texts), 256):
        texts = task.texts[i : i + 256]
        for j, ids in enumerate(task.tokenizer.encode_batch(texts)):
            record = np.array([begin, *ids, eos], task.dtype)
            writer.write(record.tobytes())
            lengths[i + j] = len(record), len(texts[j].encode("utf-8", "surrogateescape"))
    writer.close()
    path = pathlib.Path(task.path)
    tokens, size = lengths.sum(axis=0, dtype=np.int64).tolist()
    shard = manifest.Shard(
        file=f"{path.parent.name}/{path.name}",
        size=path.stat().st_size,
        crc32=_crc32(path),
        documents=len(lengths),
        tokens=tokens,
        bytes=size,
    )
    return _Written(shard, lengths)


def _finish_split(folder: pathlib.Path, name: str, done: Sequence[_Written]) -> manifest.Split:
    path = folder / name / "index.npy"
    np.save(path, np.concatenate([written.lengths for written in done]))
    shards = [written.shard for written in done]
    return manifest.Split(
        lengths=manifest.Index(f"{name}/index.npy", path.stat().st_size, _crc32(path)),
        shards=shards,
        documents=sum(shard.documents for shard in shards),
        tokens=sum(shard.tokens for shard in shards),
        bytes=sum(shard.bytes for shard in shards),
    )


def _crc32(path: pathlib.Path) -> int:
    crc = 0
    with path.open("rb") as file:
        while data := file.read(1 << 20):
            crc = zlib.crc32(data, crc)
    return crc


# --- Reading ---------------------------------------------------------------------------------


class Shards:
    """One split of a shards directory, with random access to its documents.

    known: ids of the model that reads them, where the tokenizer has more.
    `lengths` [documents] uint32 counts a document's tokens, begin and eos included; `text_bytes`
    [documents] uint32 its UTF-8 bytes; `bytes` is their sum, the denominator of bits per byte.
    Files are opened at first use, so that an instance travels to another process as its path.
    """

    def __init__(
        self, folder: str, split: source.Split, facts: manifest.Manifest, known: int | None = None
    ):
        self.folder, self.split, self.manifest = folder, split, facts
        self._known = facts.vocab if known is None else known
        self.dtype = np.dtype(facts.dtype)
        part = facts.splits[split]
        self.documents, self.tokens, self.bytes = part.documents, part.tokens, part.bytes
        index = np.load(pathlib.Path(folder) / part.lengths.file, mmap_mode="r")
        self.lengths, self.text_bytes = index[:, 0], index[:, 1]
        self._first = np.cumsum([0] + [shard.documents for shard in part.shards])
        self._readers: dict[int, Any] = {}

    def __len__(self) -> int:
        return self.documents

    def doc(self, number: int) -> np.ndarray:
        """The tokens of one document, uint16 or uint32: [begin, text..., eos]."""
        return self.docs([number])[0]

    def docs(self, numbers: Sequence[int]) -> list[np.ndarray]:
        """The tokens of several documents, in the order given; one read a shard.

        Raises: IndexError for a number outside 0..documents-1; ValueError naming a shard whose
        record does not have the length in the index, and an id that the model lacks.
        """
        wanted = np.asarray(numbers, np.int64)
        if len(wanted) and not 0 <= wanted.min() <= wanted.max() < self.documents:
            raise IndexError(f"documents {numbers}: {self.split} holds 0..{self.documents - 1}")
        homes = np.searchsorted(self._first, wanted, side="right") - 1
        texts: list[Any] = [None] * len(wanted)
        for home in np.unique(homes):
            places = np.flatnonzero(homes == home)
            records = self._read(home, wanted[places] - self._first[home])
            for place, record in zip(places, records, strict=True):
                texts[place] = np.frombuffer(record, self.dtype)
                if len(texts[place]) != self.lengths[wanted[place]]:
                    raise ValueError(
                        f"{self._path(home)}: document {wanted[place]} has "
                        f"{len(texts[place])} tokens, the index says "
                        f"{self.lengths[wanted[place]]}: {REMEDY}"
                    )
                if self._known < self.manifest.vocab:
                    interface.check_known(
                        texts[place], self._known, f"{self.split} document {wanted[place]}"
                    )
        return texts

    def contents(self, tokenizer: interface.Tokenizer) -> Iterator[bytes]:
        """The UTF-8 bytes of every document in order, from its tokens.

        Raises: ValueError, at the first document, for a tokenizer that is not lossless.
        """
        if not tokenizer.lossless:
            raise ValueError(
                f"a {tokenizer.kind} tokenizer is not lossless: the text cannot be had from its "
                "tokens; read the source"
            )
        for start in range(0, self.documents, 1024):
            for tokens in self.docs(range(start, min(start + 1024, self.documents))):
                yield tokenizer.decode_bytes(tokens[1:-1].tolist())

    def _path(self, home: int) -> pathlib.Path:
        return pathlib.Path(self.folder) / self.manifest.splits[self.split].shards[home].file

    def _read(self, home: int, places: np.ndarray) -> list[bytes]:
        """Records of one shard by place. Raises: ValueError naming a shard that is corrupt."""
        try:
            if home not in self._readers:
                self._readers[home] = _library().ArrayRecordReader(
                    str(self._path(home)), "readahead_buffer_size:0"
                )
            return self._readers[home].read(places.tolist())
        except (RuntimeError, ValueError, IndexError, OSError) as error:
            reason = str(error).splitlines()[0][:200]
            raise ValueError(f"{self._path(home)}: corrupt ({reason}): {REMEDY}") from error

    def verify(self) -> None:
        """Read every file of the split and compare its checksum with the manifest's.

        Raises: ValueError naming the first file that differs.
        """
        part = self.manifest.splits[self.split]
        for file in (part.lengths, *part.shards):
            _verify(pathlib.Path(self.folder), file)

    def __reduce__(self) -> tuple:
        return Shards, (self.folder, self.split, self.manifest, self._known)


REMEDY = "delete this directory and tokenise the source again"


def _verify(folder: pathlib.Path, file: manifest.Index | manifest.Shard) -> None:
    path = folder / file.file
    if (crc := _crc32(path)) != file.crc32:
        raise ValueError(
            f"{path}: corrupt: crc32 {crc:08x}, the manifest says {file.crc32:08x}: {REMEDY}"
        )


def open_shards(
    folder: str | os.PathLike[str],
    split: source.Split,
    tokenizer_hash: str,
    known: int | None = None,
) -> Shards:
    """One split, checked against its manifest and the run's tokenizer.

    known: ids of the model that reads them, where its tokenizer may have more; None: no model.
    Sizes of all files are compared now, and the index' contents; those of shards by `verify()`, and
    by the library as records are read.

    Raises: ValueError for another tokenizer (naming both hashes), a missing split, or a missing or
    truncated file by name; FileNotFoundError without a manifest.
    """
    root = pathlib.Path(folder).expanduser()
    facts = manifest.read(root)
    if facts.tokenizer != tokenizer_hash:
        raise ValueError(
            f"shards {str(root)!r} were made with tokenizer {facts.tokenizer[:16]} "
            f"({facts.tokenizer_kind}, vocab {facts.vocab}), this run has {tokenizer_hash[:16]}: "
            "set data.tokenizer to that one, or tokenise the source again with this one"
        )
    if split not in facts.splits:
        raise ValueError(
            f"shards {str(root)!r} hold no {split!r} split (holdout={facts.holdout}); they hold "
            f"{list(facts.splits)}: `jaxlm eval` scores that with --split {[*facts.splits][0]}"
        )
    part = facts.splits[split]
    for file in (part.lengths, *part.shards):
        path = root / file.file
        size = path.stat().st_size if path.is_file() else None
        if size != file.size:
            state = "missing" if size is None else f"truncated or changed: {size} bytes"
            raise ValueError(f"{path}: {state}, the manifest says {file.size}: {REMEDY}")
    # small, and nothing else notices a changed length of a document
    _verify(root, part.lengths)
    return Shards(str(root), split, facts, known)
