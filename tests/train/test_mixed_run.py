"""Runs over a mixture: the plan, evaluation by source, resuming over a change of weights."""

import dataclasses
import json
import math
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from jaxlm import api
from jaxlm.cli import main
from jaxlm.core import config
from jaxlm.data import pretraining
from jaxlm.data.corrupt import mask
from jaxlm.data.rows.mix_parts import Part
from jaxlm.eval import perplexity
from jaxlm.models import bert
from jaxlm.objectives import distill, mlm
from jaxlm.parallel.plan import Plan
from jaxlm.train import inputs, loop, program, trained_weights
from jaxlm.train.run import metrics, plot
from jaxlm.train.run import run as runs
from jaxlm.train.sweep import sweep_cells
from tests import programs, sources


@pytest.fixture
def mixed(tiny, home):
    """A Run of 12 steps over two sources, whose weights change at step 5. The second has two
    fields."""
    lines = [json.dumps({"n": i, "body": f"{i} {i * i} {i**3}\n" * (i % 4 + 1)}) for i in range(90)]
    (home / "powers.jsonl").write_text("\n".join(lines), "utf-8")
    run = tiny(name="mixed")
    words = str(home / "corpus.jsonl")
    mix = (
        Part(words, 3.0, changes=((5, 1.0),), name="words"),
        Part(str(home / "powers.jsonl"), 1.0, changes=((5, 2.0),), field="body"),
    )
    data = dataclasses.replace(run.data, source="pydocs", mix=mix)
    return dataclasses.replace(run, data=data)


def replaced(run, **changes):
    return dataclasses.replace(run, data=dataclasses.replace(run.data, **changes))


def test_a_run_says_its_plan_and_scores_every_source(mixed, capsys):
    result = loop.run(mixed)
    printed = capsys.readouterr().out
    train, val = inputs.open_text(mixed.data, True, 259)
    kept, held = (sum(part.documents for part in text.values()) for text in (train, val))
    assert f"data: 210 documents read, {kept} to train on, {held} held out" in printed
    table = printed[printed.index("mixture: shares of tokens in 12 steps, planned") :].splitlines()
    assert table[1].split()[:7] == ["source", "documents", "tokens", "from", "step", "0", "from"]
    row = table[2].split()
    assert row[:2] == ["words", f"{train['words'].documents}"]
    assert float(row[3][:-1]) == pytest.approx(75, abs=6)  # of 20 rows
    assert float(row[4][:-1]) == pytest.approx(100 / 3, abs=3)  # of 28
    # each source alone, and all together: bytes decide
    saved = trained_weights.load(runs.folder(mixed))
    score = perplexity.scorer(saved.model, saved.plan)
    bits, nats, targets = {}, 0.0, 0
    for name, own in pretraining.parts(mixed.data).items():
        alone = perplexity.evaluate(score, saved.params, own, val[name], saved.plan)
        assert result.val[f"bits_per_byte/{name}"] == alone.bits_per_byte
        assert result.val[f"nll/{name}"] == alone.nll
        bits[name] = alone.bits_per_byte * alone.bytes
        nats, targets = nats + alone.nll * alone.tokens, targets + alone.tokens
    assert result.val["bits_per_byte"] == pytest.approx(
        sum(bits.values()) / sum(part.bytes for part in val.values()), rel=1e-12
    )
    assert result.val["nll"] == pytest.approx(nats / targets, rel=1e-12)
    assert result.val["tokens"] == targets
    assert result.val["bytes"] == sum(part.bytes for part in val.values())
    assert f"{result.val['bits_per_byte']:.4f} bits per byte (words " in printed
    env = json.loads((runs.folder(mixed) / "env.json").read_text())["corpus"]
    assert env["source"] == "mix of words, powers"
    assert env["train_tokens"] == sum(part.tokens for part in train.values())
    assert plot.loss(runs.folder(mixed)).is_file()
    record = [r for r in metrics.records(runs.folder(mixed) / metrics.FILE) if r["split"] == "val"]
    assert set(metrics.by_source(record[0])) == {"words", "powers"}
    assert api.evaluate(saved) == {n: x for n, x in result.val.items() if n in api.evaluate(saved)}


