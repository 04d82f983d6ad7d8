"""A reward model from records to rewards: trained, stopped, resumed, judged, asked, exported."""

import dataclasses
import json

import numpy as np
import pytest

from jaxlm.cli import main
from jaxlm.convert import pretrained, tensor_files
from jaxlm.data import tokenizers
from jaxlm.data.records import preferences
from jaxlm.data.synthetic import bradley_terry
from jaxlm.eval import reward_model
from jaxlm.objectives.preference import reward
from jaxlm.train import loop, trained_weights
from jaxlm.train.run import run as runs


@pytest.fixture
def source(tmp_path):
    """A file of 48 pairs and lists of three."""
    values = [record for _, record in zip(range(32), bradley_terry.pairs())]
    for record, _ in zip(bradley_terry.lists(), range(16)):
        values.append(record | {k: record[k][:3] for k in ("responses", "ranks")})
    file = tmp_path / "preferences.jsonl"
    file.write_text("".join(json.dumps(value) + "\n" for value in values))
    return str(file)


@pytest.mark.slow
def test_a_reward_model_from_end_to_end(tiny, stopping, assert_same_run, source, tmp_path, capsys):
    data = preferences.Preferences(source=source, seq=16, batch=4, holdout=0.3)
    whole = tiny(
        data=data, objective=reward.Config(centre=0.01), steps=6, log_every=1, eval_every=3
    )
    whole = dataclasses.replace(whole, eval_batches=None)
    result = loop.run(whole)
    told = {"loss", "nll", "accuracy", "margin", "brier", "calibration", "reward_mean"}
    assert result.val is not None and told <= result.val.keys()

    # stopped in the middle and started again: the same bits
    parted = dataclasses.replace(whole, name="parted")
    with stopping(2, 4):
        assert loop.run(parted).signal
    loop.run(parted)
    assert_same_run(whole, parted)

    # `jaxlm eval` says what the last evaluation said, and reads other sources
    folder = runs.folder(whole)
    capsys.readouterr()
    assert main.main(["eval", str(folder)]) == 0
    found = json.loads(capsys.readouterr().out)
    for name in told:
        assert found[name] == pytest.approx(result.val[name], abs=1e-5), name
    assert main.main(["eval", str(folder), "--split", "train", "--data.holdout", "0"]) == 0
    assert json.loads(capsys.readouterr().out)["rows"] == 48

    # rewards from Python and from the command line; padding and company change nothing
    judge = trained_weights.judge(folder)
    asked = [("awxyz:", "aab"), ("b:", "c"), ("awxyz:", "d" * 8)]
    values = reward_model.score(judge, asked)
    assert values.shape == (3,) and len(set(values.tolist())) == 3
    np.testing.assert_allclose(reward_model.score(judge, asked[1:2]), values[1:2], atol=1e-6)
    argv = ["score", str(folder), "--prompt", "awxyz:", "--response", "aab", "--response", "d" * 8]
    assert main.main(argv) == 0
    lines = [json.loads(line)["score"] for line in capsys.readouterr().out.splitlines()]
    np.testing.assert_allclose(lines, values[[0, 2]], atol=1e-6)
    with pytest.raises(ValueError, match="response 1: a response is too long for data.seq=16"):
        reward_model.score(judge, [("a", "b"), ("a", "b" * 20)])

    # a classifier of transformers
    target = tmp_path / "exported"
    assert pretrained.export_run(folder, target, with_tokenizer=False) == "llama"
    record = json.loads((target / "config.json").read_text())
    assert record["architectures"] == ["LlamaForSequenceClassification"]
    assert record["pad_token_id"] == tokenizers.load("bytes").special["pad"]
    assert tensor_files.find(target)["score.weight"].shape == (1, 16)
