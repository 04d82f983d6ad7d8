"""Prompts of a file or a list as records, and each as the tokens that a run's model continues.

prompts.txt      a prompt a line; empty lines are left out
prompts.jsonl    {"prompt": "..."} or {"messages": [...]}, with any other fields
"""

import itertools
import os
from collections.abc import Callable, Iterator, Sequence

from jaxlm.data import kinds
from jaxlm.data.records import messages, prompts, records
from jaxlm.data.records.records import Record
from jaxlm.data.sources import files
from jaxlm.data.templates import template
from jaxlm.data.tokenizers import tokenizer as tokenizers
from jaxlm.decode import prompt_tokens
from jaxlm.decode.prompt_tokens import Turn

ADDED = ("text", "finish")
"""Fields that a continuation adds to its prompt's record."""


def read(path: str | os.PathLike[str]) -> Iterator[Record]:
    """The records of a file of prompts, in order, read as they are needed.

    Raises: FileNotFoundError for a missing file; while reading, ValueError naming the line for what
    is no record, or has a field of `ADDED`.
    """
    name = os.fspath(path)
    if not files.content_name(name).endswith(".txt"):
        return (_free(record) for record in records.read(name))
    _, paths = files.listing(name)
    return _lines(paths)


def listed(texts: Sequence[str]) -> Iterator[Record]:
    """The records of texts, each a prompt."""
    return (Record({"prompt": text}, f"prompts[{i}]") for i, text in enumerate(texts))


def encoder(
    data: kinds.AnyData, layout: template.Template | None, tokenizer: tokenizers.Tokenizer
) -> Callable[[Record], Turn]:
    """A function from a record to its Turn: a text of the run's kind, or a conversation under the
    template. It raises ValueError naming the record for one that is neither."""

    def turn(record: Record) -> Turn:
        conversation = prompts.conversation_of(record)
        variables = messages.variables(record)
        if layout is None and (len(conversation) > 1 or variables or "messages" in record.value):
            raise ValueError(
                f"{record.origin}: a conversation, for a run that was trained on text; name a "
                "template"
            )
        made = None if layout is None else template.given(layout, variables)
        try:
            return prompt_tokens.asked(data, made, tokenizer, conversation)
        except ValueError as error:
            raise ValueError(f"{record.origin}: {error}") from error

    return turn


def _free(record: Record) -> Record:
    for name in ADDED:
        if name in record.value:
            raise ValueError(
                f"{record.origin}: field {name!r} is what a continuation adds; rename it"
            )
    return record


def _lines(paths: Sequence[str]) -> Iterator[Record]:
    for path in paths:
        number, rest = 0, b""
        for piece in itertools.chain(files.chunks(path), [b"\n"]):
            *lines, rest = (rest + piece).split(b"\n")
            for line in lines:
                number += 1
                try:
                    text = line.decode("utf-8-sig" if number == 1 else "utf-8").rstrip("\r")
                except UnicodeDecodeError as error:
                    raise ValueError(f"{path}:{number}: not UTF-8 text ({error})") from error
                if text:
                    yield Record({"prompt": text}, f"{path}:{number}")
