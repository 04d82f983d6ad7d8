"""Calls of tools as a chat template writes them in an assistant's message, found by rendering one.

    <tool_call>                                                    open
    {"name": "get_time", "arguments": {"place": "Rome"}}           name="name" arguments="arguments"
    </tool_call>                                                   close

Templates agree on the messages that they are given (`tool_calls`, as OpenAI has them) and on little
else: the words around a call and the names of its two fields are read off what the template renders
for calls that are known.
"""

import json
from typing import Any, NamedTuple

from jaxlm.data.records.messages import Message
from jaxlm.data.templates import template
from jaxlm.data.templates.template import Template
from jaxlm.data.tokenizers import tokenizer as tokenizers

_NAMES = ("first_function", "second_function")
_ARGUMENTS = {"place": "Rome", "days": 3}


class Form(NamedTuple):
    """A call is `open`, a JSON object with the function's name in its field `name` and an object in
    `arguments`, and `close`. joint: the text between two such objects; None where a message has one
    call at most."""

    open: str
    close: str
    name: str
    arguments: str
    joint: str | None


def of(made: Template, tokenizer: tokenizers.Tokenizer) -> Form:
    """The Form of a template, which is given its tools. Raises: ValueError for a template that has
    no place for tools or for calls, and for calls that are no JSON objects or hold special tokens
    or more than a name and arguments."""
    user = Message("user", "a")
    before = template.text(made, tokenizer, [user], True)
    plain = template.text(made, tokenizer, [user, Message("assistant", "b")], False)
    single = template.text(made, tokenizer, [user, _calling(1)], False)
    if not plain.startswith(before + "b") or not single.startswith(before):
        raise ValueError(
            f"tools: template {made.name!r} does not go on from its generation prompt with the "
            "assistant's words; take another template, or leave tools out"
        )
    end = plain[len(before) + 1 :]
    written = single[len(before) :].removesuffix(end)
    start, stop, fields = _object(written, _NAMES[0], made.name)
    keys = {_key(fields, _NAMES[0]): "name", _key(fields, _ARGUMENTS): "arguments"}
    opened, closed = written[:start], written[stop:]
    marks = [name for name in tokenizer.marks if name in opened or name in closed]
    if {*keys} != {*fields} or marks:
        reason = f"special tokens ({marks[0]!r})" if marks else f"the fields {sorted(fields)}"
        raise ValueError(
            f"tools: template {made.name!r} writes calls with {reason}; JSON objects of a name and "
            "arguments, between ordinary text, are read"
        )
    joint = _joint(made, tokenizer, len(before), opened)
    name, arguments = keys
    return Form(opened, closed, str(name), str(arguments), joint)


def _joint(made: Template, tokenizer: tokenizers.Tokenizer, begun: int, opened: str) -> str | None:
    """The text between two calls of a message, which ends as the text before a call does."""
    user = Message("user", "a")
    try:
        double = template.text(made, tokenizer, [user, _calling(2)], False)[begun:]
        _, stop, _ = _object(double, _NAMES[0], made.name)
        start, _, _ = _object(double, _NAMES[1], made.name)
    except ValueError:
        return None  # the template refuses it, or leaves one out
    joint = double[stop:start]
    return joint if opened.strip() and joint.endswith(opened.strip() + _tail(opened)) else None


def _tail(text: str) -> str:
    return text[len(text.rstrip()) :]


def _calling(count: int) -> Message:
    """An assistant's message of so many calls."""
    calls = [
        {"id": f"call{i:05}", "type": "function", "function": {"name": n, "arguments": _ARGUMENTS}}
        for i, n in enumerate(_NAMES[:count])
    ]
    return Message("assistant", "", json.dumps({"tool_calls": calls}))


def _object(text: str, name: str, where: str) -> tuple[int, int, dict[str, Any]]:
    """(start, end, value) of the JSON object in a text that has the name as a field."""
    decoder, start = json.JSONDecoder(), text.find("{")
    while start >= 0:
        try:
            value, stop = decoder.raw_decode(text, start)
        except ValueError:
            value, stop = None, start
        if isinstance(value, dict) and name in value.values():
            return start, stop, value
        start = text.find("{", start + 1)
    raise ValueError(
        f"tools: template {where!r} does not write calls as JSON objects with a name and "
        "arguments, the form that is read"
    )


def _key(fields: dict[str, Any], value: Any) -> str | None:
    return next((key for key, one in fields.items() if one == value), None)
