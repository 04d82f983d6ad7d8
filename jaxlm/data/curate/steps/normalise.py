"""One form of the characters that look alike or do not show."""

import dataclasses
import re
import sys
import unicodedata
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import ClassVar, Literal

from jaxlm.core import check
from jaxlm.data.curate.document_step import Removal, Score, Scored, Scorer

BOM, REPLACEMENT = "\ufeff", "\ufffd"
SURROGATE = re.compile("[\ud800-\udfff]")
CONTROL = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]")
# Longer runs of combining marks are left as they are: sorting one takes quadratic time. The bound
# is that of the stream-safe text format (Unicode Standard Annex 15, section 13).
MARKS = 30


@dataclasses.dataclass(frozen=True)
class Normalise:
    """Replaces lone surrogates by U+FFFD, deletes control characters other than tab and line feed
    and byte order marks at the beginning, ends lines with one line feed, and composes characters.
    Twice is the same as once. Nothing is removed."""

    form: Literal["NFC", "NFKC"] = "NFC"
    """Unicode's form: NFKC also replaces ligatures, wide letters, superscripts, no-break spaces."""

    THRESHOLDS: ClassVar[frozenset[str]] = frozenset()

    @property
    def name(self) -> str:
        """Name of the step."""
        return "normalise"

    def problems(self) -> Iterator[str]:
        """Problems of the fields."""
        yield from check.choices("", self)

    def versions(self) -> Mapping[str, str]:
        """The version of Unicode."""
        return {"unicode": unicodedata.unidata_version}

    def scorer(self) -> Scorer:
        """The Scorer: characters that were replaced and deleted."""
        compose = _composer(self.form)

        def score(texts: Sequence[str]) -> list[Scored]:
            return [_scored(text, compose) for text in texts]

        return score

    def removal(self, scores: Mapping[str, Score]) -> Removal | None:
        """None: every document stays."""
        return None


def _scored(text: str, compose: Callable[[str], str]) -> Scored:
    clean, surrogates = SURROGATE.subn(REPLACEMENT, text)
    clean, controls = CONTROL.subn("", clean)
    clean = clean.replace("\r\n", "\n").replace("\r", "\n").lstrip(BOM)
    if not clean.isascii():
        clean = compose(clean).lstrip(BOM)
    scores = {"surrogates": surrogates, "controls": controls, "changed": clean != text}
    return Scored(scores, clean if clean != text else None)


def _composer(form: Literal["NFC", "NFKC"]) -> Callable[[str], str]:
    """A function that composes a text but for its long runs of combining marks."""
    marks = [c for c in map(chr, range(sys.maxunicode + 1)) if unicodedata.combining(c)]
    runs = re.compile(f"([{''.join(marks)}]{{{MARKS + 1},}})")

    def compose(text: str) -> str:
        parts = runs.split(text)  # what is between runs, and at odd places the runs
        parts[::2] = [unicodedata.normalize(form, part) for part in parts[::2]]
        return "".join(parts)

    return compose
