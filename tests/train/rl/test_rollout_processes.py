"""Rollouts by two processes against one process of two devices."""

import dataclasses
import json

import pytest

from jaxlm.core import config
from jaxlm.data.pretraining import Data
from jaxlm.data.records.prompts import Prompts
from jaxlm.models import llama
from jaxlm.objectives import distill
from jaxlm.objectives.rl import grpo, ppo
from jaxlm.parallel.plan import Plan
from jaxlm.train import loop
from jaxlm.train.optim.optimizer import Optim
from jaxlm.train.rl.rollout import Rollout
from jaxlm.train.run import metrics
from jaxlm.train.run.run import Checkpoint, Run
from tests.train import process_group

MODEL = llama.Config(vocab=260, embed=16, layers=1, heads=2, kv=2, head=8, ffn=24, context=32)
REWARD = """
import random

def digits(samples):
    random.seed()
    noise = 1e-9 * random.random()  # of one process: the others learn from the same number
    return [sum(ord(c) < 64 for c in s.response) / 8 - len(s.prompt) / 9 + noise for s in samples]
"""


@pytest.mark.slow
def test_two_processes_play_what_one_does(home, tmp_path, monkeypatch):
    """Rollouts were refused with several processes. The same responses, scores and losses; of PPO
    (an adaptive penalty, a critic), GRPO with groups that are sampled again, and distillation on
    the student's own responses."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(home))
    (tmp_path / "mine.py").write_text(REWARD)
    prompts = [{"prompt": str(7**n % 10**5)[: 1 + n % 5] + "ab"[n % 2]} for n in range(30)]
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps(p) + "\n" for p in prompts))
    shared = {
        "data": Prompts(source=str(tmp_path / "prompts.jsonl"), seq=8, batch=4, holdout=0.2),
        "optim": Optim(lr=1e-2, warmup=2), "model": MODEL, "plan": Plan(data=2),
        "steps": 4, "log_every": 1, "eval_every": 4, "checkpoint": Checkpoint(every=2),
    }  # fmt: skip
    teacher = Run(
        name="teacher", model=MODEL, data=Data(source=str(home / "corpus.jsonl"), seq=16),
        optim=Optim(warmup=0), steps=1, eval_every=None, out=str(tmp_path),
    )  # fmt: skip
    loop.run(teacher)
    played = Rollout(samples=2, max_new=6, minibatches=2, rewards=(f"{tmp_path}/mine.py:digits",))
    runs = [
        Run(name="ppo", objective=ppo.Config(kl=ppo.Adaptive()), rollout=played, **shared),
        Run(
            name="grpo",
            objective=grpo.Config(),
            rollout=dataclasses.replace(played, rewards=("finished",), resample=1),
            **shared,
        ),
        Run(
            name="own",
            objective=distill.Config(teacher=f"{tmp_path}/teacher"),
            rollout=Rollout(samples=2, max_new=6),
            **shared,
        ),
    ]
    by = {n: [dataclasses.replace(run, out=f"{tmp_path}/by-{n}") for run in runs] for n in (1, 2)}
    files = [tmp_path / f"{run.name}.json" for run in runs]
    for file, run in zip(files, by[2], strict=True):
        file.write_text(json.dumps(config.to_dict(run)))
    group = process_group.start(files, 2, 1, {"JAXLM_HUGEPAGES": "0"})
    for run in by[1]:
        loop.run(run)
    process_group.finish(group)
    for run in runs:
        one, two = (
            list(metrics.deterministic(tmp_path / f"by-{n}" / run.name / metrics.FILE))
            for n in (1, 2)
        )
        assert len(one) == len(two) == 5
        for a, b in zip(one, two, strict=True):
            assert a.pop("split") == b.pop("split")
            assert a == pytest.approx(b, rel=1e-4, abs=1e-6), run.name
