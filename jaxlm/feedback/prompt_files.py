"""Prompts to respond to, from a file of records (data/records/records.py).

{"prompt": "..."}                               or a list of {role, content} messages
{"messages": [..., {"role": "user", ...}]}      a conversation; a last message of the assistant is
                                                left out, since the model is to write it
{"instruction": "...", "input": "..."}          Alpaca's; the input may be empty or absent
"""

import collections
from collections.abc import Sequence
from typing import Any, NamedTuple

from jaxlm.data.records import messages as reading
from jaxlm.data.records import records
from jaxlm.data.records.messages import Message

Messages = tuple[Message, ...]


class Prompt(NamedTuple):
    """A prompt: messages, of which the last is the user's. id: its identity in outputs, which does
    not depend on its place in the file; record: the record that was read."""

    id: str
    messages: Messages
    record: records.Record


def read(name: str) -> list[Prompt]:
    """The prompts of a file, directory or glob, in order.

    Raises: FileNotFoundError; ValueError naming the place for a record without a prompt, and if
    there is no record.
    """
    name_of, prompts = Names(), []
    for record in records.read(name):
        conversation = messages(record)
        identity = name_of([m.plain() for m in conversation])
        prompts.append(Prompt(identity, conversation, record))
    if not prompts:
        raise ValueError(f"prompts: {name} holds no record")
    return prompts


class Names:
    """Names by what is named, JSON values: equal ones are numbered, so that each has its own."""

    def __init__(self) -> None:
        self._seen: collections.Counter[str] = collections.Counter()

    def __call__(self, *parts: Any) -> str:
        """The next name of these parts."""
        digest = records.digest(parts)[:16]
        self._seen[digest] += 1
        seen = self._seen[digest]
        return digest if seen == 1 else f"{digest}.{seen}"


def messages(record: records.Record) -> Messages:
    """The messages of a record up to the user's last. Raises: ValueError, as `read`."""
    value = record.value
    if "prompt" in value:
        conversation = _turns(record, "prompt")
    elif "messages" in value:
        conversation = _turns(record, "messages")
        while conversation and conversation[-1].role == "assistant":
            conversation = conversation[:-1]
    elif "instruction" in value:
        parts = [records.text(record, "instruction")]
        parts += [records.text(record, "input")] if value.get("input") else []
        conversation = (Message("user", "\n\n".join(parts)),)
    else:
        raise records.missing(record, "prompt", "messages", "instruction")
    if not conversation or conversation[-1].role != "user":
        raise ValueError(f"{record.origin}: the last message must be the user's")
    if variables := reading.variables(record):
        raise ValueError(
            f"{record.origin}: field {[*variables][0]!r} is for chat templates, which are given "
            "messages alone here; leave it out"
        )
    return reading.with_system(record, conversation)


def written(conversation: Sequence[Message]) -> Any:
    """The prompt as records have it: a string, or a list of messages where there are several."""
    if len(conversation) == 1:
        return conversation[0].text
    return [{"role": m.role, "content": m.text} | m.fields() for m in conversation]


def answered(conversation: Sequence[Message], answer: str) -> dict[str, Any]:
    """Prompt and answer as a record to train on (data/records/chats.py): prompt and completion, or
    messages where the prompt has several."""
    if len(conversation) == 1:
        return {"prompt": conversation[0].text, "completion": answer}
    return {"messages": written([*conversation, Message("assistant", answer)])}


def _turns(record: records.Record, field: str) -> Messages:
    given = record.value[field]
    if not isinstance(given, list):
        return (Message("user", records.text(record, field)),)
    return tuple(_message(f"{record.origin}: {field}[{i}]", m) for i, m in enumerate(given))


def _message(where: str, given: Any) -> Message:
    message = reading.read(given, where)
    if message.role not in (*reading.ROLES, "tool"):
        raise ValueError(f"{where}: role {message.role!r} is none of {[*reading.ROLES, 'tool']}")
    return message
