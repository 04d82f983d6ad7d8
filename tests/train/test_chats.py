"""Instruction tuning from files to answers: a run of a few steps, whole, stopped, and talked to."""

import dataclasses
import io
import json
import pathlib

import pytest

from jaxlm.cli import main
from jaxlm.data.records.chats import Chats
from jaxlm.models import llama
from jaxlm.objectives import sft
from jaxlm.train import loop
from jaxlm.train.run import metrics
from jaxlm.train.run import run as runs

REAL = pathlib.Path(__file__).parents[2].parent / "shared" / "data" / "sft"


def chats(tiny, home, **changes):
    file = home / "chats.jsonl"
    if not file.exists():
        rows = [{"prompt": f"say {i}", "completion": "yes " * (i % 4) + f"{i}."} for i in range(60)]
        file.write_text("\n".join(map(json.dumps, rows)))
    data = Chats(str(file), template="vicuna", seq=48, batch=4, holdout=0.2)
    asked = {"samples": ("say 3",), "sample_tokens": 4, "data": data, "steps": 4, "eval_every": 2}
    run = tiny(objective=sft.Config(neftune=5.0), **asked | changes)
    return dataclasses.replace(run, checkpoint=runs.Checkpoint(every=2))


@pytest.mark.slow
def test_a_run_on_conversations(tiny, home, stopping, assert_same_run, capsys, monkeypatch):
    """Stopped and resumed it is the same, noise included; its answers begin behind its template."""
    whole, cut = chats(tiny, home, name="whole"), chats(tiny, home, name="cut")
    done = loop.run(whole)
    with stopping(15, 3):
        assert loop.run(cut).step == 3
    assert loop.run(cut).step == 4
    assert_same_run(whole, cut)
    folder = runs.folder(whole)
    judged = [r for r in metrics.records(folder / metrics.FILE) if r["split"] == "val"]
    assert [r["step"] for r in judged] == [2, 4] and judged[-1]["loss"] == pytest.approx(
        judged[-1]["nll"], rel=1e-6
    )
    assert judged[1]["loss"] < judged[0]["loss"] and done.exit_code == 0
    env = json.loads((folder / "env.json").read_text())
    assert env["corpus"]["conversations"] == 60 and env["corpus"]["prompts_cut"] == 0
    assert (folder / "samples" / "00000004.txt").read_text().startswith("--- 'say 3'\nsay 3")
    assert "data: 60 conversations read, " in capsys.readouterr().out
    limits = ["--max-new", "6", "--temperature", "0"]
    assert main.main(["sample", str(folder), "--prompt", "say 3", "say 3", *limits]) == 0
    out = capsys.readouterr().out
    first, second = out.split("> say 3\n")[1:]
    assert first == second and out.startswith("> say 3\n")
    monkeypatch.setattr("sys.stdin", io.StringIO("say 4\n"))
    assert main.main(["chat", str(folder), "--prompt", "say 3", *limits]) == 0
    told = capsys.readouterr().out
    assert told.startswith(f"> say 3\n{first}> say 4\n")


@pytest.mark.slow
@pytest.mark.parametrize(
    "file, template", [("instruction-data.json", "alpaca"), ("oasst_en_100_tree.jsonl", "zephyr")]
)
def test_real_files_train(tiny, home, file, template):
    if not (REAL / file).is_file():
        pytest.skip(f"no ../shared/data/sft/{file}")
    data = Chats(str(REAL / file), template=template, seq=128, batch=4, holdout=0.05)
    model = llama.Config(vocab=259, embed=32, layers=2, heads=2, kv=1, head=16, ffn=64)
    run = chats(tiny, home, name=template, data=data, model=model, steps=8, eval_every=4)
    assert loop.run(run).exit_code == 0
    judged = [r for r in metrics.records(runs.folder(run) / metrics.FILE) if r["split"] == "val"]
    assert judged[1]["loss"] < judged[0]["loss"] < 5.6
