"""A run from its config to its directory: whole, interrupted, refused."""

import dataclasses
import json
import math
import re
import struct

import numpy as np
import pytest

from jaxlm.core import config, io
from jaxlm.eval import perplexity
from jaxlm.models import gpt
from jaxlm.parallel.plan import Plan
from jaxlm.scaling.cost import flops
from jaxlm.train import inputs, loop, trained_weights
from jaxlm.train.optim import diloco, optimizer
from jaxlm.train.run import checkpoint, directory, metrics
from jaxlm.train.run import run as runs
from jaxlm.train.run.trackers import tensorboard


def test_a_run_leaves_a_complete_directory(whole):
    run, result, printed = whole
    folder = runs.folder(run)
    assert (result.step, result.steps, result.signal, result.exit_code) == (12, 12, 0, 0)
    assert result.tokens == 12 * 4 * 32

    records = list(metrics.records(folder / metrics.FILE))
    train = [r for r in records if r["split"] == "train"]
    assert [r["step"] for r in train] == [1, 2, 4, 6, 8, 10, 12]
    assert abs(train[0]["loss"] - math.log(259)) < 1.0 and train[-1]["loss"] < 4.5
    assert {"grad_norm", "lr", "skipped", "weight", "tokens"} <= train[0].keys()
    rates = {"tokens_per_second", "step_seconds", "data_wait_seconds", "gflop_per_second_causal"}
    assert rates <= train[-1]["timing"].keys() and "host_peak_bytes" in train[-1]["timing"]
    assert [r["tokens"] for r in train] == [r["step"] * 4 * 32 for r in train]
    val = [r for r in records if r["split"] == "val"]
    assert [r["step"] for r in val] == [6, 12]
    assert val[1]["tokens"] > val[0]["tokens"]  # eval_batches on the way, the whole split at last
    assert result.val["bits_per_byte"] == val[1]["bits_per_byte"]

    assert directory.load(folder) == run
    described = json.loads((folder / "env.json").read_text())
    assert described["kernels"]["attention"] == "xla" and described["dtype"] == "float32"
    assert len(described["corpus"]["fingerprint"]) == 64 and described["parameters"] > 0
    needed = {
        name: flops.per_token(run.model, 32, causal=name == "causal").training
        for name in ("causal", "full")
    }
    assert described["flops_per_token"] == needed and needed["causal"] < needed["full"]
    timing = train[-1]["timing"]
    assert timing["step_seconds"] * timing["tokens_per_second"] == pytest.approx(4 * 32)
    rate = needed["causal"] * timing["tokens_per_second"] / 1e9
    assert timing["gflop_per_second_causal"] == pytest.approx(rate)
    assert (folder / "loss.png").read_bytes()[:4] == b"\x89PNG"
    assert checkpoint.steps(folder / "checkpoints") == [9, 12]
    assert "attention=xla" in printed and "step 12/12" in printed and "float32" in printed


def test_a_finished_run_is_not_run_again(whole, capsys):
    run, first, _ = whole
    before = {p: p.stat().st_mtime_ns for p in io.files(runs.folder(run))}
    again = loop.run(run)
    assert again == first and again.exit_code == 0
    assert "is finished: 12 steps" in capsys.readouterr().out
    assert before == {p: p.stat().st_mtime_ns for p in io.files(runs.folder(run))}


def test_another_config_is_refused_and_the_field_named(whole):
    run, _, _ = whole
    other = dataclasses.replace(run, optim=optimizer.Optim(lr=1e-3, warmup=2), seed=4)
    with pytest.raises(ValueError, match=r"optim\.lr=0\.01, this one has optim\.lr=0\.001 \(and 1"):
        loop.run(other)
    moved = dataclasses.replace(run, checkpoint=runs.Checkpoint(every=1), plan=Plan(unroll=2))
    assert loop.run(moved).step == 12  # how it is executed is not what it is


@pytest.mark.parametrize(
    "steps", [pytest.param(4, marks=pytest.mark.slow), 6, pytest.param(12, marks=pytest.mark.slow)]
)
def test_stopped_and_resumed_is_the_same_run(whole, tiny, stopping, capsys, assert_same_run, steps):
    """At a step of no note; at one that is evaluated, logged and saved; at the last."""
    cut = tiny(name="cut")
    with stopping(15, steps):
        stopped = loop.run(cut)
    assert (stopped.step, stopped.exit_code) == (steps, 143)
    assert "SIGTERM: stopped after step" in capsys.readouterr().out
    assert not (runs.folder(cut) / "result.json").exists()
    resumed = loop.run(cut)
    assert resumed.exit_code == 0 and resumed.step == 12
    assert resumed.val == whole[1].val
    assert_same_run(whole[0], cut)


