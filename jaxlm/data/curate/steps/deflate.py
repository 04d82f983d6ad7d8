"""The ratio by which a text compresses, which tells repetition and noise of any kind."""

import dataclasses
import zlib
from collections.abc import Iterator, Mapping, Sequence
from typing import ClassVar

from jaxlm.core import check
from jaxlm.data.curate.document_step import Removal, Score, Scored, Scorer
from jaxlm.data.curate.steps import bounds

RULES = ("least_ratio", "most_ratio")


@dataclasses.dataclass(frozen=True)
class Compression:
    """Removes texts that compress too well (one line again and again) or hardly at all (base64,
    keys). The ratio is bytes of UTF-8 to bytes of deflate; short texts, where it says little, have
    none. The thresholds are not from a publication: `experiments/curation` measures them."""

    least_ratio: float | None = 1.35
    most_ratio: float | None = 8.0
    least_bytes: int = 300
    """Bytes from which on a text has a ratio."""

    THRESHOLDS: ClassVar[frozenset[str]] = frozenset(RULES)

    @property
    def name(self) -> str:
        """Name of the step."""
        return "compression"

    def problems(self) -> Iterator[str]:
        """Problems of the fields."""
        yield from bounds.problems(self, RULES)
        yield from check.outside("", self, "least_bytes", least=1)

    def versions(self) -> Mapping[str, str]:
        """The version of zlib."""
        return {"zlib": zlib.ZLIB_RUNTIME_VERSION}

    def scorer(self) -> Scorer:
        """The Scorer."""

        def score(texts: Sequence[str]) -> list[Scored]:
            return [Scored({"ratio": self._ratio(text)}) for text in texts]

        return score

    def removal(self, scores: Mapping[str, Score]) -> Removal | None:
        """The first rule that is missed."""
        return next(bounds.missed(self, RULES, scores), None)

    def _ratio(self, text: str) -> float | None:
        data = text.encode("utf-8", "surrogatepass")
        return len(data) / len(zlib.compress(data, 6)) if len(data) >= self.least_bytes else None
