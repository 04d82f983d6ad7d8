"""Conversations to batches, for instruction tuning (objectives/sft.py).

A conversation is written out by a template (template.py) and is one document: a segment of its own,
in a row with others (`best_fit`) or alone. The weight is 1 on what the assistant writes, the end of
its turn included, and 0 elsewhere:

    tokens    begin user: Hi bot: Yes  .
    targets   user: Hi bot: Yes  .  <end>
    weight    0     0  0    1    1  1

The first token of an answer is predicted from the last of its prompt, and is learnt.
"""

import collections
import dataclasses
import hashlib
from collections.abc import Iterator, Sequence
from typing import Literal, NamedTuple

import numpy as np

from jaxlm.core import batch, check
from jaxlm.data import pack, shared_fields, tokenizers
from jaxlm.data.records import chat_formats, examples, records
from jaxlm.data.records.chat_formats import Conversation
from jaxlm.data.records.messages import Message
from jaxlm.data.sources import source
from jaxlm.data.tally import Tally
from jaxlm.data.templates import rendering, template
from jaxlm.data.tokenizers import tokenizer as interface

# Examples prepared from equal records and settings are equal only while this is.
_VERSION = 2

Packing = Literal["best_fit", "single"]
Learn = Literal["all", "last"]


@dataclasses.dataclass(frozen=True)
class Chats:
    """Conversations, of which the assistant's part is learnt."""

    source: str
    """A file, directory or glob of .jsonl, .json or .parquet (.gz and .zst too)."""
    format: chat_formats.Format | None = None
    """Layout of records: alpaca, dolly, sharegpt, messages, oasst, prompt_completion. None detects
    it from each record's fields."""
    tokenizer: str = "bytes"
    """`bytes`, or the path of a tokenizer: a directory, .model, .json or .tiktoken."""
    template: str = "plain"
    """Template of conversations: plain, alpaca, vicuna, zephyr, chatml, llama2, llama3,
    mistral, gemma; a Jinja file; or `tokenizer` for the template in the tokenizer's own files.
    Variables may follow: `tokenizer?enable_thinking=false`."""
    system: str | None = None
    """The system message of conversations that have none; None adds none."""
    learn: Learn = "all"
    """Which of the assistant's messages are learnt: all, or the last of each conversation."""
    tree: chat_formats.Tree = "best"
    """Paths of an OpenAssistant tree: that of the best-ranked replies, or all, in which each
    message is learnt once."""
    holdout: float = 0.05
    """The fraction held out for validation, by the messages before the first answer."""
    seq: int = 512
    """Tokens in a row (T). Of a longer conversation the end is kept: the last answer learnt, and
    as much before it as fits. An answer too long itself loses its end."""
    batch: int = 32
    """Rows in a step (B), over all processes."""
    packing: Packing = "best_fit"
    """Packing of conversations: `best_fit` puts several into a row, none of which sees another;
    `single` puts one into each."""
    seed: int = 0
    """Decides the order of the rows."""
    workers: int = 0
    """Processes that read batches; 0 reads in threads of this one. The batches are the same."""

    def problems(self) -> Iterator[str]:
        """Problems of the fields, in lines that name the field, its value and what fits."""
        return shared_fields.problems(self, 2)


class Example(NamedTuple):
    """tokens int32[n], and learnt bool[n], True on those that are targets with weight. apart: why
    answers do not follow their generation prompt, one each (`rendering.Span`)."""

    tokens: np.ndarray
    learnt: np.ndarray
    apart: tuple[str, ...] = ()


class Rows:
    """The rows of packed examples; see examples.Rows."""

    def __init__(self, given: list[Example], seq: int, packing: Packing):
        sizes = np.array([len(example.tokens) for example in given], np.int64)
        first = np.concatenate([[0], np.cumsum(sizes)])  # [examples + 1]
        if packing == "best_fit":
            rows = pack.pack(sizes, seq, "best_fit")
        else:
            each = np.arange(len(sizes))
            rows = pack.fitted(each, 0 * each, sizes - 1, np.full(len(sizes), seq), seq)
        self._tokens = np.concatenate([example.tokens for example in given])  # [all tokens]
        self._learnt = np.concatenate([example.learnt for example in given])  # [all tokens]
        self._reader = pack.Reader(rows, _Places(first))

    def __len__(self) -> int:
        return len(self._reader.rows)

    def read(self, rows: np.ndarray) -> batch.Batch:
        """The batch of these rows."""
        at = self._reader.read(rows)  # its tokens are places in self._tokens
        held = at.segments > 0
        return at._replace(
            tokens=np.where(held, self._tokens[at.tokens], 0),
            targets=np.where(held, self._tokens[at.targets], 0),
            weight=(held & self._learnt[at.targets]).astype(np.float32),
        )


class _Places:
    """The places of each example's tokens, as documents of a pack.Reader."""

    def __init__(self, first: np.ndarray):
        self._first = first

    def docs(self, numbers: Sequence[int]) -> list[np.ndarray]:
        """From where to where each example goes."""
        return [np.arange(self._first[i], self._first[i + 1]) for i in numbers]


