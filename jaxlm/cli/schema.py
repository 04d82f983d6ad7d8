"""The fields of configs and the names of presets, read from this package's source.

Importing the classes takes seconds, since JAX comes with them; a misspelt name should not.
"""

import ast
import functools
import pathlib
from collections.abc import Iterable
from typing import NamedTuple

from jaxlm.cli.commands import Class
from jaxlm.core import config

PACKAGE = pathlib.Path(__file__).parents[1]


class Annotation(NamedTuple):
    """A type as it is written in a module ("" for a file that is not of this package)."""

    node: ast.AST
    tree: ast.Module
    module: str


Fields = dict[str, list[Annotation]]


def check_config(target: str) -> None:
    """Check what can be known of a config file without running it.

    Raises: as `config.file`; ValueError with the file and line for a syntax error, or a call of a
    dataclass of this package with a field that it does not have, naming the nearest; for a variant
    that the file does not define.
    """
    path, variant = config.file(target)
    try:
        tree = ast.parse(path.read_text("utf-8"), str(path))
    except SyntaxError as error:
        raise ValueError(f"{path}:{error.lineno}: {error.msg}") from error
    for call in ast.walk(tree):
        if isinstance(call, ast.Call):
            _check_call(call, tree, path)
    if variant not in _bound(tree):
        have = [n.name for n in tree.body if isinstance(n, ast.FunctionDef) and n.name[0] != "_"]
        raise ValueError(config.no_function(path, variant, have))


def _check_call(call: ast.Call, tree: ast.Module, path: pathlib.Path) -> None:
    known = fields(_classes(call.func, tree, ""))
    for keyword in call.keywords:
        if known and keyword.arg is not None and keyword.arg not in known:
            name = ast.unparse(call.func)
            near = config.near(keyword.arg, known)
            raise ValueError(f"{path}:{keyword.lineno}: {name} has no field {keyword.arg!r}{near}")


def _bound(tree: ast.Module) -> set[str]:
    """Every name that a module's statements may bind."""
    nodes = list(ast.walk(tree))
    names = {n.id for n in nodes if isinstance(n, ast.Name)}
    names |= {n.name for n in nodes if isinstance(n, ast.FunctionDef)}
    return names | {
        a.asname or a.name for n in nodes if isinstance(n, ast.ImportFrom) for a in n.names
    }


def presets() -> list[str]:
    """The names of all presets."""
    presets = []
    for path in sorted((PACKAGE / "models").glob("*.py")):
        value = _bindings(f"jaxlm.models.{path.stem}").get("PRESETS")
        if isinstance(value, ast.Dict):
            presets += [str(key.value) for key in value.keys if isinstance(key, ast.Constant)]
    return presets


def fields(classes: Iterable[Class]) -> dict[str, list[Class]]:
    """{field: the dataclasses that its annotation names} of all these dataclasses together."""
    return {name: dataclasses_of(notes) for name, notes in annotations(classes).items()}


def annotations(classes: Iterable[Class]) -> Fields:
    """{field: its annotations} of all these dataclasses together."""
    known: Fields = {}
    for module, name in classes:
        tree, node = source(module), _bindings(module)[name]
        assert tree is not None and isinstance(node, ast.ClassDef)
        for base in node.bases:
            known |= annotations(_classes(base, tree, module))
        for field, note in annotated(node):
            known.setdefault(field, []).append(Annotation(note, tree, module))
    return known


def annotated(node: ast.AST) -> list[tuple[str, ast.AST]]:
    """(name, annotation) of a class's fields or a function's parameters."""
    if isinstance(node, ast.FunctionDef):
        args = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
        return [(arg.arg, arg.annotation) for arg in args if arg.annotation is not None]
    assert isinstance(node, ast.ClassDef)
    lines = [line for line in node.body if isinstance(line, ast.AnnAssign)]
    return [(n.target.id, n.annotation) for n in lines if isinstance(n.target, ast.Name)]


def dataclasses_of(notes: Iterable[Annotation]) -> list[Class]:
    """The dataclasses of this package that annotations name."""
    return list(dict.fromkeys(cls for note in notes for cls in _classes(*note)))


