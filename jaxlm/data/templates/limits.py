"""Limits of a chat template in time and output: it comes with a checkpoint, and so from anywhere.

Jinja's sandbox keeps a template from the files and functions of this process, and lets it compute
for ever. Here it ends after SECONDS, and nothing that it makes has more than SIZE characters:

- every pass of a loop and every call of a macro looks at the clock, on any thread;
- what is written, joined, multiplied or formatted is counted before it is made.

A limit that is exceeded is a jinja2.TemplateRuntimeError, as other errors of templates are.
"""

import contextlib
import re
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jinja2
import jinja2.nodes
import jinja2.sandbox
import jinja2.visitor

SECONDS = 5.0
SIZE = 20_000_000
SOURCE = 1_000_000
_NUMBER, _PARTS = 1_000_000, 200_000
_BITS = 10_000
_WIDTH = re.compile(r"\d{5,}|%[^a-zA-Z%]*\*|\{[^{}]*\{")  # in a format: wide, or by an argument


class _Spent(threading.local):
    """Budget of this thread's render: until when it may run, and the size of its output so far."""

    until = float("inf")
    size = 0


_SPENT = _Spent()


def environment(extensions: Sequence[Any]) -> jinja2.Environment:
    """The sandbox of templates, with white space as transformers sets it."""
    sandbox = _Environment(
        trim_blocks=True, lstrip_blocks=True, extensions=extensions, finalize=_finalised,
        optimized=False,
    )  # fmt: skip
    sandbox.filters |= {name: bounded(name, each) for name, each in sandbox.filters.items()}
    sandbox.filters |= {"_spend": _spend, "_joined": _joined, "_weighed": _weighed}
    return sandbox


def template(sandbox: jinja2.Environment, source: str) -> jinja2.Template:
    """A template whose every render is limited. Raises: jinja2.TemplateError."""
    with _bounded_source(source):
        compiled = sandbox.from_string(source)
    compiled.root_render_func = _limited(compiled.root_render_func)
    return compiled


def parse(sandbox: jinja2.Environment, source: str) -> jinja2.nodes.Template:
    """The syntax tree of a template. Raises: jinja2.TemplateError."""
    with _bounded_source(source):
        return sandbox.parse(source)


@contextlib.contextmanager
def _bounded_source(source: str) -> Iterator[None]:
    if len(source) > SOURCE:
        raise jinja2.TemplateRuntimeError(
            f"the template has {len(source)} characters; at most {SOURCE} are read"
        )
    try:
        yield
    except (RecursionError, MemoryError, SyntaxError) as error:
        raise jinja2.TemplateRuntimeError(f"nested too deeply ({error})") from error


def _limited(render: Callable[[Any], Iterator[str]]) -> Callable[[Any], Iterator[str]]:
    def run(context: Any) -> Iterator[str]:
        _SPENT.until, _SPENT.size = time.perf_counter() + SECONDS, 0
        try:
            yield from render(context)
        except (ArithmeticError, LookupError, AttributeError, ValueError) as error:
            raise jinja2.TemplateRuntimeError(f"{type(error).__name__}: {error}") from error
        except (RecursionError, MemoryError) as error:
            raise jinja2.TemplateRuntimeError(f"calls itself without an end ({error})") from error
        finally:
            _SPENT.until = float("inf")

    return run


def _spend(size: int) -> str:
    """Count what is made, and look at the clock."""
    _SPENT.size += size
    _fits(_SPENT.size)
    if time.perf_counter() > _SPENT.until:
        raise jinja2.TemplateRuntimeError(f"it takes more than {SECONDS} seconds")
    return ""


def _fits(size: int) -> None:
    if size > SIZE:
        raise jinja2.TemplateRuntimeError(f"it makes more than {SIZE} characters")


def _weight(*values: Any) -> int:
    """Characters and items of values, those of items among them, as often as they are there."""
    total, items, rest = 0, 0, list(values)
    while rest:
        value = rest.pop()
        total += 1
        if isinstance(value, str):
            total += len(value)
        elif isinstance(value, dict):
            rest += [*value, *value.values()]
        elif isinstance(value, list | tuple | set | frozenset):
            rest += value
        items += 1
        if items + len(rest) > _PARTS:
            raise jinja2.TemplateRuntimeError(f"it makes something of more than {_PARTS} parts")
        _fits(total)
    return total


def _finalised(value: Any) -> Any:
    """Counts and returns the value that an expression writes."""
    _SPENT.size += len(value) if isinstance(value, str) else _weight(value)
    _fits(_SPENT.size)
    return value


def _joined(parts: list[Any]) -> str:
    """The result of the operator ~."""
    texts = [part if isinstance(part, str) else str(_weighed(part)) for part in parts]
    _fits(sum(map(len, texts)))
    return "".join(texts)


def _weighed(value: Any) -> Any:
    """The value itself, if it is not too large to be compared."""
    if isinstance(value, list | tuple | dict):
        _weight(value)
    return value


