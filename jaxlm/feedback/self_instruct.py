"""Self-instruct: new instructions in the manner of given ones, each unlike all before it.

Wang et al. 2023 ("Self-Instruct"), section 2.2, and the filters of its code. The model is shown
numbered instructions, seeds and some of its own, and continues the list. Its reply is split at the
numbers; an instruction is kept if it passes the filters and its ROUGE-L with every seed and with
everything kept before it is at most `most_alike`.
"""

import dataclasses
import pathlib
import re
import string
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from jaxlm.core import check, keyed_random
from jaxlm.data.records import records
from jaxlm.decode.token_sampling import Sampling
from jaxlm.feedback import journal, output, rouge
from jaxlm.feedback.chat_model import Reply, Voice
from jaxlm.feedback.journal import Journal, Record

# Things that a model of text alone cannot do or be shown, by the code's list.
_KEYWORD = re.compile(
    r"\b(?:images?|graphs?|pictures?|files?|maps?|draw|plot|go to)\b", re.IGNORECASE
)
_NUMBER = re.compile(r"(?:^|\n)[ \t]*\d+[ \t]*[.)][ \t]*")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """Settings: how many instructions, in the manner of which, and how much they must differ."""

    seeds: str
    """Records with an `instruction`, such as Alpaca's: a file, directory or glob."""
    out: str
    """The .jsonl file that records are appended to; a later run goes on from there."""
    count: int = 100
    """Instructions wanted in all."""
    rounds: int = 100
    """Rounds at most, if there are not enough before."""
    requests: int = 8
    """Lists that are requested in a round; all of them see what was kept before it."""
    shown: int = 8
    """Instructions in each request."""
    own: int = 2
    """Instructions among those that are the model's own, as soon as there are as many."""
    most_alike: float = 0.7
    """The largest ROUGE-L that an instruction may have with another."""
    heading: str = "Here is a list of varied tasks that a writing assistant may be given:"
    """Line above the list."""
    seed: int = 0
    """Decides what is shown, and the samples."""
    sampling: Sampling = Sampling(max_new=512, stop_strings=("\n\n",))
    """Sampling of the lists; its own seed must stay 0."""


class Candidate(NamedTuple):
    """An instruction that the model wrote: the place-th of a request."""

    request: int
    place: int
    text: str


def run(voice: Voice, settings: Settings) -> output.Summary:
    """Append {instruction, round, shown, nearest, ...} until `out` has settings.count of them.

    What was left out is counted by reason, over this run.

    Raises: ValueError and FileNotFoundError, before anything is sampled, for settings and
    seeds that do not fit, and where the model has no room for a request.
    """
    seeds = [records.text(r, "instruction") for r in records.read(settings.seeds)]
    check.refuse("this feedback cannot start:", problems(settings, seeds))
    out = pathlib.Path(settings.out).expanduser()
    left: Counter[str] = Counter()
    with journal.opened(out, _provenance(voice, settings)) as kept:
        done = {record["id"] for record in kept.records}
        first = max((record["round"] for record in kept.records), default=0)
        for number in range(first, settings.rounds):
            if len(kept.records) >= settings.count:
                break
            _round(voice, settings, seeds, kept, done, number, left)
        written = len(kept.records) - kept.found
        return output.Summary(str(out), written, kept.found, dict(left), {})


def problems(settings: Settings, seeds: Sequence[str]) -> Iterator[str]:
    """Problems of the settings, a line for each field that does not fit."""
    yield from output.problems(settings)
    yield from check.outside("", settings, "count", "rounds", "requests", least=1)
    shown, have = settings.shown, len(seeds)
    fits = f"1 to {have}, the instructions of {settings.seeds}"
    yield from check.problem("shown", shown, 1 <= shown <= have, fits)
    own, fits = settings.own, f"0 to shown={shown}"
    yield from check.problem("own", own, 0 <= own <= shown, fits)
    yield from check.outside("", settings, "most_alike", least=0, most=1)


