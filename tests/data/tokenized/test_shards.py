"""Shards: what is written is what was said, and damage or a wrong tokenizer is named."""

import hashlib
import json
import multiprocessing
import pathlib

import numpy as np
import pytest

from jaxlm.data import pretraining, tally, tokenizers
from jaxlm.data.sources import source
from jaxlm.data.tokenized import manifest, shard_cache, shards


def write_lines(path, count=60):
    words = ["pack", "my", "box", "with", "five", "dozen", "jugs", "\u00e9\U0001f600"]
    texts = [" ".join(words[i % 7 : 3 + i % 5] * (1 + i % 4)) + f" {i}" for i in range(count)]
    path.write_text("".join(json.dumps({"text": t}) + "\n" for t in texts), "utf-8")
    return texts


def digest(folder):
    files = sorted(p for p in pathlib.Path(folder).rglob("*") if p.is_file())
    return {str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """(texts, jsonl path, shards folder, tokenizer)."""
    root = tmp_path_factory.mktemp("shards")
    texts = write_lines(root / "x.jsonl")
    tokenizer = tokenizers.load("bytes")
    shards.tokenize(str(root / "x.jsonl"), "text", tokenizer, str(root / "out"), 0.2)
    return texts, str(root / "x.jsonl"), str(root / "out"), tokenizer


@pytest.fixture
def copy(made, tmp_path):
    """A copy of the shards that a test may damage."""
    import shutil

    return pathlib.Path(shutil.copytree(made[2], tmp_path / "copy"))


def test_texts_that_are_left_out_or_cut_are_told(tmp_path):
    """A source most of whose texts are empty trained on the rest without a word."""
    lines = ["a" * 10] * 6 + ["b" * 300] * 3 + [""] * 4
    (tmp_path / "x.jsonl").write_text("".join(json.dumps({"text": t}) + "\n" for t in lines))
    tokenizer, folder = tokenizers.load("bytes"), str(tmp_path / "out")
    shards.tokenize(str(tmp_path / "x.jsonl"), "text", tokenizer, folder, 0.0)
    found = tally.documents(shards.open_shards(folder, "train", tokenizer.hash), None, 64)
    assert found.line() == (
        "data: 13 documents read, 9 to train on; left out: 4 (empty); 3 are longer than "
        "data.seq=64 and read in pieces"
    )
    assert found.warnings() == ["data: 4 of 13 documents (31%) are left out: 4 empty"]


def test_records_are_begin_text_eos(made):
    texts, _, folder, tokenizer = made
    for split in shards.SPLITS:
        found = shards.open_shards(folder, split, tokenizer.hash)
        right = [text for text in texts if source.split(text, 0.2) == split]
        assert len(found) == found.documents == len(right) > 0
        for i, text in enumerate(right):
            expected = [tokenizer.special["bos"], *text.encode(), tokenizer.special["eos"]]
            assert found.doc(i).tolist() == expected
        assert found.doc(0).dtype == np.uint16
        assert list(found.contents(tokenizer)) == [text.encode() for text in right]
        assert found.lengths.tolist() == [len(text.encode()) + 2 for text in right]
        assert found.text_bytes.tolist() == [len(text.encode()) for text in right]
        assert found.bytes == sum(len(text.encode()) for text in right)
        assert found.tokens == found.bytes + 2 * len(right)
        found.verify()


def test_the_manifest_says_what_was_made(made):
    texts, path, folder, tokenizer = made
    facts = manifest.read(pathlib.Path(folder))
    assert facts.source == path and facts.field == "text" and facts.python is None
    assert facts.fingerprint == source.fingerprint(path)
    assert (facts.tokenizer, facts.vocab, facts.dtype) == (tokenizer.hash, 259, "uint16")
    assert (facts.begin, facts.eos, facts.holdout) == (257, 258, 0.2)
    assert sum(split.documents for split in facts.splits.values()) == len(texts)
    for split in facts.splits.values():
        assert sum(s.documents for s in split.shards) == split.documents
        for shard in split.shards:
            assert (pathlib.Path(folder) / shard.file).stat().st_size == shard.size


def test_many_shards_and_any_number_of_workers_make_the_same_bytes(made, tmp_path, monkeypatch):
    texts, path, _, tokenizer = made
    monkeypatch.setattr(shards, "_SHARD_TEXT", 400)
    for workers in (0, 2):
        shards.tokenize(path, "text", tokenizer, str(tmp_path / str(workers)), 0.2, workers)
    assert digest(tmp_path / "0") == digest(tmp_path / "2")
    found = shards.open_shards(str(tmp_path / "2"), "train", tokenizer.hash)
    files = [shard.file for shard in found.manifest.splits["train"].shards]
    assert len(files) > 3 and files == [f"train/{i:05}.array_record" for i in range(len(files))]
    right = [text for text in texts if source.split(text, 0.2) == "train"]
    order = np.random.default_rng(0).permutation(len(right))
    for number, tokens in zip(order, found.docs(order.tolist()), strict=True):
        assert bytes(tokens[1:-1].tolist()).decode() == right[number]
    with pytest.raises(IndexError, match=f"'?train'? holds 0..{len(right) - 1}"):
        found.docs([0, len(right)])


def test_a_large_vocabulary_takes_uint32(made, tmp_path):
    class Wide(type(made[3])):
        vocab = 70_000
        lossless = False

        def encode_batch(self, texts):
            return [[69_999] * len(text) for text in texts]

    shards.tokenize(made[1], "text", Wide(), str(tmp_path / "out"), 0.2)
    found = shards.open_shards(str(tmp_path / "out"), "val", Wide().hash)
    assert found.doc(0).dtype == np.uint32 and found.doc(0)[1] == 69_999
    with pytest.raises(ValueError, match="a bytes tokenizer is not lossless"):
        next(found.contents(Wide()))


def test_another_tokenizer_is_refused_naming_both(made):
    with pytest.raises(ValueError, match=f"{made[3].hash[:16]}.*bytes.*this run has 0123456789ab"):
        shards.open_shards(made[2], "train", "0123456789abcdef")


@pytest.mark.parametrize("file", ["train/00000.array_record", "val/index.npy"])
def test_truncated_and_missing_files_are_named_at_open(made, copy, file):
    split = file.split("/")[0]
    path = copy / file
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ValueError, match=f"{file}: truncated or changed: .* the manifest says"):
        shards.open_shards(str(copy), split, made[3].hash)
    path.unlink()
    with pytest.raises(ValueError, match=f"{file}: missing"):
        shards.open_shards(str(copy), split, made[3].hash)


