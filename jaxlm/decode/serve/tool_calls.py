"""Tools of a chat: their definitions, the constraint that a reply calls one, and the calls that a
reply's text holds, as it arrives.

    reply    Let me see.<tool_call>{"name": "time", "arguments": {}}</tool_call>
    push     "Let me see.", Call("time", "{}")
"""

import json
from collections.abc import Sequence
from typing import Any, NamedTuple

from jaxlm.data.records.messages import Message
from jaxlm.data.templates.call_forms import Form
from jaxlm.decode import constraints
from jaxlm.decode.constraints import Constraint

# Where a schema's own references may point to.
_DEFINITIONS = ("$defs", "definitions")


class Call(NamedTuple):
    """A call of a function; arguments: JSON text, as OpenAI has it."""

    name: str
    arguments: str


def constraint(form: Form, functions: Sequence[dict[str, Any]], several: bool) -> Constraint:
    """The Constraint that a text is a call of one of the functions, or, if `several`, of one or
    more where the form has several. functions: {"name", "parameters": a JSON schema or missing}.

    Arguments match their function's schema. White space is where templates and `json.dumps` have
    it (`constraints.FIXED`).
    """
    rules = []
    for number, function in enumerate(functions):
        schema = dict(function.get("parameters") or {"type": "object"})
        shared = {name: schema.pop(name) for name in _DEFINITIONS if name in schema}
        fields = {form.name: {"const": function["name"]}, form.arguments: schema}
        call: dict[str, Any] = {
            "type": "object",
            "properties": fields,
            "required": [*fields],
            **shared,
        }
        call |= {"additionalProperties": False, "x-guidance": constraints.FIXED}
        rules.append(f"call{number}: %json {json.dumps(call)}")
    one = "(" + " | ".join(f"call{i}" for i in range(len(rules))) + ")"
    more = f" ({_literal(form.joint)} {one})*" if several and form.joint is not None else ""
    around = [_literal(form.open.lstrip()), one + more, _literal(form.close.rstrip())]
    return Constraint(grammar="\n".join([f"start: {' '.join(around)}", *rules]))


def _literal(text: str) -> str:
    """A text in Lark's syntax; nothing for none."""
    return json.dumps(text, ensure_ascii=False) if text else ""


class Reader:
    """The text of one reply as it arrives: words, and calls once they are whole.

    What looks like a call and is no JSON, or of no known function, is words. White space around
    calls is left out.
    """

    def __init__(self, form: Form, names: Sequence[str]):
        self.calls = 0
        self._form, self._names = form, frozenset(names)
        self._open, self._close = form.open.strip(), form.close.strip()
        self._held = ""
        self._space = ""  # before the call that begins
        self._inside = False
        self._said = False

    def push(self, text: str) -> list[str | Call]:
        """The words and calls that are certain now."""
        self._held += text
        return self._read(False)

    def finish(self) -> list[str | Call]:
        """The rest, when no text will follow."""
        return self._read(True)

    def _read(self, last: bool) -> list[str | Call]:
        parts: list[str | Call] = []
        while True:
            if not self._inside and not self._enter(parts, last):
                return parts
            end = self._whole_call(parts, last)
            if not end:
                return parts

    def _enter(self, parts: list[str | Call], last: bool) -> bool:
        """Whether a call begins; the words before it are said."""
        if self._open:
            place = self._held.find(self._open)
            if place >= 0:
                words = self._held[:place].rstrip()
                self._space = self._held[len(words) : place]
                self._say(parts, words)
                self._held, self._inside = self._held[place + len(self._open) :], True
                return True
            kept = 0 if last else _beginning(self._held, self._open)
        elif not self._said and not self.calls and self._held.lstrip()[:1] in ("", "{"):
            self._inside = self._held.strip() != ""
            if self._inside:
                return True
            kept = 0
        else:
            kept = 0
        # white space may stand before a call
        words = self._held[: len(self._held) - kept]
        words = words if last and not self.calls else words.rstrip()
        self._say(parts, words)
        self._held = self._held[len(words) :]
        return False

    def _say(self, parts: list[str | Call], words: str) -> None:
        words = words if self._said or not self.calls else words.lstrip()
        if words:
            parts.append(words)
            self._said = True

    def _whole_call(self, parts: list[str | Call], last: bool) -> bool:
        """Whether a call is whole, or is none."""
        place = self._held.find(self._close) if self._close else -1
        if not self._close and last:
            place = len(self._held)
        while place >= 0:
            call = self._call(self._held[:place])
            if call is not None:
                parts.append(call)
                self.calls += 1
                self._said = False
                self._held, self._inside = self._held[place + len(self._close) :], False
                return True
            place = self._held.find(self._close, place + 1) if self._close else -1
        if last and self._held:
            self._say(parts, self._space + self._open + self._held)
            self._held, self._inside = "", False
        return False

    def _call(self, text: str) -> Call | None:
        try:
            value = json.loads(text)
        except ValueError:
            return None
        keys = {self._form.name, self._form.arguments}
        if not isinstance(value, dict) or {*value} != keys:
            return None
        name, arguments = value[self._form.name], value[self._form.arguments]
        if name not in self._names or not isinstance(arguments, dict):
            return None
        return Call(name, json.dumps(arguments, ensure_ascii=False))


def _beginning(text: str, word: str) -> int:
    """Characters at the end of a text that begin a word."""
    return next(
        (n for n in range(min(len(word) - 1, len(text)), 0, -1) if word[:n] == text[-n:]), 0
    )


def with_objects(message: Message, where: str) -> Message:
    """The message with its calls' arguments as objects, which templates write, where OpenAI's
    clients send JSON text.

    Raises: ValueError naming the place for arguments that are no JSON object.
    """
    fields = message.fields()
    calls = fields.get("tool_calls")
    if not calls:
        return message
    for number, call in enumerate(calls):
        place = f"{where}: tool_calls[{number}]"
        function = call.get("function") if isinstance(call, dict) else None
        if not isinstance(function, dict) or not isinstance(function.get("name"), str):
            raise ValueError(f"{place}: {call!r:.80} given; a function with a name is needed")
        given = function.get("arguments", "{}")
        try:
            function["arguments"] = json.loads(given) if isinstance(given, str) else given
        except ValueError as error:
            raise ValueError(f"{place}: arguments {given!r:.60} are no JSON ({error})") from error
        if not isinstance(function["arguments"], dict):
            raise ValueError(f"{place}: arguments {given!r:.60} are no JSON object")
    return message._replace(more=json.dumps(fields, ensure_ascii=False))
