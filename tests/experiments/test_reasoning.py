"""The sums of experiments/reasoning: what is asked, imitated, rewarded and counted."""

import json

import pytest

from experiments.reasoning import reason
from jaxlm.train.rl import reward_functions


def test_what_is_held_out_is_in_no_training_and_all_else_is():
    for seed in range(3):
        asked, held = reason.sums(seed, False)
        assert len(asked) == 80 and len(held) == 20 and not set(asked) & set(held)
        assert {s.prompt for s in asked + held} == {
            f"{a}+{b}=" for a in range(10) for b in range(10)
        }
        assert all(s.answer == s.a + s.b for s in asked + held)
        said = {r["prompt"] for r in reason.imitated(asked, seed, False)}
        assert said == {s.prompt for s in asked}


def test_permuted_answers_are_among_what_is_imitated():
    asked, held = reason.sums(1, True)
    whole = asked + held
    for a in range(10):
        mine = [s for s in whole if s.a == a]
        assert sorted(s.answer for s in mine) == list(range(a, a + 10))
    right = sum(s.answer == s.a + s.b for s in whole)
    assert right < 25  # one in ten by chance


def test_thoughts_count_to_their_answer_and_two_in_five_are_right():
    assert reason.response(3, 4, True) == "4567=7" and reason.response(9, 5, True) == "01234=14"
    assert reason.response(3, 0, True) == "=3" and reason.response(3, 4, False) == "7"
    told = {"4567=7": True, "567=7": False, "7": False, "=3": True, "=9999999999": False, "": False}
    assert {text: reason._counted(reason.Sum(3, 4, 7), text) for text in told} == told
    asked, _ = reason.sums(0, False)
    for thought in (False, True):
        found = reason.imitated(asked, 0, thought)
        answer = {s.prompt: s.answer for s in asked}
        samples = [
            reward_functions.Sample(
                r["prompt"], r["completion"], {"answer": answer[r["prompt"]]}, True
            )
            for r in found
        ]
        share = sum(reward_functions.number(samples)) / len(samples)
        assert abs(share - (1 - reason.NOISE + reason.NOISE / 10)) < 0.03


@pytest.mark.slow
def test_quick(tmp_path, monkeypatch):
    """From the records to the table, each way."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    reason.main(["--quick", "--out", str(tmp_path / "out")])
    found = json.loads((tmp_path / "out" / "results.json").read_text("utf-8"))
    for way in reason.WAYS:
        assert len(found[way]) == reason.QUICK.seeds
        for one in found[way]:
            assert len(one["curve"]) == reason.QUICK.learn and one["gap"] < 1e-4
            assert 0 <= one["after_held"]["true"] <= 1
    assert (tmp_path / "out" / "results.png").stat().st_size > 1000