def test_a_part_of_the_held_out_text_stands_for_all_of_it(mixed):
    """By its share of rows: an evaluation on the way is of the same mixture as the last one."""
    val = inputs.open_text(mixed.data, True, 259)[1]
    model = program.build(mixed, Plan())[0]
    params = programs.drawn(model.spec, 0)
    score = perplexity.scorer(model, Plan())
    data = dataclasses.replace(mixed.data, batch=1)
    first = perplexity.scores(score, params, data, val, Plan(), 2)
    nats, spelt = 0.0, 0.0
    for name, own in pretraining.parts(data).items():
        alone = perplexity.evaluate(score, params, own, val[name], Plan(), 2)
        factor = pretraining.val_rows(own, val[name]) / 2
        assert factor > 1
        nats, spelt = nats + factor * alone.nll * alone.tokens, spelt + factor * alone.bytes
    assert first["bits_per_byte"] == pytest.approx(nats / math.log(2) / spelt, rel=1e-12)
    every = perplexity.scores(score, params, data, val, Plan(), 10**6)
    right = perplexity.scores(score, params, data, val, Plan())
    assert every == right


def test_stopped_and_resumed_over_a_change_of_weights(mixed, stopping, assert_same_run):
    cut = dataclasses.replace(mixed, name="cut")
    loop.run(mixed)
    for steps, more in ((4, 4), (6, 2)):  # before the change at step 5, and after it
        with stopping(15, more):
            assert loop.run(cut).step == steps
    loop.run(cut)
    assert_same_run(mixed, cut)


def test_changed_data_of_one_source_is_refused(mixed, stopping, home):
    with stopping(15, 3):
        loop.run(mixed)
    powers = home / "powers.jsonl"
    powers.write_text(powers.read_text().replace("49", "50"))
    said = r"changed since step 3: its mix\.powers\.fingerprint was"
    with pytest.raises(ValueError, match=said):
        loop.run(mixed)


def test_too_many_epochs_are_refused_before_compute(mixed, monkeypatch):
    mix = (mixed.data.mix[0], dataclasses.replace(mixed.data.mix[1], max_epochs=0.01))
    run = replaced(mixed, mix=mix)
    with pytest.raises(ValueError, match="this run cannot start:\n.*'powers' would be read"):
        loop.run(run)


def problem(run):
    with pytest.raises(ValueError) as caught:
        runs.validate(run)
    return str(caught.value)


def test_what_cannot_be_mixed_is_named(mixed, home):
    missing = (*mixed.data.mix, Part(str(home / "absent.jsonl"), 1.0))
    assert "data.mix[2]: " in problem(replaced(mixed, mix=missing))
    assert "absent.jsonl" in problem(replaced(mixed, mix=missing))
    assert "data.holdout: 0.0 given" in problem(replaced(mixed, holdout=0.0))
    stored = dataclasses.replace(
        mixed, objective=distill.Config(teacher="t", read="stored", top_k=4)
    )
    assert "data.mix: " in problem(stored) and "with objective.read='stored'" in problem(stored)
    speed = sweep_cells.Speed(1e9, 1e5, 5.0)
    sweep = sweep_cells.Sweep(name="s", base=mixed, cells=(), speed=speed)
    assert any(line.startswith("base.data.mix: changes") for line in sweep_cells.problems(sweep))


@pytest.mark.slow
def test_hidden_tokens_of_a_mixture(mixed):
    """A model that fills in is judged on the hidden tokens of every source, without bits."""
    model = bert.Config(vocab=260, embed=16, layers=1, heads=2, ffn=24, context=32)
    run = replaced(mixed, corrupt=mask.Mask(token=259))
    run = dataclasses.replace(run, model=model, objective=mlm.Config(), steps=3, eval_every=3)
    val = loop.run(run).val
    assert val["bits_per_byte"] is None and metrics.by_source(val) == {}
    assert val["nll/words"] > 0 and val["nll/powers"] > 0
    low, high = sorted([val["nll/words"], val["nll/powers"]])
    assert low <= val["nll"] <= high


