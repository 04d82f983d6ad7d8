"""Curation of the built-in corpora: docstrings and sources of Python's standard library.

    jaxlm data curate recipes/stdlib.py --out data/stdlib

Docstrings come first, so that a copy in the sources goes.
"""

from jaxlm.data.curate.duplicates.copies import Exact
from jaxlm.data.curate.duplicates.near import Near
from jaxlm.data.curate.duplicates.repeated_lines import Lines
from jaxlm.data.curate.recipe import Recipe, Source


def config() -> Recipe:
    """Exact and near copies go, and lines that more than 20 documents of a source have."""
    return Recipe(
        sources=(Source("docs", "pydocs"), Source("code", "pysrc")),
        steps=(Exact(), Lines(most=20), Near()),
        most_lost=0.2,
    )
