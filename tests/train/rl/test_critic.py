"""What PPO's own critic begins from: a reward model, a language model, or nothing."""

import dataclasses
import functools
import json
import pathlib

import jax
import numpy as np
import pytest

from jaxlm.core import param
from jaxlm.data.records import preferences, prompts
from jaxlm.models import llama
from jaxlm.objectives import clm
from jaxlm.objectives.preference import reward
from jaxlm.objectives.rl import ppo
from jaxlm.parallel.plan import Plan
from jaxlm.train import initial_weights, loop, program, step
from jaxlm.train import trained_weights as saving
from jaxlm.train.optim import optimizer
from jaxlm.train.rl import rollout
from jaxlm.train.run import checkpoint, directory, metrics
from jaxlm.train.run import run as runs
from tests import programs

MODEL = llama.Config(vocab=260, embed=16, layers=1, heads=2, kv=2, head=8, ffn=24, context=32)


@pytest.fixture(scope="module")
def base(home):
    """PPO with a critic of its own, which begins from random weights."""
    folder = home / "critic"
    folder.mkdir()
    lines = [json.dumps({"prompt": str(7**n % 1000)}) + "\n" for n in range(12)]
    (folder / "prompts.jsonl").write_text("".join(lines))
    return runs.Run(
        name="ppo",
        model=MODEL,
        data=prompts.Prompts(source=str(folder / "prompts.jsonl"), seq=8, batch=4, holdout=0.0),
        objective=ppo.Config(kl=ppo.Fixed(0.0), critic="own"),
        rollout=rollout.Rollout(samples=1, max_new=4, rewards=("finished",)),
        optim=optimizer.Optim(warmup=0),
        steps=1,
        log_every=1,
        eval_every=None,
        out=str(folder / "runs"),
    )


def saved(run, seed, **changed):
    """The directory of a run with random weights, as if it had ended."""
    run = dataclasses.replace(run, rollout=None, **changed)
    _, objective = program.build(run, Plan())
    params = programs.drawn(objective.spec, seed)
    folder = runs.folder(run)
    folder.mkdir(parents=True)
    directory.record(folder, run)
    checkpoint.commit_weights(folder / "checkpoints", params, {"val": None})
    return str(folder)


@pytest.fixture(scope="module")
def judge(base):
    """A reward model of the policy's shape, its head not 0."""
    read = preferences.Preferences(source=base.data.source)
    return saved(base, 7, name="judge", objective=reward.Config(), data=read)


def critical(base, folder, **changed):
    objective = dataclasses.replace(base.objective, critic_start=folder)
    return dataclasses.replace(base, name="critical", objective=objective, **changed)


def test_it_begins_from_a_reward_model(base, judge):
    run = critical(base, judge)
    assert initial_weights.check(run) == []
    objective = program.training(run)[1]
    params, told = initial_weights.weights(run, objective)
    theirs = saving.load(pathlib.Path(judge)).params
    assert jax.tree.structure(params) == jax.tree.structure(param.abstract(objective.spec))
    assert np.any(theirs["score"]) and told["critic"]["folder"] == judge and "folder" not in told
    np.testing.assert_array_equal(params["critic"]["value"], theirs["score"])
    for name in params["critic"].keys() - {"value"}:
        jax.tree.map(np.testing.assert_array_equal, params["critic"][name], theirs[name])
    # the policy is what it is without
    made = loop.build(base)
    fresh = step.init(made.objective, made.tx, base.plan, base.seed).params
    same = functools.partial(np.testing.assert_allclose, rtol=1e-6)  # compiled otherwise
    for name in fresh.keys() - {"critic"}:
        jax.tree.map(same, params[name], fresh[name])


def test_it_begins_from_a_language_model_with_a_head_of_0(base, judge):
    text = saved(base, 3, name="text", objective=clm.Config())
    run = critical(base, text, start=judge)
    params, told = initial_weights.weights(run, program.training(run)[1])
    theirs = saving.load(pathlib.Path(text)).params
    assert not np.any(params["critic"]["value"])
    jax.tree.map(np.testing.assert_array_equal, params["critic"]["stack"], theirs["stack"])
    assert told["folder"] == judge and told["critic"]["folder"] == text
    ours, critics = (param.flatten(tree["stack"]) for tree in (params, params["critic"]))
    assert any(np.any(ours[path] != critics[path]) for path in critics)


def test_other_weights_are_refused(base, judge, tmp_path):
    wide = dataclasses.replace(base, model=dataclasses.replace(MODEL, ffn=32))
    with pytest.raises(ValueError, match=r"the critic's weight stack/.* is \[.*24.* is needed"):
        initial_weights.check(critical(wide, judge))
    with pytest.raises(ValueError, match="the critic's weights, from .*nowhere"):
        initial_weights.check(critical(base, str(tmp_path / "nowhere")))
    with pytest.raises(ValueError, match="objective.critic_start: 'runs/x' given; it must be None"):
        ppo.Config(critic_start="runs/x")


@pytest.mark.slow
def test_a_run_records_what_its_critic_began_from(base, judge):
    run = critical(base, judge)
    loop.run(run)
    folder = runs.folder(run)
    described = json.loads((folder / "env.json").read_text("utf-8"))
    assert described["start"]["critic"]["folder"] == judge
    told = next(metrics.records(folder / metrics.FILE))
    assert np.isfinite(told["value_loss"]) and told["explained_variance"] != 0
