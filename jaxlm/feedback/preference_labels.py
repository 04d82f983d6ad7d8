"""AI preference labels: which of two responses follows a principle better, by the model's own odds.

The model is queried twice, with either response first; each time the softmax of the
log-probabilities of the two choices is its answer, and the mean of both has no bias for one
position. Bai et al. 2022 ("Constitutional AI"), section 4.1; Lee et al. 2023 ("RLAIF"), section 3.1
on the order.
"""

import dataclasses
import itertools
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from jaxlm.core import check, keyed_random
from jaxlm.data.records import records
from jaxlm.decode.token_sampling import Sampling
from jaxlm.feedback import output, principles, prompt_files
from jaxlm.feedback.chat_model import Conversation, Voice
from jaxlm.feedback.journal import Record
from jaxlm.feedback.principles import Constitution, Principle
from jaxlm.feedback.prompt_files import Messages


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """Settings: which responses are compared, and how."""

    pairs: str
    """Records: {prompt, response_a, response_b}; {prompt, responses}, of which every two different
    ones are compared; or those of `revise`, whose response_a is the first answer and response_b the
    last revision. A file, directory or glob."""
    out: str
    """The .jsonl file that records are appended to; those already in it are not made again."""
    constitution: str = principles.DEFAULT
    """A file of principles (principles.py), or "default"."""
    each: int = 1
    """Principles that each pair is compared by, drawn anew; their answers are averaged."""
    thought: bool = False
    """Whether the model thinks aloud before it chooses."""
    clamp: tuple[float, float] | None = None
    """Bounds of the preference, such as 0.4 0.6 with thoughts, whose choices are too sure."""
    seed: int = 0
    """Seed of principles and thoughts; with its pair's id it decides each: no other record
    matters."""
    batch: int = 256
    """Pairs that are compared together, and then written."""
    sampling: Sampling = Sampling(max_new=256)
    """Sampling of thoughts; its own seed must stay 0."""


class Pair(NamedTuple):
    """Two responses to one prompt."""

    id: str
    messages: Messages
    a: str
    b: str


class Judgement(NamedTuple):
    """Judgement by one principle: log_probs[order, choice], order 0 with response a first; and the
    thoughts of both orders, "" without."""

    principle: str
    log_probs: np.ndarray
    thoughts: tuple[str, str]

    @property
    def readings(self) -> tuple[float, float]:
        """The probability that b is better, as read with a first and with b first."""
        a_first, b_first = self.log_probs
        return _softmax(a_first[1] - a_first[0]), _softmax(b_first[0] - b_first[1])


def run(voice: Voice, settings: Settings) -> output.Summary:
    """Append {prompt, response_a, response_b, preference, judgements} of every pair that `out`
    lacks. preference is the probability that b is better; equal odds are 0.5.

    The summary's facts: "position_bias", how much likelier than half the first place is chosen, in
    the mean and with its sign; "flips", the share of readings that the order of the two reverses;
    "mass", the probability that the model replies with one of the choices at all.

    Raises: as `critique.run`.
    """
    constitution = principles.load(settings.constitution)
    check.refuse("this feedback cannot start:", problems(settings, constitution))
    pairs = read(settings.pairs)
    provenance = output.provenance(
        "label", voice, settings, constitution=principles.digest(constitution)
    )

    def label(part: Sequence[Pair], out: output.Output) -> None:
        judgements = _judged(voice, settings, constitution, part, out)
        for pair in part:
            if pair.id in judgements:
                out.keep(_record(settings, pair, judgements[pair.id]))

    return output.run(settings, provenance, pairs, label, _facts)


def problems(settings: Settings, constitution: Constitution) -> Iterator[str]:
    """Problems of the settings, a line for each field that does not fit."""
    yield from output.problems(settings)
    yield from check.outside("", settings, "batch", least=1)
    each, have = settings.each, len(constitution.principles)
    fits = f"1 to {have}, the principles of {settings.constitution}"
    yield from check.problem("each", each, 1 <= each <= have, fits)
    if not settings.thought:
        why = "without thought=True: nothing else is sampled"
        yield from check.changed("", settings, "sampling", why=why)
    low, high = settings.clamp or (0, 1)
    ok, fits = 0 <= low <= 0.5 <= high <= 1, "two numbers with 0 <= low <= 0.5 <= high <= 1"
    yield from check.problem("clamp", settings.clamp, ok, fits)


def read(name: str) -> list[Pair]:
    """The pairs of a file, directory or glob, in order.

    Raises: FileNotFoundError; ValueError naming the place for a record that has no two responses,
    and if no pair is left.
    """
    pairs = []
    name_of = prompt_files.Names()
    for record in records.read(name):
        messages = prompt_files.messages(record)
        for a, b in _responses(record):
            pairs.append(Pair(name_of([list(m) for m in messages], a, b), messages, a, b))
    if not pairs:
        raise ValueError(f"pairs: {name} holds no two different responses to a prompt")
    return pairs


def _responses(record: records.Record) -> Iterator[tuple[str, str]]:
    value = record.value
    if "responses" in value:
        given = value["responses"]
        if not isinstance(given, list) or not all(isinstance(text, str) for text in given):
            raise ValueError(f"{record.origin}: responses: a list of texts is needed")
        responses = list(dict.fromkeys(given))
    elif "response_a" in value:
        responses = [records.text(record, "response_a"), records.text(record, "response_b")]
    elif "rounds" in value:
        last = "completion" if "completion" in value else "messages"
        end = value[last] if last == "completion" else value[last][-1]["content"]
        responses = [records.text(record, "response"), end]
    else:
        raise records.missing(record, "responses", "response_a")
    return (pair for pair in itertools.combinations(responses, 2) if pair[0] != pair[1])


