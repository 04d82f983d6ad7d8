"""A constitution: the principles a model judges its own answers by, and the requests to do so.

A file is one of

    .json   {"principles": [...], "examples": [...], "compare": ..., ...}, or only the list
    .jsonl  a principle a line
    .txt    a principle a line, in words; empty lines and those that begin with # are left out

A principle is {"name", "critique", "revision", "choice"}: the requests to criticise and to revise
the last answer, and the question that two answers are compared by. {"principle": "words"}, and a
line of text, is short for the three, in `SHORT`'s words; its name is then the words themselves.
"""

import dataclasses
import difflib
import pathlib
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

from jaxlm.core import json_file
from jaxlm.data.records import records

DEFAULT = "default"
"""The name of the constitution that comes with the library."""

SHORT = {
    "critique": ("Say where your last answer goes against this principle, and how: {principle}"),
    "revision": "Write the answer again so that it follows this principle: {principle}",
    "choice": "Which answer follows this principle better? {principle}",
}


_FORMS = ("turn", "compare", "think", "conclude")


class Principle(NamedTuple):
    """A principle's name, its requests for a critique and a revision, and its question."""

    name: str
    critique: str
    revision: str
    choice: str


class Example(NamedTuple):
    """A worked example, shown before a request: principle is the name of the one it is about."""

    principle: str
    prompt: str
    response: str
    critique: str
    revision: str


@dataclasses.dataclass(frozen=True)
class Constitution:
    """Principles, examples, and the words around them."""

    principles: tuple[Principle, ...]
    """At least one; names differ."""
    examples: tuple[Example, ...] = ()
    """Worked critiques and revisions, for models that need to be shown."""
    turn: str = "{role}: {text}\n"
    """One message of a conversation, within a question about it."""
    compare: str = (
        "Here is a conversation, and two answers that could come next.\n\n{conversation}\n"
        "{question}\n\n(A) {a}\n\n(B) {b}\n\nReply with (A) or (B)."
    )
    """Template of the question about two answers."""
    choices: tuple[str, str] = ("(A)", "(B)")
    """The model's replies that choose the first and the second."""
    think: str = (
        "Here is a conversation, and two answers that could come next.\n\n{conversation}\n"
        "{question}\n\n(A) {a}\n\n(B) {b}\n\nThink it through step by step."
    )
    """Template of the question about two answers where the model is to think first."""
    conclude: str = "So which one is it? Reply with (A) or (B)."
    """The request for a choice after its thoughts."""

    def __post_init__(self) -> None:
        _check(self)


def load(name: str) -> Constitution:
    """The constitution of a file; "default" is the library's own.

    Raises: FileNotFoundError; ValueError naming the file, the principle, the field and what would
    be right.
    """
    path = pathlib.Path(__file__).with_name("constitution.json")
    if name != DEFAULT:
        path = pathlib.Path(name).expanduser()
        if not path.is_file():
            raise FileNotFoundError(
                f"constitution {name!r}: no such file; give one, or {DEFAULT!r} for the library's"
            )
    if path.suffix == ".json":
        value = json_file.read(path)
        return _constitution(str(path), {"principles": value} if isinstance(value, list) else value)
    if path.suffix == ".jsonl":
        return _constitution(str(path), {"principles": [r.value for r in records.read(str(path))]})
    if path.suffix in ("", ".txt", ".md"):
        lines = [line.strip() for line in path.read_text("utf-8").splitlines()]
        words = [line for line in lines if line and not line.startswith("#")]
        return _constitution(str(path), {"principles": [{"principle": line} for line in words]})
    raise ValueError(f"{path}: a constitution is a .json, .jsonl or .txt file")


def digest(constitution: Constitution) -> str:
    """12 hex digits that identify every word of it."""
    return records.digest([dataclasses.asdict(constitution)])[:12]


