"""Records of preferences, in the formats in common use.

    pair       {prompt, chosen, rejected}            TRL's; with margin, or score_chosen and
                                                     score_rejected (UltraFeedback)
    hh         {chosen, rejected}                    whole transcripts (Bai et al. 2022, HH-RLHF)
    compared   {prompt, response_a, response_b, preference}
    ranked     {prompt, responses, ranks or scores}  k responses (InstructGPT)
    labelled   {prompt, completion, label}           one response, desirable or not (KTO)

A prompt or response is a string or a list of {role, content} messages. A response may be the whole
conversation, with its system message and earlier turns; `chosen` and `rejected` then need no
`prompt`. `system` may hold the system message; `tools`, `documents` and `chat_template_kwargs` go
to the chat template (messages.py).
"""

import math
import re
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

from jaxlm.data.records import messages as reading
from jaxlm.data.records import records
from jaxlm.data.records.messages import Message
from jaxlm.data.sources import source

Format = Literal["pair", "hh", "compared", "ranked", "labelled"]

Turns = tuple[Message, ...]


class Ranking(NamedTuple):
    """prompt: what is responded to. responses: what follows it, each ending with an assistant's
    message. rank: 0 is the best, equals a tie. preference: the probability that the ranking holds.
    score: a rating of each response, 0 where there is none. labelled: whether rank is instead
    whether the one response is undesirable. variables: inputs of the template other
    than messages."""

    prompt: Turns
    responses: tuple[Turns, ...]
    rank: tuple[int, ...]
    preference: float = 1.0
    score: tuple[float, ...] = ()
    labelled: bool = False
    variables: dict[str, Any] = {}


class Unusable(ValueError):
    """A record of the right form from which nothing can be learnt: it is left out and counted.
    Its text is the reason."""


def read(record: records.Record, format: Format | None) -> Ranking:
    """The ranking in a record; format None detects its format by its fields.

    Raises: Unusable for a record that compares nothing; ValueError naming the record's place for a
    missing field or a value that means nothing.
    """
    name = read_format(record) if format is None else format
    ranking, variables = _READERS[name](record), reading.variables(record)
    prompt = reading.with_system(record, ranking.prompt)
    return ranking._replace(prompt=prompt, variables=variables)


def pairs(record: records.Record) -> list[tuple[Turns, Turns]]:
    """[(prompt, response), ...] of a record {prompt, response (or completion)} or {prompt,
    responses}, ranked or not.

    Raises: ValueError naming the record's place for a missing field or a value that means nothing.
    """
    prompt = _turns(record, "prompt", "user")
    if "responses" in record.value:
        prompt, responses = _responses(record, prompt)
    else:
        name = "completion" if "completion" in record.value else "response"
        prompt, responses = _apart(record, prompt, {name: _turns(record, name, "assistant")})
    return [(reading.with_system(record, prompt), response) for response in responses]


def read_format(record: records.Record) -> Format:
    """The format that the record's fields are of. Raises: ValueError if there is none, or if it is
    a label, which is no comparison."""
    has = record.value.keys()
    for name, fields in _FIELDS.items():
        if fields <= has:
            if name == "labelled":
                raise ValueError(
                    f"{record.origin}: a labelled record ({sorted(has)}) compares nothing; give "
                    "data.format='labelled' if single responses are to be learnt from (kto)"
                )
            conversations = name == "hh" and not isinstance(record.value["chosen"], str)
            return "pair" if conversations else name
    raise ValueError(
        f"{record.origin}: fields {sorted(has)} are of no format; formats: "
        + "; ".join(f"{name} {sorted(fields)}" for name, fields in _FIELDS.items())
    )


_FIELDS: dict[Format, set[str]] = {
    "pair": {"prompt", "chosen", "rejected"},
    "hh": {"chosen", "rejected"},
    "compared": {"prompt", "response_a", "response_b", "preference"},
    "ranked": {"prompt", "responses"},
    "labelled": {"prompt", "completion", "label"},
}


# --- Formats ---------------------------------------------------------------------------------


