"""Perplexity of documents as a step of curation: against `jaxlm eval` of the same texts."""

import dataclasses
import json
import math

import pytest

import jaxlm
from jaxlm.data.corrupt import mask
from jaxlm.feedback.perplexity_step import Perplexity
from jaxlm.train.run import directory
from jaxlm.train.run import run as runs

TEXTS = ["the cat sat.", "q9#\u00e9!zz", "aaaaaaaaaaaaaaaaaaaa", "on a mat", "the the the the"]


@pytest.fixture(scope="module")
def step(whole):
    return Perplexity(str(runs.folder(whole[0])))


@pytest.fixture(scope="module")
def score(step):
    return step.scorer()


def bits(score, texts):
    return [scored.scores["bits_per_byte"] for scored in score(texts)]


def test_bits_per_byte_are_those_of_an_evaluation(whole, step, score, home, tmp_path, monkeypatch):
    """Of documents that fit a row, together; and a batch changes nothing."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(home))
    assert not list(step.problems()) and len(step.versions()["weights"]) == 64
    lines = [json.dumps({"text": text}) for text in TEXTS]
    (tmp_path / "texts.jsonl").write_text("\n".join(lines), "utf-8")
    data = dataclasses.replace(
        whole[0].data, source=str(tmp_path / "texts.jsonl"), holdout=0.0, batch=2
    )
    got, sizes = bits(score, TEXTS), [len(text.encode()) for text in TEXTS]
    mean = sum(b * n for b, n in zip(got, sizes, strict=True)) / sum(sizes)
    expected = jaxlm.evaluate(jaxlm.load(step.run), data, "train")["bits_per_byte"]
    assert mean == pytest.approx(expected, rel=1e-5)
    alone = [bits(score, [text])[0] for text in TEXTS]
    assert alone == pytest.approx(got, rel=1e-5)


def test_long_texts_are_read_in_windows(score):
    """Every byte is paid for, and knows as much before it as fits: cut into documents, the same
    text costs more bits, by the ends that are paid for and by the beginnings that are guessed."""
    long = "the cat sat on a mat. " * 20
    pieces = [long[i : i + 31] for i in range(0, len(long), 31)]
    (whole_text,) = bits(score, [long])
    apart = sum(b * len(p) for b, p in zip(bits(score, pieces), pieces, strict=True)) / len(long)
    assert 0 < whole_text < apart
    assert bits(score, [""]) == [pytest.approx(bits(score, [""])[0])]


def test_both_tails_are_removed(step):
    limits = dataclasses.replace(step, least=1.0, most=3.0)
    reasons = [limits.removal({"bits_per_byte": value}) for value in (0.5, 1.0, 3.0, 3.5)]
    assert [reason and reason.rule for reason in reasons] == [
        "too likely",
        None,
        None,
        "too unlikely",
    ]
    assert reasons[0].threshold == 1.0 and reasons[3].score == 3.5
    assert step.removal({"bits_per_byte": 99.0}) is None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"run": ""}, "perplexity.run: '' given"),
        ({"run": "runs/none"}, "runs/none"),
        ({"least": -1.0}, "perplexity.least: -1.0 given"),
        ({"least": math.inf}, "perplexity.least: inf given"),
        ({"least": 2.0, "most": 2.0}, "above perplexity.least=2.0"),
    ],
)
def test_what_cannot_be_done_is_said_before(step, changes, message):
    problems = list(dataclasses.replace(step, **changes).problems())
    assert any(message in problem for problem in problems), problems


def test_a_run_that_fills_gaps_has_no_perplexity(whole, step, monkeypatch):
    gaps = dataclasses.replace(
        whole[0], data=dataclasses.replace(whole[0].data, corrupt=mask.Mask())
    )
    monkeypatch.setattr(directory, "load", lambda folder: gaps)
    (problem,) = step.problems()
    assert "trained to predict the next token of text" in problem