def fill(form: str, parts: dict[str, str]) -> str:
    """The form with each {name} of parts in its place; what is put in is not read again."""
    pattern = "|".join(re.escape("{" + name + "}") for name in parts)
    return re.sub(pattern, lambda match: parts[match[0][1:-1]], form)


def _constitution(path: str, given: Any) -> Constitution:
    if not isinstance(given, dict):
        raise ValueError(f"{path}: a {type(given).__name__}; an object or a list is needed")
    _known(path, given, [f.name for f in dataclasses.fields(Constitution)])
    values: dict[str, Any] = {k: given[k] for k in _FORMS if k in given}
    for name, form in values.items():
        if not isinstance(form, str):
            raise ValueError(f"{path}: {name}: a {type(form).__name__}; a text is needed")
    if "choices" in given:
        values["choices"] = tuple(map(str, _list(path, given, "choices")))
    values["principles"] = tuple(
        _principle(f"{path}, principle {i}", p)
        for i, p in enumerate(_list(path, given, "principles"), 1)
    )
    values["examples"] = tuple(
        Example(**_texts(f"{path}, example {i}", e, Example._fields))
        for i, e in enumerate(_list(path, given, "examples"), 1)
    )
    try:
        return Constitution(**values)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def _principle(where: str, given: Any) -> Principle:
    if isinstance(given, dict) and "principle" in given:
        words = _texts(where, given, ("principle",), optional=("name",))
        requests = {k: fill(form, {"principle": words["principle"]}) for k, form in SHORT.items()}
        return Principle(words.get("name", words["principle"]), **requests)
    return Principle(**_texts(where, given, Principle._fields))


def _list(path: str, given: dict[str, Any], field: str) -> list[Any]:
    value = given.get(field, [])
    if not isinstance(value, list):
        raise ValueError(f"{path}: {field} is a {type(value).__name__}; a list is needed")
    return value


def _texts(
    where: str, given: Any, fields: Sequence[str], optional: Sequence[str] = ()
) -> dict[str, str]:
    if not isinstance(given, dict):
        raise ValueError(f"{where}: a {type(given).__name__}; an object is needed")
    _known(where, given, [*fields, *optional])
    record = records.Record(given, where)
    texts = {name: records.text(record, name) for name in (*fields, *(set(optional) & set(given)))}
    empty = [name for name, words in texts.items() if not words.strip()]
    if empty:
        raise ValueError(f"{where}: field {empty[0]!r} is empty")
    return texts


def _known(where: str, given: dict[str, Any], fields: Sequence[str]) -> None:
    for name in given:
        if name not in fields:
            near = difflib.get_close_matches(name, fields, 1)
            hint = f"; did you mean {near[0]!r}?" if near else f"; fields: {list(fields)}"
            raise ValueError(f"{where}: no such field {name!r}{hint}")


def _check(constitution: Constitution) -> None:
    names = [p.name for p in constitution.principles]
    if not names:
        raise ValueError("principles: none given; at least one is needed")
    twice = sorted({n for n in names if names.count(n) > 1})
    if twice:
        raise ValueError(f"principles: the name {twice[0]!r} is given twice")
    for example in constitution.examples:
        if example.principle not in names:
            raise ValueError(
                f"examples: principle {example.principle!r} is none of {sorted(names)}"
            )
    choices = constitution.choices
    if len(choices) != 2 or choices[0] == choices[1] or "" in choices:
        raise ValueError(f"choices: {choices!r} given; two different texts are needed")
    parts = {"turn": ("role", "text"), "compare": ("conversation", "question", "a", "b")}
    parts["think"] = parts["compare"]
    for form, wanted in parts.items():
        for part in wanted:
            # a form may leave out who speaks, and where nothing of the conversation is needed
            if (form, part) != ("turn", "role") and getattr(constitution, form).count(
                f"{{{part}}}"
            ) != 1:
                raise ValueError(f"{form}: {{{part}}} must be in it once")