def kinds(note: Annotation) -> list[str] | None:
    """Kinds that fit an annotation: "int", "float", "bool", and texts; None where anything may."""
    node, tree, module = note
    if isinstance(node, ast.BinOp):
        left, right = (kinds(note._replace(node=side)) for side in (node.left, node.right))
        return None if left is None or right is None else [*left, *right]
    if isinstance(node, ast.Constant) and node.value is None:
        return ["None"]
    if isinstance(node, ast.Name) and node.id in ("int", "float", "bool"):
        return [node.id]
    if isinstance(node, ast.Subscript) and ast.unparse(node.value).endswith("Literal"):
        choices = ast.literal_eval(node.slice)
        return [str(choice) for choice in (choices if isinstance(choices, tuple) else (choices,))]
    dotted = _dotted(node, names(tree), module)
    place, _, name = (dotted or "").rpartition(".")
    bound, its = _bindings(place).get(name), source(place)
    if bound is None or its is None or isinstance(bound, ast.ClassDef | ast.Constant):
        return None
    return kinds(Annotation(bound, its, place))


@functools.lru_cache
def source(module: str) -> ast.Module | None:
    """The source of a module of this package; None for any other."""
    first, *rest = module.split(".")
    place = PACKAGE.joinpath(*rest)
    files = [place.with_suffix(".py"), place / "__init__.py"] if first == "jaxlm" else []
    path = next((file for file in files if file.is_file()), None)
    return None if path is None else ast.parse(path.read_text("utf-8"))


@functools.lru_cache
def _bindings(module: str) -> dict[str, ast.AST]:
    """Bindings of a module's top level: classes, assigned values, imports (as text)."""
    tree = source(module)
    return {} if tree is None else names(tree)


def names(tree: ast.Module) -> dict[str, ast.AST]:
    """Bindings of a tree's top level; see `_bindings`."""
    bound: dict[str, ast.AST] = {}
    for node in tree.body:
        if isinstance(node, ast.ClassDef):
            bound[node.name] = node
        elif isinstance(node, ast.Assign | ast.AnnAssign) and node.value is not None:
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            bound |= {t.id: node.value for t in targets if isinstance(t, ast.Name)}
        elif isinstance(node, ast.ImportFrom):
            names = {a.asname or a.name: f"{node.module}.{a.name}" for a in node.names}
            bound |= {name: ast.Constant(dotted) for name, dotted in names.items()}
        elif isinstance(node, ast.Import):
            bound |= {a.asname: ast.Constant(a.name) for a in node.names if a.asname}
    return bound


def _classes(node: ast.AST, tree: ast.Module, module: str) -> list[Class]:
    """The dataclasses of this package that an expression in a module names: a class, a union of
    some, or a name for either."""
    if isinstance(node, ast.BinOp):
        return [*_classes(node.left, tree, module), *_classes(node.right, tree, module)]
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return []
    dotted = _dotted(node, names(tree), module)
    return [] if dotted is None else _named(dotted)


def _dotted(node: ast.AST, names: dict[str, ast.AST], module: str) -> str | None:
    """The absolute name of a name or an attribute; None where it is not of this package."""
    if isinstance(node, ast.Attribute):
        base = _dotted(node.value, names, module)
        return None if base is None else f"{base}.{node.attr}"
    if not isinstance(node, ast.Name) or node.id not in names:
        return None
    bound = names[node.id]
    if isinstance(bound, ast.Constant) and isinstance(bound.value, str):
        return bound.value if bound.value.startswith("jaxlm.") else None
    return f"{module}.{node.id}" if module else None


def _named(dotted: str) -> list[Class]:
    module, _, name = dotted.rpartition(".")
    tree, bound = source(module), _bindings(module).get(name)
    if tree is None or bound is None:
        return []
    if isinstance(bound, ast.ClassDef):
        kinds = " ".join(ast.unparse(x) for x in (*bound.decorator_list, *bound.bases))
        return [(module, name)] if "dataclass" in kinds or "NamedTuple" in kinds else []
    if isinstance(bound, ast.Constant):
        return _named(str(bound.value)) if str(bound.value).startswith("jaxlm.") else []
    return _classes(bound, tree, module)
