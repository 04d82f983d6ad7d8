"""Rows to batches: a stateless function of (seed, step).

Step s reads the global rows rows_before(s) .. rows_before(s + 1) of the shuffled, endlessly
repeated rows; of a mixture, in the order of row_schedule. Nothing else decides: not the number of
hosts, of workers, or where a run resumed.

A stage may have another batch B' and a shorter sequence T'. Rows are always packed at T = data.seq;
a step of the stage takes B' T' / T of them and cuts them into B' rows of T' (pack.shorten).
"""

import functools
from collections.abc import Generator, Iterator
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np

from jaxlm.core import batch, check
from jaxlm.data import pack, shared_fields, tokenizers
from jaxlm.data.corrupt import infill as infilling  # the field bears the name
from jaxlm.data.corrupt import mask, span
from jaxlm.data.rows import mix_parts, mix_plan, mixed_rows, prefetch
from jaxlm.data.tokenized import shards, texts
from jaxlm.data.tokenizers import tokenizer as interface

# Draws for training and for evaluation never meet.
_TRAIN, _VAL = 0, 1


@dataclass(frozen=True)
class Data:
    """Text to train on, and its batches."""

    source: str = "pydocs"
    """A corpus (pydocs, pysrc, markov), a source of known entropy (`known:tree?seed=1`), a file,
    directory or glob of text, .jsonl or .parquet (.gz and .zst too), local or remote; or a
    directory of shards made by `jaxlm data tokenize`, which brings its own field and holdout."""
    field: str = "text"
    """The field of .jsonl or column of .parquet that holds the text."""
    mix: mix_parts.Mix = ()
    """Several sources in place of `source` and `field`, by shares of tokens. Every row holds text
    of one source."""
    tokenizer: str = "bytes"
    """`bytes`, or the path of a tokenizer: a directory, .model, .json or .tiktoken."""
    packing: pack.Packing = "best_fit"
    """Packing of documents into rows: `best_fit` never cuts one that fits, `concat` never pads."""
    holdout: float = 0.05
    """The fraction of documents held out for validation, chosen by each document's hash."""
    seq: int = 256
    """Tokens in a row (T)."""
    batch: int = 32
    """Rows in a step (B), over all processes."""
    ramp: tuple[tuple[int, int], ...] = ()
    """Changes of the batch: (first step, rows) pairs. Before the first pair it is `batch`."""
    curriculum: tuple[tuple[int, int], ...] = ()
    """Changes of the sequence length: (first step, tokens) pairs, each a divisor of `seq`. Before
    the first pair it is `seq`; to start short, begin with step 0."""
    seed: int = 0
    """Decides the order of the rows, and what is hidden in them."""
    corrupt: None | mask.Mask | span.Span = None
    """Task of the model: None predicts the next token, `Mask` hidden tokens (BERT), `Span` missing
    spans (T5), for which `seq` is the length of a source."""
    infill: infilling.Infill | None = None
    """Moves the middle of training documents to their end (FIM); None moves nothing."""
    workers: int = 0
    """Processes that read batches; 0 reads in threads of this one. The batches are the same."""

    def problems(self) -> Iterator[str]:
        """Problems of the fields, in lines that name the field, its value and what fits."""
        parts = [part for part in (self.corrupt, self.infill) if part is not None]
        wrong = [
            *shared_fields.problems(self, 1),
            *check.problem("data.field", self.field, bool(self.field), "the name of a field"),
            *_changes("ramp", self.ramp),
            *_changes("curriculum", self.curriculum),
            *mix_parts.problems(self.mix),
            *(line for part in parts for line in part.problems()),
        ]
        yield from wrong
        if self.mix:
            why = "with data.mix, of which every part has its own"
            yield from check.changed("data", self, "source", "field", why=why)
        why = "with data.{}, which keeps what belongs together in one row"
        if self.infill is not None:
            names = ("packing", "curriculum", "corrupt")
            yield from check.changed("data", self, *names, why=why.format("infill"))
        elif isinstance(self.corrupt, span.Span):
            names = ("packing", "curriculum")
            yield from check.changed("data", self, *names, why=why.format("corrupt=Span"))
        if not wrong:
            yield from _lengths(self)