def _pair(record: records.Record) -> Ranking:
    given = {name: _turns(record, name, "assistant") for name in ("chosen", "rejected")}
    if "prompt" in record.value:
        prompt, (chosen, rejected) = _apart(record, _turns(record, "prompt", "user"), given)
        if (
            chosen[:1] == rejected[:1]
        ):  # earlier turns of both, which say nothing of which is better
            prompt, chosen, rejected = _parted(record, prompt + chosen, prompt + rejected)
    else:
        prompt, chosen, rejected = _parted(record, *given.values())
    return _ranking(record, prompt, (chosen, rejected), (0, 1), score=_margin(record))


def _hh(record: records.Record) -> Ranking:
    transcripts = [_transcript(record, name) for name in ("chosen", "rejected")]
    prompt, chosen, rejected = _parted(record, *transcripts)
    return _ranking(record, prompt, (chosen, rejected), (0, 1), score=_margin(record))


def _compared(record: records.Record) -> Ranking:
    prompt = _turns(record, "prompt", "user")
    names = ("response_a", "response_b")
    both = {name: _turns(record, name, "assistant") for name in names}
    prompt, responses = _apart(record, prompt, both)
    given = record.value.get("preference")
    if isinstance(given, str) and given.lower() in _NAMES:
        b = _NAMES[given.lower()]
        if b == 0.5:
            raise Unusable("all responses are tied")
    else:
        b = _number(record, "preference", given, "'a', 'b', 'tie' or the probability of b")
        if not 0 <= b <= 1:
            raise ValueError(
                f"{record.origin}: preference {b} given; the probability that response_b is "
                "preferred is in [0, 1]: 0 is response_a, 1 is response_b"
            )
    rank = (1, 0) if b > 0.5 else (0, 1)
    return _ranking(record, prompt, responses, rank, preference=max(b, 1 - b))


_NAMES = {"a": 0.0, "response_a": 0.0, "b": 1.0, "response_b": 1.0, "tie": 0.5, "equal": 0.5}


def _ranked(record: records.Record) -> Ranking:
    prompt, responses = _responses(record, _turns(record, "prompt", "user"))
    if len(responses) < 2:
        raise Unusable("there is one response")
    kind = "ranks" if "ranks" in record.value else "scores"
    if kind not in record.value:
        raise records.missing(record, "ranks", "scores")
    values = record.value[kind]
    if not isinstance(values, list) or len(values) != len(responses):
        raise ValueError(
            f"{record.origin}: {kind}: {values!r} given; a number for each of the {len(responses)} "
            "responses is needed"
        )
    numbers = [_number(record, kind, v, "a number for each response") for v in values]
    better = [x if kind == "ranks" else -x for x in numbers]  # a rank of 1 is the best
    rank = tuple(sorted(set(better)).index(x) for x in better)
    score = tuple(numbers) if kind == "scores" else ()
    return _ranking(record, prompt, responses, rank, score=score)


def _responses(record: records.Record, prompt: Turns) -> tuple[Turns, tuple[Turns, ...]]:
    given = record.value.get("responses")
    if not isinstance(given, list) or not given:
        raise ValueError(f"{record.origin}: responses: {given!r} given; a list is needed")
    names = [f"responses[{i}]" for i in range(len(given))]
    pairs = zip(names, given)
    turns = {name: _messages(record, name, value, "assistant") for name, value in pairs}
    return _apart(record, prompt, turns)


def _labelled(record: records.Record) -> Ranking:
    given = {"completion": _turns(record, "completion", "assistant")}
    prompt, (response,) = _apart(record, _turns(record, "prompt", "user"), given)
    label = record.value.get("label")
    if not (isinstance(label, bool) or label in (0, 1)):
        raise ValueError(
            f"{record.origin}: label {label!r} given; true (desirable) or false is needed"
        )
    _check_response(record, response)
    return Ranking(prompt, (response,), (0 if label else 1,), labelled=True)


_READERS = {
    "pair": _pair,
    "hh": _hh,
    "compared": _compared,
    "ranked": _ranked,
    "labelled": _labelled,
}


# --- Parts -----------------------------------------------------------------------------------


