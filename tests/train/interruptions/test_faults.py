"""Damaged files are named and mended; lines stand where tracebacks were."""

import dataclasses
import json
import pathlib
import shutil

import numpy as np
import pytest

from jaxlm.cli import main
from jaxlm.cli.commands import listing
from jaxlm.core import io, json_file
from jaxlm.data import pretraining, tokenizers
from jaxlm.data.records import examples, records
from jaxlm.data.sources import source
from jaxlm.data.tokenized import shard_cache, shards
from jaxlm.train import loop, precompute, trained_weights
from jaxlm.train.rl import reward_functions
from jaxlm.train.run import branching, checkpoint, directory, integrity, metrics
from jaxlm.train.run import run as runs

# --- Damaged files ---------------------------------------------------------------------------


@pytest.fixture
def copied(whole, tmp_path, monkeypatch, home):
    """The finished tiny run in a place of its own: (Run, folder)."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(home))
    run = dataclasses.replace(whole[0], out=str(tmp_path / "runs"))
    shutil.copytree(runs.folder(whole[0]), runs.folder(run))
    return run, runs.folder(run)


def _written(run, folder, step):
    """(mark, due): what a checkpoint of the run vouches for of its metrics.jsonl."""
    mark = metrics.Mark(*checkpoint.facts(folder / "checkpoints", step)["metrics"])
    return mark, runs.records_due(run, step)


@pytest.mark.parametrize("damage", ["garbage", "deleted", "altered"])
def test_a_damaged_config_is_named_and_written_again(copied, capsys, damage):
    run, folder = copied
    file = folder / "config.json"
    before = file.read_text()
    if damage == "garbage":
        file.write_bytes(b"\xff\xfe\x00")
    elif damage == "deleted":
        file.unlink()
    else:
        file.write_text(before.replace('"theta": 10000.0', '"theta": 90000.0'))
        with pytest.raises(ValueError, match=r"model.theta=90000.0, .*model.theta=10000.0"):
            directory.load(folder)
    if damage != "altered":
        assert directory.load(folder) == whole_fields(run)
        assert "config.json" in capsys.readouterr().err
    assert loop.run(run).exit_code == 0
    assert "config.json" in capsys.readouterr().err
    assert json.loads(file.read_text()) == json.loads(before) | {"out": run.out}


def whole_fields(run):
    """The run as its checkpoints repeat it: in the place where it was trained."""
    return dataclasses.replace(run, out=directory._trained(directory.proof(runs.folder(run))).out)


@pytest.mark.parametrize("name", ["config.json", "env.json"])
def test_a_run_that_had_saved_nothing_begins_anew(tiny, tmp_path, name):
    """Killed before its first checkpoint, it was refused for a file of which nothing was lost."""
    run = tiny()
    (runs.folder(run) / "checkpoints").mkdir(parents=True)
    (runs.folder(run) / name).write_text("")
    assert directory.finished(run) is None and trained_weights.begun(runs.folder(run)) == {}


def test_weights_are_read_where_the_result_is_damaged(copied, capsys):
    (copied[1] / "result.json").write_text("{")
    assert directory.trained(copied[1]) == whole_fields(copied[0])
    assert "result.json: not JSON" in capsys.readouterr().err


def test_a_damaged_result_is_made_again_from_the_last_checkpoint(copied, capsys):
    run, folder = copied
    file = folder / "result.json"
    record = json.loads(file.read_text())
    file.write_text(file.read_text().replace('"step": 12', '"step": 13'))
    ((_, state),) = listing.runs(folder.parent)
    assert state.startswith("damaged: ") and "result.json: not what was written" in state
    (folder / "env.json").write_text("[" * 100_000)
    assert loop.run(run).step == 12
    printed = capsys.readouterr()
    assert "result.json: not what was written" in printed.err
    assert "env.json: JSON nested too deeply" in printed.out
    again = json.loads(file.read_text())
    assert again["val"] == record["val"] and again["step"] == 12


@pytest.mark.parametrize(
    "damage, told",
    [
        (lambda data: data[:100], "records missing of steps: train 1, train 2"),
        (lambda data: b"", "is missing or empty; records missing of steps: train 1"),
        (lambda data: data.replace(b'"step": 4', b'"\x80ep": 4', 1), "line 3 is no record"),
        (lambda data: data.replace(b'"loss": ', b'"loss": 1', 1), "is not what was written"),
    ],
)
def test_records_that_are_missing_after_a_resume_are_told(copied, damage, told):
    run, folder = copied
    file, warned = folder / metrics.FILE, []
    file.write_bytes(damage(file.read_bytes()))
    metrics.Writer(folder, 12, True, warned.append, *_written(run, folder, 12))
    (line,) = warned
    assert told in line and str(file) in line
    list(metrics.records(file))
    assert (folder / "metrics.jsonl.damaged").exists() == ("missing or empty" not in told)


def test_records_that_a_finished_run_lost_are_told(copied, capsys):
    """Only a resume told of them: of a finished run, list, eval, plot and train told nothing."""
    run, folder = copied
    file = folder / metrics.FILE
    written, state = file.read_bytes(), dict(listing.runs(folder.parent))[str(folder)]
    directory.warn_of_lost_records(folder)
    assert not capsys.readouterr().err and metrics.FILE not in state
    for damaged, told in (
        (b"", "is missing or empty; records missing of steps: train 1"),
        (written.replace(b'"loss": ', b'"loss": 1', 1), "is not what was written"),
        (written + b"torn\n", "is not what was written; line 10 is no record"),
        (written[:100], "is not what was written; records missing of steps: train 1, train 2"),
    ):
        file.write_bytes(damaged)
        assert dict(listing.runs(folder.parent))[str(folder)].startswith(f"{state}; {file} {told}")
    assert main.main(["eval", str(folder)]) == 0 and told in capsys.readouterr().err
    assert main.main(["plot", str(folder)]) == 2 and told in capsys.readouterr().err
    assert loop.run(run).step == 12 and told in capsys.readouterr().err


def test_records_that_a_diverged_run_lost_are_told(copied, capsys):
    """Its last checkpoint is older than its last records, or there is none."""
    _, folder = copied
    file = folder / "result.json"
    record = json_file.read_object(file) | {"diverged": "held-out nll is nan"}
    file.write_text(json_file.sealed(record))
    shutil.rmtree(folder / "checkpoints")
    directory.warn_of_lost_records(folder)
    assert not capsys.readouterr().err
    lines = (folder / metrics.FILE).read_bytes().splitlines(keepends=True)
    (folder / metrics.FILE).write_bytes(b"".join(lines[:-2]))
    directory.warn_of_lost_records(folder)
    assert "records missing of steps: train 12" in capsys.readouterr().err


def test_a_whole_file_is_told_nothing_of(copied):
    run, folder = copied
    before = (folder / metrics.FILE).read_bytes()
    with (folder / metrics.FILE).open("ab") as file:
        file.write(b'{"step": 14, "split": "train", "loss": 1.0}\n{"st')
    metrics.Writer(folder, 12, True, pytest.fail, *_written(run, folder, 12))
    assert (folder / metrics.FILE).read_bytes() == before


def test_a_branch_vouches_for_itself(copied, tmp_path):
    """A branch copies its trunk's checkpoint, whose facts are of another run."""
    place = copied[1] / "checkpoints" / "12"
    integrity.restate(place, {"run": "other"})
    assert integrity.fault(place) is None and integrity.facts(place)["run"] == "other"
    assert branching.integrity is integrity
    text = (place / "manifest.json").read_text()
    (place / "manifest.json").write_text(text.replace('"other"', '"ether"'))
    assert "manifest.json is damaged" in integrity.fault(place)


