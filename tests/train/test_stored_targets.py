"""Runs of DPO: their reference frozen or stored, stopped and resumed, and what they record."""

import contextlib
import dataclasses
import errno
import gzip
import itertools
import json
import pathlib
import pickle
import random

import numpy as np
import pytest

from jaxlm.core import cache, io
from jaxlm.data.records import preferences
from jaxlm.objectives import lora as adapter
from jaxlm.objectives.preference import dpo
from jaxlm.train import loop, precompute, stored_targets
from jaxlm.train.optim import optimizer
from jaxlm.train.run import interrupts, metrics
from jaxlm.train.run import run as runs

WORDS = ("red", "green", "blue", "one", "two", "three", "far", "near")


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    """Preferences for short answers: pairs and rankings of three; and labels."""
    folder, draw = tmp_path_factory.mktemp("preferences"), random.Random(3)
    ranked, labels = [], []
    for number in range(60):
        prompt = f"{number} {draw.choice(WORDS)}?"
        answers = [" ".join(draw.choices(WORDS, k=k)) for k in (1, 2, 3)][: 2 + number % 2]
        ranked.append({"prompt": prompt, "responses": answers, "ranks": range(1, len(answers) + 1)})
        labels.append(
            {"prompt": prompt, "completion": answers[number % 2], "label": not number % 2}
        )
    for name, rows in (("ranked", ranked), ("labelled", labels)):
        text = "".join(json.dumps(row, default=list) + "\n" for row in rows)
        (folder / f"{name}.jsonl").write_text(text, "utf-8")
    return folder


@pytest.fixture
def preferring(whole, sources, tmp_path, monkeypatch):
    """A function from an objective's settings and changes to a Run of 6 steps, which begins from
    the tiny run."""
    begun = whole[0]
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))

    def make(format="ranked", name="dpo", **settings):
        changes = {field: settings.pop(field) for field in ("adapter",) if field in settings}
        return dataclasses.replace(
            begun,
            name=name,
            start=str(runs.folder(begun)),
            data=preferences.Preferences(
                source=str(sources / f"{format}.jsonl"), format=format, holdout=0.2, seq=32, batch=4
            ),
            objective=dpo.Config(**settings),
            optim=optimizer.Optim(lr=3e-3, warmup=1),
            steps=6,
            log_every=1,
            eval_every=3,
            out=str(tmp_path / "runs"),
            checkpoint=runs.Checkpoint(every=3),
            **changes,
        )

    return make


def measured(run):
    found = metrics.deterministic(runs.folder(run) / metrics.FILE)
    return {(r["split"], r["step"]): r for r in found}


def kept():
    """{block: its file of log-probabilities} on the disk."""
    return {p.parent.name: p for p in (cache.folder() / "references").rglob("log_probs.npy")}


@contextlib.contextmanager
def stopping(steps):
    """A context in which a signal arrives in the n-th step of a run."""
    count = iter(range(1, 10**6))

    @contextlib.contextmanager
    def caught():
        yield lambda: 15 if next(count) >= steps else 0

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(interrupts, "caught", caught)
        yield


@pytest.mark.slow
def test_a_stored_reference_is_computed_once_and_a_stopped_run_goes_on(
    preferring, monkeypatch, assert_same_run
):
    run = preferring(reference="stored", name="stored")
    loop.run(run)
    seen = measured(run)
    first, last = seen["train", 1], seen["val", 6]
    assert first["loss"] == pytest.approx(np.log(2), rel=1e-6)
    assert first["margin"] == pytest.approx(0, abs=1e-5)
    assert last["loss"] < np.log(2) and last["margin"] > 0 and last["accuracy"] > 0.5
    assert {"log_prob_chosen", "log_prob_rejected", "reward_chosen", "reward_rejected"} <= set(last)
    files = kept()
    assert len(files) == 2 and all(np.load(f).shape[1] == 3 for f in files.values())

    # a run that was stopped does not read the reference again
    def refuse(*_):
        raise AssertionError("the reference was read again")

    monkeypatch.setattr(precompute, "_write", refuse)
    again = dataclasses.replace(run, name="again")
    with stopping(2):
        assert loop.run(again).signal == 15
    loop.run(again)
    assert_same_run(run, again)


