"""Rollouts: what is sampled, what is learnt from it, and a run that is stopped in between."""

import dataclasses
import json
import pathlib
import re
import types

import jax
import numpy as np
import pytest

from jaxlm.data.records import preferences
from jaxlm.data.records import prompts as prompting
from jaxlm.data.records.prompts import Prompts
from jaxlm.models import gpt, llama
from jaxlm.objectives import lora
from jaxlm.objectives.preference import reward
from jaxlm.objectives.rl import grpo, ppo
from jaxlm.ops.attention import At
from jaxlm.parallel.plan import Plan
from jaxlm.train import loop, program
from jaxlm.train import trained_weights as saving
from jaxlm.train.optim import optimizer
from jaxlm.train.rl import collection, episodes, rollout
from jaxlm.train.rl import reward_functions as rewards
from jaxlm.train.run import checkpoint, directory, metrics
from jaxlm.train.run import run as runs
from tests import programs

MODEL = llama.Config(vocab=260, embed=16, layers=1, heads=2, kv=2, head=8, ffn=24, context=32)
REWARD = """
import pathlib

calls = []

def small(samples):
    calls.append(len(samples))
    if pathlib.Path(__file__).with_name("broken").exists() and len(calls) > 3:
        raise RuntimeError("out of order")
    return [sum(ord(c) < 64 for c in s.response) / 8 - len(s.prompt) / 9 for s in samples]
"""


