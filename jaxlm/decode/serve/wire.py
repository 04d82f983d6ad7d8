"""Requests and answers in the form of OpenAI's API, version 1: completions and chat completions.

Fields as in https://platform.openai.com/docs/api-reference; a field that is not here, or a value
that the engine cannot honour, is refused by its name. top_k, min_p and repetition_penalty are
additions.
"""

import json
import re
import time
import uuid
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import pydantic

from jaxlm.data.records import messages
from jaxlm.data.records.messages import Message
from jaxlm.decode.constraints import Constraint, Whitespace
from jaxlm.decode.serve import tool_calls
from jaxlm.decode.serve.engine import Part
from jaxlm.decode.token_sampling import Sampling

# Settings in the engine's messages: sampling.stop_strings, max_new, prompt 0, of row 0.
_SETTING = re.compile(
    r"\b(sampling|constraint)\.(\w+)|\bmax_new\b|^(top|constraint)\b|^prompt \d+\b| of row \d+\b"
)
_SENT = {
    "sampling.stop_strings": "stop",
    "constraint": "response_format",
    "constraint.choices": "response_format.choice",
    "constraint.json_schema": "response_format.json_schema.schema",
}
FINISH = {"stop_token": "stop", "stop_string": "stop", "length": "length"}


class Refused(ValueError):
    """A request's fault. param: the field that is at fault, as the client sent it, if it is one."""

    def __init__(self, message: str, param: str | None):
        super().__init__(message)
        self.param = param


class Strict(pydantic.BaseModel):
    """A JSON object without unknown fields."""

    model_config = pydantic.ConfigDict(extra="forbid")


class StreamOptions(Strict):
    """Additions to a stream."""

    include_usage: bool = False


class JsonSchema(Strict):
    """A schema, and what OpenAI's clients send with it; it is always followed strictly."""

    name: str
    schema_: dict[str, Any] = pydantic.Field(alias="schema")
    strict: bool | None = None
    description: str | None = None


class ResponseFormat(Strict):
    """The form of an answer; regex, choice and grammar are additions, in fields of their names, and
    so is whitespace, JSON's (`Constraint.whitespace`)."""

    type: Literal["text", "json_object", "json_schema", "regex", "choice", "grammar"] = "text"
    json_schema: JsonSchema | None = None
    regex: str | None = None
    choice: list[str] | None = None
    grammar: str | None = None
    whitespace: Whitespace = "fixed"

    def constraint(self) -> Constraint | None:
        """The constraint. Raises: ValueError where the type's field is missing, or others are
        given."""
        fields = ("json_schema", "regex", "choice", "grammar")
        given = [name for name in fields if getattr(self, name) is not None]
        wanted = [self.type] if self.type in fields else []
        if given != wanted:
            raise ValueError(
                f"response_format: type {self.type!r} given with {given or 'nothing'}; "
                f"{wanted or 'nothing'} is needed"
            )
        if self.type == "json_object":
            return Constraint(json_schema='{"type": "object"}', whitespace=self.whitespace)
        if self.json_schema is not None:
            schema = json.dumps(self.json_schema.schema_)
            return Constraint(json_schema=schema, whitespace=self.whitespace)
        if self.whitespace != "fixed":
            raise ValueError(
                f"response_format.whitespace: {self.whitespace!r} given with type {self.type!r}; "
                "it is of 'json_object' and 'json_schema'"
            )
        if self.choice is not None:
            return Constraint(choices=tuple(self.choice))
        return None if not given else Constraint(regex=self.regex, grammar=self.grammar)


class Function(Strict):
    """A function that a model may call. strict is accepted: calls that are required always follow
    the schema."""

    name: str = pydantic.Field(pattern=r"^[a-zA-Z0-9_-]{1,64}$")
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class Tool(Strict):
    """A tool."""

    type: Literal["function"]
    function: Function


class FunctionName(Strict):
    """The name of a function."""

    name: str


class Named(Strict):
    """A function that has to be called."""

    type: Literal["function"]
    function: FunctionName


