"""A trained model behind HTTP, as OpenAI's API has it (extra `serve`).

    POST /v1/completions, /v1/chat/completions      GET /v1/models, /health, /metrics

All requests share one engine. A request whose client has gone is cancelled within a step. Nothing
is computed for a request before all of it has been checked.
"""

import asyncio
import contextlib
import dataclasses
import itertools
import time
import uuid
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from typing import Any

import fastapi
import fastapi.exceptions
import fastapi.responses

from jaxlm.data.records.messages import Message
from jaxlm.data.templates import call_forms
from jaxlm.data.tokenizers import tokenizer as tokenizers
from jaxlm.decode import completions
from jaxlm.decode.prompt_tokens import Turn
from jaxlm.decode.serve import engine as engines
from jaxlm.decode.serve import prometheus, tool_calls, wire
from jaxlm.decode.serve.worker import Stopped, Stream, Worker
from jaxlm.decode.token_sampling import Sampling

MOST = 16  # tokens of a completion that names no max_tokens, as OpenAI has it


@dataclasses.dataclass(frozen=True)
class Served:
    """A model that is served.

    name: as requests have to name it. chat: the Turn of a conversation and its tools
    (`prompt_tokens.asked`); None for a model without a template. stop_tokens: what ends a text.
    """

    name: str
    worker: Worker
    tokenizer: tokenizers.Tokenizer
    stop_tokens: tuple[int, ...]
    chat: Callable[[Sequence[Message], Sequence[Any]], Turn] | None = None


@dataclasses.dataclass
class _Job:
    """One sequence of an answer: its number, its prompt's tokens, its stream and, where it may call
    tools, the reader of its text."""

    index: int
    prompt: int
    stream: Stream
    reader: tool_calls.Reader | None


def app(served: Served) -> fastapi.FastAPI:
    """The application; its worker starts and ends with it."""
    metrics = prometheus.Metrics(served.worker)

    @contextlib.asynccontextmanager
    async def life(_: fastapi.FastAPI) -> AsyncIterator[None]:
        served.worker.start()
        yield
        await asyncio.to_thread(served.worker.stop)

    api = fastapi.FastAPI(title="jaxlm", lifespan=life, docs_url=None, redoc_url=None)

    @api.exception_handler(fastapi.exceptions.RequestValidationError)
    async def invalid(request: fastapi.Request, error: Any) -> fastapi.Response:
        first = error.errors()[0]
        place = wire.place(first["loc"], error.body, first["type"] == "missing")
        metrics.answered(request.url.path, 400)
        return _refused(f"{place or 'body'}: {first['msg']}", place or None)

    @api.exception_handler(ValueError)
    async def wrong(request: fastapi.Request, error: ValueError) -> fastapi.Response:
        metrics.answered(request.url.path, 400)
        return _refused(str(error), error.param if isinstance(error, wire.Refused) else None)

    @api.exception_handler(ImportError)
    async def missing(request: fastapi.Request, error: ImportError) -> fastapi.Response:
        metrics.answered(request.url.path, 501)
        return _refused(str(error), None, 501)

    @api.exception_handler(Stopped)
    async def stopped(request: fastapi.Request, error: Stopped) -> fastapi.Response:
        metrics.answered(request.url.path, 503)
        text = f"{error}: {error.__cause__}" if error.__cause__ else str(error)
        return _refused(text, None, 503, "server_error")

    @api.get("/health")
    async def health() -> fastapi.Response:
        if not served.worker.alive:
            raise Stopped("the engine has stopped") from served.worker.error
        return fastapi.responses.JSONResponse({"status": "ok"})

    @api.get("/metrics")
    async def scrape() -> fastapi.Response:
        return fastapi.Response(metrics.text(), media_type=prometheus.MEDIA)

    @api.get("/v1/models")
    async def models() -> Any:
        one = {"id": served.name, "object": "model", "created": 0, "owned_by": "jaxlm"}
        return {"object": "list", "data": [one]}

    @api.post("/v1/completions")
    async def complete(body: wire.Completion, request: fastapi.Request) -> fastapi.Response:
        return await _Answer(served, metrics, body, request).respond()

    @api.post("/v1/chat/completions")
    async def chat(body: wire.Chat, request: fastapi.Request) -> fastapi.Response:
        return await _Answer(served, metrics, body, request).respond()

    return api


def _refused(text: str, param: str | None, status: int = 400, kind: str = "invalid_request_error"):
    return fastapi.responses.JSONResponse(wire.error(text, param, kind), status)


async def _stop(tasks: Sequence[asyncio.Future]) -> None:
    """Cancel tasks, and wait until they have ended."""
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