def _ranking(
    record: records.Record,
    prompt: Turns,
    responses: tuple[Turns, ...],
    rank: tuple[int, ...],
    preference: float = 1.0,
    score: tuple[float, ...] = (),
) -> Ranking:
    for response in responses:
        _check_response(record, response)
    if len(set(responses)) == 1:
        raise Unusable("all responses are the same")
    if len(set(rank)) == 1:
        raise Unusable("all responses are tied")
    return Ranking(prompt, responses, rank, preference, score or (0.0,) * len(responses))


def _check_response(record: records.Record, response: Turns) -> None:
    if not response or response[-1].role != "assistant":
        raise Unusable("a response does not end with the assistant's message")
    if not response[-1].says:
        raise Unusable("a response is empty")


def _turns(record: records.Record, name: str, role: str) -> Turns:
    if name not in record.value:
        raise records.missing(record, name)
    return _messages(record, name, record.value[name], role)


def _messages(record: records.Record, name: str, value: Any, role: str) -> Turns:
    """Messages as they are given, or a string as one message of this role."""
    if isinstance(value, list):
        return tuple(_message(record, f"{name}[{i}]", x) for i, x in enumerate(value))
    return (Message(role, source.text(value, name, record.origin)),)


def _message(record: records.Record, name: str, value: Any) -> Message:
    return reading.read(value, f"{record.origin}: {name}")


def _apart(
    record: records.Record, prompt: Turns, given: dict[str, Turns]
) -> tuple[Turns, tuple[Turns, ...]]:
    """The prompt of all responses, and each without it. Where one is a whole conversation, its
    system message and earlier turns are of the prompt.

    Raises: Unusable where they have no prompt in common; ValueError as `messages.joined`.
    """
    parts = [reading.joined(prompt, turns, f"{record.origin}: {n}") for n, turns in given.items()]
    longest = max((part.prompt for part in parts), key=len)
    for name, part in zip(given, parts):
        if part.prompt != longest and part.prompt != prompt:
            raise Unusable("the responses are to different prompts")
        if part.prompt == prompt != longest and given[name][:1] != part.response[:1]:
            raise Unusable("the responses are to different prompts")
    return longest, tuple(part.response for part in parts)


def _parted(record: records.Record, a: Turns, b: Turns) -> tuple[Turns, Turns, Turns]:
    """The turns that both begin with, and how each goes on. Where they part in the user's turn, the
    assistant's before it is of both responses: it then does not show which is better."""
    same = 0
    while same < min(len(a), len(b)) and a[same] == b[same]:
        same += 1
    if same == len(a) == len(b):
        raise Unusable("all responses are the same")
    while same and not all(x[same:] and x[same].role == "assistant" for x in (a, b)):
        same -= 1
    if not same:
        raise Unusable("chosen and rejected have no prompt in common")
    return a[:same], a[same:], b[same:]


_SPEAKER = re.compile(r"\n\n(Human|Assistant):")


def _transcript(record: records.Record, name: str) -> Turns:
    r"""The turns of "\n\nHuman: ...\n\nAssistant: ...", without the spaces around each."""
    text = records.text(record, name)
    before, *turns = _SPEAKER.split(text)
    if before.strip() or not turns:
        raise ValueError(
            f"{record.origin}: {name}: {text[:40]!r} given; a transcript begins with "
            "'\\n\\nHuman:' or '\\n\\nAssistant:'. A pair of plain responses needs a prompt"
        )
    roles = {"Human": "user", "Assistant": "assistant"}
    return tuple(Message(roles[who], words.strip()) for who, words in zip(turns[::2], turns[1::2]))


def _margin(record: records.Record) -> tuple[float, ...]:
    value = record.value
    if "margin" in value:
        return (_number(record, "margin", value["margin"], "a number"), 0.0)
    names: Sequence[str] = ("score_chosen", "score_rejected")
    if all(name in value for name in names):
        return tuple(_number(record, name, value[name], "a number") for name in names)
    return ()


def _number(record: records.Record, name: str, value: Any, wanted: str) -> float:
    plain = isinstance(value, int | float) and not isinstance(value, bool)
    right = plain and math.isfinite(value)
    if not right:
        raise ValueError(f"{record.origin}: {name}: {value!r} given; {wanted} is needed")
    return float(value)
