"""Rewards: the functions by name, a user's in its own process, and what becomes of bad ones."""

import json
import time

import numpy as np
import pytest

from jaxlm.train.rl import reward_functions, sandbox

OWN = """
import os, time

def lengths(samples):
    print("chatter of the user's goes elsewhere than into the pipe")
    return [len(s.response) for s in samples]

def nan(samples):
    return [float("nan") if "bad" in s.response else 1 for s in samples]

def raises(samples):
    return [{"good": 1.0, "fine": 2.0}[s.response] for s in samples]

def hangs(samples):
    while any("bad" in s.response for s in samples):
        pass
    return [1.0] * len(samples)

def dies(samples):
    if any("bad" in s.response for s in samples):
        os._exit(3)
    return [1.0] * len(samples)

def few(samples):
    return [1.0]

def text(samples):
    return ["1.0" for s in samples]

def together(samples):
    if len(samples) > 1:
        raise RuntimeError("one at a time")
    return [3.0]

calls = 0

def flaky(samples):
    global calls
    calls += 1
    if calls == 1:
        raise ConnectionError("the judge was asleep")
    return [float(calls)] * len(samples)
"""
SAMPLES = [
    reward_functions.Sample(f"prompt {i}", response, {"answer": "4"}, True)
    for i, response in enumerate(("good", "fine", "bad", "good"))
]


@pytest.fixture
def own(tmp_path):
    (tmp_path / "own.py").write_text(OWN, "utf-8")
    return lambda name: f"{tmp_path / 'own.py'}:{name}"


def given(*responses, answer="4", finished=True):
    return [reward_functions.Sample("p", r, {"answer": answer}, finished) for r in responses]


def test_functions_by_name():
    assert reward_functions.exact(given(" 4\n", "4.", "44")) == [1, 0, 0]
    asked = given("so 1,200 then", "1200.0", "is it 1200 or 3?", "-1200", "", answer="#### 1200")
    assert reward_functions.number(asked) == [1, 1, 0, 0, 0]
    assert reward_functions.number(given("x", answer="x")) == [0]
    good = "<think>2 and 2</think>\n<answer>4</answer>"
    twice, bare = good + "<answer>5</answer>", "<answer> 4.0 </answer>"
    nested = "<think><think></think></think><answer>4</answer>"
    asked = given(good, twice, bare, nested, "4 " + good)
    assert reward_functions.tagged(asked) == [1, 0, 0, 0, 0]
    assert reward_functions.tagged_answer(asked) == [1, 0, 1, 1, 1]
    assert reward_functions.finished(given("", finished=False)) == [0]
    assert reward_functions.length(given("x" * 250)) == [0.25]
    with pytest.raises(ValueError, match="no field 'answer'"):
        reward_functions.exact([reward_functions.Sample("p", "r", {"anwser": 1}, True)])


def test_a_weighted_sum_of_own_and_named_functions(own):
    with reward_functions.opened([own("lengths"), "exact"], [0.5, -2.0]) as found:
        scored = found.score(given("four", "4"))
        np.testing.assert_array_equal(scored.score, np.float32([2.0, 0.5 - 2.0]))
        assert scored.parts["exact"].tolist() == [0, 1] and scored.score.dtype == np.float32
        assert len(found.score([]).score) == 0


def test_a_call_is_made_again_and_then_one_sample_at_a_time(own, capsys):
    with reward_functions.opened([own("flaky")]) as found:
        assert found.score(SAMPLES).score.tolist() == [2.0] * 4
    assert not capsys.readouterr().err
    with reward_functions.opened([own("together")]) as found:
        assert found.score(SAMPLES).score.tolist() == [3.0] * 4
    assert "RuntimeError: one at a time" in capsys.readouterr().err


@pytest.mark.parametrize(
    "name, at, why",
    [
        ("nan", 2, "returned nan for a sample, not a finite float32"),
        ("raises", 2, "KeyError: 'bad'"),
        ("hangs", 2, "no answer after 0.2 seconds"),
        ("dies", 2, "its process has ended"),
        ("text", 0, "returned '1.0' for a sample, not a number"),
    ],
)
def test_a_bad_sample_is_named_and_nothing_is_lost(own, tmp_path, name, at, why):
    clock = time.perf_counter()
    with (
        reward_functions.opened([own(name)], seconds=0.2, retries=0, folder=tmp_path) as found,
        pytest.raises(reward_functions.Failed, match=f"sample {at} of 4") as error,
    ):
        found.score(SAMPLES)
    assert why in str(error.value) and f"prompt {at}" in str(error.value)
    assert time.perf_counter() - clock < 30
    lines = (tmp_path / "reward_failure.jsonl").read_text("utf-8").splitlines()
    kept = [json.loads(line) for line in lines]
    assert [line["response"] for line in kept] == [s.response for s in SAMPLES]
    assert [line["value"] is not None for line in kept] == [i < at for i in range(4)]
    assert [line["error"] is not None for line in kept] == [i == at for i in range(4)]


def test_too_few_numbers_are_no_answer_for_all(own):
    with reward_functions.opened([own("few")], retries=0) as found:
        assert found.score(SAMPLES).score.tolist() == [1.0] * 4  # each was asked alone


def test_what_cannot_be_called_is_refused_before_anything_runs(own):
    assert not [*reward_functions.problems("", ["exact", own("lengths")], [1.0, 2.0])]
    for names, weights, told in (
        (["exakt"], [], "rewards: 'exakt' given; it must be one of"),
        (["nowhere.py:f"], [], "no such file"),
        (
            ["exact", "exact"],
            [],
            "rewards: ('exact', 'exact') given; it must be different functions",
        ),
        (
            ["exact"],
            [1.0, 2.0],
            "weights: (1.0, 2.0) given; it must be a finite number for each of 1",
        ),
        (["exact"], [float("nan")], "weights: (nan,) given; it must be a finite"),
    ):
        (line,) = reward_functions.problems("", names, weights)
        assert told in line
    told = r"no function 'nothing' there; it has \['dies'"
    with pytest.raises(sandbox.Failed, match=told), reward_functions.opened([own("nothing")]):
        pass
