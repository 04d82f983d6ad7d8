"""Preferences to batches: prompts with responses of which some are preferred.

Every response is tokenised once, together with its prompt, by the template. All responses of a
record follow the same tokens of its prompt: where the longest does not fit into `seq`, the prompt
loses its oldest tokens (its first, the beginning of the text, stays), in all of them alike. A
response is never cut; a record with one that does not fit is left out. What is left out, and why,
is counted and named in the facts of the Split, which a run writes to env.json.
"""

import collections
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from jaxlm.core import batch, check
from jaxlm.data import shared_fields, tokenizers
from jaxlm.data.records import examples, preference_formats, records
from jaxlm.data.sources import source
from jaxlm.data.tally import Tally
from jaxlm.data.templates import template
from jaxlm.data.tokenizers import tokenizer as interface

# Examples prepared from equal records and settings are equal only while this is.
_VERSION = 2
_NAMED = 8  # records named for each reason


@dataclass(frozen=True)
class Preferences:
    """Preferences between responses, and in which batches they are read."""

    source: str
    """A file, directory or glob of .jsonl, .json or .parquet (.gz and .zst too)."""
    format: preference_formats.Format | None = None
    """Format of a record (preference_formats.py); None detects it by each record's fields.
    Labelled ones are read only where they are named: they compare nothing."""
    tokenizer: str = "bytes"
    """`bytes`, or the path of a tokenizer: a directory, .model, .json or .tiktoken."""
    template: str = "plain"
    """Template of messages: a name, a .jinja file, or `tokenizer` for the tokenizer's own."""
    holdout: float = 0.05
    """The fraction of prompts held out for evaluation, chosen by each prompt's hash."""
    seq: int = 512
    """Tokens in a row (T): a prompt and one response."""
    batch: int = 16
    """Prompts in a step (B), over all processes: a forward pass reads K rows for each."""
    seed: int = 0
    """Decides the order of the prompts."""
    workers: int = 0
    """Processes that read batches; 0 reads in threads of this one. The batches are the same."""

    def problems(self) -> Iterator[str]:
        """Problems of the fields, in lines that name the field, its value and what fits."""
        return shared_fields.problems(self, 2)


class Text(NamedTuple):
    """A prompt and one response: tokens int32[n], of which the first `start` are the prompt's, the
    same before every response; learnt bool[n], True on the response's tokens that the assistant
    writes, its end included. apart: why the response does not follow its generation prompt
    (`rendering.Span`)."""

    tokens: np.ndarray
    learnt: np.ndarray
    start: int
    apart: str = ""


class Example(NamedTuple):
    """The texts of one record, as a row of `Choices` holds them."""

    texts: tuple[Text, ...]
    rank: tuple[int, ...]
    preference: float
    score: tuple[float, ...]


@dataclass(frozen=True)
class Ranked:
    """Rows of prompts with up to `responses` responses each."""

    examples: Sequence[Example]
    responses: int
    seq: int

    def __len__(self) -> int:
        """Number of prompts."""
        return len(self.examples)

    def read(self, rows: np.ndarray) -> batch.Choices:
        """The `Choices` [len(rows), K, T] of these prompts."""
        return choices([self.examples[int(r)] for r in rows], self.responses, self.seq)


def choices(given: Sequence[Example], responses: int, seq: int) -> batch.Choices:
    """`Choices` [B, K, T] of B examples, K the `responses` of each, T = seq. Texts fit into seq."""
    shape = (len(given), responses)
    rank, score = np.full(shape, -1, np.int32), np.zeros(shape, np.float32)
    preference = np.array([e.preference for e in given], np.float32)
    # a row for each of the B x K places, those without a response empty
    texts: list[Text | None] = []
    for b, example in enumerate(given):
        rank[b, : len(example.rank)] = example.rank
        score[b, : len(example.score)] = example.score
        texts += [*example.texts, *[None] * (responses - len(example.texts))]
    rows = batch.rows([() if text is None else text.tokens for text in texts], seq)
    for r, text in enumerate(texts):
        if text is not None:
            rows.weight[r, : len(text.tokens) - 1] = text.learnt[1:]
    fields = (x.reshape(*shape, seq) for x in rows)  # [B, K, T]
    return batch.Choices(*fields, rank=rank, preference=preference, score=score)


