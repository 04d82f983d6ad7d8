"""API reference in Markdown: signatures and docstrings, read from the source without importing it.

Docstrings are plain prose. Blank lines end paragraphs; four spaces after a blank line begin a
figure; entries whose next lines hang (`name: text`) are a list.
"""

import ast
import json
import pathlib
import re
import textwrap

ROOT = pathlib.Path(__file__).parent.parent.parent
PACKAGE = ROOT / "jaxlm"
Function = ast.FunctionDef | ast.AsyncFunctionDef
_QUOTED = re.compile(r"^[A-Z]\w*$")
_ENTRY = re.compile(r"^([\w./*]+(?: [\w./*]+)?(?:\([^)]*\))?)( ->|:) (.*)$", re.DOTALL)


class _Absolute(ast.NodeTransformer):
    """Writes the names in annotations in full, so that they become links to one place."""

    def __init__(self, tree: ast.Module, module: str):
        self._homes: dict[str, str] = {}
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom):
                for alias in node.names:
                    self._homes[alias.asname or alias.name] = f"{node.module}.{alias.name}"
        for node in tree.body:
            names = [node.name] if isinstance(node, ast.ClassDef) else []
            if isinstance(node, ast.Assign):
                names = [t.id for t in node.targets if isinstance(t, ast.Name)]
            self._homes |= {name: f"{module}.{name}" for name in names}

    def visit_arg(self, node: ast.arg) -> ast.arg:
        """A parameter."""
        node.annotation = self._full(node.annotation)
        return node

    def visit_AnnAssign(self, node: ast.AnnAssign) -> ast.AnnAssign:
        """A field."""
        node.annotation = self._full(node.annotation)
        return node

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.FunctionDef:
        """A function, with its parameters; its body is not shown."""
        node.returns = self._full(node.returns)
        self.visit(node.args)
        return node

    def visit_Name(self, node: ast.Name) -> ast.expr:
        """A name, of an annotation."""
        return ast.parse(self._homes[node.id]).body[0].value if node.id in self._homes else node

    def visit_Constant(self, node: ast.Constant) -> ast.expr:
        """A name that is quoted because it is defined later."""
        quoted = isinstance(node.value, str) and _QUOTED.match(node.value)
        return ast.parse(node.value).body[0].value if quoted else node

    def visit_Subscript(self, node: ast.Subscript) -> ast.expr:
        """A type with parameters; the strings of a Literal are values."""
        return node if ast.unparse(node.value).endswith("Literal") else self.generic_visit(node)

    def _full(self, node: ast.expr | None) -> ast.expr | None:
        return None if node is None else self.visit(node)


def package(name: str) -> str:
    """Every public class and function of jaxlm/name, module by module."""
    path = PACKAGE / name
    files = [path.with_suffix(".py")] if path.with_suffix(".py").is_file() else []
    files += sorted(path.rglob("*.py"), key=lambda p: p.parent.parts + (p.stem,))
    return "\n\n".join(text for text in map(_module, files) if text)


def _module(path: pathlib.Path) -> str:
    tree = ast.parse(path.read_text("utf-8"))
    dotted = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
    parts = [f"## {dotted}", f"```{{py:module}} {dotted}\n```"]
    parts.append(markdown(ast.get_docstring(tree) or ""))
    _Absolute(tree, dotted).visit(tree)
    items = [_item(node) for node in tree.body]
    return "\n\n".join([*parts, *(item for item in items if item)])


def _item(node: ast.stmt) -> str | None:
    if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
        return _class(node)
    if isinstance(node, Function) and not node.name.startswith("_"):
        return _directive("function", _signature(node), markdown(ast.get_docstring(node) or ""))
    return None


def _class(node: ast.ClassDef) -> str:
    tuple_ = any(ast.unparse(base).endswith("NamedTuple") for base in node.bases)
    parts = [markdown(ast.get_docstring(node) or "")]
    fields = []
    for statement, after in zip(node.body, [*node.body[1:], None]):
        if isinstance(statement, ast.AnnAssign):
            field, note = ast.unparse(statement), _text(after)
            fields.append(field.replace(" = ", "="))
            if not tuple_ and not field.startswith("_"):
                parts.append(_attribute(statement, note))
        elif isinstance(statement, Function) and not statement.name.startswith("_"):
            parts.append(_method(statement))
    arguments = f"({', '.join(fields)})" if tuple_ else ""
    return _directive("class", node.name + arguments, "\n\n".join(p for p in parts if p))


def _method(node: Function) -> str:
    text = markdown(ast.get_docstring(node) or "")
    decorators = {ast.unparse(d).split(".")[-1] for d in node.decorator_list}
    if decorators & {"property", "cached_property"}:
        kind = "" if node.returns is None else f":type: {json.dumps(ast.unparse(node.returns))}\n"
        return _directive("property", node.name, kind + "\n" + text, 4)
    return _directive("method", _signature(node, bound="staticmethod" not in decorators), text, 4)


def _attribute(node: ast.AnnAssign, note: str) -> str:
    options = f":type: {json.dumps(ast.unparse(node.annotation))}\n"
    if node.value is not None:
        options += f":value: {json.dumps(ast.unparse(node.value))}\n"
    return _directive("attribute", ast.unparse(node.target), f"{options}\n{markdown(note)}", 4)


def _text(node: ast.stmt | None) -> str:
    """The text of a string that stands alone, such as the description after a field."""
    if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
        return str(node.value.value)
    return ""


def _signature(node: Function, bound: bool = False) -> str:
    arguments = ast.parse(f"def f({ast.unparse(node.args)}): pass").body[0].args
    if bound:
        del (arguments.posonlyargs or arguments.args)[:1]
    result = "" if node.returns is None else f" -> {ast.unparse(node.returns)}"
    return f"{node.name}({ast.unparse(arguments)}){result}"


def _directive(kind: str, argument: str, text: str, colons: int = 6) -> str:
    fence = ":" * colons
    return f"{fence}{{py:{kind}}} {argument}\n{text}\n{fence}"


def markdown(docstring: str) -> str:
    """The Markdown of a docstring."""
    first, _, rest = docstring.partition("\n")
    text = f"{first.strip()}\n{textwrap.dedent(rest)}".strip("\n")
    return "\n\n".join(_paragraph(p) for p in re.split(r"\n\s*\n", text) if p.strip())


def _paragraph(text: str) -> str:
    lines = text.split("\n")
    spaced = sum(bool(re.search(r"\S {3,}\S", line)) for line in lines)
    if all(line.startswith("    ") for line in lines) or spaced * 2 > len(lines):
        return f"```text\n{textwrap.dedent(text)}\n```"
    hanging = any(line.startswith(" ") for line in lines) and not lines[0].startswith(" ")
    named = all(_ENTRY.match(line) for line in lines) and len(lines) > 1
    if not hanging and not named:
        return escaped(" ".join(line.strip() for line in lines))
    entries: list[str] = []
    for line in lines:
        if line.startswith(" ") and entries:
            entries[-1] += " " + line.strip()
        else:
            entries.append(line.strip())
    return "\n".join(f"- {escaped(entry)}" for entry in entries)


def escaped(text: str) -> str:
    """Prose whose marks are letters to Markdown, except backticks."""
    parts = re.split(r"(`[^`]*`)", text)
    return "".join(
        part
        if part.startswith("`") and len(part) > 1
        else re.sub(r"([\\<>*_\[\]#|`$])", r"\\\1", part)
        for part in parts
    )
