"""Redaction of identifiers of persons and machines."""

import dataclasses
import difflib
from collections.abc import Iterator, Mapping, Sequence
from typing import ClassVar, Literal

from jaxlm.core import check
from jaxlm.data.curate.document_step import Removal, Score, Scored, Scorer
from jaxlm.data.curate.steps import bounds, identifiers, surrogates
from jaxlm.data.curate.steps.identifiers import KINDS, Finder, Span


@dataclasses.dataclass(frozen=True)
class Redact:
    """Replaces email addresses, IP addresses, telephone and card numbers, IBANs and secrets.
    Nothing is removed. Twice is the same as once. Scores have kinds and offsets, never what was
    there."""

    kinds: tuple[str, ...] = KINDS
    """Kinds of identifiers, of `KINDS`."""
    by: Literal["placeholder", "surrogate"] = "placeholder"
    """A placeholder is `<EMAIL>`. A surrogate is of the same form, from a range that is reserved,
    the same for the same identifier within a document; secrets have placeholders."""
    regions: tuple[str, ...] = ("US", "GB")
    """ISO codes of countries whose telephone numbers need no country code; others need theirs."""

    THRESHOLDS: ClassVar[frozenset[str]] = frozenset()

    @property
    def name(self) -> str:
        """Name of the step."""
        return "redact"

    def problems(self) -> Iterator[str]:
        """Problems of the fields; an unknown kind with the nearest."""
        yield from check.choices("", self)
        yield from check.problem("kinds", self.kinds, bool(self.kinds), "one kind or more")
        for kind in self.kinds:
            near = difflib.get_close_matches(kind, KINDS, 1, 0)
            fits = f"one of {', '.join(KINDS)}; the nearest is {near[0]}"
            yield from check.problem("kinds", kind, kind in KINDS, fits)
        if "phone" in self.kinds and self.regions:
            known = yield from check.loaded("", identifiers.numbered_regions)
            for region in self.regions if known else ():
                ok = region in (known or ())
                yield from check.problem("regions", region, ok, "an ISO code, such as US, GB, DE")

    def versions(self) -> Mapping[str, str]:
        """The version of the library with the numbering plans."""
        if "phone" not in self.kinds:
            return {}
        return {"phonenumbers": bounds.version("phonenumbers", "pii")}

    def scorer(self) -> Scorer:
        """The Scorer: the number of identifiers of each kind, and `spans`, a list of [kind, start,
        end, new start, new end] with offsets before and after.
        Raises: ImportError naming the extra."""
        finders = identifiers.finders(self.kinds, self.regions)

        def score(texts: Sequence[str]) -> list[Scored]:
            return [self._scored(text, finders) for text in texts]

        return score

    def removal(self, scores: Mapping[str, Score]) -> Removal | None:
        """None: every document stays."""
        return None

    def _scored(self, text: str, finders: Sequence[tuple[str, Finder]]) -> Scored:
        spans = identifiers.find(text, finders)
        counts = dict.fromkeys(self.kinds, 0)
        if not spans:
            return Scored({**counts, "spans": []})
        clean, places = _replaced(text, spans, surrogates.Surrogates(text, self.by == "surrogate"))
        if self.by == "surrogate" and identifiers.find(clean, finders):
            # A surrogate may join what is around it to something new; a placeholder does not.
            clean, places = _replaced(text, spans, surrogates.Surrogates(text, False))
        for span in spans:
            counts[span.kind] += 1
        rows = [[s.kind, s.start, s.end, *place] for s, place in zip(spans, places)]
        return Scored({**counts, "spans": rows}, clean)


def _replaced(
    text: str, spans: Sequence[Span], replacements: surrogates.Surrogates
) -> tuple[str, list[tuple[int, int]]]:
    """The text with replacements, and where these are."""
    parts, places, end, size = [], [], 0, 0
    for span in spans:
        new = replacements.of(span.kind, text[span.start : span.end])
        size += span.start - end
        places.append((size, size + len(new)))
        parts += [text[end : span.start], new]
        end, size = span.end, size + len(new)
    return "".join([*parts, text[end:]]), places
