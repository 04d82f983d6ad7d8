"""Weights & Biases, in its place a module that notes what it is called with; the library itself
where it is installed."""

import dataclasses
import importlib.util
import json
import sys
import types

import pytest

from jaxlm.core import config
from jaxlm.train import loop
from jaxlm.train.run import metrics
from jaxlm.train.run import run as runs
from jaxlm.train.run.trackers import weights_biases


class Session:
    """What wandb.init returns."""

    def __init__(self, broken):
        self.sent, self.ended, self.axes, self.broken = [], None, [], broken

    def define_metric(self, name, step_metric):
        self.axes.append((name, step_metric))

    def log(self, numbers):
        if self.broken:
            raise RuntimeError("gone")
        self.sent.append(numbers)

    def finish(self, exit_code=0):
        self.ended = exit_code


@pytest.fixture
def wandb(monkeypatch):
    """wandb as a module whose `started` has (the arguments of init, the Session)."""
    module = types.ModuleType("wandb")
    module.__spec__ = importlib.util.spec_from_loader("wandb", None)
    module.started, module.broken = [], False

    def init(**given):
        module.started.append((given, Session(module.broken)))
        return module.started[-1][1]

    module.init = init
    monkeypatch.setitem(sys.modules, "wandb", module)
    return module


def test_a_run_sends_what_tensorboard_gets_and_goes_on_with_its_id(
    tiny, wandb, stopping, whole, assert_same_run
):
    run = tiny(wandb="me/demo")
    with stopping(15, 8):
        assert loop.run(run).signal == 15
    assert loop.run(run).exit_code == 0
    assert_same_run(whole[0], run)
    (first, cut), (again, rest) = wandb.started
    assert first["id"] == again["id"] and first["resume"] == "allow"
    assert (first["entity"], first["project"], first["name"]) == ("me", "demo", "tiny")
    assert config.from_dict(runs.Run, first["config"]) == run
    assert cut.axes == [("*", "step")] and cut.ended == rest.ended == 0
    sent = {n["step"]: n for n in (*cut.sent, *rest.sent) if "train/loss" in n}
    seen = {
        r["step"]: r["loss"]
        for r in metrics.records(runs.folder(run) / metrics.FILE)
        if r["split"] == "train"
    }
    assert {step: n["train/loss"] for step, n in sent.items()} == seen
    assert any("val/bits_per_byte" in n for n in rest.sent)
    assert any("train/tokens_per_second" in n for n in rest.sent)


def test_a_project_that_fails_ends_no_run(tiny, wandb, capsys):
    wandb.broken = True
    assert loop.run(tiny(wandb="demo")).exit_code == 0
    printed = capsys.readouterr().err
    assert printed.count("nothing more goes to wandb (RuntimeError: gone)") == 1


def test_a_login_that_is_missing_is_named_before_compute(tiny, wandb, tmp_path):
    def refuse(**given):
        raise RuntimeError("No API key configured.\nmore")

    wandb.init = refuse
    with (
        pytest.raises(ConnectionError, match="'demo' given: No API key configured.; log in with"),
        weights_biases.opened("demo", "x", {}, tmp_path),
    ):
        pass


def test_nothing_is_imported_unless_a_project_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)  # an import of it would raise
    with weights_biases.opened(None, "x", {}, tmp_path) as send:
        send(1, {"loss": 2.0})
    assert list(tmp_path.iterdir()) == []
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    (line,) = weights_biases.problems("demo")
    assert line.endswith("wandb is not installed: pip install 'jaxlm[wandb]'")


@pytest.mark.slow
def test_the_library_itself_records_offline(tiny, monkeypatch):
    library = pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    run = tiny(wandb="demo")
    with_id = runs.folder(run)
    loop.run(dataclasses.replace(run, steps=12))
    name = json.loads((with_id / weights_biases.FILE).read_text())["id"]
    (file,) = (with_id / "wandb").glob(f"offline-run-*-{name}/run-{name}.wandb")
    assert file.stat().st_size > 1000 and library.run is None
