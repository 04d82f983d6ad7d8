"""Prompts to batches: prompts of a policy, and the records by which its responses are judged.

    {"prompt": "12 + 30 =", "answer": "42"}
    {"messages": [{"role": "user", "content": "12 + 30 ="}], "answer": "42"}

A prompt is a string or a list of messages, and ends where the assistant answers: an assistant's
message at the end of `messages` is left out, so that records to imitate serve as prompts too. A
field `system` holds the system message, if there is one; `tools`, `documents` and
`chat_template_kwargs` go to the chat template. All other fields are the reward's business. Every
prompt is tokenised once, by the template.
"""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np

from jaxlm.core import batch, check
from jaxlm.data import shared_fields, tokenizers
from jaxlm.data.records import examples, messages, records
from jaxlm.data.records.messages import Message
from jaxlm.data.sources import source
from jaxlm.data.tally import Tally
from jaxlm.data.templates import template
from jaxlm.data.tokenizers import tokenizer as interface

# Examples prepared from equal records and settings are equal only while this is.
_VERSION = 2
_NAMED = 8  # records named that were left out


@dataclass(frozen=True)
class Prompts:
    """Prompts, and their batches."""

    source: str
    """A file, directory or glob of .jsonl, .json or .parquet (.gz and .zst too)."""
    field: str | None = None
    """The field that holds the prompt; None takes `prompt`, `messages` or `question`, the first
    that a record has."""
    before: str = ""
    """Text in front of the user's last message: an instruction, e.g. to think step by step."""
    after: str = ""
    """Text after the user's last message."""
    tokenizer: str = "bytes"
    """`bytes`, or the path of a tokenizer: a directory, .model, .json or .tiktoken."""
    template: str = "plain"
    """Template of messages: a name, a .jinja file, or `tokenizer` for the tokenizer's own."""
    holdout: float = 0.05
    """The fraction of prompts held out for evaluation, chosen by each prompt's hash."""
    seq: int = 256
    """Tokens of a prompt at most (P); the response has its own room after them."""
    long: Literal["drop", "refuse"] = "drop"
    """Treatment of longer prompts: left out, counted and named; or the run does not start. None
    is ever cut."""
    batch: int = 16
    """Prompts in a step (B), over all processes."""
    seed: int = 0
    """Decides the order of the prompts."""
    workers: int = 0
    """Processes that read batches; 0 reads in threads of this one. The batches are the same."""

    def problems(self) -> Iterator[str]:
        """Problems of the fields, in lines that name the field, its value and what fits."""
        yield from shared_fields.problems(self, 1)
        fits = "the name of a field, or None"
        yield from check.problem("data.field", self.field, self.field != "", fits)


class Prompt(NamedTuple):
    """A prompt: its tokens int32[n], the text of its last message as the record has it, the record
    and where that is from."""

    tokens: np.ndarray
    text: str
    record: dict[str, Any]
    origin: str


@dataclass(frozen=True)
class Rows:
    """Prompts with random access, all of at most `seq` tokens."""

    prompts: Sequence[Prompt]
    seq: int

    def __len__(self) -> int:
        """Number of prompts."""
        return len(self.prompts)

    def read(self, rows: np.ndarray) -> batch.Prompts:
        """The `Prompts` [n, P] of these rows, int64[n]; their `row` is their number here."""
        prompts = packed([self.prompts[int(r)].tokens for r in rows], self.seq)
        return prompts._replace(row=np.asarray(rows, np.int32))

    def record(self, row: int) -> dict[str, Any]:
        """The record that a prompt is of."""
        return self.prompts[row].record

    def text(self, row: int) -> str:
        """The prompt of the record, without the template and the texts before and after it."""
        return self.prompts[row].text


def packed(tokens: Sequence[np.ndarray], seq: int) -> batch.Prompts:
    """`Prompts` [B, P] of B prompts, P = seq, numbered from 0; each is at the left end of its row.

    Raises: ValueError for a prompt that is empty or longer than seq.
    """
    for i, prompt in enumerate(tokens):
        if not 0 < len(prompt) <= seq:
            raise ValueError(f"prompt {i} has {len(prompt)} tokens; 1 to {seq} are needed")
    rows = batch.rows(tokens, seq)
    numbers = np.arange(len(tokens), dtype=np.int32)
    return batch.Prompts(rows.tokens, rows.segments, rows.positions, numbers)


