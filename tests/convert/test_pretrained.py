"""From a checkpoint to a run directory and back, by the commands; and training from it."""

import dataclasses
import json
import os
import pathlib
import shutil
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

from jaxlm import models
from jaxlm.cli import launch, main
from jaxlm.convert import pretrained, read
from jaxlm.core import param
from jaxlm.data import kinds, pretraining, tokenizers
from jaxlm.data.records import prompts
from jaxlm.decode import completions, token_sampling
from jaxlm.models import llama
from jaxlm.train import loop, trained_weights
from jaxlm.train.optim import optimizer
from jaxlm.train.run import checkpoint, integrity
from jaxlm.train.run import run as runs
from tests.convert.test_checkpoint import equal, save

CFG = llama.Config(vocab=280, embed=16, layers=2, heads=2, kv=1, head=8, ffn=24, context=32)
TEXTS = [f"number {i} and the {'same words ' * (i % 5)}again" for i in range(60)]


@pytest.fixture(scope="module")
def hf(tmp_path_factory):
    """A checkpoint with a byte-level tokenizer.json of 270 ids, fewer than the model's 280, and
    two ids that end a text."""
    folder = tmp_path_factory.mktemp("checkpoint")
    save(folder, CFG)
    trained = tokenizers.train("byte_bpe", TEXTS, 270, str(folder / "trained"))
    (folder / "trained" / "tokenizer.json").rename(folder / "tokenizer.json")
    names = {"bos_token": "<|bos|>", "eos_token": "<|eos|>", "pad_token": "<|pad|>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(names))
    ids = {"bos_token_id": 1, "eos_token_id": [trained.special["eos"], 77], "pad_token_id": 0}
    (folder / "generation_config.json").write_text(json.dumps(ids | {"temperature": 0.6}))
    return folder


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A working directory with a corpus, and caches of its own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(launch, "devices", lambda count: None)
    pathlib.Path("corpus.jsonl").write_text("\n".join(json.dumps({"text": t}) for t in TEXTS))
    return tmp_path


def failure(capsys, *args):
    assert main.main(args) == 2
    return capsys.readouterr().err


def test_imported_sampled_scored_exported(hf, place, capsys):
    assert main.main(["import", str(hf), "runs/given"]) == 0
    folder = pathlib.Path("runs/given")
    assert integrity.fault(folder / "checkpoints" / "0") is None
    saved = trained_weights.load(folder)
    assert saved.step == 0
    assert saved.run.model == CFG
    assert equal(saved.params, read.load(hf)[1])
    assert saved.run.data.tokenizer == "runs/given/tokenizer"
    assert tokenizers.load(saved.run.data.tokenizer).vocab == 270
    assert trained_weights.stop_tokens(folder) == (2, 77)
    capsys.readouterr()
    assert main.main(["sample", "runs/given", "--prompt", "num", "--max-new", "4"]) == 0
    assert capsys.readouterr().out.startswith("num")
    scored = ["eval", "runs/given", "--data.source", "corpus.jsonl", "--data.seq", "32"]
    assert main.main([*scored, "--data.holdout", "0.3"]) == 0
    assert json.loads(capsys.readouterr().out)["step"] == 0
    assert (
        main.main(["export", "runs/given", "out", "--dtype", "bfloat16", "--shard-gb", "1e-5"]) == 0
    )
    back = pathlib.Path("out")
    record = json.loads((back / "config.json").read_text())
    assert record["dtype"] == "bfloat16"
    assert record["eos_token_id"] == [2, 77]
    assert json.loads((back / "generation_config.json").read_text())["temperature"] == 0.6
    for name in ("tokenizer.json", "tokenizer_config.json"):
        assert (back / name).read_bytes() == (hf / name).read_bytes()
    assert (back / "model.safetensors.index.json").is_file()
    rounded = jax.tree.map(lambda w: w.astype(jax.numpy.bfloat16).astype(np.float32), saved.params)
    assert equal(read.load(back)[1], rounded)
    assert "not empty" in failure(capsys, "export", "runs/given", "out")
    assert "not empty" in failure(capsys, "import", str(hf), "runs/given")


def test_nothing_is_left_of_an_import_that_fails(hf, place, capsys, monkeypatch):
    def broken(*_):
        raise OSError("No space left on device")

    monkeypatch.setattr(checkpoint, "commit_weights", broken)
    assert "No space left" in failure(capsys, "import", str(hf), "runs/given")
    assert list(pathlib.Path("runs").iterdir()) == []


@pytest.mark.slow
def test_a_killed_import_is_swept_by_the_next(hf, place):
    """It left a hidden copy of the model in runs/ for ever."""
    command = [sys.executable, "-m", "jaxlm", "import", str(hf), "runs/killed"]
    root = str(pathlib.Path(main.__file__).parents[1])
    process = subprocess.Popen(command, env=os.environ | {"PYTHONPATH": root})
    until = time.monotonic() + 120
    while time.monotonic() < until and not [*pathlib.Path().glob("runs/.killed.*/checkpoints/0*")]:
        time.sleep(0.001)
    process.kill()
    assert process.wait() == -9
    assert len([*pathlib.Path("runs").iterdir()]) == 1
    pretrained.import_run(hf, pathlib.Path("runs/given"))
    assert [path.name for path in pathlib.Path("runs").iterdir()] == ["given"]


def test_tokenizers_that_do_not_fit_are_refused(hf, place, capsys, tmp_path):
    small = tmp_path / "small"
    small.mkdir()
    save(small, dataclasses.replace(CFG, vocab=100))
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (small / name).write_bytes((hf / name).read_bytes())
    (small / "tokenizer.json").unlink()
    (small / "vocab.json").write_text("{}")
    assert "['vocab.json']" in failure(capsys, "import", str(small), "r")
    named = ("import", str(small), "r", "--tokenizer", "bytes")
    assert "'bytes': the tokenizer has 259 ids, the model 100" in failure(capsys, *named)
    (small / "vocab.json").unlink()
    assert main.main(["import", str(small), "r"]) == 0
    assert "small has no tokenizer: `bytes` is used in its place" in capsys.readouterr().err
    scored = ("eval", "r", "--data.source", "corpus.jsonl", "--data.holdout", "0.3")
    assert "token id 257 is outside the model's vocabulary 0..99" in failure(capsys, *scored)
    assert "--no-tokenizer" in failure(capsys, "export", "r", "out")
    assert main.main(["export", "r", "out", "--no-tokenizer"]) == 0
    assert equal(read.load(pathlib.Path("out"))[1], read.load(small)[1])


def test_another_tokenizer_than_the_checkpoints_own_is_a_warning(hf, place, capsys):
    """`--tokenizer bytes` gave a model other ids than it was trained on, without a word."""
    assert main.main(["import", str(hf), "r", "--tokenizer", "bytes"]) == 0
    warnings = capsys.readouterr().err
    assert warnings.count("warning: tokenizer 'bytes'") == 1
    assert "has ids [84, 104, 101, 32]... by it and [" in warnings and f"by {hf}'s own" in warnings
    (place / "same").mkdir()
    beside(hf, place / "same")
    assert main.main(["import", str(hf), "s", "--tokenizer", str(place / "same")]) == 0
    assert "'s own" not in capsys.readouterr().err


def drawing(token, cfg):
    """Weights of a LLaMA that likes one token whatever it reads."""
    params = param.map(lambda p: np.zeros(p.shape, np.float32), models.spec(cfg))
    params["embed"]["table"][:] = params["norm"][:] = 1
    params["unembed"][:, token] = 1
    return params


def beside(hf, folder):
    """Copy the tokenizer to another checkpoint."""
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).write_bytes((hf / name).read_bytes())


