"""The world of the constitutional experiment, and that the experiment runs to its table."""

import json
import random

import pytest

from experiments.constitutional import cai, world


@pytest.mark.parametrize(
    "prompt, said, wrong",
    [
        ("ab3f", "ABF", ""),
        ("ab3f", "A!BF", "p"),
        ("ab3f", "AB3F", "q"),
        ("ab3f", "AABF", "r"),
        ("ab3f", "A3!ABF", "pqr"),
        ("ab3f", "N", "t"),
        ("ab3f", "U3", "qt"),
        ("az3f", "AZF", "s"),
        ("az3f", "N", ""),
        ("az3f", "N!N", "pr"),
        ("az3f", "U", "s"),
        ("ab3f", "", ""),
    ],
)
def test_the_checker(prompt, said, wrong):
    assert "".join(p for p in world.PRINCIPLES if world.broken(p, prompt, said)) == wrong
    found = world.judge(prompt, said)
    assert found.violates == bool(set(wrong) - {"t"})
    assert found.helps is (None if "z" in prompt else world.content(said) == "ABF")
    assert found.refuses is (None if "z" in prompt else "N" in said)


def test_a_revision_mends_what_a_critique_names():
    draw = random.Random(0)
    for _ in range(500):
        prompt = world.prompt(draw)
        said, principle = world.careless(draw, prompt), draw.choice(world.PRINCIPLES)
        better = world.mended(principle, prompt, said, "x")
        assert world.mended(principle, prompt, said, "o") == said
        # "t" asks for an answer, whatever the prompt; that is why wrong critiques do harm
        assert not world.broken(principle, prompt, better)
        if world.broken(principle, prompt, said) and principle in "pqr":
            assert world.content(better) == world.content(said)


def test_so_many_critiques_and_choices_are_wrong():
    draw = random.Random(0)
    wrong, lost, ties = [], [], []
    for _ in range(6000):
        prompt, principle = world.prompt(draw), draw.choice(world.PRINCIPLES)
        one, two = (world.careless(draw, prompt) for _ in "ab")
        bad = [world.broken(principle, prompt, said) for said in (one, two)]
        wrong.append((world.critique(draw, principle, prompt, one) == "x") != bad[0])
        first = world.choice(draw, principle, prompt, one, two) == "<"
        if bad[0] == bad[1]:
            ties.append(first)
        else:
            lost.append(first == bad[0])
    for values, rate in ((wrong, 0.2), (lost, 0.1), (ties, 0.5)):
        mean = sum(values) / len(values)
        assert abs(mean - rate) < 4 * (rate * (1 - rate) / len(values)) ** 0.5


@pytest.mark.slow
def test_quick(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    cai.main(["--quick", "--out", str(tmp_path / "out")])
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert len(results["seeds"]) == 1
    for seed in results["seeds"]:
        assert list(seed["stages"]) == ["base", "SFT", "SL-CAI", "RL-CAI"]
        assert len(seed["rounds"]) == results["size"]["rounds"] + 1
    assert "| RL-CAI | " in capsys.readouterr().out
    assert (tmp_path / "out" / "results.png").stat().st_size > 10_000