@pytest.mark.parametrize("name", ["manifest.json", "train/index.npy", "train/00000.array_record"])
def test_a_damaged_copy_of_shards_is_named_and_made_again(home, tmp_path, capsys, name):
    """A flipped byte gave "'utf-8' codec can't decode byte", or a traceback of Riegeli in
    mid-run."""
    data = pretraining.Data(source=str(home / "corpus.jsonl"), holdout=0.2)
    file = pathlib.Path(shard_cache.prepare(data, str(tmp_path))) / name
    right = file.read_bytes()
    file.write_bytes(right[:20] + bytes([right[20] ^ 255]) + right[21:])
    assert shard_cache.prepare(data, str(tmp_path)) == str(file.parents[name.count("/")])
    told = capsys.readouterr().err
    assert str(file) in told and "made again" in told and file.read_bytes() == right
    assert len(list(tmp_path.iterdir())) == 1


def test_a_damaged_shard_of_the_users_is_named_as_it_is_read(home, tmp_path):
    out = tmp_path / "shards"
    bytes_ = tokenizers.load("bytes")
    shards.tokenize(str(home / "corpus.jsonl"), "text", bytes_, str(out), 0.2)
    file = out / "train/00000.array_record"
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 255
    file.write_bytes(data)
    read = shards.open_shards(str(out), "train", bytes_.hash)
    with pytest.raises(ValueError, match=r"00000.array_record: corrupt \(.*tokenise the source"):
        read.docs(range(len(read)))


def test_damaged_targets_are_noticed(tmp_path):
    names = ("ids.npy", "log_probs.npy")
    for name in names:
        np.save(tmp_path / name, np.arange(4))
    sums = {name: io.sha256(tmp_path / name) for name in names}
    (tmp_path / precompute.SUMS).write_text(json_file.sealed({"files": sums}))
    assert precompute._fault(tmp_path, 4) is None
    assert precompute._fault(tmp_path, 5) == "ids.npy holds 4 rows of 5"
    np.save(tmp_path / names[1], np.arange(4)[::-1])
    assert precompute._fault(tmp_path, 4) == "log_probs.npy is not what was written"
    (tmp_path / names[1]).unlink()
    assert "log_probs.npy" in precompute._fault(tmp_path, 4)


