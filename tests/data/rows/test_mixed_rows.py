"""Batches of a mixture: shares of tokens, whole epochs, and one order whatever reads it."""

import collections
import dataclasses
import json
import random

import numpy as np
import pytest

from jaxlm.core import batch
from jaxlm.data import pretraining, tokenizers
from jaxlm.data.corrupt import infill, mask, span
from jaxlm.data.rows import mixed_rows, row_schedule
from jaxlm.data.rows.mix_parts import Part
from jaxlm.data.tokenized import shards
from tests.data.test_pretraining import take

# The letters of each source tell its rows apart; its numbers are written in them, too.
LETTERS = {"short": "abcdefghij", "long": "klmnopqrst", "few": "uvwxyzABCD"}
HOMES = {ord(letter): name for name, letters in LETTERS.items() for letter in letters}


def words(name, first, count):
    """Distinct words of a source."""
    numbers = "".join(f"{number:05}" for number in range(first, first + count))
    return numbers.translate(dict(zip(map(ord, "0123456789"), LETTERS[name], strict=True)))


# Rows of "short" are a third empty.
TEXTS = {
    "short": [words("short", 2 * i, 2) for i in range(150)],
    "long": [words("long", 31 * i, i % 13 + 3) for i in range(120)],
    "few": [words("few", 31 * i, i % 5 + 1) for i in range(60)],
}
MIX = (
    Part("short", 0.5, changes=((40, 0.2),)),
    Part("long", 0.3, changes=((40, 0.1), (90, 1.5))),
    Part("few", 0.2),
)
DATA = pretraining.Data(seq=16, batch=8, seed=3, holdout=0.2, mix=MIX)


@pytest.fixture(scope="module")
def opened(tmp_path_factory):
    """The training split of every source by name, whatever the directory."""
    root = tmp_path_factory.mktemp("mixture")
    tokenizer = tokenizers.load("bytes")
    out = {}
    for name, texts in TEXTS.items():
        file, folder = root / f"{name}.jsonl", root / name
        lines = [json.dumps({"text": text}) for text in texts]
        file.write_text("\n".join(lines))
        shards.tokenize(file, "text", tokenizer, folder, 0.2)
        out[name] = shards.open_shards(folder, "train", tokenizer.hash)
    return out


def same(ours, right):
    assert len(ours) == len(right)
    for a, b in zip(ours, right, strict=True):
        assert type(a) is type(b)
        for x, y in zip(a, b, strict=True):
            np.testing.assert_array_equal(x, y)


def homes(b):
    """The source of every row of a batch: all its letters are of one."""
    out = []
    for row in b.tokens.tolist():
        (name,) = {HOMES[token] for token in row if token in HOMES}
        out.append(name)
    return out


def tokens(batches):
    """Targets of every source."""
    total = collections.Counter()
    for b in batches:
        for name, row in zip(homes(b), b.weight, strict=True):
            total[name] += int(row.sum())
    return total


@pytest.mark.slow
def test_token_shares_are_those_planned(opened):
    """Within 1 % of each share after 1,000 steps, though rows of the sources differ in padding."""
    mix = tuple(dataclasses.replace(part, changes=()) for part in MIX)
    data = dataclasses.replace(DATA, mix=mix)
    sizes = [mixed_rows.size(part) for part in pretraining.readers(data, opened).values()]
    per_row = [size.tokens / size.rows for size in sizes]
    assert min(per_row) < 0.75 * max(per_row)
    total = tokens(take(data, opened, 1000))
    for part in mix:
        assert total[part.source] / total.total() == pytest.approx(part.weight, rel=0.01)


def test_shares_after_a_change_of_weights(opened):
    for first, last, weights in ((0, 40, (5, 3, 2)), (40, 90, (2, 1, 2)), (90, 490, (2, 15, 2))):
        total = tokens(take(DATA, opened, last - first, start=first))
        for name, weight in zip(TEXTS, weights, strict=True):
            share = total[name] / total.total()
            assert share == pytest.approx(weight / sum(weights), rel=0.03)


