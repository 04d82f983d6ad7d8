"""A user's function in a process of its own, which can be ended if it hangs. No jax import.

    with sandbox.Process("rewards.py:brief") as process:
        process.call(arguments, seconds=10)

The process is started by `start` or the first call, and again after one that ran out of time. It
ends with this one, however that ends.
"""

import contextlib
import importlib
import importlib.util
import multiprocessing
import os
import pathlib
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable
from multiprocessing import connection
from typing import Any

from jaxlm.core import config


class Failed(ValueError):
    """Failure of a user's function: what it raised and in which line of its file, or that it ran
    out of time; in one line. `trace` is its traceback, shown with this error's own, or ""."""

    def __init__(self, text: str, trace: str = ""):
        super().__init__(text)
        self.trace = trace
        if trace:
            self.add_note(trace)


class Process:
    """A function by name, "module:function" or "file.py:function", called with one argument."""

    def __init__(self, name: str):
        self.name = name
        self._process: subprocess.Popen[bytes] | None = None
        self._pipe: connection.Connection | None = None

    def __enter__(self) -> "Process":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def call(self, argument: Any, seconds: float) -> Any:
        """Calls the function with an argument that can be pickled, and returns what it returns.

        Raises: Failed if it raises, if what it returns cannot be pickled, if its process ends, and
        after `seconds`, when its process is ended.
        """
        self.start()
        return self._ask(argument, seconds)

    def close(self) -> None:
        """End the process, if there is one."""
        if self._process is None:
            return
        assert self._pipe is not None
        self._pipe.close()
        self._process.kill()
        self._process.wait()
        self._process = self._pipe = None

    def start(self) -> None:
        """Start the process if there is none. Raises: Failed if the function is not to be had."""
        if self._process is not None:
            return
        ours, theirs = multiprocessing.Pipe()
        number = theirs.fileno()
        command = [sys.executable, "-m", __name__, self.name, str(number)]
        paths = [os.getcwd(), *(path for path in sys.path if path)]
        self._process = subprocess.Popen(
            command,
            pass_fds=(number,),
            stdout=2,  # what the function prints goes where warnings go
            env=os.environ | {"PYTHONPATH": os.pathsep.join(paths)},
        )
        theirs.close()
        self._pipe = ours
        try:
            self._answer(_START)
        except Failed:
            self.close()
            raise

    def _ask(self, argument: Any, seconds: float) -> Any:
        assert self._pipe is not None
        try:
            self._pipe.send(argument)
        except (BrokenPipeError, ConnectionResetError):
            self.close()
            raise Failed(f"{self.name}: its process has ended") from None
        self._answer(_START)  # it has arrived: what is timed is the function alone
        return self._answer(seconds)

    def _answer(self, seconds: float) -> Any:
        assert self._pipe is not None
        try:
            if not self._pipe.poll(seconds):
                self.close()
                raise Failed(f"{self.name}: no answer after {seconds:g} seconds")
            right, value = self._pipe.recv()
        except (EOFError, ConnectionResetError):
            self.close()
            raise Failed(f"{self.name}: its process has ended") from None
        if not right:
            line, trace = value
            raise Failed(f"{self.name}: {line}", trace)
        return value


_START = 60.0  # seconds that importing, or sending the argument, may take


def load(name: str) -> Callable[[Any], Any]:
    """The function of a name, "module:function" or "file.py:function".

    Raises: ValueError naming what is wrong with the name; what the import raises.
    """
    place, _, function = name.rpartition(":")
    if not place or not function:
        raise ValueError(f"{name!r}: expected 'module:function' or 'file.py:function'")
    if place.endswith(".py"):
        path = pathlib.Path(place).expanduser()
        if not path.is_file():
            raise ValueError(f"{name!r}: no such file: {path}")
        own = f"jaxlm_function_{path.stem}"
        fresh = config.FreshSource(own, str(path))
        spec = importlib.util.spec_from_file_location(own, path, loader=fresh)
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[spec.name] = module
        spec.loader.exec_module(module)
    else:
        module = importlib.import_module(place)
    loaded = vars(module).get(function)
    if not callable(loaded):
        have = sorted(n for n, f in vars(module).items() if callable(f) and not n.startswith("_"))
        raise ValueError(f"{name!r}: no function {function!r} there; it has {have}")
    return loaded


def _serve(name: str, pipe: connection.Connection) -> None:
    """Answer calls until the other end is closed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the run, which ends this
    threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()
    try:
        function = load(name)
    except BaseException as error:
        pipe.send((False, _described(error)))
        return
    pipe.send((True, None))
    with contextlib.suppress(EOFError, BrokenPipeError):
        while True:
            argument = pipe.recv()
            pipe.send((True, None))
            try:
                answer = (True, function(argument))
            except Exception as error:
                answer = (False, _described(error))
            try:
                pipe.send(answer)
            except (TypeError, ValueError, AttributeError) as error:
                line, trace = _described(error)
                pipe.send((False, (f"returned what cannot be pickled: {line}", trace)))


def _described(error: BaseException) -> tuple[str, str]:
    """(what was raised, and where outside of this module and Python's own; the whole traceback)."""
    own = (__file__, os.path.dirname(os.__file__), "<frozen")
    places = [
        p for p in traceback.extract_tb(error.__traceback__) if not p.filename.startswith(own)
    ]
    at = f" ({places[-1].filename}:{places[-1].lineno}, in {places[-1].name})" if places else ""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}{at}", traceback.format_exc()


def _end_with(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(1.0)
    os._exit(1)


if __name__ == "__main__":
    _serve(sys.argv[1], connection.Connection(int(sys.argv[2])))