@pytest.mark.parametrize("content", ["", "{", "[" * 100_000, "\xff"])
def test_a_damaged_tokenizer_is_named(tmp_path, content):
    tokenizers.train("byte_bpe", ["a text"] * 9, 259, str(tmp_path / "t"))
    for name in ("tokenizer.json", "jaxlm_tokenizer.json"):
        place = tmp_path / name
        shutil.copytree(tmp_path / "t", place)
        (place / name).write_bytes(content.encode("latin-1"))
        with pytest.raises(json_file.Damaged, match=str(place)):
            tokenizers.load(str(place))


# --- Lines where tracebacks were -------------------------------------------------------------

REWARDS = """
def brief(samples):
    return [len(s.response) / s.record["no such field"] for s in samples]
"""


def test_a_reward_that_raises_is_named_with_its_line(tmp_path):
    (tmp_path / "rewards.py").write_text(REWARDS)
    sample = reward_functions.Sample("p", "r", {}, True)
    with (
        reward_functions.opened([f"{tmp_path / 'rewards.py'}:brief"], retries=0) as given,
        pytest.raises(reward_functions.Failed) as error,
    ):
        given.score([sample])
    (line,) = str(error.value).splitlines()
    assert "KeyError: 'no such field'" in line and f"{tmp_path / 'rewards.py'}:3" in line
    assert "Traceback" in "".join(error.value.__notes__)


@pytest.mark.parametrize(
    "body, told",
    [
        ("import no_such_module\ndef config(): ...", "config.py:1: No module named 'no_such"),
        ("from jaxlm.models import lama\ndef config(): ...", "config.py:1: cannot import name"),
        ("def config():\n    return 1 / 0", "config.py:2: ZeroDivisionError: division by zero"),
        ("def config():\n    raise ValueError('seq: no')", "config.py:2: seq: no"),
    ],
)
def test_what_a_config_raises_is_a_line(tmp_path, capsys, body, told):
    (tmp_path / "config.py").write_text(body)
    assert main.main(["train", str(tmp_path / "config.py")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert told in line


def test_a_remote_source_that_cannot_be_reached_is_a_line(monkeypatch):
    class ClientError(Exception):
        """As aiohttp's, which is no OSError."""

    def fail(source):
        raise ClientError("Cannot connect to host\nmore")

    monkeypatch.setattr(source.files, "_listing", fail)
    with pytest.raises(ConnectionError, match="'gs://b/x' cannot be read: ClientError: Cannot"):
        source.files.listing("gs://b/x")
    with pytest.raises(ClientError):
        source.files.listing("local")
    monkeypatch.undo()
    with pytest.raises((ImportError, OSError, ValueError), match="https://nowhere.invalid/x.txt"):
        source.files.listing("https://nowhere.invalid/x.txt")


def test_deep_json_is_named(tmp_path):
    for name, read in (("a.jsonl", source.documents), ("a.jsonl", records.read)):
        (tmp_path / name).write_text('{"text": ' + "[" * 100_000 + "\n")
        with pytest.raises(ValueError, match=r"a.jsonl:1: JSON nested too deeply"):
            list(read(str(tmp_path / name)))
    (tmp_path / "b.json").write_text("[" * 100_000)
    with pytest.raises(ValueError, match="b.json: JSON nested too deeply"):
        list(records.read(str(tmp_path / "b.json")))


def test_an_empty_source_says_so(tmp_path):
    (tmp_path / "a.jsonl").write_text("")
    (tmp_path / "b.txt").write_text("")
    for read, name in ((source.documents, "a.jsonl"), (source.documents, "b.txt")):
        with pytest.raises(ValueError, match=f"{name} is empty: it holds no text"):
            list(read(str(tmp_path / name)))
    with pytest.raises(ValueError, match="a.jsonl is empty: it holds no record"):
        list(records.read(str(tmp_path / "a.jsonl")))


def test_a_batch_larger_than_the_data_is_refused(home, tmp_path):
    """It repeated rows within a step, and said nothing."""
    data = pretraining.Data(source=str(home / "corpus.jsonl"), seq=32, batch=4, holdout=0.2)
    text = shards.open_shards(
        shard_cache.prepare(data, str(tmp_path)), "train", tokenizers.load("bytes").hash
    )
    rows = len(pretraining.reader(data, text).rows)
    fits = dataclasses.replace(data, batch=rows)
    seen = pretraining.batch_at(fits, text, 0).tokens
    assert len(np.unique(seen, axis=0)) == rows
    for many in (
        dataclasses.replace(data, batch=rows + 1),
        dataclasses.replace(data, ramp=((9, rows + 1),)),
    ):
        with pytest.raises(ValueError, match=f"takes {rows + 1} rows, and there are only {rows}"):
            pretraining.batch_at(many, text, 0)
    with pytest.raises(ValueError, match="takes 9 rows, and there are only 5"):
        examples.Steps(range(5), 9, 0, 0, 0, 1)
