"""Profane words, by alt-profanity-check: a classifier of English words, not of what is meant."""

import dataclasses
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import ClassVar

from jaxlm.core import check
from jaxlm.data.curate.document_step import Removal, Score, Scored, Scorer
from jaxlm.data.curate.steps import bounds

SURROGATE = re.compile("[\ud800-\udfff]")
# Texts are cut into parts of about so many characters, at white space: the classifier weighs words
# by their share, so that a long text hides what is in it.
PART = 1000


@dataclasses.dataclass(frozen=True)
class Profanity:
    """Removes texts with profane English. It is a filter of profane words: not of toxicity, and not
    of any other language; quotations and medicine have such words, too."""

    most_probability: float | None = 0.9
    """Probability that the likeliest part of a text is profane; documents above go."""
    part: int = PART
    """Characters of a part."""

    THRESHOLDS: ClassVar[frozenset[str]] = frozenset({"most_probability"})

    @property
    def name(self) -> str:
        """Name of the step."""
        return "profanity"

    def problems(self) -> Iterator[str]:
        """Problems of the fields."""
        yield from check.outside("", self, "most_probability", least=0, most=1)
        yield from check.outside("", self, "part", least=1)

    def versions(self) -> Mapping[str, str]:
        """Versions of the library, whose wheel has the model, and of what computes with it."""
        names = ("alt-profanity-check", "scikit-learn")
        return {name: bounds.version(name, "curate") for name in names}

    def scorer(self) -> Scorer:
        """The Scorer: the largest probability of a text's parts, 0 of an empty text.
        Raises: ImportError naming the extra."""
        with bounds.of_extra("curate"):
            import profanity_check as library

        def score(texts: Sequence[str]) -> list[Scored]:
            parts, owners = [], []
            for owner, text in enumerate(texts):
                own = self._parts(SURROGATE.sub("\ufffd", text))
                parts += own
                owners += [owner] * len(own)
            largest = [0.0] * len(texts)
            for owner, value in zip(owners, library.predict_prob(parts) if parts else ()):
                largest[owner] = max(largest[owner], float(value))
            return [Scored({"probability": value}) for value in largest]

        return score

    def removal(self, scores: Mapping[str, Score]) -> Removal | None:
        """The rule, where it is missed."""
        return next(bounds.missed(self, ("most_probability",), scores), None)

    def _parts(self, text: str) -> list[str]:
        """Parts of at least `part` characters, cut at white space, or of twice as many."""
        ends = rf"(?s).{{{self.part}}}\S{{0,{self.part}}}|.+"
        return [part for part in re.findall(ends, text) if not part.isspace()]
