"""Masked rows: which tokens are hidden, with what, and that (seed, row) alone decides."""

import dataclasses

import numpy as np
import pytest

from jaxlm.data import tokenizers
from jaxlm.data.corrupt import mask

BYTES = tokenizers.load("bytes")
MASK = mask.Mask(token=259)


class Texts:
    """Documents of random bytes between bos and eos."""

    def __init__(self, lengths):
        r = np.random.default_rng(0)
        self.lengths = np.array(lengths)
        self._docs = [np.array([257, *r.integers(0, 256, n - 2), 258]) for n in lengths]

    def docs(self, numbers):
        return [self._docs[i] for i in numbers]


def reader(lengths, seq, settings=MASK, packing="best_fit"):
    texts = Texts(lengths)
    ids = mask.ids(settings, BYTES)
    return mask.reader(texts.lengths, texts, seq, packing, settings, ids), texts


def test_rows_hold_whole_documents_and_targets_are_the_text():
    found, texts = reader([6, 9, 4], 20)
    batch = found.read(np.arange(len(found.rows)), [(0, 0, 0)])
    text = np.concatenate([texts.docs([i])[0] for i in (0, 1, 2)])
    np.testing.assert_array_equal(batch.targets[0, :19], text)
    np.testing.assert_array_equal(batch.segments[0], [1] * 6 + [2] * 9 + [3] * 4 + [0])
    np.testing.assert_array_equal(batch.positions[0, :19], [*range(6), *range(9), *range(4)])
    hidden = batch.weight[0] == 1
    np.testing.assert_array_equal(batch.tokens[0][~hidden], batch.targets[0][~hidden])
    # bos and eos are never asked for, and 15 % of 13 other tokens are 2
    assert hidden.sum() == 2 and batch.targets[0][hidden].max() < 256


def test_four_in_five_become_the_mask_one_in_ten_another_one_in_ten_stays():
    found, _ = reader([1000] * 40, 1000)
    batch = found.read(np.arange(40), [(0, 0, i) for i in range(40)])
    hidden = batch.weight == 1
    assert (hidden.sum(1) == 150).all()  # round(0.15 * 998)
    now, was = batch.tokens[hidden], batch.targets[hidden]
    share = {"mask": np.mean(now == 259), "stays": np.mean(now == was)}
    share["other"] = 1 - sum(share.values())
    # 6,000 draws: three standard deviations are 0.015
    assert share["mask"] == pytest.approx(0.8, abs=0.016)
    assert share["stays"] == pytest.approx(0.1 + 0.1 / 256, abs=0.012)
    assert share["other"] == pytest.approx(0.1, abs=0.012)
    assert now[(now != 259) & (now != was)].max() < 256  # never a special token


def test_what_is_hidden_depends_on_the_draw_alone():
    found, _ = reader([50] * 6, 50)
    a = found.read(np.arange(6), [(0, 0, i) for i in range(6)])
    b = found.read(np.array([4, 1]), [(0, 0, 4), (0, 0, 1)])
    for x, y in zip(a, b, strict=True):
        np.testing.assert_array_equal(x[[4, 1]], y)
    c = found.read(np.array([4]), [(1, 0, 4)])
    assert (a.weight[4] != c.weight[0]).any()


def test_no_tokens_to_hide():
    found, _ = reader([2, 2], 8)
    batch = found.read(np.arange(1), [(0, 0, 0)])
    assert not batch.weight.any() and (batch.tokens == batch.targets).all()


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        (mask.Mask(), "data.corrupt.token: None given, .* the tokenizer's mask"),
        (mask.Mask(token=65), "data.corrupt.token: 65 given, a token of text"),
        (mask.Mask(token=-1), "data.corrupt.token: -1 given"),
    ],
)
def test_a_mask_that_is_none(settings, told):
    with pytest.raises(ValueError, match=told):
        mask.ids(settings, BYTES)


def test_fractions_of_the_chosen_tokens_are_1_at_most_together():
    (line,) = dataclasses.replace(MASK, random=0.2, keep=0.85).problems()
    assert line == "data.corrupt.keep: 0.85 given; it must be at most 1 - random = 0.8"
    assert not [*dataclasses.replace(MASK, random=0.1, keep=0.9).problems()]