@pytest.fixture(scope="module")
def place(home):
    """A folder with 30 prompts of 1 to 5 characters, and a reward function."""
    folder = home / "rollout"
    folder.mkdir()
    lines = [
        {"prompt": str(7**n % 10**5)[: 1 + n % 5] + "ab"[n % 2], "answer": n} for n in range(30)
    ]
    (folder / "prompts.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (folder / "mine.py").write_text(REWARD)
    return folder


@pytest.fixture(scope="module")
def base(place):
    """PPO in iterations of 4 steps: 2 epochs of 2 minibatches, the penalty adaptive."""
    return runs.Run(
        name="ppo",
        model=MODEL,
        data=Prompts(source=str(place / "prompts.jsonl"), seq=8, batch=4, holdout=0.2),
        objective=ppo.Config(kl=ppo.Adaptive(coefficient=0.1, target=0.5, horizon=40.0)),
        rollout=rollout.Rollout(
            samples=2,
            max_new=6,
            epochs=2,
            minibatches=2,
            rewards=(f"{place / 'mine.py'}:small", "finished"),
            weights=(1.0, 0.5),
            save=3,
            save_every=2,
        ),
        optim=optimizer.Optim(lr=1e-2, warmup=2),
        steps=10,
        log_every=1,
        eval_every=5,
        checkpoint=runs.Checkpoint(every=3, keep_last=5),
        out=str(place / "runs"),
    )


@pytest.fixture(scope="module")
def ran(base):
    """The Result of the run, never interrupted."""
    return loop.run(base)


def records(run, split="train"):
    return [r for r in metrics.records(runs.folder(run) / metrics.FILE) if r["split"] == split]


def test_a_run_of_ppo_leaves_what_it_did(base, ran):
    assert directory.lost_records(runs.folder(base), ran) is None
    train = records(base)
    assert [r["step"] for r in train] == list(range(1, 11))
    told = {"score", "kl", "kl_coefficient", "length", "finished", "entropy", "clipped"}
    told |= {"explained_variance", "reference_kl3", "reward_small", "reward_finished", "value_loss"}
    assert told <= train[0].keys()
    phases = ("generate", "measure", "reward", "judge", "learn")
    assert {f"{name}_seconds" for name in phases} <= train[4]["timing"].keys()
    for r in train:
        assert r["score"] == pytest.approx(r["reward_small"] + 0.5 * r["reward_finished"], abs=1e-6)
        # one iteration, one set of responses
        first = train[(r["step"] - 1) // 4 * 4]
        assert all(r[n] == first[n] for n in ("score", "length", "kl", "sampler_gap"))
    assert train[0]["score"] != train[4]["score"] != train[8]["score"]
    coefficients = [train[i]["kl_coefficient"] for i in (0, 4, 8)]
    assert coefficients[0] == np.float32(0.1)
    # KL 0 at first: the error counts as -0.2, over 8 responses of 40
    assert coefficients[1] == pytest.approx(0.1 * (1 - 0.2 * 8 / 40))
    assert coefficients[2] != coefficients[1]

    val = records(base, "val")
    assert [r["step"] for r in val] == [5, 10] and ran.val["reward"] == val[1]["reward"]
    assert {"reward", "reward_std", "kl", "length", "finished", "responses"} <= val[0].keys()
    saved = checkpoint.facts(runs.folder(base) / "checkpoints", 10)
    assert saved["val"] == -val[1]["reward"]  # the best has the highest reward

    samples = runs.folder(base) / "samples"
    names = ["00000001.jsonl", "00000005.val.jsonl", "00000009.jsonl", "00000010.val.jsonl"]
    assert sorted(p.name for p in samples.iterdir()) == names
    lines = [json.loads(line) for line in (samples / names[0]).read_text("utf-8").splitlines()]
    assert len(lines) == 3 and lines[0]["prompt"] == lines[1]["prompt"] != lines[2]["prompt"]
    for line in lines:
        assert line["score"] == line["reward_small"] + 0.5 * line["finished"]


def test_the_policy_that_samples_is_the_one_that_learns(base, ran):
    """The decoder, with its cache, and the training forward pass give one log-probability."""
    train = records(base)
    for first in (train[0], train[4], train[8]):
        assert first["ratio_gap"] <= 1e-5 and first["sampler_gap"] <= 1e-5
        assert first["ratio"] == pytest.approx(1.0, abs=1e-6)
        check_histogram(first)
    assert train[1]["ratio_gap"] > 1e-3  # and then it moves


def check_histogram(record):
    """The ratio of the two is 1 in every part of its histogram."""
    names = ("min", "q01", "q50", "q99", "max")
    ratios = [record[f"sampler_ratio_{name}"] for name in names]
    assert ratios == sorted(ratios) and record["sampler_ratio_outside"] == 0
    assert ratios == pytest.approx([1.0] * 5, abs=1e-5)


@pytest.mark.parametrize("temperature", [1.7, pytest.param(0.6, marks=pytest.mark.slow)])
def test_groups_that_are_decoded_in_turns_learn_the_same(base, temperature):
    """GRPO, three responses at a time of eight: the same texts and scores, and ratios of 1."""
    run = dataclasses.replace(
        base,
        objective=grpo.Config(beta=0.1, temperature=temperature),
        rollout=dataclasses.replace(base.rollout, save=8, rewards=("finished",), weights=()),
        steps=4,
        eval_every=None,
        name=f"together-{temperature}",
    )
    turns = dataclasses.replace(run, rollout=dataclasses.replace(run.rollout, slots=3))
    turns = dataclasses.replace(turns, name=f"turns-{temperature}")
    saved = []
    for each in (run, turns):
        loop.run(each)
        check_histogram(records(each)[0])
        lines = (runs.folder(each) / "samples" / "00000001.jsonl").read_text().splitlines()
        saved.append([json.loads(line)["response"] for line in lines])
    assert saved[0] == saved[1] and len(saved[0]) == 8 and len(set(map(len, saved[0]))) > 1
    for name in ("score", "length", "finished"):
        assert records(run)[0][name] == records(turns)[0][name]
    assert records(turns)[3]["score"] == records(run)[3]["score"]


def test_the_histogram_of_ratios_is_that_of_the_tokens_that_count():
    """Against exp of differences, by hand: those of weight 0 do not count."""
    behaviour = np.log([[0.5, 0.5, 0.5, 0.5]]).astype(np.float32)
    log_prob = np.log([[0.5, 0.4, 0.6, 0.01]]).astype(np.float32)
    rows = types.SimpleNamespace(weight=np.array([[1, 1, 1, 0]], np.float32), behaviour=behaviour)
    got = episodes.ratios(types.SimpleNamespace(rows=rows, log_prob=log_prob))
    assert [*got] == list(episodes.RATIOS)
    want = [0.8, 0.804, 1.0, 1.196, 1.2, 2 / 3]
    assert [*got.values()] == pytest.approx(want, abs=1e-6)
    rows.weight = 0 * rows.weight
    got = episodes.ratios(types.SimpleNamespace(rows=rows, log_prob=log_prob))
    assert [*got.values()] == [1, 1, 1, 1, 1, 0]


def test_a_reward_that_fails_loses_nothing(base, ran, place, assert_same_run):
    """The run names the sample and ends, at step 9. Mended, it goes on from the checkpoint of step
    6, in the middle of an iteration: rows, advantages, numbers and the penalty's coefficient are
    those it had, and the end is that of a run that never stopped, bit for bit."""
    run = dataclasses.replace(base, name="broken")
    (place / "broken").touch()
    with pytest.raises(rewards.Failed, match=r"small', sample 0 of 8, (.*\n)*.*out of order") as at:
        loop.run(run)
    (place / "broken").unlink()
    assert "; prompt '" in str(at.value) and "reward_failure.jsonl" in str(at.value)
    assert checkpoint.steps(runs.folder(run) / "checkpoints") == [3, 6]
    assert loop.run(run).val == ran.val
    assert_same_run(base, run)
    assert_same_samples(base, run)


def assert_same_samples(one, other):
    for file in (runs.folder(one) / "samples").iterdir():
        assert file.read_bytes() == (runs.folder(other) / "samples" / file.name).read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize("steps", [4, 5, 7])
def test_stopped_and_resumed_is_the_same_run(base, ran, stopping, assert_same_run, steps):
    """After an iteration, after its first and before its last minibatch."""
    cut = dataclasses.replace(base, name=f"cut{steps}")
    with stopping(15, steps):
        assert loop.run(cut).step == steps
    assert loop.run(cut).val == ran.val
    assert_same_run(base, cut)
    assert_same_samples(base, cut)


# --- What an iteration learns from -----------------------------------------------------------


def collector(run):
    """A run's collector, with prompts of its source; nothing is compiled."""
    model, objective = program.training(run)
    split = prompting.prepare(run.data)
    phases = episodes.phases(run, model, objective, (258,))
    player = episodes.Player(run, episodes.policy(run, model), phases, split, str)
    return collection._Collector(run, player, split)


def test_every_response_is_learnt_from_once_an_epoch(base):
    made = collector(base)
    rows = made.nothing().rows
    rows = rows._replace(
        tokens=np.arange(8)[:, None] + np.zeros((1, 14), np.int32),
        segments=(np.arange(14) < 5).astype(np.int32) + np.zeros((8, 1), np.int32),
    )
    parts = [made.part(rows, 3, part).tokens for part in range(4)]
    assert {p.shape for p in parts} == {(4, 14)}  # 14 < 16, the narrowest there is
    epochs = [np.concatenate([p[:, 0] for p in parts[i : i + 2]]).tolist() for i in (0, 2)]
    assert sorted(epochs[0]) == sorted(epochs[1]) == list(range(8)) and epochs[0] != epochs[1]
    other = [made.part(rows, 4, part).tokens[:, 0].tolist() for part in range(2)]
    assert other[0] + other[1] != epochs[0]


def test_groups_that_scored_alike_are_replaced(base, monkeypatch):
    """Dynamic sampling: of two rounds of four groups, those with different scores; what is missing
    then is empty, and counts nowhere."""
    run = dataclasses.replace(base, rollout=dataclasses.replace(base.rollout, resample=2))
    made = collector(run)
    scores = iter([[1, 1, 0, 1, 0, 0, 2, 1], [3, 3, 3, 3, 3, 3, 3, 3], [5, 5, 5, 4, 0, 0, 0, 0]])
    seen = []

    def play(self, state, prompts, key, temperature, rewards):
        seen.append((prompts.row.tolist(), key.tolist()))
        rows = made.nothing().rows
        score = np.array(next(scores), np.float32)
        rows = rows._replace(
            tokens=rows.tokens + len(seen), weight=rows.weight + 1, advantage=None, returns=None,
            score=score, finished=np.ones(8, bool),
        )  # fmt: skip
        played = episodes.Episodes(rows, rows.behaviour, {"x": score}, prompts.row)
        return played, {"generate": 1}

    monkeypatch.setattr(episodes.Player, "play", play)
    found, told, seconds = made._played(None, 2)
    assert found.rows.score.tolist() == [0, 1, 2, 1, 5, 4, 0, 0]
    assert found.rows.tokens[:, 0].tolist() == [1, 1, 1, 1, 3, 3, 0, 0]
    assert found.record[:6].tolist() == [*seen[0][0][2:4], *seen[0][0][6:], *seen[2][0][2:4]]
    assert found.record[6:].tolist() == [-1, -1] and not found.rows.weight[6:].any()
    assert (told["sampled"], told["used"], seconds["generate"]) == (24, 6, 3)
    assert told["reward_x"] == np.mean([0, 1, 2, 1, 5, 4], dtype=np.float32)
    assert len({tuple(key) for _, key in seen}) == 3 and seen[0][0] != seen[1][0]


def saved(run, seed):
    """A run directory with random weights, as if the run had ended."""
    model, objective = program.build(run, Plan())
    params = programs.drawn(objective.spec, seed)
    folder = runs.folder(run)
    folder.mkdir(parents=True)
    directory.record(folder, run)
    checkpoint.commit_weights(folder / "checkpoints", params, {"val": None})
    return str(folder)


@pytest.mark.slow
def test_eight_devices_adapters_and_a_reward_model(base, ran):
    """GRPO with a reference under adapters and a frozen reward model, on data 2 x fsdp 2 x tensor 2
    as on one device. The score is read at the last token of each text: as of the text alone."""
    judge = dataclasses.replace(
        base,
        name="judge",
        model=dataclasses.replace(MODEL, layers=2),
        objective=reward.Config(),
        data=preferences.Preferences(source=base.data.source),
        rollout=None,
    )
    place = saved(judge, 5)
    made = dataclasses.replace(base.rollout, rewards=("finished",), weights=())
    run = dataclasses.replace(
        base,
        name="one",
        start=str(runs.folder(base)),
        objective=grpo.Config(beta=0.1, temperature=0.9),
        adapter=lora.Lora(rank=2),
        rollout=dataclasses.replace(made, reward_model=place, reward_model_weight=2.0, resample=1),
        steps=5,
        eval_every=5,
    )
    eight = dataclasses.replace(run, name="eight", plan=Plan(data=2, fsdp=2, tensor=2))
    results = [loop.run(r) for r in (run, eight)]
    ours, theirs = (records(r) for r in (run, eight))
    for one, other in zip(ours, theirs, strict=True):
        assert one["ratio_gap"] <= 1e-5 or one["step"] % 4 != 1
        for name in one.keys() - {"timing", "split", "ratio_gap", "sampler_gap"}:
            assert other[name] == pytest.approx(one[name], rel=2e-4, abs=2e-5), name
    assert ours[0]["kl"] == pytest.approx(0, abs=1e-6) and ours[4]["kl"] != 0
    assert results[1].val["reward"] == pytest.approx(results[0].val["reward"], abs=1e-4)

    lines = (runs.folder(run) / "samples" / "00000001.jsonl").read_text("utf-8").splitlines()
    found = [json.loads(line) for line in lines]
    assert len({one["reward_model"] for one in found}) == 3
    model, params = program.reward_model(run, Plan()), saving.load(pathlib.Path(place)).params
    score = jax.jit(lambda ids, at: model.hidden(params, ids, at).x @ params["score"])
    for one in found:
        assert one["score"] == pytest.approx(2 * one["reward_model"] + one["finished"], abs=1e-6)
        if "\ufffd" in one["response"]:
            continue  # no longer the tokens that were sampled
        text = [258, *one["prompt"].encode(), *one["response"].encode()]
        text += [258] * one["finished"]
        ids = np.array([text + [0] * (16 - len(text))], np.int32)  # causal: what follows is unread
        at = At(np.ones_like(ids), np.arange(16)[None])
        right = float(score(ids, at)[0, len(text) - 1])
        assert one["reward_model"] == pytest.approx(right, abs=1e-5)


def problem(run):
    with pytest.raises(ValueError) as caught:
        runs.validate(run)
    return str(caught.value)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("samples", 0, "rollout.samples: 0 given; it must be at least 1"),
        ("minibatches", 3, "rollout.minibatches: 3 given, but data.batch=4 x rollout.samples=2"),
        ("rewards", ("nowhere.py:f",), "rollout.rewards: .*no such file: nowhere.py"),
        ("rewards", (), r"rollout.rewards: \(\) given; .* with rollout.reward_model=None"),
        ("weights", (1.0,), r"rollout.weights: \(1.0,\) given; .* each of 2 reward functions"),
        ("reward_seconds", 0.0, "rollout.reward_seconds: 0.0 given"),
        ("eval_temperature", -1.0, "rollout.eval_temperature: -1.0 given"),
        ("slots", 0, "rollout.slots: 0 given; it must be at least 1"),
    ],
)
def test_what_cannot_work_is_refused_by_field(base, field, value, message):
    changed = dataclasses.replace(base.rollout, **{field: value})
    assert re.search(message, problem(dataclasses.replace(base, rollout=changed)))