def test_the_command_line_overrides_and_evaluates(mixed, home, tmp_path, capsys):
    file = tmp_path / "config.json"
    file.write_text(json.dumps(config.to_dict(mixed)))
    args = ["train", str(file), "--data.mix.1.weight", "0.5", "--name", "cli", "--steps", "6"]
    assert main.main([*args, "--data.mix.0.max-epochs", "9"]) == 0
    capsys.readouterr()
    folder = f"{mixed.out}/cli"
    run = trained_weights.load(folder).run
    assert [part.weight for part in run.data.mix] == [3.0, 0.5]
    assert run.data.mix[0].max_epochs == 9
    assert main.main(["eval", folder]) == 0
    scores = json.loads(capsys.readouterr().out)
    assert [*scores["source"]] == ["words", "powers"] and "bits_per_byte/powers" in scores
    # one source in place of the mixture
    words = str(home / "corpus.jsonl")
    assert main.main(["eval", folder, "--data.source", words]) == 0
    alone = json.loads(capsys.readouterr().out)
    assert alone["source"] == words
    assert alone["bits_per_byte"] == scores["bits_per_byte/words"]


def test_plan_prints_the_mixture_and_refuses_as_training_does(mixed, tmp_path, capsys):
    lines = [
        "from jaxlm.core import config",
        "from jaxlm.train.run.run import Run",
        f"VALUE = {config.to_dict(mixed)!r}",
        "def config_of(): return config.from_dict(Run, VALUE)",
    ]
    file = tmp_path / "mixed.py"
    file.write_text("\n".join(lines))
    assert main.main(["plan", f"{file}:config_of"]) == 0
    assert "mixture: shares of tokens in 12 steps, planned\nsource" in capsys.readouterr().out
    assert main.main(["plan", f"{file}:config_of", "--steps", "5000"]) != 0
    printed = capsys.readouterr()
    assert "would be read" in printed.err and "max_epochs is 4" in printed.err


SWEEP = """
import dataclasses
from jaxlm.core import config
from jaxlm.train.run.run import Run
from jaxlm.train.sweep import sweep_cells

def sweep():
    base = config.from_dict(Run, VALUE)
    wide = dataclasses.replace(base.model, ffn=48)
    cells = sweep_cells.isoflop({2e8: [base.model, wide]})
    speed = sweep_cells.Speed(1e9, 1e5, 5.0)
    return sweep_cells.Sweep(name="s", base=base, cells=cells, speed=speed, rule="deepseek")
"""


def test_a_sweep_checks_every_run_before_the_first(mixed, tmp_path, capsys):
    file = tmp_path / "sweep.py"
    for most, code in ((99.0, 0), (0.01, 2)):
        words, powers = (dataclasses.replace(part, changes=()) for part in mixed.data.mix)
        powers = dataclasses.replace(powers, max_epochs=most)
        run = dataclasses.replace(replaced(mixed, mix=(words, powers)), eval_batches=None)
        file.write_text(f"VALUE = {config.to_dict(run)!r}\n{SWEEP}")
        assert main.main(["sweep", str(file), "--estimate"]) == code
    printed = capsys.readouterr()
    assert "2 runs in" in printed.out
    assert "cannot start:" in printed.err and "'powers' would be read" in printed.err


@pytest.mark.slow
def test_a_killed_command_goes_on(mixed, home, tmp_path, assert_same_run):
    """SIGKILL at three random moments before, at and after the change of weights."""
    weights = (dataclasses.replace(part, max_epochs=99.0) for part in mixed.data.mix)
    run = replaced(mixed, mix=tuple(weights), workers=1)
    run = dataclasses.replace(run, steps=60, checkpoint=runs.Checkpoint(every=2, keep_last=2))
    loop.run(dataclasses.replace(run, name="whole"))
    file = tmp_path / "config.json"
    file.write_text(json.dumps(config.to_dict(run)))
    environment = os.environ | {"PYTHONPATH": str(sources.ROOT), "XDG_CACHE_HOME": str(home)}
    command = [sys.executable, "-m", "jaxlm", "train", str(file)]
    place, draw = runs.folder(run) / "checkpoints", np.random.default_rng(0)
    for least in (2, 6, 30):
        with open(tmp_path / "log", "a") as log:
            process = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
        until = time.monotonic() + 120
        while process.poll() is None and time.monotonic() < until:
            steps = [int(p.name) for p in place.glob("*") if p.name.isdecimal()]
            if max(steps, default=0) >= least:
                break
            time.sleep(0.02)
        time.sleep(draw.uniform(0, 0.1))
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert subprocess.run(command, env=environment, capture_output=True).returncode == 0
    assert_same_run(dataclasses.replace(run, name="whole"), run)