def test_no_row_again_before_its_source_is_through(opened):
    """Over changes of weights; and every epoch is in another order."""
    rows = {name: len(part.rows) for name, part in pretraining.readers(DATA, opened).items()}
    seen = {name: [] for name in rows}
    for b in take(DATA, opened, 250):
        stacked = np.stack([b.tokens, b.targets, b.segments], 1)
        for name, row in zip(homes(b), stacked, strict=True):
            seen[name].append(row.tobytes())
    for name, count in rows.items():
        epochs = [seen[name][i : i + count] for i in range(0, len(seen[name]), count)]
        assert len(epochs) > 3
        right = pretraining.readers(DATA, opened)[name].read(np.arange(count))
        stacked = np.stack([right.tokens, right.targets, right.segments], 1)
        every = sorted(row.tobytes() for row in stacked)
        assert all(sorted(epoch) == every for epoch in epochs[:-1])
        assert len({*epochs[-1]}) == len(epochs[-1])
        assert epochs[0] != epochs[1] != every


CHANGING = dataclasses.replace(
    DATA, ramp=((38, 16), (60, 24)), curriculum=((0, 4), (39, 8), (55, 16))
)


@pytest.fixture(scope="module")
def whole(opened):
    """100 steps over two changes of weights, three of shape."""
    return take(CHANGING, opened, 100)


@pytest.mark.parametrize("count", [2, 4])
def test_hosts_slice_the_same_batches(opened, whole, count):
    parts = [take(CHANGING, opened, 100, index=i, count=count) for i in range(count)]
    joined = [
        batch.Batch(*(np.concatenate(arrays) for arrays in zip(*step, strict=True)))
        for step in zip(*parts, strict=True)
    ]
    same(joined, whole)


@pytest.mark.slow
def test_workers_change_nothing(opened, whole):
    workers = dataclasses.replace(CHANGING, workers=2)
    same(take(workers, opened, 15, start=30), whole[30:45])


def test_resuming_anywhere_is_going_on(opened, whole):
    draw = random.Random(0)
    for start in (*(draw.randrange(100) for _ in range(18)), 40, 90):
        same(take(CHANGING, opened, 3, start=start), whole[start : start + 3])


def test_a_mixture_of_one_is_that_source(opened):
    """The rows are the same, in an order of its own."""
    one = dataclasses.replace(DATA, mix=(Part("long", 2.0),), batch=1)
    text = {"long": opened["long"]}
    rows = len(pretraining.readers(one, text)["long"].rows)
    alone = dataclasses.replace(one, mix=())
    ours, right = (take(d, t, rows) for d, t in ((one, text), (alone, opened["long"])))
    assert sorted(b.tokens.tobytes() for b in ours) == sorted(b.tokens.tobytes() for b in right)


TASKS = [
    {"packing": "concat"},
    {"corrupt": mask.Mask(token=300)},
    {"corrupt": span.Span(sentinel=400)},
    {"infill": infill.Infill()},
]


@pytest.mark.parametrize("change", TASKS)
def test_every_task_reads_mixtures(opened, change, monkeypatch):
    """A row is what its source's own reader makes of it, by the draws of its place in the run."""
    monkeypatch.setattr(infill, "marks", lambda *_: infill.Marks(300, 301, 302, 303, 257))
    data = dataclasses.replace(DATA, seq=32, **change)
    readers = list(pretraining.readers(data, opened).values())
    own = mixed_rows.MixedRows(
        {name: readers[i] for i, name in enumerate(TEXTS)}, [(0, (5, 3, 2))], 3
    )
    ours = pretraining.batch_at(data, opened, 7)
    for place, (source, number) in enumerate(row_schedule.read(own.stages, 56, 64)):
        name = MIX[source].source
        row = mixed_rows.row_order(own.sizes[source].rows, f"3:{name}")[number]
        right = mixed_rows.read(readers[source], np.array([row]), [(3, 0, 56 + place)])
        for x, y in zip(ours, right, strict=True):
            np.testing.assert_array_equal(x[place], y[0])


def test_what_does_not_fit_is_named(opened):
    with pytest.raises(ValueError, match="data.mix has the sources .* the text those of"):
        pretraining.batches(DATA, {"long": opened["long"]})
    copies = dataclasses.replace(DATA, mix=(Part("long", 1.0), Part("copy", 1.0)))
    with pytest.raises(ValueError, match="'copy': .* holds what 'long' holds"):
        pretraining.batches(copies, {"long": opened["long"], "copy": opened["long"]})
    mix = (Part("short", 1.0), Part("long", 1.0), Part("few", 1.0, changes=((7, 90.0),)))
    rows = len(pretraining.readers(DATA, opened)["few"].rows)
    wide = dataclasses.replace(DATA, batch=rows + 4, mix=mix)
    said = f"a step takes [0-9]+ rows of 'few' in data.mix, and there are only {rows}"
    with pytest.raises(ValueError, match=said):
        pretraining.batches(wide, opened)
