"""The rules of Gopher, C4 and FineWeb, compared with their definitions and with datatrove."""

import re
from collections import Counter

import pytest

from jaxlm.data.curate.steps import (
    bounds,
    c4,
    english_words,
    fineweb,
    gopher,
    punctuation,
    repetition,
)
from tests.data.curate.steps import curation_texts

# datatrove's reasons, by our rules.
REASONS = {
    "gopher_short_doc": "least_words",
    "gopher_long_doc": "most_words",
    "gopher_below_avg_threshold": "least_mean_length",
    "gopher_above_avg_threshold": "most_mean_length",
    "gopher_too_many_hashes": "most_hashes",
    "gopher_too_many_ellipsis": "most_ellipses",
    "gopher_too_many_bullets": "most_bullet_lines",
    "gopher_too_many_end_ellipsis": "most_ellipsis_lines",
    "gopher_below_alpha_threshold": "least_alphabetic",
    "gopher_enough_stop_words": "least_stop_words",
    "dup_para_frac": "most_repeated_paragraphs",
    "dup_para_char_frac": "most_repeated_paragraph_characters",
    "dup_line_frac": "most_repeated_lines",
    "dup_line_char_frac": "most_repeated_line_characters",
    **{f"top_{n}_gram": f"most_top_{n}grams" for n in range(2, 5)},
    **{f"duplicated_{n}_n_grams": f"most_repeated_{n}grams" for n in range(5, 11)},
    "line_punct_ratio": "least_punctuated",
    "short_line_ratio": "most_short_lines",
    "char_dup_ratio": "most_repeated_characters",
    "list_ratio": "most_newlines",
    "too_few_sentences": "least_sentences",
    "lorem_ipsum": "lorem_ipsum",
    "curly_bracket": "curly_bracket",
    None: None,
}


def rule(removal):
    return removal and removal.rule


@pytest.mark.parity
def test_decisions_are_those_of_datatrove():
    """Decision, first reason, and the text that C4 leaves, document by document."""
    filters = pytest.importorskip("datatrove.pipeline.filters")
    from datatrove.data import Document

    def theirs(name, text):
        document = Document(text=text, id="")
        kept = getattr(filters, name)().filter(document)
        return (None if kept is True else kept[1]), document.text

    texts = curation_texts.faulty(40)
    g, c, f = gopher.Gopher(), c4.C4(), fineweb.FineWeb()
    seen = set()
    for text, own, lines, web in zip(texts, *(s.scorer()(texts) for s in (g, c, f))):
        quality = next(bounds.missed(g, gopher.QUALITY, own.scores), None)
        repeated = next(bounds.missed(g, gopher.REPETITION, own.scores), None)
        reasons = [theirs(f"Gopher{kind}Filter", text)[0] for kind in ("Quality", "Repetition")]
        web_reason = theirs("FineWebQualityFilter", text)[0]
        c4_reason, clean = theirs("C4QualityFilter", text)
        empty = {"empty": "least_characters"} | REASONS
        assert [rule(quality), rule(repeated)] == [empty[reason] for reason in reasons], text
        assert rule(f.removal(web.scores)) == ({"empty": "least_lines"} | REASONS)[web_reason], text
        assert rule(c.removal(lines.scores)) == REASONS[c4_reason], text
        if c4_reason is None:
            assert (text if lines.text is None else lines.text) == clean
        seen |= {*reasons, web_reason, c4_reason}
    assert len(seen) > 20


@pytest.mark.parity
def test_punctuation_is_that_of_spacy_and_datatrove():
    text = pytest.importorskip("datatrove.utils.text")
    from spacy.pipeline import Sentencizer

    assert set(Sentencizer.default_punct_chars) == punctuation.SENTENCE_ENDS
    assert punctuation.LINE_ENDS == text.TERMINAL_PUNCTUATION
    assert punctuation.PUNCTUATION == text.PUNCTUATION_SET
    assert set(gopher.STOP_WORDS) == {*["the", "be", "to", "of", "and", "that", "have", "with"]}


def defined(text, words):
    """The scores of repetition as table A1 defines them, in plain Python."""
    scores, size = {}, max(1, len(text))
    for kind, parts in (
        ("paragraph", re.split(r"\n{2,}", text.strip())),
        ("line", re.split(r"\n+", text)),
    ):
        again = [part for i, part in enumerate(parts) if part in parts[:i]]
        scores[f"repeated_{kind}s"] = len(again) / len(parts)
        scores[f"repeated_{kind}_characters"] = sum(map(len, again)) / size
    for n in (2, 3, 4):
        grams = Counter(" ".join(words[i : i + n]) for i in range(len(words) - n + 1))
        gram, count = grams.most_common(1)[0] if grams else ("", 0)
        scores[f"top_{n}grams"] = len(gram) * count / size
    for n in range(5, 11):
        seen, characters, i = set(), 0, 0
        while i + n <= len(words):
            gram = "".join(words[i : i + n])
            characters += len(gram) if gram in seen else 0
            i += n if gram in seen else 1
            seen.add(gram)
        scores[f"repeated_{n}grams"] = characters / size
    return scores


@pytest.mark.slow
def test_shares_of_repetition_are_those_of_their_definition(monkeypatch):
    """Many texts at once, some cut into words in two ways that join to the same letters."""
    texts = [
        *curation_texts.faulty(5),
        "ab c d e f g , a bc d e f g",
        "x " * 50,
        "a b a b c d c d e f e f",
    ]
    vocabulary = english_words.vocabulary()
    # small groups, so that texts are at their ends
    monkeypatch.setattr(repetition, "CHARACTERS", 3000)
    scored = gopher.Gopher().scorer()(texts)
    for text, own in zip(texts, scored):
        words = [vocabulary.words[i] for i in vocabulary.ids(text)]
        expected = defined(text, words)
        assert {k: own.scores[k] for k in expected} == expected, text


