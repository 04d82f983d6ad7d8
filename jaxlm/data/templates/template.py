"""Chat templates: a conversation as tokens, with what the assistant writes marked exactly.

    chat = template.load("chatml", "runs/tokenizer")
    text = template.encode(chat, tokenizer, [Message("user", "Hi"), Message("assistant", "Yes")])

    tokens   begin <|im_start|> user \\n Hi <|im_end|> \\n <|im_start|> assistant \\n
    answer   0     0            0    0  0  0          0  0            0         0
             Yes <|im_end|> \\n
             1   1          0

A template renders text, and the text is encoded as a whole (offsets.py): the ids of a conversation
are those that transformers gives it. Then

- an answer begins after the template's own generation prompt and ends with the last special token
  of its turn, which is learnt too; a template with {% generation %} blocks marks both itself;
- a token with a character of the answer is the answer's, those on its edges too. What comes before
  it is the prompt that generation starts from, token for token, unless the tokenizer joins the end
  of the prompt with the beginning of the answer (`rendering.Span.apart`);
- a special token's name that somebody typed is text: only the template can write special tokens.

A template may write an answer otherwise once others follow: those of reasoning models leave earlier
thoughts out. Such an answer is learnt in a text that ends with it, as it is sampled (`documents`).
"""

import datetime
import difflib
import functools
import json
import os
import pathlib
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jinja2
import jinja2.ext
import jinja2.nodes
import jinja2.parser
import numpy as np

from jaxlm.core import json_file
from jaxlm.data.records import messages as reading
from jaxlm.data.records.messages import ROLES, Message
from jaxlm.data.templates import layouts, limits, rendering, variables
from jaxlm.data.tokenizers import tokenizer as tokenizers

OWN = "tokenizer"
CLOCK = "clock"  # the variable that sets the date
_TODAY = "2025-01-01"
_BLOCK = re.compile(r"\{%[-+]?\s*generation\s*[-+]?%\}")


class Template(NamedTuple):
    """name: as given to `load`. source: Jinja. needs: special tokens that a tokenizer must have.
    between: the text between an instruction and the text that it is about. variables: its inputs
    other than messages."""

    name: str
    source: str
    needs: tuple[str, ...] = ()
    between: str = "\n\n"
    variables: Mapping[str, Any] = {}

    @property
    def identity(self) -> str:
        """The source and variables, which decide the text rendered from messages."""
        variables = json.dumps(self.variables, sort_keys=True) if self.variables else ""
        return f"{self.source}{variables}"


class Encoded(NamedTuple):
    """A conversation: tokens int32[n], and answer bool[n], which is True on what the assistant
    writes, the ends of its turns among it."""

    tokens: np.ndarray
    answer: np.ndarray