class Request(Strict):
    """Fields of both kinds of requests. user is accepted and not read."""

    model: str
    max_tokens: int | None = None
    temperature: float = 1.0
    top_p: float = 1.0
    n: int = pydantic.Field(1, ge=1, le=128)
    stream: bool = False
    stream_options: StreamOptions | None = None
    stop: str | list[str] | None = None
    seed: int | None = None
    user: str | None = None
    top_k: int | None = None
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: dict[int, float] | None = None
    response_format: ResponseFormat | None = None

    def refused(self, message: str, prompt: str = "", called: bool = False) -> Refused:
        """The error with the names of the client's fields in place of the engine's settings.

        prompt: the place of the prompt in its field, such as "[2]". called: whether the constraint
        is that of the tools.
        """
        chat = "messages" in type(self).model_fields
        newer = getattr(self, "max_completion_tokens", None) is not None
        most = "max_completion_tokens" if newer else "max_tokens"
        top = "top_logprobs" if chat else "logprobs"
        names = _SENT | {"max_new": most, "sampling.max_new": most, "top": top}

        def sent(name: re.Match[str]) -> str:
            text = name[0]
            if text.startswith("constraint") and called:
                return "tools"
            if text.startswith("prompt "):
                return "messages" if chat else f"prompt{prompt}"
            if text.startswith(" of row"):
                return ""
            return (
                names.get(text) or ("" if name[1] == "sampling" else "response_format.") + name[2]
            )

        message = _SETTING.sub(sent, message)
        field = re.match(r"(\w+)[\w.\[\]]*", message)
        known = field is not None and field[1] in type(self).model_fields
        return Refused(message, field[0] if field is not None and known else None)

    def strings(self) -> tuple[str, ...]:
        """The stop strings."""
        if self.stop is None:
            return ()
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop)

    def sampling(self, max_new: int, seed: int, defaults: Sampling) -> Sampling:
        """The settings of the engine. Raises: ValueError as `Sampling`."""
        return Sampling(
            max_new=max_new,
            temperature=self.temperature,
            top_k=self.top_k,
            top_p=self.top_p,
            min_p=self.min_p,
            repetition_penalty=self.repetition_penalty,
            presence_penalty=self.presence_penalty,
            frequency_penalty=self.frequency_penalty,
            logit_bias=tuple((self.logit_bias or {}).items()),
            stop_tokens=defaults.stop_tokens,
            stop_strings=self.strings(),
            seed=(seed if self.seed is None else self.seed) % 2**32,
        )


class Completion(Request):
    """POST /v1/completions."""

    prompt: str | list[int] | list[str] | list[list[int]]
    logprobs: int | None = pydantic.Field(None, ge=0, le=5)

    @property
    def top(self) -> int:
        """Likeliest tokens of each place that are wanted."""
        return self.logprobs or 0

    def prompts(self) -> list[str | list[int]]:
        """One or several texts, or token ids."""
        given: Any = self.prompt
        many = isinstance(given, list) and (not given or not isinstance(given[0], int))
        return list(given) if many else [given]


class Chat(Request):
    """POST /v1/chat/completions."""

    messages: list[dict[str, Any]] = pydantic.Field(min_length=1)
    max_completion_tokens: int | None = None
    logprobs: bool = False
    top_logprobs: int | None = pydantic.Field(None, ge=0, le=20)
    tools: list[Tool] | None = None
    tool_choice: Literal["none", "auto", "required"] | Named | None = None
    parallel_tool_calls: bool = True

    @property
    def top(self) -> int:
        """Likeliest tokens of each place that are wanted. Raises: ValueError without logprobs."""
        if self.top_logprobs is not None and not self.logprobs:
            raise ValueError(f"top_logprobs: {self.top_logprobs} given; it needs logprobs=true")
        return self.top_logprobs or 0

    def conversation(self) -> list[Message]:
        """The messages. Raises: ValueError naming the place and what is missing."""
        places = [(m, f"messages[{i}]") for i, m in enumerate(self.messages)]
        return [tool_calls.with_objects(messages.read(m, at), at) for m, at in places]

    def functions(self) -> list[dict[str, Any]]:
        """The tools as a template writes them; none where none may be called.

        Raises: ValueError for a choice that fits no tool, and for two tools of one name.
        """
        tools = [tool.model_dump(exclude_none=True) for tool in self.tools or []]
        names = [tool["function"]["name"] for tool in tools]
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice is not None:
            raise ValueError(f"tools: two functions are named {twice!r}; names must differ")
        choice = self.tool_choice
        if isinstance(choice, Named) and choice.function.name not in names:
            raise ValueError(
                f"tool_choice: function {choice.function.name!r} given; the tools are {names}"
            )
        if choice is not None and choice != "none" and not tools:
            raise ValueError(f"tool_choice: {choice!r} given without tools; 'none' fits")
        return [] if choice == "none" else tools

    def required(self) -> list[dict[str, Any]]:
        """The functions of which one has to be called; none where a reply may do without."""
        functions = [tool["function"] for tool in self.functions()]
        if isinstance(self.tool_choice, Named):
            return [f for f in functions if f["name"] == self.tool_choice.function.name]
        return functions if self.tool_choice == "required" else []


