"""Processes that share the cores: how experiments of many small runs use a laptop.

A step of a small model does not fill two cores, and two processes with two threads each get in each
other's way: a process to each core does the most.
"""

import concurrent.futures
import multiprocessing
import os
from collections.abc import Callable
from typing import Any


class Here(concurrent.futures.Executor):
    """An executor that runs every call at once, in this process."""

    def submit(
        self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any
    ) -> concurrent.futures.Future[Any]:
        """The finished future of a call."""
        future: concurrent.futures.Future[Any] = concurrent.futures.Future()
        try:
            future.set_result(fn(*args, **kwargs))
        except Exception as error:
            future.set_exception(error)
        return future


def pool(workers: int = 2) -> concurrent.futures.Executor:
    """An executor of so many fresh processes, each with its own share of the cores; of 0, this
    process: tiny runs are all compiling, and what starts a process costs more than they do."""
    if not workers:
        return Here()
    context = multiprocessing.get_context("spawn")
    args = (context.Value("i", 0), workers)
    return concurrent.futures.ProcessPoolExecutor(
        workers, mp_context=context, initializer=_keep, initargs=args
    )


def _keep(begun: Any, workers: int) -> None:
    """Keep this process to its share of the cores, which XLA counts its threads by; an accelerator,
    which one process would take whole, is left alone unless JAX_PLATFORMS asks for it."""
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    with begun.get_lock():
        slot, begun.value = begun.value, begun.value + 1
    if hasattr(os, "sched_setaffinity"):  # Linux
        cores = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, cores[slot % len(cores) :: workers])
