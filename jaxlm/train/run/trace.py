"""A jax.profiler trace of some steps of a run."""

import contextlib
from collections.abc import Callable, Iterator

import jax

from jaxlm.core import io, log
from jaxlm.core.remote import staging
from jaxlm.train.run import run as runs
from jaxlm.train.run.run import Run
from jaxlm.train.step import State


@contextlib.contextmanager
def steps(run: Run, out: log.Log) -> Iterator[Callable[[int, State], None]]:
    """A function to call before each step, with its number: traces the steps of run.profile."""
    span, tracing = run.profile, []
    folder = runs.folder(run) / "profile"

    def stop() -> None:
        jax.profiler.stop_trace()
        for path in io.files(folder):
            staging.publish(path)
        out.say(f"trace written to {folder}")
        tracing.clear()

    def before(number: int, state: State) -> None:
        if span is not None and number == span[0]:
            jax.profiler.start_trace(str(folder))
            tracing.append(number)
        elif tracing and span is not None and number == span[1] + 1:
            jax.block_until_ready(state.step)
            stop()

    try:
        yield before
    finally:
        if tracing:
            stop()
