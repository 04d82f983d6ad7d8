"""Exact copies: every one is found, and the first that lives stays."""

import random

from jaxlm.data.curate.duplicates.copies import Exact
from tests.data.curate.duplicates.test_near import corpus, removed


def test_every_copy_is_found_and_the_first_stays():
    rng = random.Random(0)
    texts = [f"text {rng.randrange(40)}\n" for _ in range(120)]
    first = {text: i for i, text in reversed([*enumerate(texts)])}
    gone = removed(texts, Exact())
    assert gone == {i: (1.0, first[t]) for i, t in enumerate(texts) if first[t] != i} or all(
        texts[j] == texts[i] for i, (_, j) in gone.items()
    )
    assert {*gone} == {i for i, t in enumerate(texts) if first[t] != i}


def test_a_removed_document_is_no_witness():
    assert [*removed(["a", "a", "a"], Exact(), alive=[False, True, True])] == [2]


def test_what_is_kept_elsewhere_stays():
    step = Exact()
    decision = step.decide(corpus(["a", "b"], step, against=["b", "c"]))
    assert [*decision.removals] == [1] and decision.links == [(2, 1)]
    assert not [*step.problems()]
