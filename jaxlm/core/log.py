"""Progress of a run: a progress bar on a terminal, plain lines anywhere else."""

import contextlib
import shlex
import sys
from collections.abc import Iterator
from typing import Any, NamedTuple

from jaxlm.core.remote import staging


def command() -> str:
    """This process' command line as a shell takes it: `python -m jaxlm train ...` where Python was
    started so, since `sys.argv` then names a file that is no program."""
    before = sys.orig_argv[1 : len(sys.orig_argv) - len(sys.argv) + 1]
    return shlex.join(["python", *sys.orig_argv[1:]] if "-m" in before else sys.argv)


class Log(NamedTuple):
    """say and warn print a line (above the bar, if there is one). `bar` is rich's progress and its
    task, None off a terminal. `primary` is False on all processes but the first: they are silent.
    """

    primary: bool
    bar: Any

    def say(self, text: str) -> None:
        """Print a line."""
        text = staging.named(text)
        if self.bar is not None:
            self.bar[0].console.print(text, markup=False, highlight=False, soft_wrap=True)
        elif self.primary:
            print(text, flush=True)

    def warn(self, text: str) -> None:
        """Print a warning, on stderr where there is no bar."""
        text = staging.named(text)
        if self.bar is not None:
            self.bar[0].console.print(f"warning: {text}", style="yellow", markup=False)
        elif self.primary:
            print(f"warning: {text}", file=sys.stderr, flush=True)

    def progress(self, step: int, text: str) -> None:
        """Show the step reached and its numbers: on the bar, or as a line."""
        if self.bar is not None:
            self.bar[0].update(self.bar[1], completed=step, numbers=text)
        elif self.primary:
            print(text, flush=True)

    def tick(self, step: int) -> None:
        """Move the bar to a step; nothing where there is no bar."""
        if self.bar is not None:
            self.bar[0].update(self.bar[1], completed=step)


@contextlib.contextmanager
def open(primary: bool, name: str, total: int) -> Iterator[Log]:
    """A Log for the duration of a `with`: a bar of `total` steps if stdout is a terminal."""
    if not primary or not sys.stdout.isatty():
        yield Log(primary, None)
        return
    from rich import progress

    columns = (
        progress.TextColumn("{task.description}"),
        progress.BarColumn(bar_width=24),
        progress.MofNCompleteColumn(),
        progress.TimeElapsedColumn(),
        progress.TimeRemainingColumn(),
        progress.TextColumn("{task.fields[numbers]}"),
    )
    with progress.Progress(*columns) as bar:
        yield Log(True, (bar, bar.add_task(name, total=total, numbers="")))
