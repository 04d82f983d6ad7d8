"""Checkpoints of the Hugging Face hub, which here is a function in its place."""

import dataclasses
import json
import pathlib
import shutil
import types

import huggingface_hub
import pytest
from huggingface_hub import errors

from jaxlm.cli import main
from jaxlm.convert import read
from jaxlm.data import pretraining
from jaxlm.train import initial_weights, trained_weights
from jaxlm.train.run import checkpoint
from jaxlm.train.run import run as runs
from tests.convert.test_checkpoint import equal
from tests.convert.test_pretrained import CFG, failure, hf, place

__all__ = ["hf", "place"]

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def asked(hf, place, monkeypatch):
    """What the hub is asked for: it has one repository, org/name, whose only revision is main."""
    asked, snapshot = [], place / "hub" / COMMIT
    shutil.copytree(hf, snapshot)

    def download(repository, revision, allow_patterns, ignore_patterns):
        asked.append((repository, revision))
        answer = types.SimpleNamespace(headers={}, request=None)
        if repository != "org/name":
            raise errors.RepositoryNotFoundError("404", response=answer)
        if revision not in (None, "main"):
            raise errors.RevisionNotFoundError("404", response=answer)
        assert "*.safetensors" in allow_patterns and ignore_patterns == ["*/*"]
        return str(snapshot)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    return asked


@pytest.mark.parametrize("name", ["hf://org/name", "hf://org/name@main", "org/name"])
def test_a_checkpoint_on_the_hub_is_imported_and_its_commit_recorded(hf, asked, name):
    assert main.main(["import", name, "runs/given"]) == 0
    assert asked == [("org/name", "main" if "@" in name else None)]
    facts = checkpoint.facts("runs/given/checkpoints", 0)
    assert facts["imported"] == "hf://org/name" and facts["revision"] == COMMIT
    assert json.loads(pathlib.Path("runs/given/env.json").read_text())["revision"] == COMMIT
    assert equal(trained_weights.load("runs/given").params, read.load(hf)[1])


def test_the_hub_is_not_asked_for_what_may_be_a_folder(hf, place, asked, capsys):
    """A folder of that name is taken; where only the folder above it is there, the name is a path
    with a typing error in it, and goes to nobody."""
    shutil.copytree(hf, "org/name")
    assert main.main(["import", "org/name", "runs/given"]) == 0
    assert checkpoint.facts("runs/given/checkpoints", 0)["imported"] == "org/name"
    assert "org/other is not a checkpoint" in failure(capsys, "import", "org/other", "runs/b")
    assert "x/y is not a checkpoint" in failure(capsys, "import", str(place / "x/y"), "b")
    assert asked == []
    assert main.main(["import", "hf://org/name", "runs/hub"]) == 0
    assert asked == [("org/name", None)]


def test_what_the_hub_does_not_have_is_a_line(asked, capsys):
    assert "hf://a/b: no such repository" in failure(capsys, "import", "a/b", "runs/x")
    line = failure(capsys, "import", "hf://org/name@v9", "runs/x")
    assert "hf://org/name@v9: the repository has no revision 'v9'" in line
    assert not pathlib.Path("runs").exists()
    run = dataclasses.replace(
        runs.Run(name="x", model=CFG, data=pretraining.Data("corpus.jsonl")), start="hf://a/b@v1"
    )
    with pytest.raises(ValueError, match="start: hf://a/b@v1 .* `jaxlm import hf://a/b@v1 runs/b`"):
        initial_weights.check(run)