def test_a_pass_goes_on_where_it_was_interrupted(preferring, monkeypatch, capsys):
    run = preferring(reference="stored")
    program = loop.build(run)
    split = preferences.prepare(run.data)
    monkeypatch.setattr(precompute, "BLOCK", 16)
    write, calls = precompute._write, []

    def count(source, compute, block, folder):
        calls.append(block.rows.start)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return write(source, compute, block, folder)

    monkeypatch.setattr(precompute, "_write", count)

    def attach():
        return stored_targets.attach(run, program.model, program.objective, split)

    with pytest.raises(KeyboardInterrupt):
        attach()
    assert sorted(kept()) == ["train-000000000"]
    found = attach()
    assert calls == [0, 16, 16, 32, 48, 0]  # the first block is not done again
    every = found.train.read(np.arange(len(found.train))).reference
    assert found.facts["reference"] and np.all(every[:, :2] < 0)
    # rows of two blocks, in their order, also where they are read by another process
    read = pickle.loads(pickle.dumps(found.train)).read(np.array([20, 3]))
    assert np.array_equal(read.reference, every[[20, 3]])
    assert not len(found.train.read(np.zeros(0, np.int64)).reference)
    # where a prompt has two responses of three
    assert np.array_equal(read.reference == 0, read.rank < 0)

    file = kept()["train-000000016"]
    file.write_bytes(file.read_bytes()[:-4])
    again = attach()
    assert "train-000000016 is damaged" in capsys.readouterr().err
    assert calls[6:] == [16]
    assert np.array_equal(again.train.read(np.arange(len(every))).reference, every)


def test_a_full_disk_keeps_the_blocks_before_it(preferring, monkeypatch, tmp_path):
    """A teacher's distributions were written to mapped memory, where a full disk kills the process
    without a word, and a pass that was interrupted began again."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(precompute, "BLOCK", 4)

    def prepare():
        def compute(rows, batch):
            if rows[0] >= 8:
                raise OSError(errno.ENOSPC, "No space left on device")
            return {"x": rows.astype(np.float32)[:, None]}

        return compute

    rows = preferences.prepare(preferring().data).train
    source = precompute.Source("things", {}, "f", "it", 4, prepare, lambda batch, arrays: arrays)
    with pytest.raises(io.WriteError, match="train-000000008: No space left"):
        precompute.attach(source, {"train": rows})
    blocks = sorted(p.name for p in (cache.folder() / "things" / source.key).glob("train-*"))
    assert blocks == ["train-000000000", "train-000000004"]


def test_labels_are_for_kto_and_comparisons_for_all_others(preferring):
    for format, loss in (("labelled", "dpo"), ("ranked", "kto")):
        with pytest.raises(ValueError, match=r"objective.loss.*data.format"):
            runs.validate(preferring(format=format, loss=loss))


@pytest.mark.slow
@pytest.mark.parametrize("loss", ["kto", "simpo", "orpo", "kto_pair"])
def test_other_losses_run_from_the_first_step_to_the_last(preferring, loss):
    format = "labelled" if loss == "kto" else "ranked"
    run = preferring(format=format, loss=loss, name=loss)
    loop.run(run)
    seen = measured(run)
    assert seen["val", 6]["loss"] < seen["train", 1]["loss"]
    assert not kept()


@pytest.mark.slow
def test_a_stored_reference_is_the_frozen_one(preferring):
    found = []
    for kind in ("stored", "frozen"):
        run = preferring(reference=kind, name=kind)
        loop.run(run)
        found.append(measured(run))
    for at, record in found[0].items():
        for name, value in record.items():
            if isinstance(value, float):
                assert found[1][at][name] == pytest.approx(value, rel=1e-5, abs=1e-6), (at, name)


HH = pathlib.Path(__file__).parents[3] / "shared/data/pref/hh_harmless_test.jsonl.gz"


@pytest.mark.slow
@pytest.mark.skipif(not HH.is_file(), reason=f"{HH} is absent")
def test_transcripts_of_people_are_learnt_from(preferring, tmp_path):
    """The first 300, all of whose reference log-probabilities are stored."""
    with gzip.open(HH, "rt", encoding="utf-8") as lines:
        (tmp_path / "hh.jsonl").write_text("".join(itertools.islice(lines, 300)), "utf-8")
    run = preferring(reference="stored")
    source = str(tmp_path / "hh.jsonl")
    data = preferences.Preferences(source=source, seq=256, batch=4, holdout=0.1)
    model = dataclasses.replace(run.model, context=256)
    run = dataclasses.replace(run, data=data, model=model, steps=3)
    loop.run(run)
    seen = measured(run)
    assert seen["train", 1]["loss"] == pytest.approx(np.log(2), rel=1e-5)
    assert np.isfinite(seen["val", 3]["loss"]) and seen["val", 3]["weight"] > 10


@pytest.mark.slow
@pytest.mark.parametrize("quantise", [None, "nf4"])
def test_with_adapters_the_reference_is_what_they_stand_on(preferring, quantise):
    lora = adapter.Lora(rank=2, quantise=quantise)
    for kind in ("stored", "frozen"):
        run = preferring(reference=kind, adapter=lora, name=kind)
        loop.run(run)
        seen = measured(run)
        assert seen["train", 1]["loss"] == pytest.approx(np.log(2), rel=1e-5)
        assert seen["train", 1]["margin"] == pytest.approx(0, abs=1e-4)
        assert seen["val", 6]["loss"] != np.log(2)
