"""An engine in a thread of its own, used from an event loop: requests go in, their parts come out
as they are generated."""

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
    """The thread. `submit` and `cancel` may be called from any event loop."""

    def __init__(self, engine: Engine):
        self.engine = engine
        self.error: BaseException | None = None
        self._commands: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._open: set[Stream] = set()
        self._lock = threading.Lock()  # of _open and _ended: no stream is opened after the end
        self._ended = False
        self._streams: dict[int, Stream] = {}  # by the engine's numbers; the thread's own
        self._thread = threading.Thread(target=self._work, name="jaxlm-engine", daemon=True)

    def start(self) -> None:
        """Begin to work."""
        self._thread.start()

    def stop(self) -> None:
        """End once the commands so far are done; requests that run then are cut off."""
        self._commands.put(None)
        self._thread.join()

    @property
    def alive(self) -> bool:
        """Whether it answers requests."""
        return self._thread.is_alive() and self.error is None

    def submit(
        self,
        prompt: Sequence[int],
        sampling: Sampling,
        constraint: Constraint | None = None,
        top: int = 0,
    ) -> "Stream":
        """The Stream of a request, from within an event loop. Its first part may be an error that
        `Engine.submit` raised."""
        stream = Stream(self, asyncio.get_running_loop())

        def enter() -> None:
            try:
                stream.number = self.engine.submit(prompt, sampling, constraint, top)
                self._streams[stream.number] = stream
            except ValueError as error:
                self._close(stream, error)

        with self._lock:
            if self._ended or not self.alive:
                raise Stopped("the engine has stopped") from self.error
            self._open.add(stream)
        self._commands.put(enter)
        return stream

    def cancel(self, stream: "Stream") -> None:
        """The request of a stream is no longer wanted; its slot is free within one step."""

        def leave() -> None:
            if self._streams.pop(stream.number, None) is not None:
                self.engine.cancel(stream.number)
            with self._lock:
                self._open.discard(stream)

        self._commands.put(leave)

    def _close(self, stream: "Stream", last: Part | Exception) -> None:
        """Hand out the last part of a stream."""
        with self._lock:
            self._open.discard(stream)
        stream.put(last)

    def _work(self) -> None:
        try:
            while self._take():
                for part in self.engine.step():
                    stream = self._streams.get(part.number)
                    if stream is None:
                        continue
                    if part.finish is None:
                        stream.put(part)
                        continue
                    del self._streams[part.number]
                    failed = part.finish == "failed"
                    self._close(stream, ValueError(part.text) if failed else part)
        except BaseException as error:
            self.error = error
        finally:
            with self._lock:
                self._ended, left = True, list(self._open)
            for stream in left:
                ended = Stopped("the engine has stopped")
                ended.__cause__ = self.error
                stream.put(ended)

    def _take(self) -> bool:
        """Do all commands, waiting for one while nothing runs; False at the end."""
        while not self._commands.empty() or not self.engine.busy:
            command = self._commands.get()
            if command is None:
                return False
            command()
        return True


class Stream:
    """The parts of one request, to iterate over once; it raises what the engine raised."""

    def __init__(self, worker: Worker, loop: asyncio.AbstractEventLoop):
        self.number = -1
        self.ended = False
        self._worker = worker
        self._loop = loop
        self._parts: asyncio.Queue[Part | Exception] = asyncio.Queue()

    def put(self, part: Part | Exception) -> None:
        """From the worker's thread."""
        with contextlib.suppress(RuntimeError):  # a closed loop, where nobody listens
            self._loop.call_soon_threadsafe(self._parts.put_nowait, part)

    async def parts(self) -> AsyncIterator[Part]:
        """Until the last. A caller that leaves before has to `cancel`."""
        while not self.ended:
            part = await self._parts.get()
            self.ended = isinstance(part, Exception) or part.finish is not None
            if isinstance(part, Exception):
                raise part
            yield part

    def cancel(self) -> bool:
        """Whether it had not ended; its request is cancelled then."""
        if self.ended:
            return False
        self.ended = True
        self._worker.cancel(self)
        return True
