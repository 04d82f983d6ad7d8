"""Chat templates: a conversation as tokens, with what the assistant writes marked exactly.

    chat = template.load("chatml", "runs/tokenizer")
    found = template.encode(chat, tokenizer, [Message("user", "Hi"), Message("assistant", "Yes")])

    tokens   begin <|im_start|> user \\n Hi <|im_end|> \\n <|im_start|> assistant \\n
    answer   0     0            0    0  0  0          0  0            0         0
             Yes <|im_end|> \\n
             1   1          0

A template renders text. The text is cut at the special tokens that the template wrote, and where
the assistant begins and ends; every part between two cuts is encoded once. So

- what stands before an answer is, token for token, the prompt that generation starts from;
- no token lies across the edge of an answer, and the mask never looks at ids;
- a special token's name that somebody typed is text: only the template can write special tokens.

Where the assistant begins: behind the template's own generation prompt. Where it ends: behind the
last special token of its turn, which is learnt too. A template with {% generation %} blocks says
both itself, as in transformers.
"""

import difflib
import functools
import json
import pathlib
import re
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jinja2
import jinja2.ext
import jinja2.nodes
import jinja2.parser
import numpy as np

from jaxlm.core import io
from jaxlm.data import limits, turns
from jaxlm.data.tokenizers import tokenizer as tokenizers

ROLES = ("system", "user", "assistant")
OWN = "tokenizer"
_BLOCK = re.compile(r"\{%-?\s*generation\s*-?%\}")


class Message(NamedTuple):
    """What one role says: "system", "user" or "assistant"."""

    role: str
    text: str


class Template(NamedTuple):
    """name: as it was asked for. source: Jinja. needs: special tokens that a tokenizer must have.
    between: what stands between an instruction and the text that it is about."""

    name: str
    source: str
    needs: tuple[str, ...] = ()
    between: str = "\n\n"


class Encoded(NamedTuple):
    """A conversation: tokens int32[n], and answer bool[n], which is True on what the assistant
    writes, the ends of its turns among it."""

    tokens: np.ndarray
    answer: np.ndarray


class Written(NamedTuple):
    """A conversation: tokens int32[n], and from where to where each turn of the assistant goes."""

    tokens: np.ndarray
    spans: list[tuple[int, int]]


