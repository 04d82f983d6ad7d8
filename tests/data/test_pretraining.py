"""The order of data is a function of (seed, step): not of hosts, workers, or where a run began."""

import dataclasses
import itertools
import json
import re

import numpy as np
import pytest

from jaxlm.core import batch
from jaxlm.data import pack, pretraining, tokenizers
from jaxlm.data.rows import mixed_rows
from jaxlm.data.tokenized import shards

DATA = pretraining.Data(seq=8, batch=4, seed=3, packing="concat", holdout=0.2)


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """Small shards: split -> Shards."""
    root = tmp_path_factory.mktemp("loader")
    texts = [f"{i:03} " + "abcdefgh" * (i % 4) for i in range(40)]
    lines = "".join(json.dumps({"text": text}) + "\n" for text in texts)
    (root / "x.jsonl").write_text(lines)
    tokenizer = tokenizers.load("bytes")
    shards.tokenize(str(root / "x.jsonl"), "text", tokenizer, str(root / "out"), 0.2)
    return {s: shards.open_shards(str(root / "out"), s, tokenizer.hash) for s in shards.SPLITS}


def take(data, found, steps, start=0, index=0, count=1):
    iterator = pretraining.batches(data, found, start, index, count)
    try:
        return list(itertools.islice(iterator, steps))
    finally:
        iterator.close()


def same(ours, right):
    assert len(ours) == len(right)
    for a, b in zip(ours, right, strict=True):
        for name in batch.Batch._fields:
            np.testing.assert_array_equal(getattr(a, name), getattr(b, name), err_msg=name)


def keys(batches):
    return [row.tobytes() for b in batches for row in np.stack([b.tokens, b.segments], 1)]


def test_every_row_once_an_epoch_and_another_order_in_the_next(found):
    shard = found["train"]
    rows = pretraining.reader(DATA, shard).rows
    everything = pretraining.reader(DATA, shard).read(np.arange(len(rows)))
    data = dataclasses.replace(DATA, batch=1)
    epochs = [take(data, shard, len(rows), start=e * len(rows)) for e in range(2)]
    right = sorted(keys([everything]))
    assert len(right) > 30
    for epoch in epochs:
        assert sorted(keys(epoch)) == right
    assert keys(epochs[0]) != keys(epochs[1]) != keys([everything])


def test_the_order_is_the_same_in_every_release():
    """Golden: were grain's shuffle to change, a resumed run would silently read other rows."""
    order = mixed_rows.row_order(10, 0)
    epochs = [[int(order[e * 10 + i]) for i in range(10)] for e in range(2)]
    assert epochs == [[9, 3, 5, 8, 7, 2, 0, 6, 4, 1], [7, 2, 5, 9, 0, 4, 1, 8, 6, 3]]
    assert all(sorted(epoch) == list(range(10)) for epoch in epochs)
    # Neighbouring seeds share no epoch.
    other = [[int(mixed_rows.row_order(10, 1)[e * 10 + i]) for i in range(10)] for e in range(2)]
    assert not any(epoch in epochs for epoch in other)


def test_one_source_is_read_in_the_order_of_its_rows(found):
    """As before there were mixtures: a run that was begun then goes on with the same rows."""
    reader = pretraining.reader(DATA, found["train"])
    order = mixed_rows.row_order(len(reader.rows), DATA.seed)
    rows = np.array([order[i] for i in range(20, 24)])
    same([pretraining.batch_at(DATA, found["train"], 5)], [reader.read(rows)])


