"""Reports as aligned text, Markdown or LaTeX: the same parts in each.

    parts = [report_formats.heading("optimum", "markdown")]
    parts.append(report_formats.table(header, rows, "markdown"))
    report_formats.join(parts, "markdown")

LaTeX's tables need the booktabs package; `escaped` makes any text fit for it.
"""

import re
from collections.abc import Sequence
from typing import Literal

Format = Literal["text", "markdown", "latex"]
FORMATS: tuple[Format, ...] = ("text", "markdown", "latex")

# Characters that are special in LaTeX, with their escapes.
LATEX = {
    "\\": r"\textbackslash{}",
    "&": r"\&",
    "%": r"\%",
    "$": r"\$",
    "#": r"\#",
    "_": r"\_",
    "{": r"\{",
    "}": r"\}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
}
# Characters that Markdown reads as markup within a line or a cell.
MARKDOWN = re.compile(r"([\\`*_\[\]<>|~])")
# Line starts that would make a block: a heading, a list.
LINE_START = re.compile(r"^(\s*)([#+-]|\d+[.)])(?=\s)")


def escaped(text: str, format: Format) -> str:
    """A text that shows as it is: characters with a meaning of their own escaped.

    Raises: ValueError for a format that is none of FORMATS.
    """
    if format == "text":
        return text
    if format == "markdown":
        return MARKDOWN.sub(r"\\\1", text)
    if format == "latex":
        return "".join(LATEX.get(c, c) for c in text)
    raise ValueError(f"format: {format!r} is none of {', '.join(FORMATS)}")


def heading(text: str, format: Format = "text", level: int = 2) -> str:
    """A heading: the line itself, "## line" or a section; level 1 is the report's own."""
    shown = escaped(text, format)
    if format == "text":
        return shown
    if format == "markdown":
        return f"{'#' * level} {shown}"
    return rf"\{'sub' * max(level - 2, 0)}section*{{{shown}}}"


def bullets(items: Sequence[str], format: Format = "text") -> str:
    """A list of one-line items; indented lines as text. "" without items."""
    if not items:
        return ""
    if format == "text":
        return "\n".join(f"  {item}" for item in items)
    if format == "markdown":
        return "\n".join(f"- {LINE_START.sub(_unlisted, escaped(i, format))}" for i in items)
    lines = [rf"  \item {{}}{escaped(item, format)}" for item in items]
    return "\n".join([r"\begin{itemize}", *lines, r"\end{itemize}"])


def table(header: Sequence[str], rows: Sequence[Sequence[str]], format: Format = "text") -> str:
    """A table: the first column to the left, the others to the right.

    As text columns are aligned and indented by two; Markdown's are pipes, LaTeX's booktabs.

    Raises: ValueError for a row that has not as many cells as the header.
    """
    for i, row in enumerate(rows):
        if len(row) != len(header):
            raise ValueError(f"rows[{i}] has {len(row)} cells, the header {len(header)}")
    every = [[escaped(cell, format) for cell in row] for row in (header, *rows)]
    if format == "latex":
        lines = [" & ".join(row) + r" \\" for row in every]
        columns = "l" + "r" * (len(header) - 1)
        top = [rf"\begin{{tabular}}{{{columns}}}", r"\toprule", lines[0], r"\midrule"]
        return "\n".join([*top, *lines[1:], r"\bottomrule", r"\end{tabular}"])
    widths = [max(len(row[i]) for row in every) for i in range(len(header))]
    cells = [
        [c.ljust(w) if i == 0 else c.rjust(w) for i, (c, w) in enumerate(zip(row, widths))]
        for row in every
    ]
    if format == "text":
        return "\n".join("  " + "  ".join(row).rstrip() for row in cells)
    lines = ["| " + " | ".join(row) + " |" for row in cells]
    rules = ["-" * max(w - 1, 1) for w in widths]
    sides = [f":{rules[0]}", *(f"{rule}:" for rule in rules[1:])]
    return "\n".join([lines[0], "| " + " | ".join(sides) + " |", *lines[1:]])


def verbatim(text: str, format: Format = "text") -> str:
    """Lines that keep their columns: a code block, a verbatim environment."""
    if format == "markdown":
        return f"```\n{text}\n```"
    if format == "latex":
        return f"\\begin{{verbatim}}\n{text}\n\\end{{verbatim}}"
    return text


def join(parts: Sequence[str], format: Format = "text") -> str:
    """The parts of a report that are not empty, an empty line between two."""
    escaped("", format)
    return "\n\n".join(part for part in parts if part)


def _unlisted(match: re.Match[str]) -> str:
    """The start of a line that Markdown would take for a heading or a list, escaped."""
    space, mark = match.groups()
    return space + mark[:-1] + "\\" + mark[-1]
