"""Tasks of a curation in processes of this machine: results in order, whatever their number."""

import concurrent.futures
import multiprocessing
import signal
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures.process import BrokenProcessPool
from typing import Any

from jaxlm.core import config
from jaxlm.data.rows import prefetch

AHEAD = 2  # tasks a worker that wait while it works


class Workers:
    """Runs tasks in `count` processes, or here where that is 1.

    recipe: the file of the recipe, whose own classes of steps a worker needs; None where there is
    none.
    """

    def __init__(self, count: int, recipe: str | None = None):
        self.count = count
        self._pool: concurrent.futures.ProcessPoolExecutor | None = None
        if count > 1:
            # spawn: a fork of a process that runs threads may hang
            context = multiprocessing.get_context("spawn")
            self._pool = concurrent.futures.ProcessPoolExecutor(count, context, _start, (recipe,))

    def map(self, task: Callable[..., Any], arguments: Iterable[tuple[Any, ...]]) -> Iterator[Any]:
        """task(*arguments) of each, in order.

        Raises: what a task raises; ChildProcessError where a worker was killed.
        """
        if self._pool is None:
            yield from (task(*given) for given in arguments)
            return
        waiting: deque[Any] = deque()
        try:
            for given in arguments:
                waiting.append(self._pool.submit(task, *given))
                if len(waiting) > AHEAD * self.count:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        except BrokenProcessPool as error:
            raise ChildProcessError(
                "a worker was killed, maybe for want of memory; the same command goes on where "
                "it was, --workers 1 takes the least memory"
            ) from error

    def close(self) -> None:
        """End the processes; what has not begun does not."""
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)


def _start(recipe: str | None) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the process that ends them
    prefetch.end_with_parent()
    if recipe is not None:
        config.load(recipe)
