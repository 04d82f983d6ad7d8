"""Requests and answers in the form of OpenAI's API, version 1: completions and chat completions.

Fields as in https://platform.openai.com/docs/api-reference; a field that is not here, or a value
that the engine cannot honour, is refused by its name. top_k, min_p and repetition_penalty are
additions.
"""

import json
import time
from collections.abc import Sequence
from typing import Any, Literal

import pydantic

from jaxlm.data.records import messages
from jaxlm.data.records.messages import Message
from jaxlm.decode.constraints import Constraint
from jaxlm.decode.serve.engine import Part
from jaxlm.decode.token_sampling import Sampling

FINISH = {"stop_token": "stop", "stop_string": "stop", "length": "length"}


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
    """The form of an answer; regex, choice and grammar are additions, in fields of their names."""

    type: Literal["text", "json_object", "json_schema", "regex", "choice", "grammar"] = "text"
    json_schema: JsonSchema | None = None
    regex: str | None = None
    choice: list[str] | None = None
    grammar: str | None = None

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
            return Constraint(json_schema='{"type": "object"}')
        if self.json_schema is not None:
            return Constraint(json_schema=json.dumps(self.json_schema.schema_))
        if self.choice is not None:
            return Constraint(choices=tuple(self.choice))
        return None if not given else Constraint(regex=self.regex, grammar=self.grammar)


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
    logprobs: Literal[0] | None = None

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
    top_logprobs: Literal[0] | None = None
    tools: list[dict[str, Any]] | None = None

    def conversation(self) -> list[Message]:
        """The messages. Raises: ValueError naming the place and what is missing."""
        return [messages.read(m, f"messages[{i}]") for i, m in enumerate(self.messages)]


def completion_choice(index: int, part: Part, pieces: Sequence[bytes] | None) -> dict[str, Any]:
    """A choice of a completion, whole or a part of it. pieces: bytes of its tokens, for
    log-probabilities."""
    scores = None
    if pieces is not None:
        scores = {
            "tokens": [_text(piece) for piece in pieces],
            "token_logprobs": part.log_probs,
            "top_logprobs": None,
            "text_offset": None,
        }
    reason = None if part.finish is None else FINISH[part.finish]
    return {"index": index, "text": part.text, "logprobs": scores, "finish_reason": reason}


def chat_choice(
    index: int, part: Part, pieces: Sequence[bytes] | None, stream: bool, first: bool
) -> dict[str, Any]:
    """A choice of a chat completion: the message, or what a stream adds to it."""
    said: dict[str, Any] = {"content": part.text}
    if first or not stream:
        said = {"role": "assistant", **said}
    scores = None
    if pieces is not None:
        rows = zip(pieces, part.log_probs, strict=True)
        scores = {
            "content": [
                {"token": _text(b), "logprob": x, "bytes": list(b), "top_logprobs": []}
                for b, x in rows
            ],
            "refusal": None,
        }
    reason = None if part.finish is None else FINISH[part.finish]
    name = "delta" if stream else "message"
    return {"index": index, name: said, "logprobs": scores, "finish_reason": reason}


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


def error(message: str, param: str | None = None, kind: str = "invalid_request_error") -> Any:
    """The body of an error."""
    return {"error": {"message": message, "type": kind, "param": param, "code": None}}
