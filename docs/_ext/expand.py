"""Replaces `<!-- generated: NAME ARGUMENT -->` in a page by Markdown computed from the source.

    <!-- generated: api core -->        the public names of a package and their docstrings
    <!-- generated: block llama-7b -->  the weights and the order of operations of a preset
    <!-- generated: presets -->         families, their presets and sizes
    <!-- generated: floors -->          the packages by floor
    <!-- generated: imports -->         which packages each package imports

Links that leave docs/ become the path that they lead to, because the site holds docs/ alone.
"""

import pathlib
import re
from typing import Any

import blocks
import docstrings
import floors

DOCS = pathlib.Path(__file__).parent.parent
GENERATORS = {
    "api": docstrings.package,
    "block": blocks.figure,
    "presets": blocks.presets,
    "floors": floors.figure,
    "imports": floors.table,
}
_MARK = re.compile(r"^<!-- generated: (\w+) ?(.*?) -->$", re.MULTILINE)
_OUTSIDE = re.compile(r"\[([^\]]+)\]\((\.\./[^)\s]+)\)")


def expand(text: str, folder: pathlib.Path) -> str:
    """A page's Markdown with its generated parts in place.

    folder: the page's directory, from which its links start.

    Raises: ValueError for an unknown generator; FileNotFoundError for a link that leads nowhere.
    """

    def generated(match: re.Match) -> str:
        name, argument = match.groups()
        if name not in GENERATORS:
            raise ValueError(f"generated: {name!r} given; expected one of {sorted(GENERATORS)}")
        return GENERATORS[name](argument) if argument else GENERATORS[name]()

    def outside(match: re.Match) -> str:
        label, target = match.groups()
        path = (folder / target.split("#")[0]).resolve()
        if not path.exists():
            raise FileNotFoundError(f"{folder}: link to {target}, which does not exist")
        if path.is_relative_to(DOCS):
            return match[0]
        shown = path.relative_to(DOCS.parent)
        return f"`{shown}`" if label.strip("`") in str(shown) else f"{label} (`{shown}`)"

    return _MARK.sub(generated, _OUTSIDE.sub(outside, text))


def sources(text: str) -> list[pathlib.Path]:
    """The files that a page's generated parts are computed from."""
    files = []
    for name, argument in _MARK.findall(text):
        folder = docstrings.PACKAGE / (argument if name == "api" else "")
        files += [*folder.rglob("*.py"), *folder.parent.glob(f"{folder.name}.py")]
    return [*files, floors.ROOT / "CONTRIBUTING.md"] if files else []


def setup(app: Any) -> dict[str, bool]:
    """Registers the expansion with Sphinx."""

    def read(app: Any, name: str, content: list[str]) -> None:
        for path in sources(content[0]):
            app.env.note_dependency(str(path))
        content[0] = expand(content[0], (DOCS / name).parent)

    def unlink(app: Any, doctree: Any) -> None:
        """Types of other libraries are no links: looking them up takes half of the build."""
        for node in list(doctree.findall(lambda n: n.tagname == "pending_xref")):
            outside = not node.get("reftarget", "").startswith("jaxlm.")
            if node.get("refdomain") == "py" and outside:
                # [the last part, the full name], of which Sphinx shows one
                short = [n for n in node.children if n.get("condition") == "resolved"]
                node.replace_self(short[0].children if short else node.children)

    def shorten(app: Any, env: Any, node: Any, shown: Any) -> Any:
        """Names of types that have no entry, such as `param.Tree`, by their last part."""
        return shown if node.get("reftarget", "").startswith("jaxlm.") else None

    app.connect("missing-reference", shorten)
    app.connect("source-read", read)
    app.connect("doctree-read", unlink)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
