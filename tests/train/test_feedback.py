"""`jaxlm feedback` on a trained run, from the command line: revise, then compare what it wrote."""

import json
import pathlib

import pytest

from jaxlm.cli import main
from jaxlm.train.run import run as runs


@pytest.fixture
def place(whole, tmp_path, monkeypatch):
    """A folder with prompts, principles, and a link to the trained run."""
    monkeypatch.chdir(tmp_path)
    pathlib.Path("tiny").symlink_to(runs.folder(whole[0]).absolute())
    prompts = [{"prompt": text} for text in ("a", "to")]
    pathlib.Path("p.jsonl").write_text("".join(json.dumps(p) + "\n" for p in prompts))
    short = [{"name": n, "critique": f"{n}?", "revision": f"{n}!", "choice": n} for n in "xy"]
    words = {"principles": short, "turn": "{text} ", "compare": "{conversation}{question} {a} {b}"}
    pathlib.Path("c.json").write_text(json.dumps(words))
    return whole[0]


def read(name):
    return [json.loads(line) for line in pathlib.Path(name).read_text("utf-8").splitlines()]


@pytest.mark.slow
def test_revise_and_label(place, capsys):
    revise = ["feedback", "revise", "tiny", "--prompts", "p.jsonl", "--out", "out.jsonl"]
    revise += ["--constitution", "c.json", "--unfinished", "keep", "--sampling.max-new", "2"]
    assert main.main(revise) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["written"] + sum(told["dropped"].values()) == 2 and told["written"]
    found = read("out.jsonl")
    for record in found:
        assert record["response"] and record["completion"] == record["rounds"][0]["revision"]
        made = record["provenance"]
        assert made["model"] == {
            "step": place.steps, "run": runs.digest(place), "checkpoint": "last",
            "template": "plain",
        }  # fmt: skip
        assert made["files"] == {"run": "tiny", "prompts": "p.jsonl", "constitution": "c.json"}
    assert main.main(revise) == 0
    assert json.loads(capsys.readouterr().out)["found"] == len(found)
    assert main.main([*revise, "--seed", "1"]) == 2
    assert "made with settings.seed=0, and now settings.seed=1" in capsys.readouterr().err

    label = ["feedback", "label", "tiny", "--pairs", "out.jsonl", "--out", "pref.jsonl"]
    assert main.main([*label, "--constitution", "c.json", "--each", "2"]) == 0
    out, err = capsys.readouterr()
    told = json.loads(out)
    # a model of 12 steps on other text has never seen a choice
    assert 0 < told["facts"]["mass"] < 0.1 and "may not suit it" in err
    for record in read("pref.jsonl"):
        assert 0 < record["preference"] < 1 and len(record["judgements"]) == 2
        assert record["response_a"] in {r["response"] for r in found}


def test_what_a_user_gets_wrong(place, capsys):
    for args, told in (
        (["refise"], "no action 'refise'; there are ['instruct', 'label', 'revise', 'sample']"),
        (["revise", "none", "--prompts", "p.jsonl", "--out", "o.jsonl"], "is no run directory"),
        (["revise", "tiny", "--prompts", "q.jsonl", "--out", "o.jsonl"], "q.jsonl"),
        (["sample", "tiny", "--prompts", "p.jsonl", "--out", "o.jsonl", "--keep", "best"], "keep:"),
        (["instruct", "tiny", "--seeds", "p.jsonl", "--out", "o.jsonl"], "no field 'instruction'"),
    ):
        assert main.main(["feedback", *args]) == 2
        assert told in capsys.readouterr().err
    assert not pathlib.Path("o.jsonl").exists()
    assert main.main(["feedback", "--help"]) == 0
    assert capsys.readouterr().out.count("\n  ") == 4