@pytest.mark.slow
def test_replicas_that_train_apart_stop_between_agreements_and_resume(
    tiny, stopping, assert_same_run
):
    """Stopped at step 5 of rounds of 3; on two devices each with its own replica it ends alike."""
    apart = diloco.Replicas(replicas=2, every=3)
    whole, cut = (tiny(name=name, diloco=apart, eval_every=12) for name in ("apart", "cut"))
    loop.run(whole)
    with stopping(15, 5):
        assert loop.run(cut).step == 5
    loop.run(cut)
    assert_same_run(whole, cut)
    moved = tiny(name="moved", diloco=apart, eval_every=12, plan=Plan(replica=2))
    val, there = (loop.run(run).val["nll"] for run in (whole, moved))
    assert there == pytest.approx(val, rel=1e-5)


def test_a_torn_line_and_later_records_are_cut_off(tiny, stopping):
    run = tiny(eval_every=None)
    with stopping(2, 7):
        assert loop.run(run).exit_code == 130
    file = runs.folder(run) / metrics.FILE
    kept = list(metrics.records(file))
    with file.open("a") as f:
        f.write('{"step": 8, "split": "train", "loss": 1.0}\n{"step": 10, "spl')
    assert [r["step"] for r in metrics.records(file)] == [1, 2, 4, 6, 8]
    metrics.Writer(file.parent, 7, True, print)
    assert list(metrics.records(file)) == kept
    with file.open("r+") as f:
        f.write("@")
    with pytest.raises(ValueError, match=r"metrics\.jsonl:1: not a JSON record"):
        list(metrics.records(file))


def test_changed_data_is_refused(tiny, stopping, tmp_path, home):
    source = tmp_path / "mine.jsonl"
    source.write_text((home / "corpus.jsonl").read_text())
    run = tiny(eval_every=None)
    run = dataclasses.replace(run, data=dataclasses.replace(run.data, source=str(source)))
    with stopping(15, 4):
        loop.run(run)
    source.write_text(source.read_text().replace("model", "muddle"))
    with pytest.raises(ValueError, match=r"data\.source: .* changed since step 4: its fingerprint"):
        loop.run(run)


def test_one_process_a_directory(tiny):
    run = tiny(steps=3)
    folder = runs.folder(run)
    folder.mkdir(parents=True)
    with io.lock(folder / "lock"), pytest.raises(BlockingIOError, match="in use by process"):
        loop.run(run)


@pytest.mark.slow
def test_the_saved_weights_are_the_averaged_ones_and_score_as_the_run_said(tiny, final_state):
    run = tiny(
        steps=6,
        optim=optimizer.Optim(lr=1e-2, warmup=2, ema=0.5),
        samples=("the", "what"),
        sample_tokens=4,
    )
    result = loop.run(run)
    samples = (runs.folder(run) / "samples" / "00000006.txt").read_text()
    assert samples.startswith("--- 'the'\nthe") and "\n--- 'what'\nwhat" in samples
    found = trained_weights.load(runs.folder(run))
    assert found.step == 6 and found.run == run
    trained = final_state(run)
    assert np.array_equal(found.params["norm"], trained["average"].params["norm"])
    assert not np.array_equal(found.params["norm"], trained["params"]["norm"])
    val = inputs.open_text(run.data, True, run.model.vocab)[1]
    score = perplexity.scorer(found.model, found.plan)
    again = perplexity.evaluate(score, found.params, run.data, val, found.plan)
    assert dataclasses.asdict(again) == {k: result.val[k] for k in dataclasses.asdict(again)}
    with pytest.raises(FileNotFoundError, match=r"holds \['tiny'\]"):
        trained_weights.load(runs.folder(run).parent / "tini")


def problem(run):
    with pytest.raises(ValueError) as caught:
        runs.validate(run)
    return str(caught.value)


