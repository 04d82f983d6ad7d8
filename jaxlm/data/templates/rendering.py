"""Conversations under one template: their text, their tokens, and the assistant's parts."""

import re
from collections.abc import Callable, Mapping, Sequence, Set
from typing import Any, Literal, NamedTuple

import numpy as np

from jaxlm.data.records.messages import INERT, Message
from jaxlm.data.templates import offsets
from jaxlm.data.tokenizers import tokenizer as tokenizers

Apart = Literal["", "merged", "opened"]


class Span(NamedTuple):
    """The tokens [start, end) of the assistant's message number `message`.

    apart: why sampling does not start from the tokens before them, "" if it does. "merged": the
    tokenizer joins the end of the prompt with the answer. "opened": the template's generation
    prompt goes on otherwise than the conversation, as with a thought that no answer has.
    """

    message: int
    start: int
    end: int
    apart: Apart


class Written(NamedTuple):
    """A conversation: tokens int32[n], and its messages of the assistant."""

    tokens: np.ndarray
    spans: list[Span]


class _Turn(NamedTuple):
    """A message of the assistant at the end of a text: from where to where it goes in it, and the
    generation prompt before it."""

    text: str
    spans: list[tuple[int, int]]
    prompt: str


class Writer:
    """The messages of one conversation under one template.

    A special token's name in a message gets a character of its own inside while the template runs,
    which no message has: what the template wrote is found by name, and the character goes again.
    """

    def __init__(
        self,
        name: str,
        render: Callable[[dict[str, Any]], str],
        tokenizer: tokenizers.Tokenizer,
        messages: Sequence[Message],
        variables: Mapping[str, Any],
        blocks: bool,
        searched: Set[str],
    ):
        """name: the template's, for errors. render: its text for a context. blocks: it has
        {% generation %} blocks. searched: what it looks for in texts."""
        self._name, self._render, self._tokenizer = name, render, tokenizer
        self._blocks = blocks
        self._special = offsets.pattern(tokenizer.marks)
        # A template that looks for </think> in an answer gives it a meaning there.
        self._sought = {name for name in tokenizer.marks if name in searched}
        letters = "".join(message.text + message.more for message in messages)
        private = (c for c in map(chr, range(0xF0000, 0xFFFFE)) if c not in letters)
        self._typed, self._open, self._close, self._probe = (next(private) for _ in range(4))
        self._messages = [
            {"role": m.role}
            | self._by_hand({"content": m.text} | m.fields(), m.role == "assistant")
            for m in messages
        ]
        self._variables = self._by_hand(dict(variables))
        self._texts: dict[tuple[int, bool], tuple[str, list[tuple[int, int]] | None]] = {}
        self._turns: dict[int, _Turn] = {}

    def _by_hand(self, value: Any, answer: bool = False) -> Any:
        """A JSON value with the names of special tokens broken, in an answer but for those that the
        template looks for."""
        if isinstance(value, str):
            kept = self._sought if answer else ()
            return self._special.sub(
                lambda m: m[0] if m[0] in kept else f"{m[0][0]}{self._typed}{m[0][1:]}", value
            )
        if isinstance(value, list):
            return [self._by_hand(part, answer) for part in value]
        if isinstance(value, dict):
            return {self._by_hand(k): self._by_hand(part, answer) for k, part in value.items()}
        return value

    def text(self, count: int, ask: bool) -> tuple[str, list[tuple[int, int]] | None]:
        """(the text of the first `count` messages, its {% generation %} blocks or None
        if it has none). ask: with the generation prompt."""
        if (count, ask) not in self._texts:
            self._texts[count, ask] = self._rendered(self._messages[:count], ask)
        return self._texts[count, ask]

    def _rendered(
        self, messages: list[dict[str, Any]], ask: bool
    ) -> tuple[str, list[tuple[int, int]] | None]:
        ids = {mark.id: name for name, mark in reversed(self._tokenizer.marks.items())}
        special = self._tokenizer.special
        names = {f"{role}_token": ids.get(i) for role, i in special.items() if role in _ENDS}
        context = {
            "messages": messages,
            "add_generation_prompt": ask,
            "begin": ids[tokenizers.begin(self._tokenizer)],
            "_open": self._open,
            "_close": self._close,
            **names,
            **self._variables,
        }
        rendered = self._render(context)
        if not self._blocks:
            return rendered, None
        parts = re.split(f"[{self._open}{self._close}]", rendered)
        ends = np.cumsum([len(part) for part in parts]).tolist()
        return "".join(parts), list(zip(ends[0::2], ends[1::2]))

    def tokens(self, text: str) -> offsets.Text:
        """The tokens of a text of the template."""
        return offsets.encode(self._tokenizer, text, self._typed)

    def turn(self, number: int) -> _Turn:
        """The assistant's message of this number in the text that ends with it."""
        if number not in self._turns:
            text, blocks = self.text(number + 1, False)
            prompt, _ = self.text(number, True)
            if blocks is None:
                start = self._start(number, text, prompt)
                special = [m.end() for m in self._special.finditer(text, start)]
                spans = [(start, self._last(special, number))]
            else:
                before = len(_shared(self._before(number), text))
                spans = [(a, b) for a, b in blocks if b > before]
                if not spans:
                    raise ValueError(
                        f"template {self._name!r}: it writes no {{% generation %}} block for "
                        f"message {number} of the assistant"
                    )
                start, end = spans[-1]
                special = [m.end() for m in self._special.finditer(text, start, end)]
                self._last([at for at in special if not text[at:end].strip()], number)
            self._turns[number] = _Turn(text, spans, prompt)
        return self._turns[number]

    def _before(self, number: int) -> str:
        return self.text(number, False)[0] if number else ""

    def _start(self, number: int, text: str, prompt: str) -> int:
        """The place where the answer begins: after the generation prompt, or after as much of it as
        precedes every answer."""
        if text.startswith(prompt):
            return len(prompt)
        anything = {"role": "assistant", "content": self._probe}
        probed, _ = self._rendered([*self._messages[:number], anything], False)
        start, before = len(_shared(prompt, probed)), self._before(number)
        shown = (
            f"its generation prompt ends in {prompt[-40:]!r}, in the conversation there is "
            f"{text[max(len(prompt) - 40, 0) : len(prompt)]!r}"
        )
        if text[: len(before)] != before:
            raise ValueError(
                f"template {self._name!r}: what it writes before message {number} depends on later "
                f"messages: {shown}"
            )
        start = len(_shared(prompt[:start], text))
        if start <= len(before):
            raise ValueError(
                f"template {self._name!r}: its generation prompt is not how it writes message "
                f"{number}: {shown}"
            )
        return start

    def stays(self, number: int, count: int) -> bool:
        """Whether the assistant's message of this number is written in the text of the first
        `count` messages as in the text that ends with it."""
        turn = self.turn(number)
        end = turn.spans[-1][1]
        text = turn.text if count == number + 1 else self.text(count, False)[0]
        return text[:end] == turn.text[:end]

    def check_complete(self, number: int) -> None:
        """Raises: ValueError where the template leaves out part of this message."""
        turn, message = self.turn(number), self._messages[number]
        before = len(_shared(self._before(number), turn.text))
        written = turn.text[before : turn.spans[-1][1]]
        for name, value in message.items():
            letters = iter(written)
            wanted = value if isinstance(value, str) and name not in (*_NAMES, *INERT) else ""
            if any(c not in letters for c in wanted if not c.isspace()):
                raise ValueError(
                    f"template {self._name!r}: it leaves out part of the {name!r} of "
                    f"message {number}, {value[:60]!r}, of which it writes "
                    f"{written[:60]!r}; what is left out would not be learnt"
                )

    def _last(self, ends: list[int], number: int) -> int:
        if not ends:
            raise ValueError(
                f"template {self._name!r}: no special token ends the assistant's turn "
                f"({number}), so where to stop would not be learnt; write {{{{ eos_token }}}} "
                "after it, inside its {% generation %} block if it has one"
            )
        return ends[-1]

    def written(self, count: int, numbers: Sequence[int]) -> Written:
        """The tokens of the first `count` messages, and where the assistant's of these numbers
        are."""
        text, _ = self.text(count, False)
        tokens = self.tokens(text)
        spans = []
        for number in numbers:
            turn = self.turn(number)
            for start, end in turn.spans:
                first, last = tokens.before(start), tokens.begun(end)
                spans.append(Span(number, first, last, self._apart(tokens, first, start, turn)))
        return Written(np.array(tokens.ids, np.int32), spans)

    def _apart(self, tokens: offsets.Text, first: int, start: int, turn: _Turn) -> Apart:
        if start > turn.spans[0][0]:  # a later part of the same message
            return ""
        if turn.text[: len(turn.prompt)] != turn.prompt:
            return "opened"
        # Only what follows the last special token depends on what follows the prompt.
        at = max([m.start() for m in self._special.finditer(turn.prompt)], default=0)
        known = tokens.before(at)
        tail = self.tokens(turn.prompt[at:]).ids if at else self.tokens(turn.prompt).ids
        return "" if tokens.ids[known : tokens.before(len(turn.prompt))] == tail else "merged"


_ENDS = ("bos", "eos", "pad", "unk")
_NAMES = ("role", "name")


def _shared(a: str, b: str) -> str:
    """The longest common beginning of two texts."""
    size = min(len(a), len(b))
    if a[:size] == b[:size]:
        return a[:size]
    return a[: next(i for i in range(size) if a[i] != b[i])]
