"""The library's prose: a docstring begins with what is returned, set, or done (CONTRIBUTING)."""

import ast

import pytest

from tests.sources import LIBRARY, nodes_of, tree_of, where

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
