"""Items of evaluation tasks: a question and its answer, read from the files as they are published.

    .jsonl           objects with `question`/`answer` (GSM8K), `sentence_good`/`sentence_bad`
                     (BLiMP), `input`/`target`, or `prompt`/`completion`
    .json            {"examples": [{"input": ..., "target": ...}]} (BBH)
    .csv             a header with `Question` and `Best Answer` (TruthfulQA) or `sent_more` and
                     `sent_less` (CrowS-Pairs); or rows of six without one (MMLU)
    .zip             all .jsonl, .json and .csv files in it

each of the first three also as .gz.
"""

import csv
import gzip
import hashlib
import io
import json
import pathlib
import zipfile
from collections.abc import Iterator
from typing import Any, NamedTuple

from jaxlm.core import json_file

# Fields of the question and of the answer, by format; the first that an object has are meant.
FIELDS = (
    ("question", "answer"),
    ("sentence_good", "sentence_bad"),
    ("Question", "Best Answer"),
    ("sent_more", "sent_less"),
    ("input", "target"),
    ("prompt", "completion"),
)
_CHOICES = 6  # columns of MMLU: a question, four choices, a letter
_READ = (".jsonl", ".json", ".csv")
_LIMIT = 1 << 30  # bytes that a compressed file may become


class Item(NamedTuple):
    """One item: an id of its task and content, the task's name, question and answer."""

    id: str
    task: str
    question: str
    answer: str

    @property
    def text(self) -> str:
        """Question and answer."""
        return f"{self.question}\n{self.answer}"


def items(path: str) -> Iterator[Item]:
    """The items of a task file, in order.

    Raises: FileNotFoundError; ValueError naming file and line for a format that is not above.
    """
    file = pathlib.Path(path).expanduser()
    if not file.is_file():
        raise FileNotFoundError(f"task file {path!r}: no such file")
    if file.suffix != ".zip":
        with file.open("rb") as stream:
            yield from _read(file.name, _content(file.name, stream.read(), path), path)
        return
    try:
        with zipfile.ZipFile(file) as archive:
            wanted = [e for e in archive.infolist() if _task(e.filename)[1] in _READ]
            for entry in wanted:
                if entry.file_size > _LIMIT:
                    raise ValueError(f"{path}: {entry.filename} has {entry.file_size:,} bytes")
                yield from _read(entry.filename, archive.read(entry), f"{path}:{entry.filename}")
    except zipfile.BadZipFile as error:
        raise ValueError(f"{path}: not a zip file ({error})") from error
    if not wanted:
        raise ValueError(f"{path}: no {', '.join(_READ)} file in it")


def _content(name: str, data: bytes, path: str) -> bytes:
    if not name.endswith(".gz"):
        return data
    try:
        content = gzip.GzipFile(fileobj=io.BytesIO(data)).read(_LIMIT)
    except (EOFError, OSError) as error:
        raise ValueError(f"{path}: corrupt or truncated gzip data ({error})") from error
    return content


def _task(name: str) -> tuple[str, str]:
    """(name of the task, ending) of a file."""
    path = pathlib.PurePosixPath(name.removesuffix(".gz"))
    return path.stem, path.suffix


def _read(name: str, data: bytes, path: str) -> Iterator[Item]:
    task, ending = _task(name)
    try:
        content = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not UTF-8 text at offset {error.start}") from error
    if ending == ".jsonl":
        rows = (json_file.parse(line, path) for line in content.split("\n") if line.strip())
    elif ending == ".json":
        rows = _examples(json_file.parse(content, path), path)
    elif ending == ".csv":
        rows = _table(content)
    else:
        raise ValueError(f"task file {path!r}: {', '.join(_READ)} or .zip is needed")
    count = 0
    for count, row in enumerate(rows, start=1):
        question, answer = _pair(row, f"{path}: item {count}")
        digest = hashlib.sha256(f"{task}\0{question}\0{answer}".encode()).hexdigest()[:16]
        yield Item(f"{task}:{digest}", task, question, answer)
    if not count:
        raise ValueError(f"{path}: no items")


def _examples(value: Any, path: str) -> list[Any]:
    if isinstance(value, dict) and isinstance(value.get("examples"), list):
        return value["examples"]
    raise ValueError(f"{path}: expected an object with a list `examples`")


def _table(content: str) -> Iterator[Any]:
    """Rows of a table: objects where the first row names columns that are known, else lists."""
    rows = csv.reader(io.StringIO(content, newline=""))
    first = next(rows, [])
    if any({*pair} <= {*first} for pair in FIELDS):
        yield from (dict(zip(first, row)) for row in rows if row)
        return
    if first:
        yield first
    yield from (row for row in rows if row)


def _pair(row: Any, where: str) -> tuple[str, str]:
    """(question, answer) of a row."""
    if isinstance(row, list) and len(row) == _CHOICES and row[-1] in "ABCD":
        return row[0], row[1 + "ABCD".index(row[-1])]
    if isinstance(row, dict):
        for question, answer in FIELDS:
            if question in row and answer in row:
                return str(row[question]), _text(row[answer])
        got = f"an object with {sorted(row)}"
    else:
        got = f"{len(row)} columns" if isinstance(row, list) else f"a {type(row).__name__}"
    raise ValueError(f"{where}: {got}; it must have one of {[list(pair) for pair in FIELDS]}")


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
