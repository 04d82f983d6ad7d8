"""An engine in a thread of its own, asked from an event loop: requests go in, their parts come
out as they are made."""

import asyncio
import contextlib
import queue
import threading
from collections.abc import AsyncIterator, Callable, Sequence

from jaxlm.decode.constraints import Constraint
from jaxlm.decode.serve.engine import Engine, Part
from jaxlm.decode.token_sampling import Sampling


class Stopped(RuntimeError):
    """The worker has ended, by itself or with an error, which is the cause."""


class Worker:
    """The thread. `requests` and `cancel` may be called from any event loop."""

    def __init__(self, engine: Engine):
        self.engine = engine
        self.error: BaseException | None = None
        self._asked: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._open: dict[int, Stream] = {}
        self._thread = threading.Thread(target=self._work, name="jaxlm-engine", daemon=True)

    def start(self) -> None:
        """Begin to work."""
        self._thread.start()

    def stop(self) -> None:
        """End once what is asked for now is done; requests that run then are cut off."""
        self._asked.put(None)
        self._thread.join()

    @property
    def alive(self) -> bool:
        """Whether it answers requests."""
        return self._thread.is_alive() and self.error is None

    def submit(
        self, prompt: Sequence[int], sampling: Sampling, constraint: Constraint | None = None
    ) -> "Stream":
        """The Stream of a request, from within an event loop. Its first part may be an error that
        `Engine.submit` raised."""
        stream = Stream(self, asyncio.get_running_loop())
        if not self.alive:
            raise Stopped("the engine has stopped") from self.error

        def enter() -> None:
            try:
                stream.number = self.engine.submit(prompt, sampling, constraint)
            except ValueError as error:
                stream.put(error)
            else:
                self._open[stream.number] = stream

        self._asked.put(enter)
        return stream

    def cancel(self, stream: "Stream") -> None:
        """The request of a stream is no longer wanted; its slot is free within one step."""

        def leave() -> None:
            if stream.number in self._open:
                del self._open[stream.number]
                self.engine.cancel(stream.number)

        self._asked.put(leave)

    def _work(self) -> None:
        try:
            while self._take():
                for part in self.engine.step():
                    stream = self._open.get(part.number)
                    if stream is None:
                        continue
                    if part.finish is not None:
                        del self._open[part.number]
                    failed = part.finish == "failed"
                    stream.put(ValueError(part.text) if failed else part)
        except BaseException as error:
            self.error = error
        finally:
            ended = Stopped("the engine has stopped")
            ended.__cause__ = self.error
            for stream in self._open.values():
                stream.put(ended)
            while not self._asked.empty():
                self._asked.get()

    def _take(self) -> bool:
        """Do all that is asked for, waiting for it while nothing runs; False at the end."""
        while not self._asked.empty() or not self.engine.busy:
            asked = self._asked.get()
            if asked is None:
                return False
            asked()
        return True


class Stream:
    """The parts of one request, to iterate over once; it raises what the engine raised."""

    def __init__(self, worker: Worker, loop: asyncio.AbstractEventLoop):
        self.number = -1
        self._worker = worker
        self._loop = loop
        self._parts: asyncio.Queue[Part | Exception] = asyncio.Queue()

    def put(self, part: Part | Exception) -> None:
        """From the worker's thread."""
        with contextlib.suppress(RuntimeError):  # a closed loop, where nobody listens
            self._loop.call_soon_threadsafe(self._parts.put_nowait, part)

    async def parts(self) -> AsyncIterator[Part]:
        """Until the last; the request is cancelled if the caller leaves before."""
        ended = False
        try:
            while not ended:
                part = await self._parts.get()
                ended = isinstance(part, Exception) or part.finish is not None
                if isinstance(part, Exception):
                    raise part
                yield part
        finally:
            if not ended:
                self._worker.cancel(self)
