"""Messages of records: one reader for conversations, preferences and prompts.

    {"role": "user", "content": "..."}                  or content as [{"type": "text", "text": ..}]
    {"role": "assistant", "content": "...", "reasoning_content": "...", "tool_calls": [...]}
    {"role": "tool", "content": "...", "name": "get_time", "tool_call_id": "c1"}

Fields other than role and content travel with the message to the chat template, which is refused
where it does not read them (template.py). Null fields count as absent. Metadata without meaning
for the conversation (`INERT`) is left out.
"""

import json
from collections.abc import Sequence
from typing import Any, NamedTuple

from jaxlm.data.records import records
from jaxlm.data.records.records import Record
from jaxlm.data.sources import source

ROLES = ("system", "user", "assistant")

INERT = frozenset(
    ("annotations", "conversation_id", "country", "create_time", "created", "created_at", "date",
     "feedback", "finish_reason", "hashed_ip", "header", "id", "index", "lang", "language",
     "logprobs", "message_id", "metadata", "model", "parent_id", "rating", "redacted", "score",
     "source", "state", "timestamp", "timestamps", "token_count", "tokens", "toxic",
     "turn_identifier", "update_time", "usage", "user_id", "uuid")
)  # fmt: skip
"""Fields of a message that no model learns from; a template that reads one is given it."""

_ANSWERING = frozenset(
    ("name", "tool_call_id")
)  # inert in a tool's message: order determines whose it is
_TOOLS = frozenset(("tool", "function"))
# Types of the parts of a content that hold a text, by OpenAI's names.
TEXT_PARTS = ("text", "input_text", "output_text")


class Message(NamedTuple):
    """One role's message. more: the message's other fields as a JSON object, "" if it has none."""

    role: str
    text: str
    more: str = ""

    @property
    def says(self) -> bool:
        """Whether there is something to learn in it: text, a thought or a call."""
        return bool(self.text.strip()) or any(self.fields().values())

    def fields(self) -> dict[str, Any]:
        """The message's other fields."""
        return json.loads(self.more) if self.more else {}

    def plain(self) -> list[str]:
        """Its identity as JSON: [role, text], and the other fields where it has some."""
        return [self.role, self.text, *([self.more] if self.more else [])]


def read(value: Any, where: str, role: str = "role", text: str = "content") -> Message:
    """The message of a JSON object; `role` and `text` name its fields.

    Raises: ValueError naming the place and the field that is missing or of a wrong type.
    """
    if not isinstance(value, dict) or not isinstance(value.get(role), str):
        raise ValueError(
            f"{where}: expected an object with {role} and {text}, both strings, got "
            f"{json.dumps(value, ensure_ascii=False)[:80]}"
        )
    more = {k: v for k, v in value.items() if k not in (role, text, "weight") and v is not None}
    content = value.get(text)
    if content is None and _calls(more):
        # as OpenAI's files write a message that only calls
        more |= {"content": None} if text in value else {}
        content = ""
    elif isinstance(content, list):
        content = "".join(_part(p, f"{where}: {text}[{i}]") for i, p in enumerate(content))
    elif text not in value:
        raise records.missing(Record(value, where), text)
    words = source.text(content, text, where)
    return Message(value[role], words, json.dumps(more, ensure_ascii=False) if more else "")


def worded(message: Message) -> Message:
    """The message with an empty text in place of a null content."""
    fields = message.fields()
    if "content" not in fields:
        return message
    del fields["content"]
    return message._replace(more=json.dumps(fields, ensure_ascii=False) if fields else "")


def _calls(more: dict[str, Any]) -> bool:
    return bool(more.get("tool_calls") or more.get("function_call"))


def _part(value: Any, where: str) -> str:
    if not isinstance(value, dict):
        raise ValueError(f"{where}: {value!r} given; an object {{type, text}} is needed")
    if value.get("type", "text") not in TEXT_PARTS:
        raise ValueError(
            f"{where}: a part of type {value['type']!r} given; only parts of text are read, "
            'such as {"type": "text", "text": "..."}'
        )
    return records.text(Record(value, where), "text")


