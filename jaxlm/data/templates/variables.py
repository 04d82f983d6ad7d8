"""Variables and fields that a chat template reads, from its syntax: nothing is rendered."""

from collections.abc import Iterator
from typing import Any, NamedTuple

from jinja2 import nodes


class Reads(NamedTuple):
    """variables: names that the template looks up. fields: those of a message that it reads; every
    field where `whole`: it writes messages as they are. roles: it writes the names of roles.
    words: its string constants. searched: those that it looks for in texts. guarded: variables
    that it tests for being defined. nullable: fields of a message that it tests for being
    null."""

    variables: frozenset[str]
    fields: frozenset[str]
    whole: bool
    roles: bool
    words: frozenset[str]
    searched: frozenset[str]
    guarded: frozenset[str]
    nullable: frozenset[str]


_DUMPS = frozenset(("tojson", "string", "dictsort", "items", "pprint"))


def of(tree: nodes.Template) -> Reads:
    """The Reads of a parsed template. A message is an element of `messages`, under any name that a
    loop, an assignment or a macro's argument gives it."""
    names = _messages(tree)
    fields: set[str] = set()
    dumped = False
    for node in tree.find_all((nodes.Getattr, nodes.Getitem, nodes.Compare, nodes.Call)):
        fields |= set(_field(node, names))
    for node in tree.find_all((nodes.Filter, nodes.Output, nodes.Call)):
        dumped = dumped or _dumps(node, names)
    return Reads(
        frozenset(n.name for n in tree.find_all(nodes.Name) if n.ctx == "load"),
        frozenset(fields),
        dumped,
        any(_writes_role(node, names) for node in tree.find_all(nodes.Output)),
        frozenset(n.value for n in tree.find_all(nodes.Const) if isinstance(n.value, str)),
        frozenset(word for n in tree.find_all((nodes.Call, nodes.Compare)) for word in _sought(n)),
        frozenset(
            n.node.name
            for n in tree.find_all(nodes.Test)
            if n.name in ("defined", "undefined") and isinstance(n.node, nodes.Name)
        ),
        frozenset(
            name
            for n in tree.find_all(nodes.Test)
            if n.name == "none"
            for name in _field(n.node, names)
        ),
    )


def _messages(tree: nodes.Template) -> set[str]:
    """The names of messages and of lists of them."""
    names, before = {"messages"}, 0
    macros = {macro.name: macro for macro in tree.find_all(nodes.Macro)}
    while len(names) > before:
        before = len(names)
        for node in tree.find_all((nodes.For, nodes.Assign, nodes.Call)):
            match node:
                case nodes.For(target=nodes.Name(name=name), iter=value):
                    names |= {name} if _is(value, names) else set()
                case nodes.Assign(target=nodes.Name(name=name), node=value):
                    names |= {name} if _is(value, names) else set()
                case nodes.Assign(target=nodes.NSRef(name=space, attr=attr), node=value):
                    names |= {f"{space}.{attr}"} if _is(value, names) else set()
                case nodes.Call(node=nodes.Name(name=name)) if name in macros:
                    pairs = zip(macros[name].args, node.args)
                    names |= {arg.name for arg, value in pairs if _is(value, names)}
    return names


def _is(node: Any, names: set[str]) -> bool:
    """Whether an expression is a message, or a list of them."""
    match node:
        case nodes.Name(name=name):
            return name in names
        case nodes.Getattr(node=nodes.Name(name="loop"), attr="previtem" | "nextitem"):
            return True
        case nodes.Getattr(node=nodes.Name(name=space), attr=attr):
            return f"{space}.{attr}" in names
        case nodes.Getitem(node=inner, arg=arg):
            return not _word(arg) and _is(inner, names)
        case nodes.Filter(node=inner, name="list" | "reverse" | "first" | "last" | "sort"):
            return _is(inner, names)
        case nodes.Filter(node=inner, name="selectattr" | "rejectattr"):
            return _is(inner, names)
        case nodes.CondExpr(expr1=a, expr2=b) | nodes.Add(left=a, right=b):
            return _is(a, names) or _is(b, names)
    return False


_SEARCHES = frozenset(
    ("split", "rsplit", "partition", "rpartition", "startswith", "endswith", "find", "rfind",
     "index", "count", "replace", "strip", "lstrip", "rstrip", "removeprefix", "removesuffix")
)  # fmt: skip


def _sought(node: Any) -> Iterator[str]:
    """The strings that an expression looks for in a text."""
    match node:
        case nodes.Call(node=nodes.Getattr(attr=attr), args=args) if attr in _SEARCHES:
            yield from (arg.value for arg in args if _word(arg))
        case nodes.Compare(expr=nodes.Const(value=str(word)), ops=[nodes.Operand(op=op)]):
            if op in ("in", "notin"):
                yield word


def _word(node: Any) -> bool:
    return isinstance(node, nodes.Const) and isinstance(node.value, str)


def _field(node: Any, names: set[str]) -> Iterator[str]:
    """The field of a message that an expression reads."""
    match node:
        case nodes.Getattr(node=inner, attr=attr) if _is(inner, names):
            yield attr
        case nodes.Getitem(node=inner, arg=nodes.Const(value=str(name))) if _is(inner, names):
            yield name
        case nodes.Compare(expr=nodes.Const(value=str(name)), ops=[nodes.Operand(expr=inner)]):
            if _is(inner, names):
                yield name
        case nodes.Call(node=nodes.Getattr(node=inner, attr="get"), args=[first, *_]):
            if _is(inner, names) and _word(first):
                yield first.value


def _writes_role(node: nodes.Output, names: set[str]) -> bool:
    reads = node.find_all((nodes.Getattr, nodes.Getitem))
    compared = {id(x) for test in node.find_all((nodes.Compare, nodes.Test)) for x in _below(test)}
    return any("role" in _field(x, names) for x in reads if id(x) not in compared)


def _below(node: nodes.Node) -> Iterator[nodes.Node]:
    return node.find_all((nodes.Getattr, nodes.Getitem))


def _dumps(node: Any, names: set[str]) -> bool:
    """Whether a message is written with all its fields."""
    match node:
        case nodes.Filter(node=inner, name=name):
            return name in _DUMPS and _is(inner, names)
        case nodes.Call(node=nodes.Getattr(node=inner, attr="items" | "values")):
            return _is(inner, names)
        case nodes.Output(nodes=parts):
            return any(_is(part, names) for part in parts)
    return False