class _Answer:
    """One request, from its prompts to its response."""

    def __init__(
        self, served: Served, metrics: prometheus.Metrics, body: Any, request: fastapi.Request
    ):
        self._served, self._metrics, self._body = served, metrics, body
        self._request = request
        self._chat = isinstance(body, wire.Chat)
        self._begun = time.monotonic()
        prefix, kind = (
            ("chatcmpl", "chat.completion") if self._chat else ("cmpl", "text_completion")
        )
        self._id, self._kind = f"{prefix}-{uuid.uuid4().hex}", kind
        self._jobs: list[_Job] = []
        self._counts = [0, 0]  # generated, cached

    async def respond(self) -> fastapi.Response:
        """The response. Raises: ValueError for what cannot be done, before any of it is."""
        self._calls: tuple[call_forms.Form, list[str]] | None = None
        self._required = False
        with self._named():
            form, self._top = self._body.response_format, self._body.top
            self._constraint = None if form is None else form.constraint()
            self._pending = self._requests()
        engine = self._served.worker.engine
        several = len(self._pending) > self._body.n
        for number, (prompt, sampling) in enumerate(self._pending):
            with self._named(f"[{number // self._body.n}]" if several else ""):
                # a vocabulary of constraints takes a while
                await asyncio.to_thread(engine.check, prompt, sampling, self._constraint, self._top)
        if not self._served.worker.alive:
            raise Stopped("the engine has stopped") from self._served.worker.error
        if self._body.stream:
            media = "text/event-stream"
            return fastapi.responses.StreamingResponse(self._events(), media_type=media)
        whole = await self._unless_gone(self._gathered())
        if whole is None:
            self._done(499)
            return fastapi.Response(status_code=499)
        counts = wire.usage(sum(self._prompts()), *self._counts)
        choices = [self._choice(job, part, False, True) for job, part in zip(self._jobs, whole)]
        self._done(200)
        answer = wire.answer(self._kind, self._id, self._served.name, choices, counts)
        return fastapi.responses.JSONResponse(answer)

    @contextlib.contextmanager
    def _named(self, prompt: str = "") -> Iterator[None]:
        """Faults are named by the client's fields. prompt: as in `wire.Request.refused`."""
        try:
            yield
        except ValueError as error:
            raise self._body.refused(str(error), prompt, self._required) from error

    @contextlib.contextmanager
    def _submitted(self) -> Iterator[list[_Job]]:
        """The request's sequences, given to the engine; those that have not ended at the end are
        cancelled."""
        try:
            for index, (prompt, sampling) in enumerate(self._pending):
                submit = self._served.worker.submit
                stream = submit(prompt, sampling, self._constraint, self._top)
                reader = None if self._calls is None else tool_calls.Reader(*self._calls)
                self._jobs.append(_Job(index, len(prompt), stream, reader))
            self._metrics.prompt.inc(sum(job.prompt for job in self._jobs))
            yield self._jobs
        finally:
            self._metrics.cancelled.inc(sum(job.stream.cancel() for job in self._jobs))

    def _requests(self) -> list[tuple[list[int], Sampling]]:
        """Token ids and settings of every sequence, n of each prompt in turn."""
        body, served = self._body, self._served
        if body.model != served.name:
            raise ValueError(f"model: {body.model!r} given; this server has {served.name!r}")
        most, ends = body.max_tokens, served.stop_tokens
        if self._chat:
            if served.chat is None:
                raise ValueError(
                    "messages: this model has no chat template; use /v1/completions, or start the "
                    "server with --template"
                )
            most = most if body.max_completion_tokens is None else body.max_completion_tokens
            turn = self._turn(body)
            ends = (*ends, *turn.stops)
            prompts = [turn.tokens]
        else:
            prompts = [self._ids(prompt) for prompt in body.prompts()]
            if not prompts:
                raise ValueError("prompt: [] given; at least one is needed")
            most = MOST if most is None else most
        length = served.worker.engine.capacity.length
        defaults, seed = Sampling(stop_tokens=tuple(dict.fromkeys(ends))), uuid.uuid4().int
        requests, number = [], itertools.count()
        for prompt in prompts:
            room = max(1, length - len(prompt)) if most is None else most
            for _ in range(body.n):
                sampling = body.sampling(room, seed, defaults)
                seeded = (sampling.seed + next(number)) % 2**32
                requests.append((prompt, dataclasses.replace(sampling, seed=seeded)))
        return requests

    def _turn(self, body: wire.Chat) -> Turn:
        """The Turn of a conversation, whose calls are read and, if required, made sure of."""
        assert self._served.chat is not None
        tools, required = body.functions(), body.required()
        turn = self._served.chat(body.conversation(), tools)
        if tools:
            assert turn.form is not None
            self._calls = turn.form, [tool["function"]["name"] for tool in tools]
        if required:
            assert turn.form is not None
            if self._constraint is not None:
                raise ValueError(
                    f"tool_choice: {body.tool_choice!r} given with response_format; a call has a "
                    "form of its own, so give one of them"
                )
            # a named function is called once, as OpenAI has it
            several = body.parallel_tool_calls and body.tool_choice == "required"
            self._required = True
            self._constraint = tool_calls.constraint(turn.form, required, several)
        return turn

    def _ids(self, prompt: str | list[int]) -> list[int]:
        if isinstance(prompt, str):
            return completions.encode(self._served.tokenizer, prompt)
        return prompt

    def _prompts(self) -> list[int]:
        """Tokens of each prompt, which its n sequences share."""
        return [job.prompt for job in self._jobs[:: self._body.n]]

    async def _gathered(self) -> list[engines.Part]:
        """The whole of every sequence."""

        async def whole(job: _Job) -> engines.Part:
            joined: engines.Part | None = None
            async for part in self._counted(job):
                joined = part if joined is None else engines.joined(joined, part)
            assert joined is not None
            return joined

        with self._submitted() as jobs:
            tasks = [asyncio.ensure_future(whole(job)) for job in jobs]
            try:
                return list(await asyncio.gather(*tasks))
            finally:
                await _stop(tasks)

    async def _unless_gone(self, work: Any) -> Any:
        """The result of some work; None, and the work is cancelled, if the client goes first."""
        working = asyncio.ensure_future(work)
        watching = asyncio.ensure_future(self._gone())
        try:
            await asyncio.wait({working, watching}, return_when=asyncio.FIRST_COMPLETED)
            return await working if working.done() else None
        finally:
            await _stop([working, watching])

    async def _gone(self) -> None:
        while not await self._request.is_disconnected():
            await asyncio.sleep(0.05)

    async def _counted(self, job: _Job) -> AsyncIterator[engines.Part]:
        """The parts of a sequence, counted."""
        first = True
        async for part in job.stream.parts():
            if first:
                self._metrics.first.observe(time.monotonic() - self._begun)
                self._metrics.cached.inc(part.cached)
                self._counts[1] += part.cached
            first = False
            self._counts[0] += len(part.tokens)
            self._metrics.generated.inc(len(part.tokens))
            yield part

    async def _events(self) -> AsyncIterator[str]:
        """The response as server-sent events, the sequences' parts as they come."""
        merged: asyncio.Queue[Any] = asyncio.Queue()

        async def read(job: _Job) -> None:
            try:
                first = True
                async for part in self._counted(job):
                    await merged.put(self._choice(job, part, True, first))
                    first = False
                await merged.put(None)
            except Exception as error:
                await merged.put(error)

        kind = f"{self._kind}.chunk" if self._chat else self._kind
        options, status = self._body.stream_options, 200
        with self._submitted() as jobs:
            tasks = [asyncio.ensure_future(read(job)) for job in jobs]
            left = len(tasks)
            try:
                while left:
                    one = await merged.get()
                    if isinstance(one, Exception):
                        status, left = 500, 0
                        yield wire.event(wire.error(str(one), None, "server_error"))
                    elif one is None:
                        left -= 1
                    else:
                        yield wire.event(wire.answer(kind, self._id, self._served.name, [one]))
            finally:
                await _stop(tasks)
        if options is not None and options.include_usage and status == 200:
            counts = wire.usage(sum(self._prompts()), *self._counts)
            yield wire.event(wire.answer(kind, self._id, self._served.name, [], counts))
        yield wire.event("[DONE]")
        self._done(status)

    def _choice(self, job: _Job, part: engines.Part, stream: bool, first: bool) -> dict[str, Any]:
        scored = None
        wanted = self._body.logprobs
        if wanted is not None and wanted is not False:
            top = [[(self._bytes(token), x) for token, x in place] for place in part.top]
            scored = wire.Scored([self._bytes(token) for token in part.tokens], top)
        if self._chat:
            return wire.chat_choice(job.index, part, scored, stream, first, job.reader)
        return wire.completion_choice(job.index, part, scored)

    def _bytes(self, token: int) -> bytes:
        return self._served.tokenizer.decode_bytes([token])

    def _done(self, status: int) -> None:
        self._metrics.answered(self._request.url.path, status)