@pytest.mark.slow
def test_an_id_beyond_the_tokenizer_has_no_text_wherever_it_is_drawn(hf, place, capsys):
    """The vocabulary of Qwen, Pythia and others is padded beyond their tokenizer's: `jaxlm sample`
    ended in a traceback where the model drew a padding id."""
    padded = place / "padded"
    padded.mkdir()
    save(padded, CFG, params=drawing(275, CFG))
    beside(hf, padded)
    assert main.main(["import", str(padded), "runs/padded"]) == 0
    warnings = capsys.readouterr().err
    assert "the model has 280 ids, the tokenizer 270: ids from 270 on have no text" in warnings
    assert main.main(["sample", "runs/padded", "--prompt", "num", "--max-new", "4"]) == 0
    assert capsys.readouterr().out.strip() == "num"
    saved = trained_weights.load(pathlib.Path("runs/padded"))
    tokenizer = tokenizers.load(saved.run.data.tokenizer)
    settings = token_sampling.Sampling(max_new=4, temperature=0.0, stop_strings=("x",))
    (completion,) = completions.complete(saved.model, saved.params, tokenizer, ["num"], settings)
    assert (completion.text, completion.tokens, completion.finish) == ("", [275] * 4, "length")


def test_a_tokenizer_with_more_ids_than_the_model(hf, place, capsys):
    """gemma-3-1b has 262,144 ids, its tokenizer 262,145, and was refused. Such an id is refused by
    name where a text has it, in prompts and in data."""
    last = max(tokenizers.load(str(hf)).encode("again"))
    small = dataclasses.replace(CFG, vocab=last)
    (place / "less").mkdir()
    save(place / "less", small)
    beside(hf, place / "less")
    assert main.main(["import", "less", "runs/less"]) == 0
    message = f"the tokenizer has 270 ids, the model {last}: texts with an id from {last} on"
    assert message in capsys.readouterr().err
    assert main.main(["sample", "runs/less", "--prompt", "x", "--max-new", "2"]) == 0
    capsys.readouterr()
    named = f"token {last} is outside the vocabulary 0..{last - 1}"
    assert named in failure(capsys, "sample", "runs/less", "--prompt", "again", "--max-new", "2")
    named = f"token id {last} is outside the model's vocabulary 0..{last - 1}"
    scored = ("eval", "runs/less", "--data.source", "corpus.jsonl", "--data.seq", "32")
    assert named in failure(capsys, *scored, "--data.holdout", "0.3")
    with pytest.raises(ValueError, match="model.vocab: .* at least 270, the ids of"):
        loop.run(tuned(hf, place, model=small, start=None))
    with pytest.raises(ValueError, match=named):
        loop.run(tuned(hf, place, model=small, start="runs/less"))
    questions = place / "asked.jsonl"
    questions.write_text(json.dumps({"prompt": "again"}))
    data = prompts.Prompts(source=str(questions), tokenizer=str(hf), seq=32, batch=1, holdout=0.0)
    with pytest.raises(ValueError, match=f"asked.jsonl, examples from 0 on: {named}"):
        kinds.prepare(data, False, last)