def prepare(data: Preferences) -> examples.Split:
    """The examples of a source, split by prompt, and the facts that decide them.

    Raises: ValueError naming the record's place for one that is no preference, and if no record is
    left; FileNotFoundError as `records.read`.
    """
    check.refuse("", data.problems())
    tokenizer = tokenizers.load(data.tokenizer)
    layout = template.load(data.template, data.tokenizer)
    kept: dict[str, list[_Read]] = {"train": [], "val": []}
    left: dict[str, list[str]] = {}
    read = 0
    for record in records.read(data.source):
        read += 1
        try:
            row = _read(record, layout, tokenizer, data)
        except preference_formats.Unusable as error:
            left.setdefault(str(error), []).append(record.origin)
            continue
        key = records.key([message.plain() for message in row.ranking.prompt])
        kept[source.split(key, data.holdout)].append(row)
    if data.format == "labelled":
        kept = {name: _mismatched(rows, layout, tokenizer, data) for name, rows in kept.items()}
    rows_read = [*kept["train"], *kept["val"]]
    most = max((len(row.example.texts) for row in rows_read), default=0)
    counts, first = {}, {}
    for reason, places in left.items():
        counts[reason] = len(places)
        first[reason] = [place.rpartition("/")[2] for place in places[:_NAMED]]
    if not most:
        raise ValueError(f"data.source: no record of {data.source} can be learnt from: {counts}")
    facts = _facts(data, tokenizer, layout) | {
        "prompts": {name: len(rows) for name, rows in kept.items()},
        "responses": most,
        "prompts_cut": sum(row.cut for row in rows_read),
        "left_out": counts,
        "left_out_first": first,
    }
    ranked = []
    for rows in kept.values():
        ranked.append(Ranked([row.example for row in rows], most, data.seq))
    train, val = ranked
    apart: collections.Counter[str] = collections.Counter()
    for row in rows_read:
        apart.update(row.apart)
    cut = {f"prompts that data.seq={data.seq} has no room for": sum(x.cut for x in rows_read)}
    tally = Tally(
        "preferences", read, len(train), len(val), cut, counts, dict(sorted(apart.items()))
    )
    return examples.Split(train, val if len(val) else None, facts, tally)


def encode(
    prompt: Sequence[template.Message],
    responses: Sequence[Sequence[template.Message]],
    layout: template.Template,
    tokenizer: interface.Tokenizer,
) -> list[Text]:
    """The prompt with each response, tokenised once; the prompt's own assistant turns are not
    learnt.

    Raises: rankings.Unusable where a response has several answers of which the template writes the
    earlier otherwise once others follow; ValueError as `template.documents`.
    """
    encoded = []
    for response in responses:
        conversation = [*prompt, *response]
        answers = [
            i for i in range(len(prompt), len(conversation)) if conversation[i].role == "assistant"
        ]
        texts = template.documents(layout, tokenizer, conversation, answers)
        if len(texts) > 1:
            raise preference_formats.Unusable(
                "the template rewrites an earlier answer of a response"
            )
        (text,) = texts
        learnt = np.zeros(len(text.tokens), bool)
        for span in text.spans:
            learnt[span.start : span.end] = True
        encoded.append(Text(text.tokens, learnt, text.spans[0].start, text.spans[0].apart))
    start = _common(encoded)
    return [text._replace(start=start) for text in encoded]