# --- Judging ---------------------------------------------------------------------------------


class _Question(NamedTuple):
    """One principle and one order; a_first: whether response a is the first choice."""

    pair: Pair
    principle: Principle
    a_first: bool


def _judged(
    voice: Voice,
    settings: Settings,
    constitution: Constitution,
    part: Sequence[Pair],
    out: output.Output,
) -> dict[str, list[Judgement]]:
    """{pair's id: a Judgement of each principle}; pairs that there is no room for are dropped."""
    questions = []
    for pair in part:
        drawn = keyed_random.distinct(
            constitution.principles, settings.each, settings.seed, pair.id, "principle"
        )
        for principle in drawn:
            questions += [_Question(pair, principle, a_first) for a_first in (True, False)]
    talks = [[output.user(question(constitution, settings.thought, *q))] for q in questions]
    thoughts = [""] * len(questions)
    lost: set[str] = set()
    if settings.thought:
        sampled = _thoughts(voice, settings, questions, talks, out)
        lost = {q.pair.id for q, s in zip(questions, sampled, strict=True) if s is None}
        thoughts = [thought or "" for thought in sampled]
        talks = [
            [*talk, output.assistant(thought), output.user(constitution.conclude)]
            for talk, thought in zip(talks, thoughts, strict=True)
        ]
    lost |= _without_room(voice, questions, talks, lost, out)
    left = [i for i, q in enumerate(questions) if q.pair.id not in lost]
    weighed = voice.weigh([talks[i] for i in left], constitution.choices) if left else []
    judgements: dict[str, list[Judgement]] = {}
    # [question, choice]: both orders of a question follow each other
    for at in range(0, len(left), 2):
        i, j = left[at : at + 2]
        both = np.array(weighed[at : at + 2], np.float64)
        judgement = Judgement(questions[i].principle.name, both, (thoughts[i], thoughts[j]))
        judgements.setdefault(questions[i].pair.id, []).append(judgement)
    return judgements


def question(
    constitution: Constitution, thought: bool, pair: Pair, principle: Principle, a_first: bool
) -> str:
    """Text that asks the model to compare the responses of a pair."""
    turns = [
        principles.fill(constitution.turn, {"role": m.role.capitalize(), "text": m.text})
        for m in pair.messages
    ]
    first, second = (pair.a, pair.b) if a_first else (pair.b, pair.a)
    parts = {"conversation": "".join(turns), "question": principle.choice, "a": first, "b": second}
    return principles.fill(constitution.think if thought else constitution.compare, parts)


def _thoughts(
    voice: Voice,
    settings: Settings,
    questions: Sequence[_Question],
    talks: Sequence[Conversation],
    out: output.Output,
) -> list[str | None]:
    seeds = [
        keyed_random.seed(settings.seed, q.pair.id, "thought", q.principle.name, q.a_first)
        for q in questions
    ]
    replies = out.say(voice, settings.sampling, [q.pair.id for q in questions], talks, seeds)
    return [None if r is None else r.text for r in replies]


def _without_room(
    voice: Voice,
    questions: Sequence[_Question],
    talks: Sequence[Conversation],
    lost: set[str],
    out: output.Output,
) -> set[str]:
    """Ids of pairs whose question leaves no room for a choice, now dropped."""
    full = {
        q.pair.id
        for q, talk in zip(questions, talks, strict=True)
        if q.pair.id not in lost and not voice.fits(talk, _CHOICE)
    }
    for name in sorted(full):
        out.drop(name, output.NO_ROOM)
    return full


_CHOICE = 16  # tokens that a choice may take, its end among them


# --- Records ---------------------------------------------------------------------------------


def preference(judgements: Sequence[Judgement], clamp: tuple[float, float] | None) -> float:
    """The probability that b is better: the mean over principles and both orders, then clamped."""
    mean = float(np.mean([j.readings for j in judgements]))
    return mean if clamp is None else min(max(mean, clamp[0]), clamp[1])


def _record(settings: Settings, pair: Pair, judgements: Sequence[Judgement]) -> Record:
    details = []
    for j in judgements:
        detail: Record = {"principle": j.principle, "log_probs": j.log_probs.tolist()}
        if settings.thought:
            detail["thoughts"] = list(j.thoughts)
        details.append(detail)
    return {
        "id": pair.id,
        "prompt": prompt_files.written(pair.messages),
        "response_a": pair.a,
        "response_b": pair.b,
        "preference": preference(judgements, settings.clamp),
        "judgements": details,
    }


def _facts(labelled: Sequence[Record]) -> dict[str, float]:
    judgements = [judgement for record in labelled for judgement in record["judgements"]]
    if not judgements:
        return {}
    every = np.stack([np.array(j["log_probs"]) for j in judgements])  # [n, order, choice]
    # [n, order]: the probability that the first place is chosen
    first = 1 / (1 + np.exp(every[..., 1] - every[..., 0]))
    a_better = np.stack([first[:, 0], 1 - first[:, 1]], 1)
    return {
        "judgements": len(every),
        "position_bias": float(first.mean() - 0.5),
        "flips": float(np.mean((a_better[:, 0] - 0.5) * (a_better[:, 1] - 0.5) < 0)),
        "mass": float(np.exp(every).sum(-1).mean()),
    }


def _softmax(difference: float) -> float:
    """e^d / (1 + e^d)."""
    return float(1 / (1 + np.exp(-difference)))