@pytest.mark.parametrize("kind", ["byte_bpe", "bpe", "wordpiece"])
def test_tokenizers_trained_here_are_written_in_a_form_of_transformers(tmp_path, kind):
    from jaxlm.convert import tokenizer_files

    extra = {"wordpiece": 80, "byte_bpe": 262, "bpe": 290}
    ours = tokenizers.train(kind, TEXTS, extra[kind], str(tmp_path / "ours"))
    (tmp_path / "theirs").mkdir()
    tokenizer_files.give(str(tmp_path / "ours"), tmp_path / "theirs")
    name = tokenizer_files.named(tmp_path / "theirs")
    assert name == ("tokenizer.model" if kind == "bpe" else "")
    theirs = tokenizers.load(str(tmp_path / "theirs" / name))
    assert theirs.encode("the same words again") == ours.encode("the same words again")
    assert theirs.special["eos"] == ours.special["eos"]


# --- Training from it -------------------------------------------------------------------------


def tuned(hf, place, **changes):
    """A run of three steps from runs/given."""
    source, words = str(place / "corpus.jsonl"), str(hf)
    run = runs.Run(
        name="tuned",
        model=dataclasses.replace(CFG, window=8, context=64),
        data=pretraining.Data(source=source, tokenizer=words, seq=32, batch=4, holdout=0.3),
        optim=optimizer.Optim(lr=1e-3, warmup=1),
        start="runs/given",
        steps=3,
        log_every=1,
        eval_every=None,
        checkpoint=runs.Checkpoint(every=1),
        out=str(place / "runs"),
    )
    return dataclasses.replace(run, **changes)


@pytest.mark.slow
def test_a_run_starts_from_an_imported_one(hf, place, capsys):
    """From its weights, with a fresh optimiser; recorded; and resumed without it."""
    pretrained.import_run(hf, pathlib.Path("runs/given"))
    given = trained_weights.load(pathlib.Path("runs/given")).params
    run = tuned(hf, place)
    frozen = dataclasses.replace(run, name="frozen", optim=dataclasses.replace(run.optim, lr=1e-30))
    assert loop.run(dataclasses.replace(frozen, steps=2)).step == 2
    assert equal(trained_weights.load(place / "runs" / "frozen").params, given)
    assert loop.run(run).step == 3
    warnings = capsys.readouterr().err
    assert "model.window: None -> 8" in warnings
    env = json.loads((place / "runs" / "tuned" / "env.json").read_text())
    assert env["start"]["folder"] == "runs/given"
    trained = param.flatten(trained_weights.load(place / "runs" / "tuned").params)
    assert not all(np.array_equal(w, trained[p]) for p, w in param.flatten(given).items())
    # the given run may go: what is resumed has its own weights
    pathlib.Path("runs/given").rename("runs/gone")
    (place / "runs" / "tuned" / "result.json").unlink()
    shutil.rmtree(place / "runs" / "tuned" / "checkpoints" / "3")
    assert loop.run(run).step == 3
    again = param.flatten(trained_weights.load(place / "runs" / "tuned").params)
    assert all(np.array_equal(w, again[p]) for p, w in trained.items())
    assert json.loads((place / "runs" / "tuned" / "env.json").read_text())["start"] == env["start"]


def test_starts_that_cannot_be_are_refused_before_compute(hf, place):
    with pytest.raises(ValueError, match="start: .*given is no run directory"):
        loop.run(tuned(hf, place))
    pretrained.import_run(hf, pathlib.Path("runs/given"))
    wrong = tuned(hf, place, model=dataclasses.replace(CFG, ffn=32))
    with pytest.raises(ValueError, match=r"ffn/down is \[2, 24, 16\] in runs/given, and \[2, 32"):
        loop.run(wrong)
