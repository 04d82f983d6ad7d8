"""Items that a run had seen, against the batches that it read."""

import dataclasses
import json
import random

import pytest

from jaxlm.cli import main
from jaxlm.data import pretraining, tokenizers
from jaxlm.data.corrupt import mask
from jaxlm.data.curate.decontaminate import Decontaminate
from jaxlm.data.records import chats, task_items
from jaxlm.data.rows import mix_parts, mixed_rows
from jaxlm.data.tokenized import shard_cache, shards
from jaxlm.data.tokenized import texts as texts_of_runs  # texts are those of a test
from jaxlm.eval import exposure
from jaxlm.models import llama
from jaxlm.train import inputs
from jaxlm.train.run import directory, run
from tests.data.curate.duplicates.test_near import drawn


@pytest.mark.parametrize("packing", ["best_fit", "concat"])
def test_items_are_seen_where_the_batches_hold_them(tmp_path, packing):
    """The steps are those whose batches, decoded, hold the whole item: over two epochs, with a ramp
    and a curriculum, planted once, twice or not at all."""
    rng = random.Random(0)
    items = [" ".join(drawn(rng, 12)) for _ in range(12)]
    texts = [" ".join(drawn(rng, rng.randrange(5, 60))) for _ in range(60)]
    for number, item in enumerate(items[:8]):
        for _ in range(1 + number % 2):
            texts[rng.randrange(60)] += f" {item} " + " ".join(drawn(rng, 3))
    (tmp_path / "x.jsonl").write_text("".join(json.dumps({"text": t}) + "\n" for t in texts))
    lines = [json.dumps({"question": item, "answer": ""}) + "\n" for item in items]
    (tmp_path / "task.jsonl").write_text("".join(lines))
    data = pretraining.Data(
        source=str(tmp_path / "x.jsonl"), packing=packing, seq=512, batch=4, holdout=0.0,
        ramp=((6, 6),), curriculum=((0, 256), (4, 512)), seed=3,
    )  # fmt: skip
    tokenizer = tokenizers.load("bytes")
    shards.tokenize(data.source, "text", tokenizer, tmp_path / "shards", 0.0)
    split = shards.open_shards(tmp_path / "shards", "train", tokenizer.hash)
    # the whole of an item, so that the reference below is a search for its text
    given = Decontaminate(tasks=(str(tmp_path / "task.jsonl"),), threshold=1.0)
    seen = {e.item: e for e in exposure.exposures(data, split, tokenizer, given, 16)}
    ids = {item.question: item.id for item in task_items.items(given.tasks[0])}
    reader = pretraining.reader(data, split)
    order = mixed_rows.row_order(len(reader.rows), data.seed)
    for text, name in ids.items():
        wanted = []
        for step in range(16):
            low, high = (pretraining.rows_before(data, s) for s in (step, step + 1))
            rows = [order[i] for i in range(low, high)]
            decoded = [
                tokenizer.decode_bytes([t for t in tokens[start : start + size + 1] if t < 256])
                for row in rows
                for _, _, start, size, tokens in reader.pieces([row])
            ]
            if any(text in d.decode("utf-8", "replace") for d in decoded):
                wanted.append(step)
        assert (seen[name].steps if name in seen else []) == wanted
    assert 6 <= len(seen) <= 8 and {e.share for e in seen.values()} == {1.0}
    assert not exposure.exposures(data, split, tokenizer, given, 0)