def _provenance(voice: Voice, settings: Settings) -> Record:
    seeds = records.fingerprint(settings.seeds)
    provenance = output.provenance("instruct", voice, settings, seeds=seeds)
    # a file may be continued with more of the same
    del provenance["settings"]["count"], provenance["settings"]["rounds"]
    return provenance


def _round(
    voice: Voice,
    settings: Settings,
    seeds: Sequence[str],
    kept: Journal,
    done: set[str],
    number: int,
    left: Counter[str],
) -> None:
    """One round. It may be one that was cut short: what it had kept is kept again, so that what
    follows is judged as if nothing had happened."""
    own = [r["instruction"] for r in kept.records if r["round"] < number]
    shown = [_shown(settings, seeds, own, number, i) for i in range(settings.requests)]
    talks = [[output.user(request(settings.heading, s))] for s in shown]
    if not all(voice.fits(talk, settings.sampling.max_new) for talk in talks):
        raise ValueError(
            f"sampling.max_new: a request of shown={settings.shown} instructions and "
            f"{settings.sampling.max_new} tokens exceed the model's positions; lower either"
        )
    drawn = [keyed_random.seed(settings.seed, "list", number, i) for i in range(settings.requests)]
    sampling = [dataclasses.replace(settings.sampling, seed=s) for s in drawn]
    pool, new = rouge.Pool([*seeds, *own]), []
    for candidate in candidates(voice.say(talks, sampling)):
        name = f"{number}.{candidate.request}.{candidate.place}"
        near = pool.nearest(candidate.text)
        reason = None if name in done else unfit(candidate.text, near, settings.most_alike)
        if reason is not None:
            left[reason] += 1
            continue
        pool.add(candidate.text)
        if name not in done and len(kept.records) + len(new) < settings.count:
            new.append({
                "id": name,
                "instruction": candidate.text,
                "round": number,
                "seed": drawn[candidate.request],
                "shown": shown[candidate.request],
                "nearest": {"rouge_l": near.score, "instruction": near.text},
            })  # fmt: skip
    if new:
        kept.append(new)


def _shown(
    settings: Settings, seeds: Sequence[str], own: Sequence[str], number: int, place: int
) -> list[str]:
    """The instructions of one request, the model's own among them, in a drawn order."""
    at = (settings.seed, "shown", number, place)
    mine = min(settings.own, len(own))
    picked = keyed_random.distinct(own, mine, *at, "own")
    picked += keyed_random.distinct(seeds, settings.shown - mine, *at, "seeds")
    return keyed_random.distinct(picked, len(picked), *at, "order")


def request(heading: str, shown: Sequence[str]) -> str:
    """The list that the model continues: it ends with the next number."""
    lines = [f"{i}. {' '.join(text.split())}" for i, text in enumerate(shown, 1)]
    return "\n".join([heading, *lines, f"{len(shown) + 1}."])


def candidates(replies: Sequence[Reply]) -> list[Candidate]:
    """The instructions in a reply, in order. The last of a list that was cut at the sampling
    length is left out, as it may be half an instruction."""
    instructions = []
    for number, reply in enumerate(replies):
        texts = [" ".join(part.split()) for part in _NUMBER.split(reply.text)]
        texts = [text for text in texts if text]
        texts = texts if reply.finished else texts[:-1]
        for i, text in enumerate(texts):
            instructions.append(Candidate(number, i, text[0].upper() + text[1:]))
    return instructions


def unfit(text: str, near: rouge.Near, most_alike: float) -> str | None:
    """Reason why an instruction is not kept; None if it is."""
    count = len(text.split())
    if count <= 3:
        return "3 words or fewer"
    if count > 150:
        return "more than 150 words"
    if _KEYWORD.search(text):
        return "needs more than text"
    if text.startswith("Write a program"):
        return "begins with 'Write a program'"
    if text[0] in string.punctuation:
        return "begins with punctuation"
    if not text[0].isascii():
        return "begins with a letter that is not ASCII"
    if near.score > most_alike:
        return "like another"
    return None
