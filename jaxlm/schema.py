"""The fields of configs and the names of presets, read from this package's source.

Importing the classes takes seconds, since JAX comes with them; a misspelt name should not. What is
checked here are names alone: values, types and everything else wait for the classes themselves.
"""

import ast
import difflib
import functools
import pathlib
from collections.abc import Iterable, Iterator, Sequence

from jaxlm.core import config

PACKAGE = pathlib.Path(__file__).parent
Class = tuple[str, str]  # module, name
# Commands whose first argument is a run directory.
READ_RUNS = ("sample", "eval", "score", "plot", "export")


def check(args: Sequence[str]) -> None:
    """Check the names in a command line, whose first is the command.

    Raises: ValueError or FileNotFoundError for a field, preset, config file or run directory that
    does not exist, or a field in a config file that its class does not have.
    """
    if len(args) < 2 or args[1].startswith("-") or {"-h", "--help"} & set(args):
        return
    command, target, *rest = args
    if command in READ_RUNS:
        config.run_file(pathlib.Path(target))
    if command not in ("train", "plan"):
        return
    if command == "plan" and ".py" not in target and "/" not in target:
        if target not in presets():
            raise ValueError(f"no preset {target!r}{config.near(target, presets())}")
    elif not target.endswith(".json"):
        check_config(target)
    own = ["--memory"] if command == "plan" else []
    check_overrides([arg for arg in rest if arg not in own], f"jaxlm {command} {target}")


def check_overrides(args: Sequence[str], prog: str) -> None:
    """Raises: ValueError for the first `--field.leaf` that no Run has, with the nearest name.

    A field of any member of a union passes: which member a config has is not known yet.
    """
    for arg in args:
        if not arg.startswith("--"):
            continue
        name = arg[2:].partition("=")[0].replace("-", "_")
        classes, before = [("jaxlm.train.run", "Run")], ""
        for part in name.split("."):
            known = fields(classes)
            if part not in known:
                near = _nearest(part, before, known)
                raise ValueError(f"{prog}: no field --{name}{near}; --help lists all")
            classes, before = known[part], f"{before}{part}."
            if not classes:
                break


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
    found = []
    for path in sorted((PACKAGE / "models").glob("*.py")):
        value = _bindings(f"jaxlm.models.{path.stem}").get("PRESETS")
        if isinstance(value, ast.Dict):
            found += [str(key.value) for key in value.keys if isinstance(key, ast.Constant)]
    return found


def fields(classes: Iterable[Class]) -> dict[str, list[Class]]:
    """{field: the dataclasses that its annotation names} of all these dataclasses together."""
    found: dict[str, list[Class]] = {}
    for module, name in classes:
        tree = _module(module)
        node = _bindings(module)[name]
        assert tree is not None and isinstance(node, ast.ClassDef)
        for base in node.bases:
            found |= fields(_classes(base, tree, module))
        for line in node.body:
            if isinstance(line, ast.AnnAssign) and isinstance(line.target, ast.Name):
                own = found.setdefault(line.target.id, [])
                own += [c for c in _classes(line.annotation, tree, module) if c not in own]
    return found


def _nearest(part: str, before: str, known: Iterable[str]) -> str:
    """The nearest name of this level; of any level, where this one has none."""
    near = difflib.get_close_matches(part, list(known), 1)
    if near:
        return f"; did you mean --{before}{near[0]}?"
    every = {path.rpartition(".")[2]: path for path in _paths([("jaxlm.train.run", "Run")], "", 3)}
    far = difflib.get_close_matches(part, every, 1, cutoff=0.8)
    return f"; did you mean --{every[far[0]]}?" if far else ""


def _paths(classes: Sequence[Class], before: str, depth: int) -> Iterator[str]:
    for name, inner in fields(classes).items():
        if inner and depth:
            yield from _paths(inner, f"{before}{name}.", depth - 1)
        else:
            yield before + name


@functools.lru_cache
def _module(module: str) -> ast.Module | None:
    """The source of a module of this package; None for any other."""
    first, *rest = module.split(".")
    place = PACKAGE.joinpath(*rest)
    files = [place.with_suffix(".py"), place / "__init__.py"] if first == "jaxlm" else []
    path = next((file for file in files if file.is_file()), None)
    return None if path is None else ast.parse(path.read_text("utf-8"))


@functools.lru_cache
def _bindings(module: str) -> dict[str, ast.AST]:
    """What a module's top level binds: classes, assigned values, imports (as text)."""
    tree = _module(module)
    return {} if tree is None else _names(tree)


def _names(tree: ast.Module) -> dict[str, ast.AST]:
    found: dict[str, ast.AST] = {}
    for node in tree.body:
        if isinstance(node, ast.ClassDef):
            found[node.name] = node
        elif isinstance(node, ast.Assign | ast.AnnAssign) and node.value is not None:
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            found |= {t.id: node.value for t in targets if isinstance(t, ast.Name)}
        elif isinstance(node, ast.ImportFrom):
            names = {a.asname or a.name: f"{node.module}.{a.name}" for a in node.names}
            found |= {name: ast.Constant(dotted) for name, dotted in names.items()}
        elif isinstance(node, ast.Import):
            found |= {a.asname: ast.Constant(a.name) for a in node.names if a.asname}
    return found


def _classes(node: ast.AST, tree: ast.Module, module: str) -> list[Class]:
    """The dataclasses of this package that an expression in a module names: a class, a union of
    some, or a name for either."""
    if isinstance(node, ast.BinOp):
        return [*_classes(node.left, tree, module), *_classes(node.right, tree, module)]
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return []
    dotted = _dotted(node, _names(tree), module)
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
    tree, bound = _module(module), _bindings(module).get(name)
    if tree is None or bound is None:
        return []
    if isinstance(bound, ast.ClassDef):
        decorated = any("dataclass" in ast.unparse(d) for d in bound.decorator_list)
        return [(module, name)] if decorated else []
    if isinstance(bound, ast.Constant):
        return _named(str(bound.value)) if str(bound.value).startswith("jaxlm.") else []
    return _classes(bound, tree, module)
