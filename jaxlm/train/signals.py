"""SIGTERM and SIGINT as a question the loop asks between steps."""

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType

CAUGHT = (signal.SIGTERM, signal.SIGINT)


@contextlib.contextmanager
def caught() -> Iterator[Callable[[], int]]:
    """A function giving the number of the signal that arrived, 0 while none has.

    The first signal only sets that number, so that the step in flight ends and the state can be
    saved; a second one ends the process at once with 128 + its number. Python allows handlers in
    the main thread only: in any other thread nothing is caught.
    """
    arrived: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        if arrived:
            os._exit(128 + number)
        arrived.append(number)

    if threading.current_thread() is not threading.main_thread():
        yield lambda: 0
        return
    before = {number: signal.signal(number, note) for number in CAUGHT}
    try:
        yield lambda: arrived[0] if arrived else 0
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
