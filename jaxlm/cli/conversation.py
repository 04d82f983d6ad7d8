"""A conversation in the terminal: lines in, answers out, and a few commands between them."""

import contextlib
import signal
import sys
import threading
from collections.abc import Callable, Iterator

from jaxlm.decode.serve.dialogue import Dialogue

HELP = """\
/again          another answer to the last message
/undo           take back the last message and its answer
/reset          begin anew; the system message stays
/system TEXT    give a system message; none takes it away
/save FILE      add the conversation to a file of JSON lines, which `jaxlm train` reads
/load FILE      go on with the last conversation of such a file
/help           these lines
/quit           end, as Ctrl-D does
A line that ends with \\ goes on in the next, and // begins a message with /.
Ctrl-C stops an answer; what it said stays."""

QUIT = ("/quit", "/exit")
# A model may write characters that a terminal obeys: they are shown as pictures of themselves.
_PICTURES = {
    **{code: 0x2400 + code for code in range(32) if code not in (0x09, 0x0A)},
    0x7F: 0x2421,
    **{code: 0xFFFD for code in range(0x80, 0xA0)},
}


def hold(talk: Dialogue, first: tuple[str, ...] = ()) -> None:
    """Answer messages, those given first and then lines of standard input, until it ends."""
    if sys.stdin.isatty():
        _note("/help lists commands, Ctrl-D ends; programs are compiled first")
    talk.warm()
    for text, typed in _messages(first):
        if not typed:
            print(f"> {text}", flush=True)
        if text.strip() in QUIT:
            return
        try:
            _respond(talk, text)
        except (ValueError, OSError) as error:
            _note(str(error))


def _respond(talk: Dialogue, text: str) -> None:
    if not text.startswith("/") or text.startswith("//"):
        if text.strip():
            _show(talk, lambda stop: talk.say(text.removeprefix("/"), stop))
        return
    name, _, rest = text.strip().partition(" ")
    rest = rest.strip()
    if name in ("/save", "/load") and not rest:
        raise ValueError(f"{name} needs a file")
    if name == "/again":
        _show(talk, talk.again)
    elif name == "/undo":
        talk.undo()
    elif name == "/reset":
        talk.reset()
    elif name == "/system":
        talk.set_system(rest or None)
    elif name == "/save":
        talk.save(rest)
    elif name == "/load":
        talk.load(rest)
        _note(f"messages: {len(talk.messages)}")
        if talk.unanswered:
            _show(talk, talk.answer)
    elif name == "/help":
        print(HELP)
    else:
        raise ValueError(f"no command {name}; /help lists them")


def _show(talk: Dialogue, answer: Callable[[Callable[[], bool]], Iterator[str]]) -> None:
    """Print an answer as it comes; Ctrl-C stops it, and a second one the program."""
    left, pictures = talk.left_out, _PICTURES if sys.stdout.isatty() else {}
    with _interrupts() as stop:
        for number, piece in enumerate(answer(stop)):
            if number == 0 and talk.left_out > left:
                _note(f"no room for the oldest {talk.left_out} messages, which are left out")
            print(piece.translate(pictures), end="", flush=True)
    print(flush=True)
    if talk.stopped:
        _note("stopped")


@contextlib.contextmanager
def _interrupts() -> Iterator[Callable[[], bool]]:
    """Whether Ctrl-C was pressed, for the duration of a `with`."""
    pressed = threading.Event()

    def press(*_: object) -> None:
        if pressed.is_set():
            raise KeyboardInterrupt
        pressed.set()

    before = signal.signal(signal.SIGINT, press)
    try:
        yield pressed.is_set
    finally:
        signal.signal(signal.SIGINT, before)


def _messages(first: tuple[str, ...]) -> Iterator[tuple[str, bool]]:
    """(message, whether it is on the screen already)."""
    yield from ((text, False) for text in first)
    typed = sys.stdin.isatty()
    if typed:
        with contextlib.suppress(ImportError):  # input() edits lines where there is one
            import readline  # noqa: F401
    lines: list[str] = []
    while True:
        try:
            line = input("| " if lines else "> ") if typed else _line()
        except KeyboardInterrupt:
            if not typed:
                raise
            print()
            lines = []
            continue
        except EOFError:
            if typed:
                print()
            return
        lines.append(line.removesuffix("\\"))
        if not line.endswith("\\"):
            yield "\n".join(lines), typed
            lines = []


def _line() -> str:
    line = sys.stdin.readline()
    if not line:
        raise EOFError
    return line.rstrip("\r\n")


def _note(text: str) -> None:
    print(f"({text})", file=sys.stderr, flush=True)