def prepare(data: Chats) -> examples.Split:
    """The rows to train on, those held out, and the facts that decide them, with the counts of what
    was left out or shortened.

    Raises: ValueError naming the file and line of a record that cannot be read or written out, and
    if nothing is left to train on.
    """
    check.refuse("", data.problems())
    tokenizer = tokenizers.load(data.tokenizer)
    layout = template.load(data.template, data.tokenizer)
    parts: dict[str, list[Example]] = {"train": [], "val": []}
    counts = dict.fromkeys(("conversations", "unanswered", "prompts_cut", "answers_cut"), 0)
    notes: collections.Counter[str] = collections.Counter()
    for conversation in read(data, layout):
        counts["conversations"] += 1
        texts = encode(conversation, layout, tokenizer, data.learn)
        counts["unanswered"] += not texts
        notes["rewritten"] += max(len(texts) - 1, 0)
        for example in texts:
            kept, cut = shorten(example, data.seq)
            if cut is not None:
                counts[cut] += 1
            notes.update(example.apart)
            parts[source.split(chat_formats.opening(conversation), data.holdout)].append(kept)
    if not parts["train"]:
        raise ValueError(
            f"data.source: {data.source!r} leaves no conversation to train on ({counts}; "
            f"{len(parts['val'])} are held out by data.holdout={data.holdout})"
        )
    rows = {k: Rows(v, data.seq, data.packing) if v else None for k, v in parts.items()}
    facts = {
        "fingerprint": records.fingerprint(data.source),
        "tokenizer": tokenizer.hash,
        "template": hashlib.sha256(layout.identity.encode()).hexdigest(),
        "version": _VERSION,
        "train_tokens": sum(len(conversation.tokens) for conversation in parts["train"]),
        "train_answer_tokens": int(
            sum(conversation.learnt.sum() for conversation in parts["train"])
        ),
    }
    train = rows["train"]
    assert train is not None
    return examples.Split(train, rows["val"], facts | counts, _tally(data, parts, counts, notes))


def _tally(
    data: Chats,
    parts: dict[str, list[Example]],
    counts: dict[str, int],
    notes: collections.Counter[str],
) -> Tally:
    more = f"{notes['rewritten']:,} texts end with an answer that the template later rewrites"
    return Tally(
        what="conversations",
        read=counts["conversations"],
        train=len(parts["train"]),
        val=len(parts["val"]),
        cut={
            f"answers longer than data.seq={data.seq}, which lose their end": counts["answers_cut"],
            f"prompts that data.seq={data.seq} has no room for": counts["prompts_cut"],
        },
        left={"no answer to learn": counts["unanswered"]},
        apart={name: notes[name] for name in ("merged", "opened")},
        more=more if notes["rewritten"] else "",
    )


def read(data: Chats, layout: template.Template) -> Iterator[Conversation]:
    """The conversations of the source, in order, with the system message they lack."""
    for record in records.read(data.source):
        for conversation in chat_formats.read(record, data.format, layout.between, data.tree):
            system = any(message.role == "system" for message in conversation.messages)
            if data.system is not None and not system:
                conversation = conversation.headed(
                    (Message("system", data.system), *conversation.messages)
                )
            yield conversation


def encode(
    conversation: Conversation,
    layout: template.Template,
    tokenizer: interface.Tokenizer,
    learn: Learn,
) -> list[Example]:
    """A conversation as tokens, up to the last answer that is learnt; [] if none is. Answers that
    say nothing are not. Several where the template writes an answer otherwise once others follow
    (`template.documents`): each answer is learnt once.

    Raises: ValueError naming the conversation that the template refuses.
    """
    messages = zip(conversation.messages, conversation.learnt, strict=True)
    wanted = [i for i, (message, learnt) in enumerate(messages) if learnt and message.says]
    chosen = wanted[-1:] if learn == "last" else wanted
    try:
        texts = template.documents(
            template.given(layout, conversation.variables), tokenizer, conversation.messages, chosen
        )
    except ValueError as error:
        raise ValueError(f"{conversation.origin}: {error}") from error
    return [_example(text) for text in texts]


def _example(text: rendering.Written) -> Example:
    learnt = np.zeros(len(text.tokens), bool)
    for span in text.spans:
        learnt[span.start : span.end] = True
    end = text.spans[-1].end
    apart = tuple(span.apart for span in text.spans if span.apart)
    return Example(text.tokens[:end], learnt[:end], apart)


Cut = Literal["prompts_cut", "answers_cut"]


def shorten(example: Example, seq: int) -> tuple[Example, Cut | None]:
    """(the example in seq + 1 tokens at most, what was cut of it).

    The last answer stays, after the first token (which precedes every document) and the end of
    what is before the answer. Where the answer itself is too long, its beginning stays, without
    an end of turn that it never had, after as much of the prompt as a quarter of the row holds. An
    earlier answer whose beginning is gone is not learnt.
    """
    room, size = seq + 1, len(example.tokens)
    if size <= room:
        return example, None
    silent = np.flatnonzero(~example.learnt)
    start = int(silent[-1]) + 1  # of the last answer
    answer = size - start
    before = min(max(room - answer, room // 4, 1), start)
    kept = np.arange(start - before, start - before + room)
    kept = kept[kept < size]
    learnt = example.learnt[kept]
    if before > 1:
        kept[0] = 0
        learnt[: int(np.argmin(learnt[1:])) + 1] = False
    cut: Cut = "answers_cut" if before + answer > room else "prompts_cut"
    return Example(example.tokens[kept], learnt), cut
