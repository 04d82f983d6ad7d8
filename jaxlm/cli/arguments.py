"""Command lines, checked before anything slow is imported: options, numbers and choices.

All else waits for the classes themselves.
"""

import ast
import difflib
import pathlib
from collections.abc import Iterator, Sequence

from jaxlm.cli import schema
from jaxlm.cli.commands import COMMANDS, Class
from jaxlm.cli.schema import Annotation, Fields
from jaxlm.core import config
from jaxlm.core.remote import objects

RUN: Class = ("jaxlm.train.run.run", "Run")
# Commands whose first argument is a run directory.
READ_RUNS = ("sample", "chat", "eval", "score", "plot", "export")
WORDS = {"int": "a whole number", "float": "a number", "bool": "True or False", "None": "None"}


def check(args: Sequence[str]) -> None:
    """Check a command line, whose first argument is the command.

    Raises: ValueError or FileNotFoundError for an option, field, preset, config file or run
    directory that does not exist, a value that is no number or choice where one is needed, or a
    field in a config file that its class does not have.
    """
    command, *rest = args
    if not rest or {"-h", "--help"} & set(rest):
        return
    target = rest[0]
    if command in READ_RUNS and not target.startswith("-") and objects.url(target) is None:
        config.run_file(pathlib.Path(target))
    for action in {"", target} & set(COMMANDS[command].options):
        known = options(command, action)
        if command == "sweep":
            known |= schema.annotations([RUN])
        check_options(rest, known, f"jaxlm {command} {action}".rstrip(), flags=True)
    if command in ("train", "plan", "certify") and not target.startswith("-"):
        _check_run(command, target, rest[1:])


def _check_run(command: str, target: str, rest: Sequence[str]) -> None:
    if command in ("plan", "certify") and ".py" not in target and "/" not in target:
        if target not in schema.presets():
            listed = "`jaxlm list` prints all; the plan of a config takes its file, configs/NAME.py"
            near = config.near(target, schema.presets(), listed)
            raise ValueError(f"no preset {target!r}{near}")
    elif not target.endswith(".json"):
        schema.check_config(target)
    owned = ("--memory", "--search", "--topology", "--tokens", "--xla-preset")
    own = {"plan": owned, "train": ("--retries", "--xla-preset")}.get(command, ())
    own = ["--layout", *own]
    overrides = [arg for arg in rest if arg.partition("=")[0] not in own]
    check_options(overrides, schema.annotations([RUN]), f"jaxlm {command} {target}", flags=False)


def check_options(args: Sequence[str], known: Fields, prog: str, *, flags: bool) -> None:
    """Check `--field.leaf value` arguments against the fields there are.

    flags: whether a bool takes no value, and `--field.no-leaf` is its opposite. A field of any
    member of a union passes, and a value that fits any: which member a config has is not known yet.

    Raises: ValueError for the first name that does not exist, with the nearest that does, and for
    the first value that cannot be of its field's type.
    """
    for i, arg in enumerate(args):
        name, given, value = arg[2:].partition("=")
        if arg == "--":
            return
        if not arg.startswith("--") or " " in name:  # a text after --prompt
            continue
        parts = name.replace("-", "_").split(".")
        leaf = _leaf(parts, known, flags)
        if leaf is None:
            near = _nearest(parts, known)
            raise ValueError(f"{prog}: no option --{name}{near}; --help lists all")
        if not given and i + 1 < len(args):
            value = args[i + 1]
        if value and not value.startswith("--"):
            _check_value(f"{prog}: --{name}", value, leaf, flags)


def _leaf(parts: Sequence[str], known: Fields, flags: bool) -> list[Annotation] | None:
    """The annotations of a field; None if there is none. Below a field that is no dataclass of this
    package, every name passes."""
    first, *rest = parts
    if flags and not rest and first.startswith("no_") and first[3:] in known:
        return []
    if first not in known:
        return None
    inner = schema.dataclasses_of(known[first])
    if not inner:
        return known[first] if not rest else []
    return _leaf(rest, schema.annotations(inner), flags) if rest else []


def _check_value(where: str, value: str, leaf: list[Annotation], flags: bool) -> None:
    """Raises: ValueError if none of the annotations, all of which say what fits, fits the value."""
    needs: list[str] = []
    for kinds in map(schema.kinds, leaf):
        if kinds is None or (flags and "bool" in kinds) or any(_fits(value, k) for k in kinds):
            return
        needs += [k for k in kinds if k not in needs]
    if needs:
        shown = " or ".join(WORDS.get(need, repr(need)) for need in needs)
        raise ValueError(f"{where}: {value!r} given; {shown} is needed")


