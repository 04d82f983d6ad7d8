"""The prose of library and docs: sentences begin with a subject or a verb (CONTRIBUTING)."""

import ast
import re

import pytest

from tests.sources import LIBRARY, ROOT, nodes_of, tree_of, where

# First words of sentences that have no subject.
OPENINGS = ("What", "Of", "How", "Where", "Why", "Who")
pytestmark = pytest.mark.xdist_group("architecture")


def docstrings(path):
    """(node, text) of the docstrings of a module, its functions, classes and fields."""
    for node in (tree_of(path), *nodes_of(path)):
        if isinstance(node, ast.Module | ast.FunctionDef | ast.ClassDef):
            text = ast.get_docstring(node)
            if text:
                yield node.body[0], text
        if isinstance(node, ast.ClassDef):
            for field, after in zip(node.body, node.body[1:]):
                shown = isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant)
                if isinstance(field, ast.AnnAssign) and shown:
                    yield after, str(after.value.value)


def test_docstrings_begin_with_a_verb_or_a_noun():
    texts = [(path, node, text) for path in LIBRARY for node, text in docstrings(path)]
    assert len(texts) > 2000
    wrong = [
        f"{where(path, node)}: {text.splitlines()[0]}"
        for path, node, text in texts
        if text.split()[0] in OPENINGS
    ]
    assert not wrong


def test_sentences_of_the_docs_have_a_subject():
    """Headings and code may begin as they like; a line of prose may not, nor use words that read as
    translated."""
    pages = [p for p in sorted((ROOT / "docs").rglob("*.md")) if "_build" not in p.parts]
    openings = re.compile(r"\b(What|Of|How|Why|Who) |\b([Bb]eside|[Bb]ehind)\b")
    wrong, count = [], 0
    for page in pages:
        text = re.sub(
            r"(?ms)^```.*?^```$", lambda m: "\n" * m[0].count("\n"), page.read_text("utf-8")
        )
        for number, line in enumerate(text.splitlines(), start=1):
            count += 1
            if not line.startswith("#") and (bad := openings.search(re.sub("`[^`]*`", "", line))):
                wrong.append(f"{page.relative_to(ROOT)}:{number}: {bad[0]}")
    assert not wrong and count > 1500