def test_a_flipped_bit_is_named_by_verify(made, copy):
    path = copy / "train/00000.array_record"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    found = shards.open_shards(str(copy), "train", made[3].hash)
    with pytest.raises(ValueError, match="00000.array_record: corrupt: crc32"):
        found.verify()


def test_what_is_not_shards_is_named(made, copy, tmp_path):
    with pytest.raises(FileNotFoundError, match="no manifest.json"):
        shards.open_shards(str(tmp_path), "train", made[3].hash)
    file = copy / "manifest.json"
    facts = json.loads(file.read_text())
    file.write_text(json.dumps(facts | {"vocab": 7}))
    with pytest.raises(ValueError, match="manifest.json: not what was written"):
        shards.open_shards(str(copy), "train", made[3].hash)
    del facts["sha256"]  # as earlier versions wrote it
    file.write_text(json.dumps(facts | {"format": 99}))
    with pytest.raises(ValueError, match="format 99, this version reads 1"):
        shards.open_shards(str(copy), "train", made[3].hash)
    for bad in ("{", "{}", json.dumps(facts | {"extra": 1})):
        file.write_text(bad)
        with pytest.raises(ValueError, match="manifest.json: not (JSON|a manifest of shards)"):
            shards.open_shards(str(copy), "train", made[3].hash)


def test_bad_arguments_are_refused_before_reading(made, tmp_path):
    _, path, folder, tokenizer = made
    with pytest.raises(FileExistsError, match="exists; name a new directory"):
        shards.tokenize(path, "text", tokenizer, folder, 0.2)
    with pytest.raises(ValueError, match=r"holdout: 1.5 given; it must be in \[0, 1\)"):
        shards.tokenize(path, "text", tokenizer, str(tmp_path / "o"), 1.5)
    with pytest.raises(ValueError, match="workers: -1 given; it must be at least 0"):
        shards.tokenize(path, "text", tokenizer, str(tmp_path / "o"), 0.2, -1)
    write_lines(tmp_path / "one.jsonl", 1)
    with pytest.raises(ValueError, match="no document falls into the 'val' split"):
        shards.tokenize(str(tmp_path / "one.jsonl"), "text", tokenizer, str(tmp_path / "o"), 0.01)
    shards.tokenize(str(tmp_path / "one.jsonl"), "text", tokenizer, str(tmp_path / "o"), 0.0)
    with pytest.raises(ValueError, match=r"hold no 'val' split \(holdout=0.0\)"):
        shards.open_shards(str(tmp_path / "o"), "val", tokenizer.hash)


def test_a_failure_leaves_nothing(tmp_path):
    write_lines(tmp_path / "x.jsonl")
    with (tmp_path / "x.jsonl").open("a") as file:
        file.write("not json\n")
    for workers in (0, 1):
        with pytest.raises(ValueError, match=r"x.jsonl:61: bad JSON"):
            shards.tokenize(
                str(tmp_path / "x.jsonl"),
                "text",
                tokenizers.load("bytes"),
                str(tmp_path / "o"),
                0.2,
                workers,
            )
        assert [p.name for p in tmp_path.iterdir()] == ["x.jsonl"]


def test_prepare_makes_once_and_finds_again(made, tmp_path):
    _, path, folder, _ = made
    data = pretraining.Data(source=path, holdout=0.2)
    cache = str(tmp_path / "cache")
    first = shard_cache.prepare(data, cache)
    assert digest(first) == digest(folder)
    before = pathlib.Path(first, "manifest.json").stat().st_mtime_ns
    assert shard_cache.prepare(data, cache) == first
    assert pathlib.Path(first, "manifest.json").stat().st_mtime_ns == before
    assert shard_cache.prepare(pretraining.Data(source=path, holdout=0.3), cache) != first
    assert (
        shard_cache.prepare(pretraining.Data(source=folder), cache) == folder
    )  # shards are their own


def _prepare(arguments):
    return shard_cache.prepare(*arguments)


def test_processes_that_prepare_at_once_agree(made, tmp_path):
    data = pretraining.Data(source=made[1], holdout=0.2)
    with multiprocessing.get_context("spawn").Pool(3) as pool:
        found = pool.map(_prepare, [(data, str(tmp_path))] * 3, chunksize=1)
    assert len(set(found)) == 1
    assert [p.name for p in tmp_path.iterdir()] == [pathlib.Path(found[0]).name]
    assert digest(found[0]) == digest(made[2])