def _fits(value: str, kind: str) -> bool:
    """Whether a text is of a kind: a number's type, bool, or the one text that is accepted."""
    try:
        if kind in ("int", "float"):
            return {"int": int, "float": float}[kind](value) is not None
    except ValueError:
        return False
    return value in ("True", "False") if kind == "bool" else value == kind


def options(command: str, action: str = "") -> Fields:
    """{option: its annotations} of a command's action, as tyro names them."""
    entry = COMMANDS[command]
    module, path = f"jaxlm.cli.commands.{entry.place.partition(':')[0]}", entry.options[action]
    chosen = entry.chosen.get(action, {})
    tree = schema.source(module)
    assert tree is not None
    node: ast.AST = tree
    for name in path.split("."):
        defined = [n for n in ast.walk(node) if isinstance(n, ast.FunctionDef | ast.ClassDef)]
        node = next(n for n in defined if n.name == name)
    known: Fields = {}
    for name, note in schema.annotated(node):
        known |= _option(name, Annotation(note, tree, module), chosen.get(name))
    return known


def _option(name: str, note: Annotation, chosen: Class | None) -> Fields:
    """The options of one parameter: none where it is positional; those of a dataclass, where its
    own name is left out. chosen: the module and name of what its type is one of."""
    node, tree, _ = note
    alias = schema.names(tree).get(ast.unparse(node))
    if isinstance(alias, ast.Subscript):  # Path = tyro.conf.Positional[pathlib.Path]
        node = alias
    outer = ast.unparse(node.value) if isinstance(node, ast.Subscript) else ""
    if outer.endswith("Positional"):
        return {}
    if outer == "Annotated" or outer.startswith("tyro.conf."):
        assert isinstance(node, ast.Subscript)
        inner = node.slice.elts[0] if isinstance(node.slice, ast.Tuple) else node.slice
        note = note._replace(node=inner)
        given = [k.value for k in ast.walk(node) if isinstance(k, ast.keyword) and k.arg == "name"]
        name = str(ast.literal_eval(given[0])) if given else name
    if chosen is not None and (its := schema.source(chosen[0])) is not None:
        note = Annotation(ast.Name(chosen[1]), its, chosen[0])
    if name and not outer.endswith("OmitArgPrefixes"):
        return {name: [note]}
    return schema.annotations(schema.dataclasses_of([note]))


def _nearest(parts: Sequence[str], known: Fields) -> str:
    """The end of a message about a field that does not exist: the nearest that does, looked for at
    its own level first and then at any."""
    near = _corrected(parts, known)
    if not near:
        every = {path.rpartition(".")[2]: path for path in paths(known)}
        far = difflib.get_close_matches(parts[-1], every, 1, cutoff=0.8)
        near = every[far[0]] if far else ""
    return f"; did you mean --{near.replace('_', '-')}?" if near else ""


def _corrected(parts: Sequence[str], known: Fields) -> str:
    """The path with each part replaced by the nearest name there is, as far as there is one; ""
    where nothing at a part's own level is near."""
    first, *rest = parts
    near = [first] if first in known else difflib.get_close_matches(first, known, 1)
    if not near:
        return ""
    inner = schema.dataclasses_of(known[near[0]])
    below = _corrected(rest, schema.annotations(inner)) if rest and inner else ""
    if rest and not below and near[0] == first:
        return ""
    return f"{near[0]}.{below}" if below else near[0]


def paths(known: Fields, before: str = "", depth: int = 4) -> Iterator[str]:
    """The paths of all leaves, such as "optim.lr"."""
    for name, notes in known.items():
        inner = schema.dataclasses_of(notes)
        if inner and depth:
            yield from paths(schema.annotations(inner), f"{before}{name}.", depth - 1)
        else:
            yield before + name


def target(command: str, args: Sequence[str]) -> tuple[str, list[str]]:
    """(the file, run or preset that a command works on, the rest of its arguments).

    Raises: ValueError for an option in its place."""
    if args[0].startswith("-"):
        raise ValueError(f"{args[0]} given where {COMMANDS[command].usage!r} has its first name")
    return args[0], list(args[1:])


def action(command: str, name: str, args: Sequence[str]) -> list[str]:
    """The arguments after a command's one action. Raises: ValueError for another action."""
    if args and args[0] not in (name, "-h", "--help"):
        raise ValueError(f"jaxlm {command}: no action {args[0]!r}; there is {name!r}")
    return list(args[1:]) if args and args[0] == name else ["--help"]


def usage(command: str) -> str:
    """The first line of a command's help."""
    return f"usage: jaxlm {COMMANDS[command].usage}"
