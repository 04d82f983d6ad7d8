"""The packages of jaxlm by floor, and what each imports, read from the source.

The floors are those of the table in CONTRIBUTING.md.
"""

import ast
import functools
import pathlib
import re

ROOT = pathlib.Path(__file__).parent.parent.parent
PACKAGE = ROOT / "jaxlm"


def stated() -> dict[str, int]:
    """{package: floor} of the table in CONTRIBUTING.md."""
    text = (ROOT / "CONTRIBUTING.md").read_text("utf-8")
    return {
        pathlib.PurePath(path).stem: int(floor)
        for floor, row in re.findall(r"^\| (\d) \| (.+) \|$", text, re.MULTILINE)
        for path in re.findall(r"`jaxlm/([\w.]+)`", row)
    }


@functools.cache
def edges() -> dict[str, set[str]]:
    """{package: packages it imports, itself among them}, from every import of its files."""
    packages = {p.stem for p in PACKAGE.iterdir() if p.is_dir() or p.suffix == ".py"}
    packages_of: dict[str, set[str]] = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        own = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
        if own in ("__init__", "__main__"):  # the front door imports its names on first use
            continue
        names = []
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.Import):
                names += [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                names += [f"{node.module}.{alias.name}" for alias in node.names]
        parts = [name.split(".") for name in names if name.startswith("jaxlm.")]
        packages_of.setdefault(own, set()).update(p[1] for p in parts if p[1] in packages)
    return packages_of


def imports() -> dict[str, list[str]]:
    """{package: the other packages it imports}, checked against the floors.

    Raises: ValueError for a package without a floor, and for an import of a higher floor.
    """
    levels = stated()
    for own, others in edges().items():
        for name in {own, *others} - set(levels):
            raise ValueError(f"jaxlm/{name}: no floor in CONTRIBUTING.md")
        for other in others:
            if levels[other] > levels[own]:
                raise ValueError(
                    f"jaxlm/{own} (floor {levels[own]}) imports jaxlm/{other} (floor "
                    f"{levels[other]})"
                )
    return {name: sorted(edges().get(name, set()) - {name}) for name in levels}


def figure() -> str:
    """The floors as a text figure, the highest first. Raises: as `imports`."""
    levels = stated()
    imports()
    rows = []
    for floor in sorted(set(levels.values()), reverse=True):
        names = [name for name, level in levels.items() if level == floor]
        rows.append((floor, "  ".join(f"[ {name} ]" for name in names)))
    width = max(len(text) for _, text in rows)
    lines = [f"floor {floor}   {text.center(width).rstrip()}" for floor, text in rows]
    arrow = " " * 10 + "|".center(width).rstrip()
    return "\n".join(["```text", f"\n{arrow}\n".join(lines), "```"])


def table() -> str:
    """A Markdown table of what each package imports, the highest floor first."""
    levels, imported = stated(), imports()
    lines = ["| package | floor | imports |", "|---|---|---|"]
    for name in sorted(levels, key=lambda n: (-levels[n], n)):
        lines.append(f"| `{name}` | {levels[name]} | {', '.join(imported[name]) or 'nothing'} |")
    return "\n".join(lines)