def _common(texts: Sequence[Text]) -> int:
    """Number of tokens of the prompt that all texts share at their beginning."""
    size = min(text.start for text in texts)
    same = np.ones(size, bool)
    for text in texts:
        same &= text.tokens[:size] == texts[0].tokens[:size]
    return size if same.all() else int(np.argmin(same))


def fit(texts: Sequence[Text], seq: int) -> tuple[Text, ...]:
    """The texts with the same, latest tokens of their prompt, so that all fit into seq tokens. The
    first token stays.

    Raises: rankings.Unusable if nothing of the prompt but its first token would be left.
    """
    over = max(len(text.tokens) for text in texts) - seq
    if over <= 0:
        return tuple(texts)
    if over > texts[0].start - 2:
        raise preference_formats.Unusable(f"a response is too long for data.seq={seq}")
    keep = np.r_[0, np.arange(1 + over, max(len(text.tokens) for text in texts))]
    return tuple(
        Text(text.tokens[at], text.learnt[at], text.start - over, text.apart)
        for text in texts
        for at in [keep[keep < len(text.tokens)]]
    )


class _Read(NamedTuple):
    ranking: preference_formats.Ranking
    example: Example
    cut: bool

    @property
    def apart(self) -> list[str]:
        """Reasons why responses do not follow their generation prompt, each that does not."""
        return [text.apart for text in self.example.texts if text.apart]


def _read(
    record: records.Record,
    layout: template.Template,
    tokenizer: interface.Tokenizer,
    data: Preferences,
) -> _Read:
    ranking = preference_formats.read(record, data.format)
    try:
        return _Read(ranking, *_example(ranking, layout, tokenizer, data.seq))
    except preference_formats.Unusable:
        raise
    except ValueError as error:  # the template refuses the messages
        raise ValueError(f"{record.origin}: {error}") from error


def _example(
    ranking: preference_formats.Ranking,
    layout: template.Template,
    tokenizer: interface.Tokenizer,
    seq: int,
) -> tuple[Example, bool]:
    """The example of a ranking, and whether its prompt was cut."""
    layout = template.given(layout, ranking.variables)
    encoded = encode(ranking.prompt, ranking.responses, layout, tokenizer)
    if not all(text.learnt.any() for text in encoded):
        raise preference_formats.Unusable("a response has no token that the assistant writes")
    texts = fit(encoded, seq)
    cut = len(texts[0].tokens) < len(encoded[0].tokens)
    return Example(texts, ranking.rank, ranking.preference, ranking.score), cut


def _mismatched(
    rows: list[_Read],
    layout: template.Template,
    tokenizer: interface.Tokenizer,
    data: Preferences,
) -> list[_Read]:
    """Each labelled example with the next one's response after its own prompt as its second text,
    of rank -1: what KTO estimates its baseline from (Ethayarajh et al. 2024, section 4.1). Who is
    whose does not depend on the batch."""
    out = []
    for number, row in enumerate(rows):
        others = (rows[(number + i) % len(rows)].ranking for i in range(1, len(rows)))
        for other in others:
            if other.responses == row.ranking.responses or other.prompt == row.ranking.prompt:
                continue
            both = row.ranking._replace(responses=(*row.ranking.responses, *other.responses))
            try:
                example, cut = _example(both, layout, tokenizer, data.seq)
            except preference_formats.Unusable:  # too long after this prompt
                continue
            out.append(_Read(row.ranking, example, cut))
            break
        else:
            raise ValueError(
                f"data.source: the example with prompt {row.ranking.prompt[-1:]!r} finds no other "
                "whose response fits after it; labelled data needs several prompts"
            )
    return out


def _facts(
    data: Preferences, tokenizer: interface.Tokenizer, layout: template.Template
) -> dict[str, Any]:
    return {
        "fingerprint": records.fingerprint(data.source),
        "tokenizer": tokenizer.hash,
        "template": records.digest([layout.identity]),
        "holdout": data.holdout,
        "format": data.format,
        "seq": data.seq,
        "version": _VERSION,
    }
