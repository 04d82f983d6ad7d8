"""SIGTERM and SIGINT as a flag that the loop reads between steps."""

import contextlib
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from types import FrameType

CAUGHT = (signal.SIGTERM, signal.SIGINT)
_ENDING = threading.Lock()


def at_start() -> None:
    """Let SIGINT end this process at once until `caught` listens to it. Python would raise
    KeyboardInterrupt in whatever runs: in a callback of JAX's it is printed and forgotten."""
    signal.signal(signal.SIGINT, _end_at_once)


def _end_at_once(number: int, frame: FrameType | None) -> None:
    _end(number, False)


@contextlib.contextmanager
def caught() -> Iterator[Callable[[], int]]:
    """A function giving the number of the signal that arrived, 0 while none has.

    Until it is first called there is no step to save: a signal ends the process at once, with 128
    + its number, as a kill would. From then on the first signal only sets that number, so that the
    step in flight ends and the state can be saved; a second one ends the process at once. That
    holds while the main thread is in compiled code, where Python's handlers wait for it to return:
    a thread hears of a signal through a socket. Python allows handlers in the main thread only: in
    any other thread nothing is caught.
    """
    if threading.current_thread() is not threading.main_thread():
        yield lambda: 0
        return
    arrived: list[int] = []
    polled = threading.Event()
    ear, mouth = socket.socketpair()
    mouth.setblocking(False)

    def hear() -> None:
        heard = 0
        while numbers := ear.recv(16):
            for number in CAUGHT:
                heard += numbers.count(number)
                if number in numbers and (heard > 1 or not polled.is_set()):
                    _end(number, polled.is_set())

    def note(number: int, frame: FrameType | None) -> None:
        if arrived or not polled.is_set():
            _end(number, polled.is_set())
        arrived.append(number)

    def answer() -> int:
        polled.set()
        return arrived[0] if arrived else 0

    listener = threading.Thread(target=hear, name="signals", daemon=True)
    listener.start()
    before = {number: signal.signal(number, note) for number in CAUGHT}
    previous = signal.set_wakeup_fd(mouth.fileno(), warn_on_full_buffer=False)
    try:
        yield answer
    finally:
        signal.set_wakeup_fd(previous)
        for number, handler in before.items():
            early = handler is _end_at_once
            signal.signal(number, signal.default_int_handler if early else handler)
        mouth.close()
        listener.join()
        ear.close()


def _end(number: int, begun: bool) -> None:
    """Leave the process as it is, whatever its threads are doing."""
    if not _ENDING.acquire(blocking=False):
        return  # the other thread that heard the signal does it
    if not begun:
        name = signal.Signals(number).name
        text = f"{name}: stopped before the first step. The same command starts again"
        print(f"jaxlm: {text}", file=sys.stderr, flush=True)
    os._exit(128 + number)