def _changes(name: str, changes: tuple[tuple[int, int], ...]) -> Iterator[str]:
    steps = [step for step, _ in changes]
    ok = steps == sorted(set(steps)) and all(s >= 0 and v >= 1 for s, v in changes)
    fits = "(first step, value) pairs with rising steps from 0 and values of at least 1"
    return check.problem(f"data.{name}", changes, ok, fits)


def _lengths(data: Data) -> Iterator[str]:
    """Problems of the lengths of rows, where each field by itself is right."""
    if isinstance(data.corrupt, span.Span):
        yield from check.loaded("", functools.partial(span.piece, data.corrupt, data.seq))
    if data.infill is not None:
        yield from infilling.short(data.seq)
    uneven = [seq for _, seq in data.curriculum if data.seq % seq]
    fits = f"of lengths that divide data.seq={data.seq}; {uneven} do not"
    yield from check.problem("data.curriculum", data.curriculum, not uneven, fits)
    for stage in [] if uneven else _bounds(data):
        cut = data.seq // stage.seq
        fits = f"a multiple of {cut}, whole rows of data.seq={data.seq}, from step "
        fits += f"{stage.first_step} on, with rows of {stage.seq}"
        yield from check.problem("data.batch", stage.batch, stage.batch % cut == 0, fits)


# --- Which rows a step reads -----------------------------------------------------------------


class Stage(NamedTuple):
    """Steps of one shape: batch [batch, seq] from `first_step` on, `rows` packed rows a step."""

    first_step: int
    first_row: int
    batch: int
    seq: int
    rows: int


def stages(data: Data) -> list[Stage]:
    """The stages in order; the last has no end."""
    out: list[Stage] = []
    for stage in _bounds(data):
        if out:
            last = out[-1]
            first_row = last.first_row + (stage.first_step - last.first_step) * last.rows
            stage = stage._replace(first_row=first_row)
        out.append(stage)
    return out