def test_items_of_a_mixture_are_seen_where_its_batches_hold_them(tmp_path, monkeypatch):
    """Over a change of weights; an item of both sources, of one, and of none."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    rng = random.Random(1)
    items = [" ".join(drawn(rng, 12)) for _ in range(3)]
    for name, planted in (("a", items[:2]), ("b", items[:1])):
        texts = [" ".join(drawn(rng, 30)) for _ in range(12)]
        texts += [f"{item} " + " ".join(drawn(rng, 3)) for item in planted]
        lines = [json.dumps({"text": text}) + "\n" for text in texts]
        (tmp_path / f"{name}.jsonl").write_text("".join(lines))
    lines = [json.dumps({"question": item, "answer": ""}) + "\n" for item in items]
    (tmp_path / "task.jsonl").write_text("".join(lines))
    mix = (
        mix_parts.Part(str(tmp_path / "a.jsonl"), 0.9, changes=((6, 0.1),), max_epochs=20.0),
        mix_parts.Part(str(tmp_path / "b.jsonl"), 0.1, changes=((6, 0.9),), max_epochs=20.0),
    )
    data = pretraining.Data(mix=mix, seq=512, batch=2, holdout=0.0)
    split, tokenizer = shard_cache.opened(data, "train", 259), tokenizers.load("bytes")
    given = Decontaminate(tasks=(str(tmp_path / "task.jsonl"),), threshold=1.0)
    seen = {e.item: e.steps for e in exposure.exposures(data, split, tokenizer, given, 12)}
    batches = pretraining.Steps(data, split, 0, 0, 1)
    decoded = [
        "\n".join(
            bytes(t for t in row if t < 256).decode() for row in batches[step].tokens.tolist()
        )
        for step in range(12)
    ]
    ids = {item.question: item.id for item in task_items.items(given.tasks[0])}
    for item in items:
        wanted = [step for step, text in enumerate(decoded) if item in text]
        assert seen.get(ids[item], []) == wanted
    assert len(seen) == 2


def test_changed_texts_are_refused(tmp_path):
    (tmp_path / "task.jsonl").write_text('{"question": "a", "answer": "b"}\n')
    given = Decontaminate(tasks=(str(tmp_path / "task.jsonl"),))
    data = pretraining.Data(corrupt=mask.Mask())
    with pytest.raises(ValueError, match=r"data.corrupt: Mask.*None for `jaxlm data seen`"):
        exposure.exposures(data, None, tokenizers.load("bytes"), given, 1)  # ty: ignore


def test_the_command_reads_a_run_directory(tmp_path, monkeypatch, capsys):
    """`jaxlm data seen`: the run's own data, up to the step of its result."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    rng = random.Random(0)
    item = " ".join(drawn(rng, 12))
    texts = [" ".join(drawn(rng, 30)) for _ in range(20)] + [f"so: {item.upper()} indeed"]
    (tmp_path / "x.jsonl").write_text("".join(json.dumps({"text": t}) + "\n" for t in texts))
    (tmp_path / "t.jsonl").write_text(json.dumps({"question": item, "answer": ""}) + "\n")
    data = pretraining.Data(source=str(tmp_path / "x.jsonl"), seq=256, batch=2, holdout=0.0)
    model = llama.Config(vocab=259, embed=8, layers=1, heads=1, kv=1, head=8, ffn=8)
    made = run.Run(name="r", model=model, data=data, steps=30, eval_every=None)
    folder = tmp_path / "r"
    folder.mkdir()
    directory.record(folder, made)
    split, _ = inputs.open_text(data, False, 259)
    (folder / "env.json").write_text(json.dumps({"corpus": texts_of_runs.corpus(split)}))
    line = ["data", "seen", str(folder), "--tasks", str(tmp_path / "t.jsonl")]
    assert main.main(line) == 0
    assert "0 items seen in 0 steps" in capsys.readouterr().out
    directory.finish(folder, directory.Result(str(folder), 30, 30, 0, None, 0))
    assert main.main([*line, "--out", str(tmp_path / "seen.jsonl")]) == 0
    out = capsys.readouterr().out
    assert "1 items seen in 30 steps" in out and "share 1.00" in out
    (seen,) = map(json.loads, (tmp_path / "seen.jsonl").read_text().splitlines())
    assert seen["item"].startswith("t:") and len(seen["steps"]) > 1
    other = {"corpus": {"fingerprint": "0" * 64}}
    (folder / "env.json").write_text(json.dumps(other))
    assert main.main(line) == 2
    assert "data.source: fingerprint" in capsys.readouterr().err
    made = dataclasses.replace(made, data=chats.Chats(source=str(tmp_path / "x.jsonl")))
    directory.record(folder, made)
    assert main.main(line) == 2
    assert "reads Chats; `jaxlm data seen` is of runs on text" in capsys.readouterr().err
