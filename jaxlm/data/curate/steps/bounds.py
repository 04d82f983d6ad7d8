"""Rules that compare a score with a threshold, both named by one field of a step.

A field `least_words` is the rule of that name: it reads the score `words` and removes a document
whose score is below it; `most_hashes` removes those above. None switches a rule off.
"""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from importlib import metadata
from typing import Any

from jaxlm.core import check
from jaxlm.data.curate.document_step import Removal, Score


def missed(step: Any, rules: Sequence[str], scores: Mapping[str, Score]) -> Iterator[Removal]:
    """Rules that the scores miss, in the order given. A score that is None misses none."""
    for rule in rules:
        sense, _, name = rule.partition("_")
        score, threshold = scores[name], getattr(step, rule)
        if score is None or threshold is None:
            continue
        if score < threshold if sense == "least" else score > threshold:
            yield Removal(rule, score, threshold)


def problems(step: Any, rules: Sequence[str]) -> Iterator[str]:
    """Problems of the fields that are thresholds: negative, no number, or a least above a most."""
    wrong = list(check.outside("", step, *rules, least=0))
    yield from wrong
    for rule in () if wrong else rules:
        sense, _, name = rule.partition("_")
        if sense == "least" and f"most_{name}" in rules:
            low, high = getattr(step, rule), getattr(step, f"most_{name}")
            ok = low is None or high is None or low <= high
            yield from check.problem(rule, low, ok, f"at most most_{name}={high}")


@contextlib.contextmanager
def of_extra(extra: str) -> Iterator[None]:
    """An import of what an extra installs, in a `with`. Raises: ImportError naming the extra."""
    try:
        yield
    except ImportError as error:
        raise ImportError(f"{error.name} is not installed: pip install 'jaxlm[{extra}]'") from error


def version(distribution: str, extra: str) -> str:
    """The version of an installed library. Raises: ImportError naming its extra."""
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError as error:
        raise ImportError(
            f"{distribution} is not installed: pip install 'jaxlm[{extra}]'"
        ) from error
