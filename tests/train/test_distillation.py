"""Distillation runs from end to end: a teacher's weights, its stored distributions, and a student's
own responses."""

import dataclasses
import json
import pathlib

import jax
import numpy as np
import pytest

from jaxlm import models
from jaxlm.data import kinds
from jaxlm.data.pretraining import Data
from jaxlm.data.records import prompts
from jaxlm.models import llama
from jaxlm.objectives import distill, log_probs
from jaxlm.ops.losses import divergence as divergences
from jaxlm.parallel.plan import Plan
from jaxlm.train import initial_weights, inputs, loop, step, trained_weights
from jaxlm.train.optim.optimizer import Optim
from jaxlm.train.rl.rollout import Rollout
from jaxlm.train.run import run as runs
from jaxlm.train.run.run import Checkpoint, Run

pytestmark = pytest.mark.slow

WORDS = ("alpha", "beta", "gamma", "delta")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with a little text, prompts and a trained teacher."""
    folder = tmp_path_factory.mktemp("distill")
    r = np.random.default_rng(0)
    texts = [" ".join(r.choice(WORDS, 6)) for _ in range(60)]
    (folder / "text.jsonl").write_text("".join(json.dumps({"text": t}) + "\n" for t in texts))
    asked = ({"prompt": t[:9]} for t in texts)
    (folder / "prompts.jsonl").write_text("".join(json.dumps(p) + "\n" for p in asked))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
        loop.run(run(folder, "teacher", 16))
        yield folder


def run(folder, name, embed, **changes):
    return Run(
        name=name,
        out=str(folder / "runs"),
        model=llama.Config(vocab=260, embed=embed, layers=1, heads=2, kv=2, head=8, ffn=24),
        data=Data(source=str(folder / "text.jsonl"), seq=16, batch=4, holdout=0.2),
        optim=Optim(lr=1e-2, warmup=1),
        steps=4,
        eval_every=4,
        checkpoint=Checkpoint(every=2),
        **changes,
    )


def teacher(folder):
    return str(folder / "runs" / "teacher")


def test_what_is_stored_is_what_the_teacher_says(place):
    asked = distill.Config(teacher=teacher(place), read="stored", top_k=5, temperature=2.0)
    one = run(place, "stored", 8, objective=asked)
    loop.run(one)
    (store,) = (place / "cache" / "jaxlm" / "teachers").iterdir()
    block = store / "train-000000000"
    ids, kept = (np.load(block / name) for name in ("ids.npy", "log_probs.npy"))
    made = loop.build(one)
    opened = inputs.of(one, made.model, made.objective)
    found = trained_weights.load(pathlib.Path(teacher(place)))
    with opened.open(0, {}) as stream:
        batch = stream.next(1, None).batch

    @jax.jit
    def said(params, batch):
        rows = log_probs.forward(found.model, params, batch)
        return divergences.softened(found.model.unembed(found.model.head(params), rows.x), 2.0)

    want = np.asarray(said(found.params, batch))
    real = np.asarray(batch.weight) > 0
    at = np.asarray(batch.ids)
    np.testing.assert_allclose(
        np.asarray(batch.log_probs)[..., :5][real],
        np.take_along_axis(want, at, -1)[real],
        atol=1e-5,
    )
    assert np.array_equal(at[real][:, 0], want.argmax(-1)[real])
    np.testing.assert_allclose(np.exp(kept).sum(-1), 1, atol=1e-5)
    assert ids.shape[:2] == kept.shape[:2] and kept.shape[2] == 6
    # the same rows in the same order as without a teacher
    plain = inputs.of(run(place, "plain", 8), made.model, made.objective)
    with plain.open(0, {}) as stream:
        assert np.array_equal(stream.next(1, None).batch.tokens, batch.tokens)


def test_a_student_of_its_own_responses(place):
    """The batch is what the student says; nothing is carried, so going on gives the same run."""
    asked = distill.Config(teacher=teacher(place), beta=0.5)
    data = prompts.Prompts(source=str(place / "prompts.jsonl"), seq=12, batch=4, holdout=0.2)
    one = dataclasses.replace(
        run(place, "own", 8, objective=asked),
        data=data,
        rollout=Rollout(samples=2, max_new=6),
    )
    whole = loop.run(one)
    assert whole.val["loss"] > 0 and "agreement" in whole.val
    again = dataclasses.replace(one, name="again")
    made = loop.build(again)
    opened = inputs.of(again, made.model, made.objective)
    state = step.init(made.objective, made.tx, Plan(), one.seed)
    state = state._replace(frozen=initial_weights.frozen(again, made.objective, {}))
    with opened.open(0, {}) as stream:
        fed = stream.next(1, state)
        assert np.array_equal(fed.batch.tokens, stream.next(1, state).batch.tokens)
    assert fed.batch.tokens.shape[0] == 8 and 0 < fed.metrics["length"] <= 6
    assert fed.seconds["generate"] > 0
    told = np.asarray(fed.batch.weight)
    assert np.all(told[:, :2] == 0) and np.all(told.sum(1) <= 6)  # not on the prompt


def test_what_does_not_go_together_is_refused(place):
    asked = distill.Config(teacher=teacher(place), read="stored", top_k=4)
    for change, told in (
        ({"data": Data(seq=16, batch=4, curriculum=((0, 8),))}, "data.curriculum.*stored"),
        ({"data": prompts.Prompts(source=str(place / "prompts.jsonl"))}, "rollout: None given"),
        (
            {
                "data": prompts.Prompts(source=str(place / "prompts.jsonl"), batch=4),
                "rollout": Rollout(rewards=("exact",), epochs=2),
            },
            r"rollout.epochs: 2(.|\n)*rollout.rewards(.|\n)*objective.read: 'stored'",
        ),
    ):
        bad = dataclasses.replace(run(place, "bad", 8, objective=asked), **change)
        with pytest.raises(ValueError, match=told):
            runs.validate(bad)
    missing = run(place, "bad", 8, objective=distill.Config(teacher=str(place / "nobody")))
    with pytest.raises(ValueError, match="objective.teacher: .*nobody is no run directory"):
        loop.run(missing)
    other = models.build(dataclasses.replace(missing.model, vocab=300))
    with pytest.raises(ValueError, match="has 300 ids, the student 260"):
        distill.build(asked, models.build(missing.model), Plan(), other)
    with pytest.raises(ValueError, match="objective.top_k: None given"):
        distill.Config(teacher="t", read="stored")
    few = prompts.Prompts(source=str(place / "prompts.jsonl"), holdout=1e-9)
    with pytest.raises(ValueError, match="data.holdout: 1e-09 leaves none of the 60 examples"):
        kinds.prepare(few, evaluated=True, vocab=512)
    assert kinds.prepare(few, evaluated=False, vocab=512).val is None