def data(run, **changes):
    return dataclasses.replace(run, data=dataclasses.replace(run.data, **changes))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda r: dataclasses.replace(r, steps=0), "steps: 0 given; it must be at least 1"),
        (lambda r: dataclasses.replace(r, seed=-1), "seed: -1 given"),
        (lambda r: dataclasses.replace(r, name="a/b"), "name: 'a/b' given"),
        (
            lambda r: dataclasses.replace(r, out="file:///x"),
            "out: 'file:///x' given; it must be a ",
        ),
        (lambda r: dataclasses.replace(r, profile=(5, 4)), r"profile: \(5, 4\) given"),
        (
            lambda r: dataclasses.replace(r, model=dataclasses.replace(r.model, vocab=256)),
            "model.vocab: 256 given; it must be at least 259, the ids of the tokenizer 'bytes'",
        ),
        (
            lambda r: dataclasses.replace(
                r, model=gpt.Config(vocab=259, embed=16, layers=1, heads=2, context=16)
            ),
            "data.seq: 32 given; it must be at most model.context=16",
        ),
        (
            lambda r: data(r, batch=6, ramp=()),
            "data.batch: 6 given; it must be a multiple of 4 from step 0 on: plan.microbatches=4",
        ),
        (lambda r: data(r, holdout=0.0), "data.holdout: 0.0 given; .* above 0, .* eval_every=6"),
        (lambda r: data(r, source="nowhere.txt"), "data.source: .*nowhere.txt': no such file"),
        (lambda r: data(r, tokenizer="nowhere"), "data.tokenizer: tokenizer 'nowhere': neither"),
        (lambda r: data(r, seq=0), "data.seq: 0 given; it must be at least 1"),
        (
            lambda r: dataclasses.replace(r, plan=Plan(data=16)),
            "plan: data=16 needs 16 devices; 8 cpu",
        ),
        (
            lambda r: dataclasses.replace(r, plan=Plan(tensor=2)),
            "weight embed/table: dimension 'vocab' of size 259 does not divide over tensor=2",
        ),
        (
            lambda r: dataclasses.replace(r, plan=Plan(attention="splash")),
            "plan.attention: attention kernel 'splash' runs on tpu only, .* computes on cpu",
        ),
        (
            lambda r: dataclasses.replace(r, optim=optimizer.Optim(warmup=50)),
            "optim.warmup: 50 given",
        ),
        (
            lambda r: dataclasses.replace(r, samples=("x",), eval_every=None),
            r"samples: \('x',\) given; it must be \(\) with eval_every=None",
        ),
    ],
)
def test_what_is_wrong_is_named_before_compute(tiny, change, message):
    assert re.search(message, problem(change(tiny(plan=Plan(microbatches=4)))))


def test_all_problems_are_reported_at_once(tiny):
    text = problem(data(tiny(steps=0, seed=-2, log_every=0), source="nowhere.txt"))
    assert all(word in text for word in ("steps: 0", "seed: -2", "log_every: 0", "nowhere.txt"))


def test_a_wrong_number_of_steps_is_named_alone(tiny):
    """`--steps -5` was also told that a warm-up of 0 .. -6 steps would fit."""
    text = problem(tiny(steps=-5, profile=(2, 3)))
    assert text == "this run cannot start:\n  steps: -5 given; it must be at least 1"
    assert "optim.lr: -1.0" in problem(tiny(steps=-5, optim=optimizer.Optim(lr=-1.0)))


def test_a_run_survives_json(tiny):
    run = tiny(profile=(2, 3), samples=("a", "b"), eval_batches=None)
    assert config.from_dict(runs.Run, json.loads(json.dumps(config.to_dict(run)))) == run
    assert runs.digest(run) == runs.digest(dataclasses.replace(run, out="x", name="y"))
    assert runs.digest(run) != runs.digest(dataclasses.replace(run, seed=1))


def test_a_full_disk_delays_metrics_and_is_named(tmp_path, monkeypatch):
    warnings = []
    writer = metrics.Writer(tmp_path, 0, True, warnings.append)
    writer.write({"step": 1, "split": "train", "loss": 1.0})
    good = writer._append

    def full():
        with (tmp_path / metrics.FILE).open("ab") as file:
            file.write(b'{"step": 2, "sp')  # what fitted
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(writer, "_append", full)
    writer.write({"step": 2, "split": "train", "loss": float("inf")})
    assert "No space left on device" in warnings[0] and "bytes are free" in warnings[0]
    with pytest.raises(io.WriteError, match="metrics.jsonl: No space left"):
        writer.commit()
    monkeypatch.setattr(writer, "_append", good)
    writer.write({"step": 3, "split": "train", "loss": 3.0})
    writer.commit()
    lines = [(r["step"], r["loss"]) for r in metrics.records(tmp_path / metrics.FILE)]
    assert lines == [(1, 1.0), (2, None), (3, 3.0)]


def test_event_files_are_tensorboards(tmp_path):
    """Read back with the protocol buffers of an independent library."""
    from tensorboardX.proto import event_pb2

    assert tensorboard.crc32c(b"123456789") == 0xE3069283  # RFC 3720's polynomial, the check value
    assert tensorboard.crc32c(bytes(32)) == 0x8A9136AA  # RFC 3720, B.4
    written = tensorboard.open(tmp_path)
    written.restart(6)
    written.write(300, {"train/loss": 1.5, "val/nll": -2.0})
    raw, found = written.path.read_bytes(), []
    while raw:
        (size,) = struct.unpack("<Q", raw[:8])
        found.append(event_pb2.Event.FromString(raw[12 : 12 + size]))
        assert raw[: size + 16] == tensorboard.frame(raw[12 : 12 + size])
        raw = raw[size + 16 :]
    assert found[0].file_version == "brain.Event:2"
    assert (found[1].step, found[1].session_log.status) == (6, event_pb2.SessionLog.START)
    values = {v.tag: v.simple_value for v in found[2].summary.value}
    assert (found[2].step, values) == (300, {"train/loss": 1.5, "val/nll": -2.0})
