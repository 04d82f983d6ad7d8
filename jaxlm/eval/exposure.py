"""Items of evaluation tasks that a run had seen, and the steps at which it saw them.

The batches of a run are a function of the step, so the texts of every step are known without
training. An item is seen at a step if a piece of a document in its rows covers the item as
`curate.decontaminate` measures it.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from jaxlm.core import check
from jaxlm.data import pack, pretraining
from jaxlm.data.curate import decontaminate
from jaxlm.data.records import task_items
from jaxlm.data.tokenized import shards, texts
from jaxlm.data.tokenizers import tokenizer as interface

_TEXTS = 512  # documents that are decoded at once


Place = tuple[str, int]  # name of a source ("" without a mixture), number of its packed row


class Exposure(NamedTuple):
    """One item: its id, the most of it that one text covered, and the steps that read such a text,
    ascending."""

    item: str
    share: float
    steps: list[int]


def exposures(
    data: pretraining.Data,
    split: texts.Text,
    tokenizer: interface.Tokenizer,
    given: decontaminate.Decontaminate,
    steps: int,
) -> list[Exposure]:
    """The items that steps 0 .. steps - 1 of a run read, by their first step.

    split: the run's training split; given: the tasks, and how they are looked for.

    Raises: ValueError for data whose texts are changed before they are read (`corrupt`, `infill`),
    for a tokenizer that is not lossless, and as `task_items.items`.
    """
    check.refuse("", given.problems())
    for name in ("corrupt", "infill"):
        value = getattr(data, name)
        check.field(f"data.{name}", value, value is None, "None for `jaxlm data seen`")
    if not tokenizer.lossless:
        raise ValueError(f"a {tokenizer.kind} tokenizer is not lossless: its texts are not known")
    items = [item for path in given.tasks for item in task_items.items(path)]
    index = decontaminate.Index(given, items)
    splits = texts.parts(split)
    rows: dict[str, dict[Place, float]] = {}  # item -> row -> the share that one of its pieces has
    for name, reader in pretraining.readers(data, split).items():
        assert isinstance(reader, pack.Reader)
        for row, text in _pieces(reader.rows, splits[name], tokenizer, index, given.threshold):
            for item, share in next(index.shares([text])).items():
                if share >= given.threshold:
                    known = rows.setdefault(item, {})
                    known[name, row] = max(share, known.get((name, row), 0.0))
    read = _reads(data, split, steps, {place for own in rows.values() for place in own})
    seen = []
    for item, own in rows.items():
        at = sorted({step for place in own for step in read.get(place, ())})
        if at:
            share = max(share for place, share in own.items() if place in read)
            seen.append(Exposure(item, round(share, 6), at))
    return sorted(seen, key=lambda e: (e.steps[0], e.item))


def _pieces(
    rows: pack.Rows,
    split: shards.Shards,
    tokenizer: interface.Tokenizer,
    index: decontaminate.Index,
    threshold: float,
) -> Iterator[tuple[int, str]]:
    """(row, text) of the pieces of documents that cover an item."""
    order = np.argsort(rows.doc, kind="stable")
    starts = np.searchsorted(rows.doc[order], np.arange(split.documents + 1))
    for first in range(0, split.documents, _TEXTS):
        numbers = range(first, min(first + _TEXTS, split.documents))
        documents = split.docs(numbers)
        shares = index.shares([_text(tokens, tokenizer) for tokens in documents])
        for number, tokens, own in zip(numbers, documents, shares, strict=True):
            if max(own.values(), default=0.0) < threshold:
                continue
            for piece in order[starts[number] : starts[number + 1]].tolist():
                start, size = int(rows.start[piece]), int(rows.size[piece])
                row = int(np.searchsorted(rows.first, piece, side="right")) - 1
                yield row, _text(tokens[start : start + size + 1], tokenizer)


def _text(tokens: np.ndarray, tokenizer: interface.Tokenizer) -> str:
    """The text of some tokens of a document, without the marks at its ends."""
    marks = [interface.begin(tokenizer), tokenizer.special["eos"]]
    return tokenizer.decode_bytes(tokens[~np.isin(tokens, marks)].tolist()).decode(
        "utf-8", "replace"
    )


def _reads(
    data: pretraining.Data, split: texts.Text, steps: int, wanted: set[Place]
) -> dict[Place, list[int]]:
    """{row: the steps that read it} of the rows that are wanted."""
    if not wanted:
        return {}
    rows = pretraining.ordered_rows(data, split)
    read: dict[Place, list[int]] = {}
    for step in range(steps):
        ends = pretraining.rows_before(data, step), pretraining.rows_before(data, step + 1)
        for place in rows.places(*ends):
            if place in wanted:
                read.setdefault(place, []).append(step)
    return read