def test_an_epoch_ends_inside_a_batch_without_loss(found):
    rows = len(pretraining.reader(DATA, found["train"]).rows)
    data = dataclasses.replace(DATA, batch=7)
    assert rows % 7
    ours = keys(take(data, found["train"], -(-2 * rows // 7)))[: 2 * rows]
    right = keys(take(dataclasses.replace(DATA, batch=1), found["train"], 2 * rows))
    assert ours == right


def test_the_seed_decides_the_order(found):
    shard = found["train"]
    same(take(DATA, shard, 3), take(DATA, shard, 3))
    other = take(dataclasses.replace(DATA, seed=4), shard, 3)
    assert keys(other) != keys(take(DATA, shard, 3))


def test_resuming_is_going_on(found):
    whole = take(DATA, found["train"], 30)
    for start in (1, 13, 29):
        same(take(DATA, found["train"], 30 - start, start=start), whole[start:])
        same([pretraining.batch_at(DATA, found["train"], start)], [whole[start]])
    alone = pretraining.batches(DATA, found["train"])  # one process of one
    same([next(alone)], whole[:1])
    alone.close()
    far = 10**9  # O(1): nothing is skipped over
    same(take(DATA, found["train"], 1, far), [pretraining.batch_at(DATA, found["train"], far)])


CHANGING = dataclasses.replace(
    DATA, batch=4, ramp=((2, 8), (5, 12)), curriculum=((0, 2), (3, 4), (6, 8))
)


@pytest.mark.parametrize("data", [DATA, CHANGING])
@pytest.mark.parametrize("count", [2, 4])
def test_processes_slice_the_global_batch(found, data, count):
    whole = take(data, found["train"], 8)
    parts = [take(data, found["train"], 8, index=i, count=count) for i in range(count)]
    joined = [
        batch.Batch(*(np.concatenate(arrays) for arrays in zip(*step, strict=True)))
        for step in zip(*parts, strict=True)
    ]
    same(joined, whole)


@pytest.mark.slow
def test_workers_change_nothing(found):
    with_workers = dataclasses.replace(CHANGING, workers=2)
    same(take(with_workers, found["train"], 9, start=1), take(CHANGING, found["train"], 9, start=1))


def test_stages_by_hand():
    """T = 8. Rows a step: 4*2/8 = 1, 8*2/8 = 2, 8*4/8 = 4, 12*4/8 = 6, 12*8/8 = 12."""
    assert not [*CHANGING.problems()]
    assert [tuple(stage) for stage in pretraining.stages(CHANGING)] == [
        (0, 0, 4, 2, 1),
        (2, 2, 8, 2, 2),
        (3, 4, 8, 4, 4),
        (5, 12, 12, 4, 6),
        (6, 18, 12, 8, 12),
    ]
    before = [0, 1, 2, 4, 8, 12, 18, 30, 42]
    assert [pretraining.rows_before(CHANGING, step) for step in range(9)] == before
    assert [pretraining.tokens_before(CHANGING, step) for step in range(9)] == [
        8 * n for n in before
    ]
    assert pretraining.stage_at(CHANGING, 4).batch == 8
    assert pretraining.rows_before(DATA, 1000) == 4000


def test_ramp_and_curriculum_read_the_same_rows_in_the_same_order(found):
    """A change of shape is a cut of the one stream of rows, not another stream."""
    shard = found["train"]
    ours = take(CHANGING, shard, 8)
    shapes = [(4, 2), (4, 2), (8, 2), (8, 4), (8, 4), (12, 4), (12, 8), (12, 8)]
    assert [b.tokens.shape for b in ours] == shapes
    rows = take(dataclasses.replace(DATA, batch=1), shard, pretraining.rows_before(CHANGING, 8))
    for name in ("tokens", "targets", "weight"):
        stream = [np.concatenate([getattr(b, name).ravel() for b in x]) for x in (ours, rows)]
        np.testing.assert_array_equal(*stream)
    at = 0
    for b in ours:
        count = b.tokens.size // DATA.seq
        long = batch.Batch(*(np.concatenate(a) for a in zip(*rows[at : at + count], strict=True)))
        same([b], [pack.shorten(long, b.tokens.shape[1])])
        at += count


@pytest.mark.parametrize("packing", list(pack.PACKERS))
def test_validation_is_one_pass_in_order(found, packing):
    data = dataclasses.replace(DATA, packing=packing, batch=4)
    shard = found["val"]
    batches = list(pretraining.val_batches(data, shard))
    assert {b.tokens.shape for b in batches} == {(4, 8)}
    held = [b.targets[b.weight > 0] for b in batches]
    right = np.concatenate([shard.doc(i)[1:] for i in range(len(shard))])
    assert sorted(np.concatenate(held).tolist()) == sorted(right.tolist())
    same(batches, list(pretraining.val_batches(dataclasses.replace(data, seed=9), shard)))
    rows = pack.pack(shard.lengths, 8, "best_fit")
    assert len(rows) % 4, "the last batch should need padding for this test to mean something"
    assert len(batches) == -(-len(rows) // 4)
    parts = [list(pretraining.val_batches(data, shard, i, 2)) for i in range(2)]
    joined = [
        batch.Batch(*(np.concatenate(arrays) for arrays in zip(*step, strict=True)))
        for step in zip(*parts, strict=True)
    ]
    same(joined, batches)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"seq": 0}, "data.seq: 0 given; it must be at least 1"),
        ({"ramp": ((5, 4), (5, 8))}, r"data.ramp: \(\(5, 4\), \(5, 8\)\) given; .* rising steps"),
        ({"ramp": ((5, 0),)}, r"data.ramp: \(\(5, 0\),\) given; .* values of at least 1"),
        ({"curriculum": ((0, 3),)}, r"data.curriculum: .* divide data.seq=8; \[3\] do not"),
        ({"curriculum": ((4, 2),), "batch": 6}, "data.batch: 6 given; .* multiple of 4.* step 4"),
    ],
)
def test_bad_fields_are_named(found, change, said):
    """By themselves, then in combination: only what was right by itself is compared."""
    data = dataclasses.replace(DATA, **change)
    (line,) = data.problems()
    assert re.match(said, line)
    with pytest.raises(ValueError, match=said):
        pretraining.batches(data, found["train"])


def test_a_batch_must_divide_over_the_processes(found):
    with pytest.raises(ValueError, match="data.batch: 4 given; .* multiple of the 3 .*step 0"):
        pretraining.batches(DATA, found["train"], 0, 0, 3)
    with pytest.raises(ValueError, match="data.batch: 4 given; .* a multiple of the 3"):
        pretraining.val_batches(DATA, found["val"], 0, 3)


def test_every_field_explains_itself_on_the_command_line(capsys):
    tyro = pytest.importorskip("tyro")
    with pytest.raises(SystemExit):
        tyro.cli(pretraining.Data, args=["--help"])
    text = capsys.readouterr().out
    for word in ("Decides the order of the rows", "Changes of the batch", "best_fit", "held out"):
        assert word in " ".join(text.replace("\u2502", " ").split())
    given = ["--ramp", "0", "8", "100", "16", "--seq", "64", "--packing", "concat"]
    changed = tyro.cli(pretraining.Data, args=given)
    assert changed == pretraining.Data(ramp=((0, 8), (100, 16)), seq=64, packing="concat")