def _bounds(data: Data) -> list[Stage]:
    steps = sorted({0, *(s for s, _ in data.ramp), *(s for s, _ in data.curriculum)})
    bounds = []
    for step in steps:
        rows = _in_force(data.ramp, step, data.batch)
        seq = _in_force(data.curriculum, step, data.seq)
        bounds.append(Stage(step, 0, rows, seq, rows * seq // data.seq))
    return bounds


def _in_force(changes: tuple[tuple[int, int], ...], step: int, before: int) -> int:
    return ([before] + [value for first, value in changes if first <= step])[-1]


def stage_at(data: Data, step: int) -> Stage:
    """The stage that step belongs to."""
    return [stage for stage in stages(data) if stage.first_step <= step][-1]


def rows_before(data: Data, step: int) -> int:
    """Number of packed rows of `data.seq` that all steps before `step` read."""
    stage = stage_at(data, step)
    return stage.first_row + (step - stage.first_step) * stage.rows


def tokens_before(data: Data, step: int) -> int:
    """Number of positions in all steps before `step`, padding included."""
    return rows_before(data, step) * data.seq


# --- Sources ---------------------------------------------------------------------------------


def parts(data: Data) -> dict[str, Data]:
    """The data of each source alone, by name; data that is no mixture has the name ""."""
    if not data.mix:
        return {"": data}
    named = zip(mix_parts.names(data.mix), data.mix, strict=True)
    return {n: replace(data, mix=(), source=p.source, field=p.field) for n, p in named}


def readers(data: Data, split: texts.Text) -> dict[str, mixed_rows.Reader]:
    """The packed training rows of each source."""
    own, of = parts(data), texts.parts(split)
    if [*own] != [*of]:
        raise ValueError(f"data.mix has the sources {[*own]}, the text those of {[*of]}")
    texts.refuse_copies(split)
    return {name: reader(own[name], of[name]) for name in own}


def ordered_rows(data: Data, split: texts.Text) -> mixed_rows.MixedRows:
    """The endless rows of a run, in the order in which it reads them."""
    weights = mix_parts.weights(data.mix) if data.mix else [(0, (1.0,))]
    changes = [(rows_before(data, step), values) for step, values in weights]
    return mixed_rows.MixedRows(readers(data, split), changes, data.seed)


def plan(data: Data, split: texts.Text, steps: int) -> mix_plan.MixPlan:
    """The plan of a run of so many steps over a mixture."""
    held = zip(texts.parts(split).items(), readers(data, split).values(), data.mix, strict=True)
    sources = tuple(
        mix_plan.Source(name, text.documents, mixed_rows.size(rows), part.max_epochs)
        for (name, text), rows, part in held
    )
    stages_ = tuple((step, rows_before(data, step), w) for step, w in mix_parts.weights(data.mix))
    return mix_plan.MixPlan(sources, stages_, steps, functools.partial(rows_before, data))


# --- Batches ---------------------------------------------------------------------------------


class Steps:
    """The batches of a run by step: `steps[s]`. What grain reads ahead, in threads or processes.

    Of each global batch [B, T] it gives the rows of one process: the p-th of P equal slices.
    """

    def __init__(
        self,
        data: Data,
        split: texts.Text,
        start_step: int,
        process_index: int,
        process_count: int,
    ):
        check.refuse("", data.problems())
        for stage in stages(data):
            fits = f"a multiple of the {process_count} processes from step {stage.first_step} on"
            check.field("data.batch", stage.batch, stage.batch % process_count == 0, fits)
        self._data, self._start = data, start_step
        self._process, self._processes = process_index, process_count
        self._rows = ordered_rows(data, split)
        changes = [step for step, _ in mix_parts.weights(data.mix)] if data.mix else []
        firsts = {stage.first_step for stage in stages(data)} | {*changes}
        pairs = ((rows_before(data, step), rows_before(data, step + 1)) for step in sorted(firsts))
        self._rows.refuse_repeats(pairs)

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Arrive in another process: a worker, which must not outlive the run it reads for."""
        self.__dict__.update(state)
        prefetch.end_with_parent()

    def __len__(self) -> int:
        return prefetch.ENDLESS

    def __getitem__(self, index: int) -> batch.Batch | batch.Pairs:
        step = self._start + int(index)
        stage = stage_at(self._data, step)
        each = stage.batch // self._processes
        cut = self._data.seq // stage.seq  # short rows in a packed one
        low, high = self._process * each, (self._process + 1) * each
        first, last = low // cut, -(-high // cut)
        at = rows_before(self._data, step)
        draws: pack.Draws = [(self._data.seed, _TRAIN, at + i) for i in range(first, last)]
        long = self._rows.read(at + first, at + last, draws)
        short = pack.shorten(long, stage.seq) if isinstance(long, batch.Batch) else long
        return type(short)(*(array[low - first * cut : high - first * cut] for array in short))


def reader(data: Data, split: shards.Shards) -> mixed_rows.Reader:
    """The packed training rows; an epoch is `len(reader.rows)` of them."""
    if data.infill is None:
        return _reader(data, split, data.packing)
    marks = infilling.marks(data.infill, tokenizers.load(data.tokenizer))
    return infilling.reader(split.lengths, split, data.seq, data.infill, marks)


def _reader(data: Data, split: shards.Shards, packing: pack.Packing) -> mixed_rows.Reader:
    if data.corrupt is None:
        return pack.Reader(pack.pack(split.lengths, data.seq, packing), split)
    tokenizer = tokenizers.load(data.tokenizer)
    if isinstance(data.corrupt, mask.Mask):
        ids = mask.ids(data.corrupt, tokenizer)
        return mask.reader(split.lengths, split, data.seq, packing, data.corrupt, ids)
    marks = span.sentinels(data.corrupt, data.seq, tokenizer)
    eos = tokenizer.special["eos"]
    return span.reader(split.lengths, split, data.seq, data.corrupt, marks, eos)


def added_ids(data: Data, tokenizer: interface.Tokenizer) -> list[int]:
    """The ids in the batches that are not of the texts: mask, sentinels and marks.

    Raises: ValueError for a tokenizer that lacks what data.corrupt or data.infill needs.
    """
    if data.infill is not None:
        return [*infilling.marks(data.infill, tokenizer)]
    if isinstance(data.corrupt, mask.Mask):
        return [mask.ids(data.corrupt, tokenizer).mask]
    if isinstance(data.corrupt, span.Span):
        sentinels = span.sentinels(data.corrupt, data.seq, tokenizer)
        return [data.corrupt.start, *map(int, sentinels)]
    return []


def target_length(data: Data) -> int | None:
    """Target tokens of a row of pairs, of which data.seq is the source; None for other rows."""
    if not isinstance(data.corrupt, span.Span):
        return None
    return span.target_length(data.corrupt, data.seq)


def batches(
    data: Data,
    split: texts.Text,
    start_step: int = 0,
    process_index: int = 0,
    process_count: int = 1,
) -> Generator[batch.Batch | batch.Pairs]:
    """The endless batches from `start_step` on, read ahead; this process' slice of each.

    Law: the slices of all processes, one under the other, are the global batch, whatever the
    number of processes and workers, and resuming at step s gives what an uninterrupted run has
    there. Closing the iterator stops the workers.

    With data.workers > 0 the main module must be importable (`if __name__ == "__main__":`).

    Raises: ValueError with `Data.problems`, or if a batch does not divide over the processes.
    """
    steps = Steps(data, split, start_step, process_index, process_count)
    return prefetch.read_ahead(steps, data.workers)


def batch_at(
    data: Data,
    split: texts.Text,
    step: int,
    process_index: int = 0,
    process_count: int = 1,
) -> batch.Batch | batch.Pairs:
    """The batch of one step, read now. Packs anew at every call: for tests and a look."""
    return Steps(data, split, step, process_index, process_count)[0]


def val_rows(data: Data, split: shards.Shards) -> int:
    """Rows of a split, as `val_batches` packs it."""
    return len(_reader(data, split, "best_fit").rows)


def val_batches(
    data: Data, split: shards.Shards, process_index: int = 0, process_count: int = 1
) -> Iterator[batch.Batch | batch.Pairs]:
    """One pass over a split in order, in batches [data.batch, data.seq]; this process' slice.

    Always packed by best fit, so that documents that fit a row are predicted whole and runs with
    different packings are judged on the same rows. The last batch is filled up with rows of weight
    zero. Bits per byte = sum of weighted nats / log(2) / split.bytes: every byte and every end of
    a document is paid for. What data.corrupt hides is decided by data.seed: the same in every pass;
    data.infill moves nothing here.

    Raises: ValueError if data.batch does not divide over the processes.
    """
    fits = f"a multiple of the {process_count} processes"
    check.field("data.batch", data.batch, data.batch % process_count == 0, fits)
    each = data.batch // process_count
    return _in_order(data, _reader(data, split, "best_fit"), process_index * each, each)


def _in_order(
    data: Data, reader: mixed_rows.Reader, offset: int, each: int
) -> Iterator[batch.Batch | batch.Pairs]:
    total = len(reader.rows)
    for start in range(0, total, data.batch):
        wanted = np.arange(start + offset, start + offset + each)
        wanted = wanted[wanted < total]
        part = mixed_rows.read(reader, wanted, [(data.seed, _VAL, int(i)) for i in wanted])
        missing = each - len(part.tokens)
        yield type(part)(*(np.pad(array, ((0, missing), (0, 0))) for array in part))
