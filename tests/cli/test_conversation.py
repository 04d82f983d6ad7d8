"""The terminal of a conversation: lines, commands, Ctrl-C, with a terminal and without."""

import io
import signal
import sys

import pytest

from jaxlm.cli import conversation


class Script:
    """A Dialogue that answers with its message in capital letters, a word at a time."""

    def __init__(self):
        self.messages, self.calls = [], []
        self.left_out, self.stopped, self.unanswered = 0, False, True

    def say(self, text, stop):
        self.messages.append(text)
        return self.answer(stop)

    def warm(self):
        assert not self.messages
        self.warmed = True

    def again(self, stop):
        if not self.messages:
            raise ValueError("nothing was asked yet")
        return self.answer(stop)

    def answer(self, stop):
        self.stopped = False
        if self.messages[-1] == "long":
            raise ValueError("say it in fewer words")
        if self.messages[-1] == "more":
            self.left_out += 2
        for word in self.messages[-1].split():
            if word == "wait":
                signal.raise_signal(signal.SIGINT)
            if word == "twice":
                signal.raise_signal(signal.SIGINT)
                signal.raise_signal(signal.SIGINT)
            if stop():
                self.stopped = True
                return
            yield f"{word.upper()} "

    def __getattr__(self, name):
        if name not in ("undo", "reset", "set_system", "save", "load"):
            raise AttributeError(name)
        return lambda *args: self.calls.append((name, *args))


@pytest.fixture
def hold(monkeypatch, capsys):
    """(talk, stdout, stderr) after these lines."""

    def run(text, first=()):
        talk = Script()
        monkeypatch.setattr("sys.stdin", io.StringIO(text))
        conversation.hold(talk, first)
        return talk, *capsys.readouterr()

    return run


def test_lines_of_a_pipe_are_printed_plainly(hold):
    talk, out, err = hold("two words\n\n  \n//path\nlast", ("first\nof all",))
    assert talk.messages == ["first\nof all", "two words", "/path", "last"] and talk.warmed
    assert out.startswith("> first\nof all\nFIRST OF ALL \n> two words\nTWO WORDS \n> \n")
    assert out.endswith("> //path\n/PATH \n> last\nLAST \n") and err == ""


def test_a_line_that_ends_with_a_backslash_goes_on(hold):
    assert hold("one\\\n\\\ntwo\n")[0].messages == ["one\n\ntwo"]


def test_commands(hold):
    talk, out, err = hold(
        "/again\nHi\n/again\n/undo\n/reset\n/system  Be brief. \n/system\n/save\n/save a b.jsonl\n"
        "/load  c.jsonl\n/nope x\nlong\nmore\n/help\n/quit\nnever\n"
    )
    calls = [("undo",), ("reset",), ("set_system", "Be brief."), ("set_system", None)]
    assert talk.calls == [*calls, ("save", "a b.jsonl"), ("load", "c.jsonl")]
    assert out.count("HI \n") == 3  # asked, again, and as the loaded conversation ends with it
    assert talk.messages == ["Hi", "long", "more"]
    assert err.splitlines() == [
        "(nothing was asked yet)",
        "(/save needs a file)",
        "(messages: 1)",
        "(no command /nope; /help lists them)",
        "(say it in fewer words)",
        "(no room for the oldest 2 messages, which are left out)",
    ]
    assert conversation.HELP in out


def test_control_c_stops_an_answer_and_the_next_line_goes_on(hold):
    before = signal.getsignal(signal.SIGINT)
    talk, out, err = hold("one wait two\nnext\n")
    assert out == "> one wait two\nONE \n> next\nNEXT \n" and err == "(stopped)\n"
    with pytest.raises(KeyboardInterrupt):
        hold("twice\n")
    assert signal.getsignal(signal.SIGINT) is before


def test_a_terminal_edits_lines_control_c_drops_one_and_no_answer_moves_the_cursor(
    monkeypatch, capsys
):
    typed = ["one\\", KeyboardInterrupt, "H\x1b[2Ji\x9b", "a\\", "b", EOFError]
    shown = []

    class Terminal(io.StringIO):
        def isatty(self):
            return True

    def read(prompt):
        shown.append(prompt)
        line = typed.pop(0)
        if isinstance(line, str):
            return line
        raise line

    monkeypatch.setattr("sys.stdin", Terminal())
    monkeypatch.setattr("sys.stdout", Terminal())
    monkeypatch.setattr("builtins.input", read)
    talk = Script()
    conversation.hold(talk)
    assert talk.messages == ["H\x1b[2Ji\x9b", "a\nb"] and shown == [
        "> ",
        "| ",
        "> ",
        "> ",
        "| ",
        "> ",
    ]
    out, err = sys.stdout.getvalue(), capsys.readouterr().err
    assert (
        out == "\nH\u241b[2JI\ufffd \nA B \n\n"
        and err == "(/help lists commands, Ctrl-D ends; programs are compiled first)\n"
    )
