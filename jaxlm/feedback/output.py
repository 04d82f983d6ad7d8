"""Output of a feedback run: records, those left out with the reason, and a summary."""

import collections
import contextlib
import dataclasses
import pathlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal, NamedTuple, Protocol, TypeVar

from jaxlm.core import check, config
from jaxlm.data.templates.template import Message
from jaxlm.decode.token_sampling import Sampling
from jaxlm.feedback import journal
from jaxlm.feedback.chat_model import Conversation, Reply, Voice
from jaxlm.feedback.journal import Journal, Record

Unfinished = Literal["drop", "keep"]

# Fields of settings that change no record, and those that are paths.
_EXECUTION = ("out", "batch")
_FILES = ("prompts", "pairs", "seeds", "constitution")

NO_ROOM = "the conversation and sampling.max_new exceed the model's positions"
UNFINISHED = "cut at sampling.max_new"
EMPTY = "empty reply"


class Summary(NamedTuple):
    """out: the file. written: records added now; found: those it had. dropped: how many inputs were
    left out in all, by reason; their ids are in `.NAME.dropped` next to the file. facts: other
    measurements over all records."""

    out: str
    written: int
    found: int
    dropped: dict[str, int]
    facts: dict[str, Any]


class _Named(Protocol):
    @property
    def id(self) -> str: ...


N = TypeVar("N", bound=_Named)


def problems(settings: Any) -> Iterator[str]:
    """Problems of the fields that all settings of feedback have, a line for each."""
    fits = "a name that ends in .jsonl"
    yield from check.problem("out", settings.out, settings.out.endswith(".jsonl"), fits)
    yield from check.choices("", settings)
    why = "where `seed` decides the seed of every sample"
    yield from check.changed("sampling", settings.sampling, "seed", why=why)
    why = "where each conversation has one reply"
    yield from check.changed("sampling", settings.sampling, "n", "best_of", why=why)


class Output:
    """Records on their way to a file: kept or dropped, and written together, batch by batch."""

    def __init__(self, kept: Journal, dropped: Journal):
        self._kept, self._dropped = kept, dropped
        self._keep: list[Record] = []
        self._drop: dict[str, str] = {}

    @property
    def records(self) -> list[Record]:
        """All records written so far, those of earlier runs first."""
        return self._kept.records

    def parts(self, given: Sequence[N], batch: int) -> Iterator[Sequence[N]]:
        """The inputs neither kept nor dropped yet, `batch` at a time."""
        done = self._kept.ids | self._dropped.ids
        left = [x for x in given if x.id not in done]
        for start in range(0, len(left), batch):
            yield left[start : start + batch]

    def keep(self, record: Record) -> None:
        """Add a record to the next write."""
        self._keep.append(record)

    def drop(self, name: str, reason: str) -> None:
        """Leave an input out, once and for all."""
        self._drop.setdefault(name, reason)

    def write(self) -> None:
        """Write what was kept and dropped to disk. Raises: io.WriteError."""
        if self._keep:
            self._kept.append(self._keep)
        if self._drop:
            self._dropped.append([{"id": i, "reason": why} for i, why in self._drop.items()])
        self._keep, self._drop = [], {}

    def say(
        self,
        voice: Voice,
        sampling: Sampling,
        names: Sequence[str],
        talks: Sequence[Conversation],
        seeds: Sequence[int],
    ) -> list[Reply | None]:
        """Samples the voice's reply in each conversation, each with its own seed; None, and the
        input is dropped, where there is no room for it."""
        fit = [i for i, talk in enumerate(talks) if voice.fits(talk, sampling.max_new)]
        for i in sorted(set(range(len(talks))) - set(fit)):
            self.drop(names[i], NO_ROOM)
        settings = [dataclasses.replace(sampling, seed=seeds[i]) for i in fit]
        replies: list[Reply | None] = [None] * len(talks)
        if fit:
            sampled = voice.say([talks[i] for i in fit], settings)
            for i, reply in zip(fit, sampled, strict=True):
                replies[i] = reply
        return replies

    def passes(self, name: str, reply: Reply, unfinished: Unfinished) -> bool:
        """Whether an answer is fit to be trained on; else it is dropped."""
        reason = flaw(reply, unfinished)
        if reason is not None:
            self.drop(name, reason)
        return reason is None

    def summary(self, facts: dict[str, Any]) -> Summary:
        """Summary of the records that were kept and dropped."""
        kept = self._kept
        reasons = collections.Counter(r["reason"] for r in self._dropped.records)
        return Summary(
            str(kept.path), len(kept.records) - kept.found, kept.found, dict(reasons), facts
        )


def flaw(reply: Reply, unfinished: Unfinished) -> str | None:
    """Reason not to train on an answer: a cut one would teach to end in the middle. None if there
    is none."""
    if not reply.text.strip():
        return EMPTY
    return UNFINISHED if unfinished == "drop" and not reply.finished else None


@contextlib.contextmanager
def opened(path: str, provenance: Record) -> Iterator[Output]:
    """The Output of a file. Raises: as `journal.opened`."""
    out = pathlib.Path(path).expanduser()
    # hidden, so that whoever trains on the folder does not read it
    reasons = out.with_name(f".{out.name}.dropped")
    with journal.opened(out, provenance) as kept, journal.opened(reasons, provenance) as dropped:
        yield Output(kept, dropped)


def run(
    settings: Any,
    provenance: Record,
    inputs: Sequence[N],
    process: Callable[[Sequence[N], Output], None],
    facts: Callable[[Sequence[Record]], dict[str, Any]] = lambda records: {},
) -> Summary:
    """Processes the inputs that settings.out lacks, settings.batch at a time: what `process` keeps
    and drops of a batch is on disk before the next begins. facts(all records) are those of the
    Summary. Raises: as `opened`."""
    with opened(settings.out, provenance) as out:
        for part in out.parts(inputs, settings.batch):
            process(part, out)
            out.write()
        return out.summary(facts(out.records))


def provenance(by: str, voice: Voice, settings: Any, **extra: Any) -> Record:
    """Provenance stored in every record: the model, all settings that matter, and the places of
    what was read. Those may move: a model is known by its run and step, a prompt by its id. extra:
    further entries."""
    values = config.to_dict(settings)
    del values["sampling"]["seed"]
    places = {name: values[name] for name in _FILES if name in values}
    return {
        "by": by,
        "model": config.without(voice.about, "folder"),
        "settings": {k: v for k, v in values.items() if k not in (*_EXECUTION, *_FILES)},
        journal.FILES: {"run": voice.about["folder"]} | places,
        **extra,
    }


def assistant(text: str) -> Message:
    """A message of the model."""
    return Message("assistant", text)


def user(text: str) -> Message:
    """A message to the model."""
    return Message("user", text)
