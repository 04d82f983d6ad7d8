"""Repeated lines and paragraphs: counted by document and source, kept in the first."""

import pytest

from jaxlm.data.curate.duplicates.repeated_lines import Lines
from tests.data.curate.duplicates.test_near import corpus

MENU = "Home | About | Contact | Sitemap\n"


def rewritten(texts, step, source=None):
    documents = corpus(texts, step, source).documents
    owners = step.repeated(documents)
    half = int(documents.first[1])
    return [*step.rewrite(texts[:half], owners[0]), *step.rewrite(texts[half:], owners[1])]


def test_a_line_of_many_documents_stays_in_the_first():
    bodies = [f"The body of document number {i} is its own.\n" for i in range(6)]
    texts = [f"{MENU}{body}" for body in bodies]
    first, *rest = rewritten(texts, Lines(most=3))
    assert first == ({"share": 0, "units": []}, None)
    assert [s.text for s in rest] == bodies[1:]
    share = len(MENU) / len(texts[1])
    start, end, witness = rest[0].scores["units"][0]
    assert rest[0].scores["share"] == pytest.approx(share, abs=1e-6) and (start, end) == (0, 33)
    assert witness == corpus(texts, Lines()).documents.ids[0]
    assert Lines().removal(rest[0].scores) is None
    gone = Lines(most_removed=0.4).removal(rest[0].scores)
    assert gone == ("share", rest[0].scores["share"], 0.4, witness)
    assert not [s.text for s in rewritten(texts, Lines(most=6)) if s.text]
    assert not [s.text for s in rewritten(texts, Lines(least=40)) if s.text]


def test_sources_are_counted_apart_and_copies_once():
    texts = [f"{MENU}body {i}, which is short\n" for i in range(4)]
    assert not [s for s in rewritten(texts, Lines(most=2), source=[0, 0, 1, 1]) if s.text]
    # five copies of one document are one; a copy of the owner keeps its lines as the owner does
    assert not [s for s in rewritten([texts[0]] * 5, Lines(most=2)) if s.text]
    changed = [s.text for s in rewritten([texts[0], *texts], Lines(most=2))]
    assert changed == [None, None, *(f"body {i}, which is short\n" for i in (1, 2, 3))]


def test_paragraphs_and_a_document_of_nothing_else():
    notice = "All rights reserved, by\nnobody in particular.\n\n"
    texts = [f"{notice}Paragraph {i} with its own content.\n" for i in range(4)] + [f" {notice}"]
    *_, last, only = rewritten(texts, Lines("paragraph", most=2))
    assert last.text == "Paragraph 3 with its own content.\n"
    assert only.text == "" and only.scores["share"] == 1.0
    reason = Lines("paragraph", most_removed=1.0).removal(only.scores)
    assert reason is not None and reason.rule == "share"
    assert Lines("paragraph").name == "repeated_paragraphs"
    assert [*Lines("word", most=0).problems()] == [  # ty: ignore
        "lines.unit: 'word' given; it must be one of ['line', 'paragraph']",
        "lines.most: 0 given; it must be at least 1",
    ]