def load(name: str, tokenizer: str) -> Template:
    """The template of a name (turns.LAYOUTS), of a file *.jinja, or, for "tokenizer", the one in
    the files of the tokenizer that goes by this name or path.

    Raises: ValueError or FileNotFoundError naming what was given and what would do.
    """
    if name in turns.LAYOUTS:
        return Template(name, *turns.LAYOUTS[name])
    if name == OWN:
        found = own(tokenizer)
        if found is None:
            raise ValueError(
                f"template {OWN!r}: there is no chat_template beside the tokenizer {tokenizer!r} "
                f"(chat_template.jinja, tokenizer_config.json); name one of {[*turns.LAYOUTS]}"
            )
        return Template(name, found)
    if not name.endswith(".jinja"):
        near = difflib.get_close_matches(name, [*turns.LAYOUTS, OWN], n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ValueError(
            f"template {name!r}: expected one of {[*turns.LAYOUTS]}, {OWN!r} for the tokenizer's "
            f"own, or a file that ends in .jinja{hint}"
        )
    path = pathlib.Path(name).expanduser()
    if not path.is_file():
        raise FileNotFoundError(f"template {name!r}: no such file")
    return Template(name, path.read_text("utf-8"))


def own(tokenizer: str) -> str | None:
    """The template in the files of the tokenizer that goes by this path; None if there is none."""
    path = pathlib.Path(tokenizer).expanduser()
    folder = path if path.is_dir() else path.parent
    if (folder / "chat_template.jinja").is_file():
        return (folder / "chat_template.jinja").read_text("utf-8")
    for file in ("chat_template.json", "tokenizer_config.json"):
        if not (folder / file).is_file():
            continue
        found = io.json_record(folder / file).get("chat_template")
        if isinstance(found, list):  # several by name: [{"name": "default", "template": "..."}]
            found = {part["name"]: part["template"] for part in found}.get("default")
        if found is not None:
            return found
    return None


def encode(
    template: Template, tokenizer: tokenizers.Tokenizer, messages: Sequence[Message]
) -> Encoded:
    """The conversation as tokens, and which of them the assistant writes.

    Raises: ValueError for an unknown role or no message; where the template refuses the messages;
    where it needs a special token that the tokenizer lacks; where an assistant's turn has no
    special token at its end; and where a generation prompt is not how the conversation goes on.
    """
    written = answers(template, tokenizer, messages)
    answer = np.zeros(len(written.tokens), bool)
    for start, end in written.spans:
        answer[start:end] = True
    return Encoded(written.tokens, answer)


def answers(
    template: Template, tokenizer: tokenizers.Tokenizer, messages: Sequence[Message]
) -> Written:
    """As `encode`, with what the assistant writes turn by turn."""
    return _Writer(template, tokenizer, messages).written(False)


def prompt(
    template: Template, tokenizer: tokenizers.Tokenizer, messages: Sequence[Message]
) -> np.ndarray:
    """int32[n]: what stands before the assistant's next message. `encode` of the conversation with
    that message begins with it. Raises: ValueError as `encode`."""
    return _Writer(template, tokenizer, messages).written(True).tokens


def stops(template: Template, tokenizer: tokenizers.Tokenizer) -> tuple[int, ...]:
    """The ids that end an assistant's turn: what the template writes there, and eos."""
    found = encode(template, tokenizer, [Message("user", "a"), Message("assistant", "b")])
    last = int(found.tokens[found.answer][-1])
    return tuple(dict.fromkeys((last, tokenizer.special["eos"])))


def portable(template: Template) -> str:
    """The Jinja source as transformers runs it, which has no `begin`."""
    if template.name not in turns.LAYOUTS:
        return template.source
    return "{%- set begin = bos_token if bos_token else eos_token -%}" + template.source


# --- Rendered text and its parts -------------------------------------------------------------


class _Writer:
    """The messages of one conversation under one template.

    A special token's name in a message gets a character of its own inside while the template runs,
    which no message has: what the template wrote is found by name, and the character goes again.
    """

    def __init__(
        self, template: Template, tokenizer: tokenizers.Tokenizer, messages: Sequence[Message]
    ):
        _check(template, tokenizer, messages)
        self._template, self._tokenizer = template, tokenizer
        self._marks = tokenizer.marks
        longest = sorted(self._marks, key=len, reverse=True)
        self._written = re.compile("|".join(map(re.escape, longest)))
        said = "".join(message.text for message in messages)
        private = (chr(i) for i in range(0xF0000, 0xFFFFE))
        self._typed, self._open, self._close = [c for c, _ in zip(_absent(private, said), "123")]
        self._messages = [{"role": m.role, "content": self._typed_by_hand(m)} for m in messages]

    def _typed_by_hand(self, message: Message) -> str:
        def split(found: re.Match[str]) -> str:
            return f"{found.group()[0]}{self._typed}{found.group()[1:]}"

        return self._written.sub(split, message.text)

    def text(self, count: int, ask: bool) -> tuple[str, list[tuple[int, int]] | None]:
        """(what the template makes of the first `count` messages, its {% generation %} blocks or
        None if it has none). ask: with the generation prompt."""
        ids = {mark.id: name for name, mark in reversed(self._marks.items())}
        special = self._tokenizer.special
        names = {f"{role}_token": ids.get(i) for role, i in special.items() if role in _ENDS}
        marks = {"_open": self._open, "_close": self._close}
        try:
            whole = _compiled(self._template.source).render(
                messages=self._messages[:count],
                add_generation_prompt=ask,
                begin=ids[tokenizers.begin(self._tokenizer)],
                tools=None,
                documents=None,
                raise_exception=_refuse,
                **names,
                **marks,
            )
        except (jinja2.TemplateError, TypeError) as error:
            raise ValueError(f"template {self._template.name!r}: {error}") from error
        if not _BLOCK.search(self._template.source):
            return whole, None
        parts = re.split(f"[{self._open}{self._close}]", whole)
        ends = np.cumsum([len(part) for part in parts]).tolist()
        return "".join(parts), list(zip(ends[0::2], ends[1::2]))

    def starts(self, text: str) -> dict[int, int]:
        """{assistant's message: where in the text of all messages it begins}."""
        found = {}
        for i, message in enumerate(self._messages):
            if message["role"] != "assistant":
                continue
            start, _ = self.text(i, True)
            if not text.startswith(start):
                raise ValueError(
                    f"template {self._template.name!r}: what it writes before message {i} depends "
                    f"on later messages: asked for a response it ends in {start[-40:]!r}, in the "
                    f"conversation there is {text[max(len(start) - 40, 0) : len(start)]!r}"
                )
            found[i] = len(start)
        return found

    def ends(self, text: str, starts: dict[int, int]) -> list[tuple[int, int]]:
        """Where the assistant writes, by what is special: behind a prompt, up to the last special
        token of the turn."""
        found = []
        for i, start in starts.items():
            end = len(_shared(self.text(i + 1, False)[0], text))
            special = [m.end() for m in self._written.finditer(text, start, end)]
            found.append((start, self._last(special, i)))
        return found

    def closed(self, text: str, blocks: list[tuple[int, int]]) -> list[tuple[int, int]]:
        """The template's own blocks, if each ends with a special token."""
        for i, (start, end) in enumerate(blocks):
            special = [m.end() for m in self._written.finditer(text, start, end)]
            self._last([at for at in special if not text[at:end].strip()], i)
        return blocks

    def _last(self, ends: list[int], number: int) -> int:
        if not ends:
            raise ValueError(
                f"template {self._template.name!r}: no special token ends the assistant's turn "
                f"({number}), so where to stop would not be learnt; write {{{{ eos_token }}}} "
                "behind it, inside its {% generation %} block if it has one"
            )
        return ends[-1]

    def written(self, ask: bool) -> Written:
        """The tokens of all messages; ask: with the generation prompt behind them."""
        text, blocks = self.text(len(self._messages), ask)
        starts = self.starts(text)
        spans = self.ends(text, starts) if blocks is None else self.closed(text, blocks)
        special = {m.start(): m.end() for m in self._written.finditer(text)}
        behind = {end: start for start, end in special.items()}
        edges = {0, len(text), *starts.values()}
        edges |= {edge for pair in (*spans, *special.items()) for edge in pair}
        cuts = sorted(edges)
        ids: list[int] = []
        at = {0: 0}  # {place in the text: place among the tokens}
        for start, end in zip(cuts, cuts[1:]):
            ids += self._part(text, start, end, special, behind)
            at[end] = len(ids)
        return Written(np.array(ids, np.int32), [(at[a], at[b]) for a, b in spans])

    def _part(
        self, text: str, start: int, end: int, special: dict[int, int], behind: dict[int, int]
    ) -> list[int]:
        """The ids between two cuts. special: {where a special token is: where it ends}; behind:
        the other way."""
        if start in special:
            return [self._marks[text[start:end]].id]
        before = behind.get(start)
        piece = text[start:end].replace(self._typed, "")
        if before is not None and self._marks[text[before:start]].right:
            piece = piece.lstrip()
        if end in special and self._marks[text[end : special[end]]].left:
            piece = piece.rstrip()
        if start == 0 or (before is not None and self._tokenizer.restarts):
            return self._tokenizer.encode(piece)
        return tokenizers.encode_on(self._tokenizer, piece)


_ENDS = ("bos", "eos", "pad", "unk")


def _check(
    template: Template, tokenizer: tokenizers.Tokenizer, messages: Sequence[Message]
) -> None:
    if lacking := [name for name in template.needs if name not in tokenizer.marks]:
        raise ValueError(
            f"template {template.name!r} writes the special tokens {list(template.needs)}, and the "
            f"tokenizer has no {lacking[0]!r}: train it with extra={list(template.needs)}, or take "
            "a template that needs none, such as 'plain' or 'alpaca'"
        )
    if not messages:
        raise ValueError("a conversation needs at least one message")
    for number, message in enumerate(messages):
        if message.role not in ROLES:
            raise ValueError(
                f"message {number}: role {message.role!r} is unknown; expected one of {list(ROLES)}"
            )


def _absent(letters: Iterator[str], text: str) -> Iterator[str]:
    return (c for c in letters if c not in text)


def _shared(a: str, b: str) -> str:
    """What two texts both begin with."""
    size = min(len(a), len(b))
    if a[:size] == b[:size]:
        return a[:size]
    return a[: next(i for i in range(size) if a[i] != b[i])]


# --- Jinja -----------------------------------------------------------------------------------


class _Generation(jinja2.ext.Extension):
    """{% generation %} ... {% endgeneration %}: what the assistant writes, between two marks."""

    tags = {"generation"}

    def parse(self, parser: jinja2.parser.Parser) -> list[jinja2.nodes.Node]:
        """The body between the characters that the context calls _open and _close."""
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        first, last = (
            jinja2.nodes.Output([jinja2.nodes.Name(name, "load")]).set_lineno(line)
            for name in ("_open", "_close")
        )
        return [first, *body, last]


@functools.lru_cache(16)
def _compiled(source: str) -> jinja2.Template:
    """A template in a sandbox, with what transformers gives to templates, except the date: what is
    trained on must not depend on the day."""
    environment = limits.environment([_Generation, jinja2.ext.loopcontrols])
    environment.filters["tojson"] = limits.bounded("tojson", _to_json)
    return limits.template(environment, source)


def _to_json(
    value: Any, ensure_ascii: bool = False, indent: int | None = None, sort_keys: bool = False
) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, sort_keys=sort_keys)


def _refuse(message: str) -> None:
    raise jinja2.TemplateError(message)