def test_what_does_not_go_together_is_refused(base, tiny):
    assert "rollout: None given with prompts" in problem(dataclasses.replace(base, rollout=None))
    with_text = tiny(rollout=base.rollout)
    assert "it must be None with data of kind data" in problem(with_text)
    short = gpt.Config(vocab=259, embed=16, layers=1, heads=2, context=13)
    told = problem(dataclasses.replace(base, model=short))
    assert "rollout.max_new: 6 given; it must be at most 5, model.context=13 less" in told
    alone = dataclasses.replace(base.rollout, samples=1, minibatches=1)
    group = dataclasses.replace(base, rollout=alone, objective=grpo.Config())
    assert "rollout.samples: 1 given; it must be at least 2: grpo compares" in problem(group)
    turns = dataclasses.replace(base.rollout, slots=2)
    parted = dataclasses.replace(base, rollout=turns, plan=Plan(data=2))
    assert "rollout.slots: 2 given; it must be None with a plan of several" in problem(parted)
    wrong = dataclasses.replace(base.rollout, reward_model=str(runs.folder(base)))
    with pytest.raises(ValueError, match=r"rollout\.reward_model: .*; a run with objective reward"):
        runs.folder(base).mkdir(parents=True, exist_ok=True)
        directory.record(runs.folder(base), base)
        program.training(dataclasses.replace(base, rollout=wrong))
