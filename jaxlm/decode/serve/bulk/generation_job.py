"""Texts for all prompts of a source: checked before compute, decoded, counted as they end.

    job = Job(model, params, tokenizer, records, turn, Sampling(max_new=64))
    size = survey(job)                              # reads all prompts once
    for number, record, rows in texts(job, begin(job, size, slots=16)): ...
    write(job, "texts.jsonl", identity, slots=16)   # all of it, to a file

Prompts are read twice and never all in memory.
"""

import dataclasses
import functools
import hashlib
import json
import os
import time
from collections.abc import Callable, Container, Iterator
from typing import Any, NamedTuple

from jaxlm.core import log, param
from jaxlm.data.records.records import Record
from jaxlm.data.tokenizers import tokenizer as tokenizers
from jaxlm.decode import completions, prompt_tokens, token_sampling
from jaxlm.decode.completions import Completion
from jaxlm.decode.constraints import Constraint
from jaxlm.decode.prompt_tokens import Turn
from jaxlm.decode.sampling_settings import Sampling
from jaxlm.decode.serve import engine
from jaxlm.decode.serve.bulk import bandwidth, finished_texts, many_prompts
from jaxlm.decode.serve.capacities import Capacity
from jaxlm.models.model import Model

_SHOWN_SECONDS = 0.5  # between two updates of the numbers next to a bar
_STEPS = 8  # tokens between two looks at the slots


class Job(NamedTuple):
    """Prompts, and all that decides their texts. records: gives the prompts anew at each call.
    turn: a record's tokens. sampling: its seed is that of the first continuation, and continuation
    i of prompt r has seed + r * n + i (`best_of` in place of n where it is given)."""

    model: Model
    params: param.Tree
    tokenizer: tokenizers.Tokenizer
    records: Callable[[], Iterator[Record]]
    turn: Callable[[Record], Turn]
    sampling: Sampling
    constraint: Constraint | None = None


class Size(NamedTuple):
    """count: of prompts. length: tokens of the longest and its continuation at most. digest: a
    SHA-256 of all records and tokens."""

    count: int
    length: int
    digest: str


class Totals(NamedTuple):
    """count: prompts with texts; found: those that had them before. tokens: generated now, in
    `seconds`. share: of the memory's bandwidth that decoding took, None if nothing was decoded."""

    count: int
    found: int
    tokens: int
    seconds: float
    share: float | None


def survey(job: Job) -> Size:
    """The Size of a job.

    Raises: ValueError, naming the record, for the first prompt that the model cannot continue by
    sampling.max_new tokens, for a job without prompts, and for a model whose texts are not
    independent of each other.
    """
    if job.model.kind != "decoder":
        raise ValueError(f"prompts: a {job.model.kind} model does not continue texts")
    token_sampling.check_independent(job.model, "prompts")
    content = hashlib.sha256()
    count = length = 0
    settings = functools.cache(functools.partial(_settings, job))
    for number, record in enumerate(job.records()):
        turn = job.turn(record)
        try:
            token_sampling.check_prompt(job.model, number, turn.tokens, settings(turn.stops))
        except ValueError as error:
            reason = str(error).removeprefix(f"prompt {number}: ")
            raise ValueError(f"{record.origin}: {reason}") from error
        content.update(json.dumps([record.value, turn]).encode())
        count, length = number + 1, max(length, len(turn.tokens) + job.sampling.max_new)
    if not count:
        raise ValueError("prompts: none given; at least one is needed")
    return Size(count, length, content.hexdigest())


class Decoding(NamedTuple):
    """running: the engine. meter: what it did. memory: bytes per second that the device's memory
    gives; None where nobody asked."""

    running: engine.Engine
    meter: many_prompts.Meter
    memory: float | None

    @property
    def share(self) -> float | None:
        """Share of the memory's bandwidth that decoding took so far."""
        return None if self.memory is None else self.meter.bytes / self.meter.seconds / self.memory


