"""Runs whose loss is not finite, and what a saved run may be given."""

import dataclasses
import json
import math

import numpy as np
import pytest

from jaxlm.cli import main
from jaxlm.cli.commands import listing
from jaxlm.core import json_file
from jaxlm.data import pretraining, tokenizers
from jaxlm.data.records import chats
from jaxlm.data.sources import source
from jaxlm.scaling.reading import run_directories
from jaxlm.train import initial_weights, loop, trained_weights
from jaxlm.train.optim import optimizer
from jaxlm.train.run import checkpoint, directory, metrics, plot
from jaxlm.train.run import run as runs
from jaxlm.train.run.trackers import tensorboard

# --- A loss that is not finite ---------------------------------------------------------------


@pytest.fixture(scope="module")
def diverged(home, tmp_path_factory):
    """(Run, Result) of a run at a learning rate of 1e15."""
    from tests.train.conftest import base

    run = base(home, tmp_path_factory.mktemp("diverged") / "runs")
    run = dataclasses.replace(run, optim=optimizer.Optim(lr=1e15, warmup=1), eval_every=4, steps=12)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(home))
        return run, loop.run(run)


def test_a_run_that_diverges_ends_at_the_evaluation_that_shows_it(diverged, capsys):
    """It crashed with a TypeError where its validation line was printed, could not be run again,
    and broke `jaxlm list` for the whole folder."""
    run, result = diverged
    folder = runs.folder(run)
    assert (result.exit_code, result.step) == (directory.DIVERGED, 4) == (3, 4)
    assert result.diverged.startswith("held-out nll is ")
    assert checkpoint.steps(folder / "checkpoints") == [3]  # what was good is not pushed out
    again = loop.run(run)
    assert again == result and again.exit_code == 3
    told = capsys.readouterr().err
    for word in ("diverged at step 4 of 12", "--name", "--optim.lr below 1e+15", "sampled"):
        assert word in told
    ((_, state),) = listing.runs(folder.parent)
    assert state.startswith("diverged at step 4 of 12: held-out nll is ")
    assert plot.loss(folder) == folder / "loss.png"
    with pytest.raises(ValueError, match="start: .* diverged at step 4"):
        initial_weights.check(dataclasses.replace(run, name="next", start=str(folder)))
    with pytest.raises(ValueError, match="no finished run: tiny: it diverged: held-out nll"):
        run_directories.read(folder, run_directories.Counting("total"), False, False)


def test_numbers_that_are_not_finite_are_null_and_say_which_they_were(diverged):
    folder = runs.folder(diverged[0])
    lines = (folder / metrics.FILE).read_text().splitlines()
    seen = [json.loads(line, parse_constant=pytest.fail) for line in lines]
    json.loads((folder / "result.json").read_text(), parse_constant=pytest.fail)
    val = next(r for r in seen if r["split"] == "val")
    assert val["nll"] is None and val["not_finite"]["nll"] in ("nan", "inf")
    assert not math.isfinite(json_file.number(val, "nll"))
    assert json_file.number(val, "step") == 4 and json_file.number(val, "absent") is None


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_records_keep_what_json_cannot(value):
    record = {"a": value, "b": 1.5, "inner": {"c": value}, "list": [1.0, value]}
    back = json.loads(json.dumps(json_file.plain(record), allow_nan=False))
    assert str(json_file.number(back, "a")) == str(value)
    assert str(json_file.number(back["inner"], "c")) == str(value)
    assert back["b"] == 1.5 and back["list"] == [1.0, None]


def test_every_evaluation_has_words():
    text = directory.score_text
    assert text(None) == "not evaluated"
    assert (
        text({"nll": 2.0, "bits_per_byte": 1.0})
        == "val 1.0000 bits per byte, 2.0000 nats per token"
    )
    assert "nan" in text(json_file.plain({"nll": math.nan, "bits_per_byte": math.nan}))
    assert text({"nll": None, "bits_per_byte": None}) == "val nan nats per token"  # 0.1.0 wrote so
    assert text(json_file.plain({"step": 3, "loss": math.inf, "weight": 4.0})) == "val loss inf"
    learnt = {"step": 3, "loss": 3.5, "weight": 4.0, "nll": 3.5, "accuracy": 0.25}
    assert text(learnt) == "val loss 3.5000, nll 3.5000, accuracy 0.2500"
    hidden = {"nll": 2.0, "bits_per_byte": None, "unigram": 3.0, "accuracy": 0.5}
    assert "per hidden token" in text(hidden)


