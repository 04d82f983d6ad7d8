"""Comparisons of two sets of weights, against NumPy."""

import jax
import numpy as np
import pytest

from jaxlm.data import tokenizers
from jaxlm.eval import paired_weights
from jaxlm.models import model
from jaxlm.ops.attention import At
from tests import programs
from tests.families.sizes import T, V


def test_the_numbers_are_those_of_the_logits():
    """Documents of different lengths, in batches with a row to spare."""
    shape = programs.shape("llama-all")
    first, second = (programs.weights("llama-all", seed) for seed in (3, 4))
    r = np.random.default_rng(0)
    rows = [r.integers(0, V, n).astype(np.int32) for n in (T, 3, T - 1)]
    got = paired_weights.compare(shape, first, second, rows, batch=2)
    kls, sames, losses = [], [], []
    forward = jax.jit(lambda p, x, at: model.logits(shape, p, x, at))
    for row in rows:
        x = np.zeros((1, T), np.int32)
        x[0, : len(row)] = row
        at = At((np.arange(T) < len(row)).astype(np.int32)[None], np.arange(T)[None])
        logs = []
        for params in (first, second):
            z = np.asarray(forward(params, x, at), np.float64)[0, : len(row) - 1]
            logs.append(z - np.log(np.exp(z).sum(-1, keepdims=True)))
        a, b = logs
        kls.append((np.exp(a) * (a - b)).sum(-1))
        sames.append(a.argmax(-1) == b.argmax(-1))
        losses.append([-log[np.arange(len(row) - 1), row[1:]].sum() for log in logs])
    losses = np.array(losses)
    count = sum(len(row) - 1 for row in rows)
    assert (got.documents, got.tokens) == (3, count)
    assert [got.before, got.after] == pytest.approx(losses.sum(0) / count, rel=1e-4)
    assert got.ratio == pytest.approx(np.exp((losses[:, 1] - losses[:, 0]).sum() / count), rel=1e-4)
    assert got.agreement == pytest.approx(np.concatenate(sames).mean())
    assert got.kl == pytest.approx(np.concatenate(kls).mean(), rel=1e-3)
    by = dict(got.kl_by_position)
    assert [*by] == [n for n in (0, 1, 2, 4, 8, 16) if n < T - 1]
    assert by[0] == pytest.approx(np.mean([kl[0] for kl in kls]), rel=1e-3)
    assert by[2] == pytest.approx(np.concatenate([kl[2:4] for kl in kls]).mean(), rel=1e-3)
    equal = paired_weights.compare(shape, first, first, rows[:1], batch=2)
    assert (equal.agreement, equal.interval) == (1.0, (0.0, 0.0)) and abs(equal.kl) < 1e-6


def test_the_interval_covers_the_true_difference_as_often_as_it_says():
    r, covered = np.random.default_rng(1), 0
    for _ in range(200):
        sizes = r.integers(5, 50, 40).astype(float)
        differences = sizes * (0.3 + 0.5 * r.standard_normal(40))
        low, high = paired_weights.interval(differences, sizes)
        covered += low < 0.3 < high
    assert 0.87 < covered / 200 < 0.98


def test_documents_begin_and_end_as_they_are_read():
    tokenizer = tokenizers.load("bytes")
    begin = tokenizers.tokenizer.begin(tokenizer)
    rows = paired_weights.documents(tokenizer, ["abcdef", "", "gh", "ij"], 4, 3)
    assert [row.tolist() for row in rows] == [[begin, 97, 98, 99], [begin, 103, 104]]
    with pytest.raises(ValueError, match="no document"):
        paired_weights.documents(tokenizer, [], 4, 3)


def test_an_encoder_is_refused():
    with pytest.raises(ValueError, match="data: .* a bert model predicts none"):
        paired_weights.compare(programs.shape("bert"), {}, {}, [np.arange(3)])
