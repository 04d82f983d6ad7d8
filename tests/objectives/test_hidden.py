"""Masked language modelling and sequence to sequence: what goes together, and training."""

import dataclasses

import jax
import numpy as np
import pytest

from jaxlm import models, objectives
from jaxlm.core.batch import Batch, Pairs
from jaxlm.data.corrupt import mask, span
from jaxlm.data.pretraining import Data
from jaxlm.models import bert, gpt, t5
from jaxlm.objectives import clm, mlm, seq2seq
from jaxlm.train import loop
from jaxlm.train.optim import optimizer
from jaxlm.train.run import objective_data
from jaxlm.train.run import run as runs

GPT = gpt.Config(vocab=270, embed=16, layers=1, heads=2, context=32)
BERT = bert.Config(vocab=270, embed=16, layers=1, heads=2, ffn=24, context=32)
T5 = t5.Config(
    vocab=270, embed=16, encoder=1, layers=1, heads=2, head=8, ffn=24, buckets=8, farthest=16
)
RIGHT = {
    "clm": (GPT, clm.Config(), None),
    "mlm": (BERT, mlm.Config(), mask.Mask(token=259)),
    "seq2seq": (T5, seq2seq.Config(), span.Span(sentinel=269)),
}


@pytest.mark.parametrize("model", RIGHT)
@pytest.mark.parametrize("objective", RIGHT)
@pytest.mark.parametrize("corrupt", RIGHT)
def test_only_what_belongs_together_is_accepted(model, objective, corrupt):
    built = models.build(RIGHT[model][0])
    data = Data(corrupt=RIGHT[corrupt][2])
    problems = [*objective_data.problems(RIGHT[objective][1], built, data)]
    assert any(t.startswith("objective: ") for t in problems) == (model != objective)
    assert any(t.startswith("data.corrupt: ") for t in problems) == (corrupt != objective)
    assert objectives.fitting(built) == model
    if model != objective and objective != "clm":
        with pytest.raises(ValueError, match=f"objective: {objective}"):
            objectives.build(RIGHT[objective][1], built)


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("mlm", {"corrupt": mask.Mask()}, "data.corrupt.token: None given"),
        (
            "mlm",
            {"corrupt": mask.Mask(token=300)},
            "model.vocab: 270 given; it must be at least 301",
        ),
        ("mlm", {"corrupt": None}, "data.corrupt: None given with objective mlm"),
        ("mlm", {"seq": 64}, "data.seq: 64 given"),
        (
            "seq2seq",
            {"corrupt": span.Span(sentinel=300)},
            "model.vocab: 270 given; it must be at least 301",
        ),
        ("seq2seq", {"corrupt": span.Span(sentinel=269, start=5)}, "data.corrupt.start: 5 given"),
        ("seq2seq", {"packing": "concat"}, "data.packing: 'concat' given"),
        ("clm", {"corrupt": mask.Mask(token=259)}, "data.corrupt: Mask"),
    ],
)
def test_a_run_is_refused_before_compute(name, change, message):
    with pytest.raises(ValueError, match=message):
        runs.validate(_run(name, ".", **change))


def test_samples_are_for_models_that_continue():
    run = dataclasses.replace(_run("mlm", "."), samples=("a",))
    with pytest.raises(
        ValueError,
        match=r"samples: \('a',\) given; it must be \(\) with a model that does not continue",
    ):
        runs.validate(run)


def _run(name, out, **change):
    model, objective, corrupt = RIGHT[name]
    data = Data(**{"source": "markov", "seq": 32, "batch": 4, "corrupt": corrupt} | change)
    return runs.Run(name=name, model=model, objective=objective, data=data, out=str(out), steps=4)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["mlm", "seq2seq"])
def test_a_run_trains_and_evaluates(name, tmp_path):
    """The loss falls below what the targets' frequencies alone give."""
    run = dataclasses.replace(
        _run(name, tmp_path, batch=16),
        steps=200,
        eval_every=200,
        optim=optimizer.Optim(lr=1e-2, warmup=20),
    )
    result = loop.run(run)
    val = result.val
    assert val["bits_per_byte"] is None and val["tokens"] > 1000
    assert val["nll"] < val["unigram"] < np.log(run.model.vocab)


def _batch(pairs):
    r = np.random.default_rng(0)
    ids = r.integers(3, 97, (2, 2, 12)).astype(np.int32)
    ones, at = np.ones((2, 12), np.int32), np.tile(np.arange(12, dtype=np.int32), (2, 1))
    weight = (r.random((2, 12)) < 0.4).astype(np.float32)
    one = Batch(ids[0], ids[1], np.ones_like(weight) if pairs else weight, ones, at)
    if not pairs:
        return one
    tokens = np.roll(ids[1], 1, 1)
    tokens[:, 0] = 0
    return Pairs(*one._replace(tokens=tokens), ids[0], ones, at)


@pytest.mark.parity
@pytest.mark.parametrize("case", ["bert", "roberta", "t5", "t5-gated"])
def test_gradient_and_one_update_are_those_of_transformers(case, tmp_path):
    """Loss, its gradient in the embedding table, and the loss after one step of AdamW.
    That a step of ours is torch's: tests/convert/test_parity.py."""
    import torch

    from jaxlm.convert import read
    from tests.convert import oracle

    theirs = oracle.save(case, tmp_path)
    cfg, w = read.load(tmp_path)
    built = models.build(cfg)
    name = objectives.fitting(built)
    batch = _batch(name == "seq2seq")
    objective = objectives.build(objectives.OBJECTIVES[name].Config(), built)
    lr, eps = 1e-2, 1e-4

    @jax.jit
    def mean(w):
        return jax.value_and_grad(lambda w: objective.loss(w, {}, batch, None)[0] / count)(w)

    count = batch.weight.sum()
    first, grads = jax.tree.map(np.asarray, mean(w))
    # the first step of AdamW, whose moments are then the gradient and its square
    second, _ = mean(jax.tree.map(lambda w, g: w - lr * g / (np.abs(g) + eps), w, grads))

    labels = torch.tensor(np.where(batch.weight > 0, batch.targets, -100), dtype=torch.long)
    given = {"input_ids": torch.tensor(batch.tokens, dtype=torch.long), "labels": labels}
    if name == "seq2seq":
        given["input_ids"] = torch.tensor(batch.source, dtype=torch.long)
    optimiser = torch.optim.AdamW(
        theirs.parameters(), lr=lr, betas=(0.9, 0.95), eps=eps, weight_decay=0.0
    )
    loss = theirs(**given).loss
    loss.backward()
    gradient = theirs.get_input_embeddings().weight.grad.numpy().copy()
    optimiser.step()
    with torch.no_grad():
        after = float(theirs(**given).loss)
    ours = np.array(grads["embed"]["table"])
    padding = theirs.get_input_embeddings().padding_idx
    if padding is not None:  # torch gives a padding row no gradient as an input
        ours[padding] = gradient[padding]
    np.testing.assert_allclose(first, float(loss.detach()), rtol=0, atol=1e-5)
    np.testing.assert_allclose(ours, gradient, rtol=0, atol=1e-4)
    assert np.abs(gradient).max() > 1e-3
    np.testing.assert_allclose(second, after, rtol=0, atol=1e-5)
    assert abs(after - float(loss.detach())) > 1e-2
