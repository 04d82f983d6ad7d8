"""The project's Python files and what they import, read from the source without importing it."""

import ast
import functools
import pathlib

ROOT = pathlib.Path(__file__).parent.parent
PACKAGE = ROOT / "jaxlm"
IMPORTS = (ast.Import, ast.ImportFrom)


def sources(*folders):
    return [p for f in folders for p in sorted((ROOT / f).rglob("*.py"))]


LIBRARY = sources("jaxlm")
EVERYTHING = [
    ROOT / "setup.py",
    *sources("jaxlm", "configs", "experiments", "scripts", "tests", "notebooks", "recipes"),
]


@functools.cache
def text_of(path):
    return path.read_text("utf-8")


@functools.cache
def tree_of(path):
    return ast.parse(text_of(path))


@functools.cache
def nodes_of(path):
    return list(ast.walk(tree_of(path)))


def where(path, node):
    return f"{path.relative_to(ROOT)}:{node.lineno}"


def calls(path, name):
    """Calls of a function by the name it is written with."""
    return [n for n in nodes_of(path) if isinstance(n, ast.Call) and ast.unparse(n.func) == name]


def imports(nodes, path):
    """(absolute dotted name, node) of every import among nodes."""
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from ((alias.name, node) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{where(path, node)}: relative import"
            module = node.module or ""
            yield from ((f"{module}.{alias.name}", node) for alias in node.names)


def module_level(tree):
    """Statements that run at import, those under `if` and `try` included."""
    todo = list(tree.body)
    while todo:
        node = todo.pop()
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            continue
        if isinstance(node, ast.If | ast.Try | ast.With):
            todo += [n for n in ast.iter_child_nodes(node) if isinstance(n, ast.stmt)]
        yield node