def begin(job: Job, size: Size, slots: int, measure: bool = True) -> Decoding:
    """The Decoding of a job by an engine of so many slots. measure: the memory's bandwidth, which
    takes some tenths of a second. Raises: ValueError as `Engine`."""
    capacity = Capacity(slots, size.length, steps=_STEPS)
    params = token_sampling.prepare(job.model, job.params)
    running = engine.Engine(job.model, params, capacity, job.tokenizer)
    token_bytes = running.cache_bytes / (capacity.slots * capacity.room)
    reads = bandwidth.reads(job.model, params, token_bytes)
    memory = bandwidth.of_memory() if measure else None
    return Decoding(running, many_prompts.Meter(reads), memory)


def texts(
    job: Job,
    decoding: Decoding,
    shown: log.Log | None = None,
    have: Container[int] = (),
    found: int = 0,
) -> Iterator[tuple[int, Record, list[Completion]]]:
    """(number, record, continuations) of each prompt that is not among the `found` ones in `have`,
    as they end. shown: where prompts, tokens/s and the share of the memory's bandwidth go, if it
    has a bar. Raises: ValueError as `many_prompts.texts`."""
    pending: dict[int, Record] = {}
    settings = functools.cache(functools.partial(_settings, job))

    def requests() -> Iterator[many_prompts.Request]:
        for number, record in enumerate(job.records()):
            if number not in have:
                pending[number], turn = record, job.turn(record)
                seed = (job.sampling.seed + number * job.sampling.candidates) % 2**32
                sampling = dataclasses.replace(settings(turn.stops), seed=seed)
                yield many_prompts.Request(number, turn.tokens, sampling)

    done, updated = found, time.monotonic()
    made = many_prompts.texts(decoding.running, requests(), job.constraint, decoding.meter)
    for number, rows in made:
        yield number, pending.pop(number), rows
        done += 1
        if shown is not None and time.monotonic() > updated + _SHOWN_SECONDS:
            _show(shown, done, decoding)
            updated = time.monotonic()


def write(
    job: Job,
    out: str | os.PathLike[str],
    identity: dict[str, Any],
    slots: int,
    name: str | None = None,
) -> Totals:
    """Write a line of JSON for each continuation to `out`, in the order of the prompts: the
    prompt's record with `text` and `finish`. Texts are kept as they end (`finished_texts`), and not
    made again by another call with the same arguments.

    identity: what else decides the texts, the weights above all. name: of a bar on a terminal.

    Raises: ValueError as `survey`, `begin`, `texts` and `finished_texts.opened`; BlockingIOError
    and io.WriteError as they.
    """
    size = survey(job)
    decides = {
        **identity,
        "sampling": dataclasses.asdict(job.sampling),
        "constraint": None if job.constraint is None else dataclasses.asdict(job.constraint),
        "prompts": {"count": size.count, "sha256": size.digest},
    }
    with finished_texts.opened(out, decides, size.count) as kept:
        found = kept.have
        if found == size.count:
            kept.finish()
            return Totals(size.count, found, 0, 0.0, None)
        decoding = begin(job, size, slots)
        with log.open(name is not None, name or "", size.count) as bar:
            for number, record, rows in texts(job, decoding, bar, kept, found):
                added = [{**record.value, "text": r.text, "finish": r.finish} for r in rows]
                kept.add(number, added)
        share, meter = decoding.share, decoding.meter
        totals = Totals(size.count, found, meter.tokens, meter.seconds, share)
        kept.finish()
    return totals


def _show(bar: log.Log, done: int, decoding: Decoding) -> None:
    if bar.bar is not None:
        meter = decoding.meter
        rate = f"{meter.tokens / meter.seconds:,.0f} tokens/s"
        share = "" if decoding.share is None else f"  {decoding.share:.0%} of memory bandwidth"
        bar.progress(done, rate + share)


def _settings(job: Job, stops: tuple[int, ...]) -> Sampling:
    """The settings of a prompt with these stops, but for its seed."""
    return prompt_tokens.stopping(completions.with_eos(job.tokenizer, job.sampling), stops)