def prepare(data: Prompts) -> examples.Split:
    """The prompts of a source, split by their contents, and the facts that decide them.

    Raises: ValueError naming the record's place for one without a prompt, for a prompt longer than
    `seq` where long="refuse", and if no record is left; FileNotFoundError as `records.read`.
    """
    check.refuse("", data.problems())
    tokenizer = tokenizers.load(data.tokenizer)
    layout = template.load(data.template, data.tokenizer)
    kept: dict[str, list[Prompt]] = {"train": [], "val": []}
    long: list[str] = []
    read = 0
    for record in records.read(data.source):
        read += 1
        conversation = conversation_of(record, data.field)
        text = conversation[-1].text
        tokens = _tokens(data, layout, tokenizer, record, conversation)
        if len(tokens) > data.seq:
            long.append(f"{record.origin} ({len(tokens)} tokens)")
            continue
        # as conversations are split, so that a prompt is held out of both or of neither
        first = itertools.takewhile(lambda message: message.role != "assistant", conversation)
        key = records.key([message.plain() for message in first])
        prompt = Prompt(np.asarray(tokens, np.int32), text, record.value, record.origin)
        kept[source.split(key, data.holdout)].append(prompt)
    if long and data.long == "refuse":
        raise ValueError(
            f"data.seq: {data.seq} given, but {len(long)} prompts are longer, the first at "
            f"{long[0]}; raise data.seq, or set data.long='drop' to leave them out"
        )
    if not any(kept.values()):
        raise ValueError(
            f"data.source: no prompt of {data.source} is left: {len(long)} are longer than "
            f"data.seq={data.seq}"
        )
    facts = {
        "fingerprint": records.fingerprint(data.source),
        "tokenizer": tokenizer.hash,
        "template": records.digest([layout.identity]),
        "field": data.field,
        "before": data.before,
        "after": data.after,
        "holdout": data.holdout,
        "seq": data.seq,
        "version": _VERSION,
        "prompts": {name: len(prompt) for name, prompt in kept.items()},
        "too_long": len(long),
        "too_long_first": long[:_NAMED],
    }
    train, val = (Rows(part, data.seq) for part in kept.values())
    left = {f"longer than data.seq={data.seq}": len(long)}
    tally = Tally("prompts", read, len(train), len(val), {}, left)
    return examples.Split(train, val if len(val) else None, facts, tally)


def _tokens(
    data: Prompts,
    layout: template.Template,
    tokenizer: interface.Tokenizer,
    record: records.Record,
    conversation: Sequence[Message],
) -> np.ndarray:
    """The tokens of a prompt. Raises: ValueError naming the record that the template refuses."""
    question = conversation[-1]._replace(text=f"{data.before}{conversation[-1].text}{data.after}")
    try:
        layout = template.given(layout, messages.variables(record))
        return template.prompt(layout, tokenizer, [*conversation[:-1], question])
    except ValueError as error:
        where = "" if str(error).startswith(record.origin) else f"{record.origin}: "
        raise ValueError(f"{where}{error}") from error


def conversation_of(record: records.Record, field: str | None = None) -> tuple[Message, ...]:
    """The messages of a record's prompt, in the field as `Prompts` has it.

    Raises: ValueError naming the record's place for one without a prompt.
    """
    names = ("prompt", "messages", "question") if field is None else (field,)
    name = next((n for n in names if n in record.value), None)
    if name is None:
        raise records.missing(record, *names)
    value = record.value[name]
    if isinstance(value, str):
        conversation = [Message("user", records.text(record, name))]
    else:
        conversation = _conversation(value, f"{record.origin}: field {name!r}")
    if conversation[-1].role == "assistant":
        conversation = conversation[:-1]
    if not conversation or conversation[-1].role != "user":
        raise ValueError(
            f"{record.origin}: field {name!r} must end with what a user says; its roles are "
            f"{[m.role for m in conversation]}"
        )
    return messages.with_system(record, conversation)


def _conversation(value: Any, where: str) -> list[Message]:
    """The messages of [{"role": ..., "content": ...}, ...]."""
    if not isinstance(value, list) or not value:
        raise ValueError(f"{where} holds a {type(value).__name__}; a string or messages are needed")
    return [messages.read(part, f"{where}, message {i}") for i, part in enumerate(value)]