def unread(message: Message, known: frozenset[str]) -> list[str]:
    """The fields that a template which reads `known` would drop although they say something."""
    idle = INERT | _ANSWERING if message.role in _TOOLS else INERT
    return [
        name
        for name, value in message.fields().items()
        if name not in known and name not in idle and value not in (None, "", [], {})
    ]


def variables(record: Record) -> dict[str, Any]:
    """Inputs of a record's chat template other than messages: `tools`, `documents`, and each of
    `chat_template_kwargs`. Null and empty ones count as absent.

    Raises: ValueError naming the record's place for a field of a wrong type, and for `functions`
    and `history`, which are read nowhere.
    """
    fields: dict[str, Any] = {}
    for name in ("tools", "documents"):
        value = record.value.get(name)
        if isinstance(value, str) and value.strip():  # as ShareGPT files hold tools
            try:
                value = json.loads(value)
            except json.JSONDecodeError as error:
                raise ValueError(f"{record.origin}: field {name!r} is no JSON ({error})") from error
        if value is None or value == "":
            continue
        if not isinstance(value, list):
            raise ValueError(f"{record.origin}: field {name!r} holds {value!r}; a list is needed")
        fields |= {name: value} if value else {}
    named = record.value.get("chat_template_kwargs")
    if named is not None and not isinstance(named, dict):
        raise ValueError(
            f"{record.origin}: field 'chat_template_kwargs' holds {named!r}; an object is needed"
        )
    for name, instead in (("functions", "'tools'"), ("history", "earlier messages")):
        if record.value.get(name):
            raise ValueError(
                f"{record.origin}: field {name!r} is not read; write {instead} in its place"
            )
    return fields | (named or {})


def with_system(record: Record, given: Sequence[Message]) -> tuple[Message, ...]:
    """The messages after the system message in the record's field `system` or `system_prompt`.

    Raises: ValueError where they have another one.
    """
    for name in ("system", "system_prompt"):
        if record.value.get(name) is None or not (text := records.text(record, name)):
            continue
        own = [m.text for m in given if m.role == "system"]
        if own and own[0] != text:
            raise ValueError(
                f"{record.origin}: field {name!r} and the messages hold two system messages; one "
                "is needed"
            )
        return tuple(given) if own else (Message("system", text), *given)
    return tuple(given)


class Apart(NamedTuple):
    """A prompt, and what follows it."""

    prompt: tuple[Message, ...]
    response: tuple[Message, ...]


def joined(prompt: Sequence[Message], response: Sequence[Message], where: str) -> Apart:
    """The prompt and its response, where the response may be the whole conversation: it repeats
    the prompt's messages, perhaps after a system message or earlier turns, which are the prompt's.

    Raises: ValueError where the response begins with another message than the assistant's and does
    not repeat the prompt, and where both have a system message, and not the same.
    """
    if not response or response[0].role in ("assistant", *_TOOLS):
        return Apart(tuple(prompt), tuple(response))
    theirs, answer = _headed(response)
    ours, question = _headed(prompt)
    if ours and theirs and ours[0].text.strip() != theirs[0].text.strip():
        raise ValueError(f"{where}: begins with another system message than its prompt")
    size = len(question)
    for at in range(len(answer) - size + 1):
        if all(map(_same, answer[at : at + size], question)):
            return Apart((*(theirs or ours), *answer[: at + size]), tuple(answer[at + size :]))
    raise ValueError(
        f"{where}: begins with a message of {response[0].role!r} and does not repeat the prompt; "
        "give the assistant's answer alone, or the whole conversation"
    )


def _headed(messages: Sequence[Message]) -> tuple[Sequence[Message], Sequence[Message]]:
    head = 1 if messages and messages[0].role == "system" else 0
    return messages[:head], messages[head:]


def _same(a: Message, b: Message) -> bool:
    return a.role == b.role and a.text.strip() == b.text.strip() and a.more == b.more