def load(name: str | os.PathLike[str], tokenizer: str | os.PathLike[str]) -> Template:
    """The template of a name (layouts.LAYOUTS), of a file *.jinja, or, for "tokenizer", the one in
    the files of the tokenizer that goes by this name or path. Variables may follow the name, as in
    "tokenizer?enable_thinking=false&clock=2025-06-01"; what is no JSON is a string.

    Raises: ValueError or FileNotFoundError naming what was given and what would do.
    """
    name = os.fspath(name)
    base, variables = _split(name)
    if base in layouts.LAYOUTS:
        return Template(name, *layouts.LAYOUTS[base], variables=variables)
    if base == OWN:
        source = own(tokenizer)
        if source is None:
            raise ValueError(
                f"template {OWN!r}: there is no chat_template next to the tokenizer {tokenizer!r} "
                f"(chat_template.jinja, tokenizer_config.json); name one of {[*layouts.LAYOUTS]}"
            )
        return Template(name, source, variables=variables)
    if not base.endswith(".jinja"):
        near = difflib.get_close_matches(base, [*layouts.LAYOUTS, OWN], n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ValueError(
            f"template {name!r}: expected one of {[*layouts.LAYOUTS]}, {OWN!r} for the tokenizer's "
            f"own, or a file that ends in .jinja{hint}"
        )
    path = pathlib.Path(base).expanduser()
    if not path.is_file():
        raise FileNotFoundError(f"template {name!r}: no such file")
    return Template(name, path.read_text("utf-8"), variables=variables)


def _split(name: str) -> tuple[str, dict[str, Any]]:
    """The name without its variables, and these."""
    base, mark, query = name.partition("?")
    variables: dict[str, Any] = {}
    for part in query.split("&") if mark else []:
        key, equals, value = part.partition("=")
        if not equals or not key.isidentifier():
            raise ValueError(
                f"template {name!r}: {part!r} is no variable; NAME=VALUE is needed, joined by '&'"
            )
        try:
            variables[key] = json.loads(value)
        except json.JSONDecodeError:
            variables[key] = value
    if CLOCK in variables:
        try:
            variables[CLOCK] = datetime.date.fromisoformat(str(variables[CLOCK])).isoformat()
        except ValueError as error:
            raise ValueError(f"template {name!r}: {CLOCK}: {error}") from error
    return base, variables


def own(tokenizer: str | os.PathLike[str]) -> str | None:
    """The template in the files of the tokenizer that goes by this path; None if there is none."""
    path = pathlib.Path(tokenizer).expanduser()
    folder = path if path.is_dir() else path.parent
    if (folder / "chat_template.jinja").is_file():
        return (folder / "chat_template.jinja").read_text("utf-8")
    for file in ("chat_template.json", "tokenizer_config.json"):
        if not (folder / file).is_file():
            continue
        source = json_file.read_object(folder / file).get("chat_template")
        if isinstance(source, list):  # several by name: [{"name": "default", "template": "..."}]
            source = {part["name"]: part["template"] for part in source}.get("default")
        if source is not None:
            return source
    return None


def encode(
    template: Template, tokenizer: tokenizers.Tokenizer, messages: Sequence[Message]
) -> Encoded:
    """The conversation as tokens, and which of them the assistant writes; not those of messages
    that the template writes otherwise because of later ones.

    Raises: ValueError for an unknown role, a field of a message that the template does not read, or
    no message; where the template refuses the messages; where it needs a special token that the
    tokenizer lacks; where an assistant's turn has no special token at its end; and where a
    generation prompt is not how the conversation goes on.
    """
    writer = _writer(template, tokenizer, messages)
    turns_ = [i for i, message in enumerate(messages) if message.role == "assistant"]
    written = writer.written(len(messages), [i for i in turns_ if writer.stays(i, len(messages))])
    answer = np.zeros(len(written.tokens), bool)
    for span in written.spans:
        answer[span.start : span.end] = True
    return Encoded(written.tokens, answer)


def documents(
    template: Template,
    tokenizer: tokenizers.Tokenizer,
    messages: Sequence[Message],
    learnt: Sequence[int],
) -> list[rendering.Written]:
    """The texts from which the assistant's messages of these numbers are learnt, each in one: the
    conversation up to the last of them, and, for those that the template writes otherwise once
    others follow, the conversation up to there.

    Raises: ValueError as `encode`, and where the template leaves out part of what is learnt.
    """
    writer = _writer(template, tokenizer, messages)
    texts, rest = [], sorted(learnt)
    while rest:
        count = rest[-1] + 1
        here = [i for i in rest if writer.stays(i, count)]
        for number in here:
            writer.check_complete(number)
        texts.append(writer.written(count, here))
        rest = [i for i in rest if i not in here]
    return texts[::-1]


def prompt(
    template: Template, tokenizer: tokenizers.Tokenizer, messages: Sequence[Message]
) -> np.ndarray:
    """int32[n]: the tokens before the assistant's next message. `encode` of the conversation with
    that message begins with it, unless its `Span` is apart. Raises: ValueError as `encode`."""
    text, _ = (writer := _writer(template, tokenizer, messages)).text(len(messages), True)
    return np.array(writer.tokens(text).ids, np.int32)


def text(
    template: Template, tokenizer: tokenizers.Tokenizer, messages: Sequence[Message], asked: bool
) -> str:
    """The text of a conversation; asked: with the generation prompt. Raises: ValueError as
    `encode`."""
    return _writer(template, tokenizer, messages).text(len(messages), asked)[0]


def stops(template: Template, tokenizer: tokenizers.Tokenizer) -> tuple[int, ...]:
    """The ids that end an assistant's turn: the template's last token there, and eos."""
    text = encode(template, tokenizer, [Message("user", "a"), Message("assistant", "b")])
    last = int(text.tokens[text.answer][-1])
    return tuple(dict.fromkeys((last, tokenizer.special["eos"])))


def given(template: Template, variables: Mapping[str, Any]) -> Template:
    """The template with more variables: a record's tools, say."""
    return template._replace(variables={**template.variables, **variables})


def portable(template: Template) -> str:
    """The Jinja source as transformers runs it, which has no `begin`, and where the template's
    variables are defaults."""
    source, base = template.source, _split(template.name)[0]
    if base in layouts.LAYOUTS:
        source = "{%- set begin = bos_token if bos_token else eos_token -%}" + source
    for name, value in template.variables.items():
        if name == CLOCK:
            continue  # transformers has a clock of its own
        # Jinja knows JSON's true, false and none, and its strings, but not null
        literal = "none" if value is None else json.dumps(value)
        source = (
            f"{{%- if {name} is not defined -%}}{{%- set {name} = {literal} -%}}{{%- endif -%}}"
            + (source)
        )
    return source


def _writer(
    template: Template, tokenizer: tokenizers.Tokenizer, messages: Sequence[Message]
) -> rendering.Writer:
    _check(template, tokenizer, messages)
    render = functools.partial(_render, template)
    blocks = _BLOCK.search(template.source) is not None
    known = _read_by(template)
    if "content" not in known.nullable:  # it would write the word "None"
        messages = [reading.worded(message) for message in messages]
    return rendering.Writer(
        template.name, render, tokenizer, messages, template.variables, blocks, known.searched
    )


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
    known = _read_by(template)
    names = {"strftime_now" if name == CLOCK else name: name for name in template.variables}
    if unread := [given for name, given in names.items() if name not in known.variables]:
        raise ValueError(
            f"template {template.name!r} does not read {unread[0]!r}, which would be lost; take "
            "one that does, such as the model's own, or leave it out"
        )
    for number, message in enumerate(messages):
        free = known.roles and _split(template.name)[0] not in layouts.LAYOUTS
        if not free and message.role not in (*ROLES, *known.words):
            raise ValueError(
                f"message {number}: role {message.role!r} is unknown to template "
                f"{template.name!r}; expected one of {list(ROLES)}, or a template that has it"
            )
        lost = [] if known.whole else reading.unread(message, known.fields)
        if lost:
            raise ValueError(
                f"message {number}: template {template.name!r} does not read the field "
                f"{', '.join(map(repr, lost))} of {message.role!r} messages, which would be lost; "
                "take a template that does, such as the model's own, or leave it out"
            )


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


def _render(template: Template, context: dict[str, Any]) -> str:
    """The text of a context under a template. Raises: ValueError where it refuses it."""
    more = {"tools": None, "documents": None, "raise_exception": _refuse} | _clock(template)
    try:
        return _compiled(template.source).render(more | context)
    except (jinja2.TemplateError, TypeError, ValueError, LookupError, ArithmeticError) as error:
        raise ValueError(f"template {template.name!r}: {error}") from error


def _clock(template: Template) -> dict[str, Any]:
    """`strftime_now` at a fixed date: training data must not depend on the day. A template that
    checks whether there is a clock finds none, unless a date is given."""
    if CLOCK not in template.variables and "strftime_now" in _read_by(template).guarded:
        return {}
    today = datetime.datetime.fromisoformat(template.variables.get(CLOCK, _TODAY))
    return {"strftime_now": today.strftime}


@functools.lru_cache(16)
def _compiled(source: str) -> jinja2.Template:
    """A template in a sandbox, with what transformers gives to templates."""
    return limits.template(_environment(), source)


def _read_by(template: Template) -> variables.Reads:
    """The Reads of a template. Raises: ValueError for one that is no Jinja."""
    try:
        return _read_by_source(template.source)
    except jinja2.TemplateError as error:
        raise ValueError(f"template {template.name!r}: {error}") from error


@functools.lru_cache(16)
def _read_by_source(source: str) -> variables.Reads:
    return variables.of(limits.parse(_environment(), source))


def _environment() -> jinja2.Environment:
    environment = limits.environment([_Generation, jinja2.ext.loopcontrols])
    environment.filters["tojson"] = limits.bounded("tojson", _to_json)
    return environment


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    return json.dumps(
        value,
        ensure_ascii=ensure_ascii,
        indent=indent,
        separators=separators,
        sort_keys=sort_keys,
    )


def _refuse(message: str) -> None:
    raise jinja2.TemplateError(message)
