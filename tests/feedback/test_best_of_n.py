"""Several responses to a prompt: what is kept of them, and what a reward model's score is."""

import dataclasses
import pathlib

import jax
import numpy as np
import pytest

from jaxlm import models
from jaxlm.data.records import preferences
from jaxlm.decode.token_sampling import Sampling
from jaxlm.feedback import best_of_n, prompt_files, scorers
from jaxlm.feedback.chat_model import Reply
from jaxlm.models import llama
from jaxlm.models.layers import value_head
from jaxlm.objectives.preference import reward as objective
from jaxlm.ops.attention import At
from jaxlm.train import trained_weights
from jaxlm.train.run import run as runs
from tests import programs

PROMPTS = [{"prompt": "1 + 1 =", "answer": "2"}, {"prompt": "1 + 2 =", "answer": "3"}]


def told(conversation, seed):
    """An answer that is right for a third of the seeds, and cut for another."""
    right = str(2 if conversation[-1].text.startswith("1 + 1") else 3)
    endings = (right, Reply(right, "length"), f"{seed % 7 + 10}")
    return endings[seed % 3]


@pytest.fixture
def settings(tmp_path, write):
    return best_of_n.Settings(
        prompts=write("prompts.jsonl", *PROMPTS),
        out=str(tmp_path / "out.jsonl"),
        count=12,
        batch=1,
        sampling=Sampling(max_new=8),
    )


def test_all(settings, script, read):
    said = script(told)
    summary = best_of_n.run(said.voice, settings)
    assert summary.written == 2 and len(said.asked) == 24 and summary.facts == {}
    one, other = read(settings.out)
    assert one["prompt"] == "1 + 1 =" and "scores" not in one
    assert len(one["responses"]) == len(one["seeds"]) == len(one["finish"]) < 12
    for text, seed, finish in zip(one["responses"], one["seeds"], one["finish"], strict=True):
        assert seed % 3 != 1 and finish == "stop_token"
        assert text == told(prompt_files.read(settings.prompts)[0].messages, seed)
    assert not set(one["seeds"]) & set(other["seeds"])
    assert one["provenance"]["by"] == "sample"
    again = script(None)
    assert best_of_n.run(again.voice, settings).found == 2 and not again.asked


def test_each(settings, script, read):
    """What the model says as often as it says it: equal answers stay."""
    best_of_n.run(script(told).voice, dataclasses.replace(settings, keep="each"))
    found = [r["completion"] for r in read(settings.out) if r["prompt"] == "1 + 1 ="]
    assert len(found) > len(set(found)) and found.count("2") > 1


def test_best_and_above(settings, script, read, tmp_path):
    scored = dataclasses.replace(settings, rewards=("exact", "length"), weights=(1.0, 0.5))
    summary = best_of_n.run(script(told).voice, dataclasses.replace(scored, keep="best"))
    best = read(settings.out)
    assert [r["completion"] for r in best] == ["2", "3"]
    assert all(r["score"] == pytest.approx(1.0005) for r in best)
    assert summary.facts["best_score"] == pytest.approx(1.0005)
    assert 0 < summary.facts["score"] < 1
    kept = str(tmp_path / "above.jsonl")
    above = dataclasses.replace(scored, keep="above", threshold=0.0009, out=kept)
    best_of_n.run(script(told).voice, above)
    found = read(kept)
    first = [r for r in found if r["prompt"] == "1 + 1 ="]
    assert first[0]["completion"] == "2" and len(first) > 1
    assert len({r["completion"] for r in first}) == len(first) == len({r["id"] for r in first})
    none = dataclasses.replace(above, threshold=2.0, out=str(tmp_path / "none.jsonl"))
    assert best_of_n.run(script(told).voice, none).dropped == {best_of_n.BELOW: 2}


def test_nothing_whole(settings, script):
    said = script(lambda conversation, seed: Reply("half", "length"))
    assert best_of_n.run(said.voice, settings).dropped == {"cut at sampling.max_new": 2}


@pytest.mark.parametrize(
    "changes, told_",
    [
        ({"keep": "best"}, "keep: 'best' given; it must be 'all' or 'each' without rewards"),
        ({"rewards": ("exakt",)}, "rewards: 'exakt' given; it must be one of"),
        ({"rewards": ("exact",), "threshold": 1.0}, "threshold: 1.0 given; .* with keep='above'"),
        ({"count": 0}, "count: 0 given; it must be at least 1"),
        (
            {"rewards": ("exact",), "reward_seconds": 0.0},
            "reward_seconds: 0.0 given; it must be above 0",
        ),
    ],
)
def test_wrong_settings(settings, script, changes, told_):
    with pytest.raises(ValueError, match=told_):
        best_of_n.run(script(None).voice, dataclasses.replace(settings, **changes))


@pytest.fixture
def judge(monkeypatch):
    """A reward model's run, as `trained_weights.load` gives it, its weights random."""
    cfg = llama.Config(vocab=259, embed=16, layers=1, heads=2, kv=1, head=8, ffn=24)
    model = models.build(cfg)
    spec = model.spec | {"score": value_head.spec(model)}
    params = programs.drawn(spec, 2)
    data = preferences.Preferences(source="x.jsonl")
    run = runs.Run(name="judge", model=cfg, data=data, objective=objective.Config())
    found = trained_weights.Saved(pathlib.Path("judge"), run, model, params, run.plan, 9)
    monkeypatch.setattr(trained_weights, "load", lambda folder, which="last": found)
    return found


def test_a_reward_models_score(judge, write):
    asked = prompt_files.read(write("p.jsonl", {"prompt": "Hi"}, {"prompt": "How are you?"}))
    given = [(asked[0], Reply("Yo", "stop_token")), (asked[1], Reply("Fine.", "stop_token"))]
    scores = scorers.model("runs/judge")(given)
    for found, text in zip(scores, (b"HiYo", b"How are you?Fine."), strict=True):
        ids = np.array([[257, *text, 258]], np.int32)
        at = At(np.ones_like(ids), np.arange(ids.shape[1], dtype=np.int32)[None])
        x = np.float64(jax.jit(judge.model.hidden)(judge.params, ids, at).x[0, -1])
        assert found == pytest.approx(float(x @ judge.params["score"]), abs=2e-5)
    both = scorers.total([scorers.model("runs/judge"), lambda given: [1.0] * len(given)])(given)
    assert both == pytest.approx([s + 1 for s in scores])
    assert scorers.about("runs/judge") == {"run": runs.digest(judge.run), "step": 9}