# Functions and filters that make more than they are given.
_GROWING = frozenset(("replace", "join", "indent", "expandtabs", "tojson", "format", "format_map"))


def _check(name: str, values: Sequence[Any]) -> None:
    """Look at the arguments of a function or filter, the text of a method first among them."""
    for value in values:
        if isinstance(value, str):
            _fits(len(value))
        elif isinstance(value, list | tuple | dict | set):
            _weight(value)
        elif isinstance(value, int) and abs(value) > _NUMBER:
            raise jinja2.TemplateRuntimeError(f"{name}: {value} given; {_NUMBER} is the most")
    if name in _GROWING:
        _check_growth(name, values)


def _check_growth(name: str, values: Sequence[Any]) -> None:
    texts = [value for value in values if isinstance(value, str)]
    if name == "replace" and len(texts) > 2:
        _fits(len(texts[0]) + texts[0].count(texts[1]) * len(texts[2]))
    elif name == "join":
        items = max((len(v) for v in values if isinstance(v, list | tuple)), default=1)
        _fits(items * max(map(len, texts), default=0))
    elif name in ("indent", "expandtabs", "tojson"):
        numbers = [abs(value) for value in values if isinstance(value, int)]
        _fits(_weight(*values) * max(numbers, default=1))
    elif name in ("format", "format_map") and texts and _WIDTH.search(texts[0]):
        raise jinja2.TemplateRuntimeError(f"{name}: {texts[0]!r:.60} is too wide")


def bounded(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """A filter that looks at its arguments first."""

    def run(*values: Any, **named: Any) -> Any:
        _check(name, [*values, *named.values()])
        return function(*values, **named)

    if hasattr(function, "__dict__"):
        run.__dict__.update(function.__dict__)  # whether it is given the context
    return run


class _Environment(jinja2.sandbox.ImmutableSandboxedEnvironment):
    """The sandbox, in which loops, macros, operators and calls are counted."""

    intercepted_binops = frozenset(("+", "*", "**", "%"))

    def _parse(self, source: str, name: str | None, filename: str | None) -> Any:
        return _Counted().visit(super()._parse(source, name, filename))

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        if isinstance(left, int) and isinstance(right, int):
            bits = left.bit_length()
            bits = bits * abs(right) if operator == "**" else bits + right.bit_length()
            if bits > _BITS:
                raise jinja2.TemplateRuntimeError(f"{operator}: a number of more than {_BITS} bits")
        elif operator == "*":
            for some, count in ((left, right), (right, left)):
                if isinstance(some, str | list | tuple) and isinstance(count, int):
                    _fits(len(some) * count)
        elif operator == "+" and isinstance(left, str | list | tuple):
            _fits(len(left) + (len(right) if isinstance(right, str | list | tuple) else 0))
        elif operator == "%" and isinstance(left, str):
            _check("format", (left, *right) if isinstance(right, tuple) else (left, right))
        return super().call_binop(context, operator, left, right)

    def call(__self, __context: Any, __obj: Any, *args: Any, **kwargs: Any) -> Any:
        inner = __obj.__wrapped__ if hasattr(__obj, "__wrapped__") else __obj
        of = [inner.__self__] if isinstance(inner, type("".join)) else []
        name = inner.__name__ if hasattr(inner, "__name__") else type(inner).__name__
        _check(name, [*of, *args, *kwargs.values()])
        return super().call(__context, __obj, *args, **kwargs)


class _Counted(jinja2.visitor.NodeTransformer):
    """A template's tree with a look at the clock in every loop and macro, and counted joins."""

    def visit_For(self, node: Any) -> Any:
        return self._ticking(node)

    def visit_Macro(self, node: Any) -> Any:
        return self._ticking(node)

    def visit_CallBlock(self, node: Any) -> Any:
        return self._ticking(node)

    def _ticking(self, node: Any) -> Any:
        literal = sum(len(part.data) for part in node.find_all(jinja2.nodes.TemplateData))
        self.generic_visit(node)
        tick = jinja2.nodes.ExprStmt(_filter("_spend", jinja2.nodes.Const(literal), node))
        node.body.insert(0, tick.set_lineno(node.lineno))
        return node

    def visit_Concat(self, node: Any) -> Any:
        self.generic_visit(node)
        return _filter("_joined", jinja2.nodes.List(node.nodes), node)

    def visit_Compare(self, node: Any) -> Any:
        self.generic_visit(node)
        parts = [node, *node.ops]
        if not any(isinstance(part.expr, jinja2.nodes.Const) for part in parts):
            for part in parts:  # two containers may take for ever to compare
                part.expr = _filter("_weighed", part.expr, node)
        return node


def _filter(name: str, argument: Any, at: Any) -> Any:
    """argument | name: compiled to a plain call."""
    filtered = jinja2.nodes.Filter(argument, name, [], [], None, None)
    return filtered.set_lineno(at.lineno).set_environment(at.environment)