class Scored(NamedTuple):
    """A part's tokens for log-probabilities: the bytes of each, and its place's likeliest with
    theirs."""

    pieces: list[bytes]
    top: list[list[tuple[bytes, float]]]


def completion_choice(index: int, part: Part, scored: Scored | None) -> dict[str, Any]:
    """A choice of a completion, whole or a part of it."""
    scores = None
    if scored is not None:
        named = []
        for piece, log_prob, place in zip(scored.pieces, part.log_probs, scored.top):
            # tokens of one text keep the likeliest's; the one that was taken is always there
            named.append(dict([(_text(piece), log_prob)] + [(_text(b), x) for b, x in place[::-1]]))
        scores = {
            "tokens": [_text(piece) for piece in scored.pieces],
            "token_logprobs": part.log_probs,
            "top_logprobs": named or None,
            "text_offset": None,
        }
    reason = None if part.finish is None else FINISH[part.finish]
    return {"index": index, "text": part.text, "logprobs": scores, "finish_reason": reason}


def chat_choice(
    index: int,
    part: Part,
    scored: Scored | None,
    stream: bool,
    first: bool,
    reader: tool_calls.Reader | None = None,
) -> dict[str, Any]:
    """A choice of a chat completion: the message, or what a stream adds to it. reader: of the
    sequence's text, where it may call tools."""
    said: dict[str, Any] = {"content": part.text}
    reason = None if part.finish is None else FINISH[part.finish]
    if reader is not None:
        before = reader.calls
        pieces = reader.push(part.text)
        pieces += reader.finish() if reason is not None else []
        words = "".join(piece for piece in pieces if isinstance(piece, str))
        calls = [piece for piece in pieces if isinstance(piece, tool_calls.Call)]
        said["content"] = words if words or not reader.calls else None
        if calls:
            said["tool_calls"] = [_call(before + i, call, stream) for i, call in enumerate(calls)]
        reason = "tool_calls" if reader.calls and reason == "stop" else reason
    if first or not stream:
        said = {"role": "assistant", **said}
    scores = None
    if scored is not None:
        tops = scored.top or [[]] * len(scored.pieces)
        rows = zip(scored.pieces, part.log_probs, tops, strict=True)
        content = [
            _scored(b, x) | {"top_logprobs": [_scored(*pair) for pair in top]} for b, x, top in rows
        ]
        scores = {"content": content, "refusal": None}
    name = "delta" if stream else "message"
    return {"index": index, name: said, "logprobs": scores, "finish_reason": reason}


def _call(number: int, call: tool_calls.Call, stream: bool) -> dict[str, Any]:
    """A call in a message, or in what a stream adds to it."""
    fields = {"id": f"call_{uuid.uuid4().hex[:24]}", "type": "function", "function": call._asdict()}
    return {"index": number, **fields} if stream else fields


def _scored(piece: bytes, log_prob: float) -> dict[str, Any]:
    return {"token": _text(piece), "logprob": log_prob, "bytes": list(piece)}


def _text(piece: bytes) -> str:
    """A token's bytes as text, U+FFFD where it is a part of a character."""
    return piece.decode("utf-8", "replace")


def usage(prompt: int, completion: int, cached: int) -> dict[str, Any]:
    """Tokens read, written, and read from what was computed before."""
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
        "prompt_tokens_details": {"cached_tokens": cached},
    }


def answer(
    kind: str, identity: str, model: str, choices: Sequence[Any], counts: Any = None
) -> dict[str, Any]:
    """An answer or one event of a stream."""
    body = {
        "id": identity,
        "object": kind,
        "created": int(time.time()),
        "model": model,
        "choices": list(choices),
    }
    return body if counts is None else body | {"usage": counts}


def event(body: Any) -> str:
    """One server-sent event."""
    return f"data: {body if isinstance(body, str) else json.dumps(body)}\n\n"


def place(loc: Sequence[Any], body: Any, missing: bool) -> str:
    """A field as the client wrote it, of pydantic's path to it, which has the names of a union's
    types, too: ("body", "stop", "str") is "stop". missing: whether the last field is not there."""
    names = []
    for number, key in enumerate(loc):
        row = isinstance(body, list) and isinstance(key, int) and key < len(body)
        if row or (isinstance(body, dict) and key in body):
            body = body[key]
            names.append(key)
        elif missing and number == len(loc) - 1:
            names.append(key)
    return "".join(f"[{n}]" if isinstance(n, int) else f".{n}" for n in names).lstrip(".")


def error(message: str, param: str | None = None, kind: str = "invalid_request_error") -> Any:
    """The body of an error."""
    return {"error": {"message": message, "type": kind, "param": param, "code": None}}