def test_scores_of_quality():
    text = "#The cat, and the dog... 12!\n- be here…\n\n• with-out"
    (own,) = gopher.Gopher().scorer()([text])
    vocabulary = english_words.vocabulary()
    words = [vocabulary.words[i] for i in vocabulary.ids(text)]
    plain = [w for w in words if any(c not in punctuation.PUNCTUATION for c in w)]
    assert len(words) > len(plain) > 8
    expected = {
        "characters": len(text),
        "words": len(plain),
        "mean_length": sum(map(len, plain)) / len(plain),
        "hashes": 1 / len(words),
        "ellipses": 2 / len(words),
        "bullet_lines": 2 / 4,
        "ellipsis_lines": 1 / 4,
        "alphabetic": sum(any(map(str.isalpha, w)) for w in words) / len(words),
        "stop_words": len({*gopher.STOP_WORDS} & {*words}),
    }
    assert {k: own.scores[k] for k in expected} == expected
    empty = gopher.Gopher().scorer()([""])[0].scores
    assert empty["words"] == 0 and empty["mean_length"] is None and empty["hashes"] is None


def test_scores_of_fineweb():
    text = "A line that is long enough to be none of the short ones.\nshort\n\nshort\n \nEnd!"
    (own,) = fineweb.FineWeb().scorer()([text])
    words = len(english_words.vocabulary().ids(text))
    assert own.scores == {
        "lines": 4,
        "punctuated": 2 / 4,
        "short_lines": 3 / 4,
        "repeated_characters": 5 / (len(text) - 5),
        "newlines": 5 / words,
    }
    assert fineweb.FineWeb().scorer()(["\n \n"])[0].scores["punctuated"] is None
    short = fineweb.FineWeb(short=4)
    assert short.scorer()([text])[0].scores["short_lines"] == 1 / 4


def test_c4_keeps_sentences():
    lines = [
        "A first sentence is here. And a second.",
        "No mark at its end",
        "Two words.",
        "It ends in dots...",
        "This needs Javascript to be on.",
        "Our privacy policy has changed.",
        "x" * 1001 + " is too long.",
        "  Cited[12] and marked[edit], “quoted” as 'it'.  ",
    ]
    (own,) = c4.C4().scorer()(["\n".join(lines)])
    assert (
        own.text == "A first sentence is here. And a second.\nCited and marked, “quoted” as 'it'."
    )
    assert own.scores == {
        "sentences": 3,
        "lines": 8,
        "lines_kept": 2,
        "lorem_ipsum": None,
        "curly_bracket": None,
    }
    assert c4.C4().removal(own.scores) == ("least_sentences", 3, 5, None)
    assert c4.C4(least_sentences=3).removal(own.scores) is None
    loose = c4.C4(
        citations=True,
        least_line_words=0,
        most_word_length=2000,
        terminal=False,
        javascript=False,
        policies=False,
    )
    assert loose.scorer()(["\n".join(lines)])[0].text == "\n".join(map(str.strip, lines))


def test_c4_names_the_first_line_that_takes_a_document_away():
    text = "One line is good.\nLorem ipsum dolor sit amet.\nOne { is more than none."
    scores = c4.C4().scorer()([text])[0].scores
    assert (scores["lorem_ipsum"], scores["curly_bracket"]) == (1, 2)
    assert rule(c4.C4().removal(scores)) == "lorem_ipsum"
    assert rule(c4.C4(lorem_ipsum=False).removal(scores)) == "curly_bracket"
    off = c4.C4(lorem_ipsum=False, curly_bracket=False)
    assert rule(off.removal(scores)) == "least_sentences"
    swapped = "\n".join(reversed(text.splitlines()))
    assert rule(c4.C4().removal(c4.C4().scorer()([swapped])[0].scores)) == "curly_bracket"


@pytest.mark.parametrize(
    "step, words",
    [
        (gopher.Gopher(least_words=200_000), "at most most_words=100000"),
        (gopher.Gopher(most_hashes=-1), "most_hashes: -1 given"),
        (fineweb.FineWeb(short=-1), "short: -1"),
        (fineweb.FineWeb(most_newlines=float("nan")), "most_newlines: nan"),
        (c4.C4(least_sentences=-1), "least_sentences: -1"),
        (c4.C4(most_word_length=0), "most_word_length: 0"),
        (gopher.Gopher(least_words=None, most_words=None, least_mean_length=None), ""),
    ],
)
def test_thresholds_that_do_not_fit_are_named(step, words):
    assert words in "\n".join(step.problems()) and bool(words) == bool([*step.problems()])


def test_a_threshold_is_met_by_its_own_value_and_off_by_none():
    (own,) = gopher.Gopher().scorer()(["word"])
    assert rule(gopher.Gopher().removal(own.scores)) == "least_words"
    found = gopher.Gopher(least_words=1).removal(own.scores)
    assert found == ("least_stop_words", 0, 2, None)
    met = gopher.Gopher(least_words=1, most_words=1, least_stop_words=0)
    assert met.removal(own.scores) is None
    off = gopher.Gopher(least_words=None, least_stop_words=None)
    assert off.removal(own.scores) is None


def test_versions_name_what_decides_the_scores():
    for step in (gopher.Gopher(), c4.C4(), fineweb.FineWeb()):
        assert set(step.versions()) == {"spacy", "unicode"}
    match = r"absent_library is not installed: .*jaxlm\[curate\]"
    with pytest.raises(ImportError, match=match), bounds.of_extra("curate"):
        import absent_library  # noqa: F401
    with pytest.raises(ImportError, match=r"absent-library is not installed: .*jaxlm\[pii\]"):
        bounds.version("absent-library", "pii")