def test_tensorboard_gets_numbers_beyond_float32(tmp_path):
    """A perplexity is exp(nll): from 89 nats on it is beyond float32, and struct refuses it."""
    written = tensorboard.open(tmp_path)
    written.write(1, {"a": 1e300, "b": -1e300, "c": math.nan, "d": math.inf})
    assert np.frombuffer(tensorboard._float(1e300), "<f4")[0] == np.inf
    assert written.path.stat().st_size > 40


def test_a_run_without_evaluations_is_judged_by_its_last_loss():
    seen = [{"step": 9, "split": "train", "loss": 1.0}, {"step": 9, "split": "val", "nll": 1.0}]
    assert directory.divergence(seen, 9) is None
    assert directory.divergence([seen[0] | {"loss": math.nan}, seen[1]], 9) is None
    assert directory.divergence([seen[0] | {"loss": math.nan}], 9) == "training loss is nan"


# --- What a saved run may be given -----------------------------------------------------------


def test_another_tokenizer_is_refused_by_its_hash(whole, tmp_path, capsys):
    """`jaxlm eval --data.tokenizer bytes` of a run of another tokenizer printed 9.77 bits per byte
    where 5.03 was right."""
    run, folder = whole[0], str(runs.folder(whole[0]))
    texts = [d.text for d in source.documents(run.data.source)]
    tokenizers.train("byte_bpe", texts, 259, str(tmp_path / "bpe"))
    assert main.main(["eval", folder, "--data.tokenizer", str(tmp_path / "bpe")]) == 2
    told = capsys.readouterr().err
    assert told.startswith("jaxlm: data.tokenizer: ") and "trained with 'bytes' (hash" in told
    data = dataclasses.replace(run.data, tokenizer=str(tmp_path / "bpe"))
    other = dataclasses.replace(run, name="next", start=folder, data=data)
    with pytest.raises(
        ValueError, match=r"data.tokenizer: .*were trained with 'bytes'.*this one has "
    ):
        initial_weights.check(other)


@pytest.mark.parametrize(
    "change, field",
    [
        ({"ramp": ((2, 8),)}, "data.ramp"),
        ({"infill": pretraining.infilling.Infill(0.5)}, "data.infill"),
        ({"seq": 16, "batch": 2, "holdout": 0.5, "source": "pydocs", "packing": "concat"}, None),
    ],
)
def test_what_may_be_given_to_an_evaluation_is_a_list(whole, change, field):
    run, folder = whole[0], runs.folder(whole[0])
    data = dataclasses.replace(run.data, **change)
    if field is None:
        trained_weights.refuse_changes(folder, run, data)
        return
    with pytest.raises(ValueError, match=rf"{field}: .*what may be given: data.source"):
        trained_weights.refuse_changes(folder, run, data)


def test_another_template_is_refused_where_one_was_learnt(whole):
    folder, data = runs.folder(whole[0]), chats.Chats("x.jsonl", template="vicuna")
    run = dataclasses.replace(whole[0], data=data)
    trained_weights.refuse_template(folder, run, "vicuna")
    trained_weights.refuse_template(folder, whole[0], "chatml")  # a run of text knows none
    with pytest.raises(ValueError, match="template: 'plain' given, .*'vicuna'; leave it out"):
        trained_weights.refuse_template(folder, run, "plain")
    with pytest.raises(ValueError, match="data.learn: 'last' given"):
        trained_weights.refuse_changes(folder, run, dataclasses.replace(data, learn="last"))


@pytest.mark.parametrize("field, value, right", [("theta", 5e5, True), ("eps", 1e-2, False)])
def test_a_start_may_change_positions_and_nothing_else(whole, field, value, right):
    run = whole[0]
    model = dataclasses.replace(run.model, **{field: value})
    other = dataclasses.replace(run, name="next", start=str(runs.folder(run)), model=model)
    if right:
        assert any(f"model.{field}" in line for line in initial_weights.check(other))
        return
    with pytest.raises(ValueError, match=rf"model.{field}: .*only context, scaling, theta"):
        initial_weights.check(other)


def test_more_steps_than_a_run_has_names_the_ways_on(whole):
    run = dataclasses.replace(whole[0], steps=50)
    with pytest.raises(ValueError, match=r"steps=12, this one has steps=50; .*--start ") as error:
        directory.finished(run)
    assert "--trunk" not in str(error.value)
    wsd = dataclasses.replace(run, optim=dataclasses.replace(run.optim, schedule="wsd"))
    changes = [("steps", 12, 50)]
    assert "--trunk" in directory._other(runs.folder(run), wsd, changes)
    with pytest.raises(ValueError, match="give this run another name"):
        directory.finished(dataclasses.replace(run, steps=5))
