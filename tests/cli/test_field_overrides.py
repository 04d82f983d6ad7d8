"""Overrides inside unions of dataclasses: what a config has is changed, what it lacks chosen."""

import dataclasses

import pytest

from jaxlm.cli import field_overrides
from jaxlm.core import config
from jaxlm.models import llama
from jaxlm.ops import rope
from jaxlm.train.run.run import Run

PLAIN = Run(name="x", model=llama.Config())
YARN = Run(name="x", model=llama.Config(scaling=rope.Yarn(4.0, 64)))
CHOSEN = ["model.scaling:yarn", "--model.scaling.factor", "8", "--model.scaling.original", "64"]


@pytest.mark.parametrize(
    ("run", "args"),
    [
        (YARN, ["--model.scaling.factor", "8", "--steps", "7"]),
        (PLAIN, ["--steps", "7", *CHOSEN]),
    ],
)
def test_scaling(run, args):
    changed = field_overrides.apply(run, args, "jaxlm train x.py")
    model = dataclasses.replace(run.model, scaling=rope.Yarn(8.0, 64))
    assert changed == dataclasses.replace(run, steps=7, model=model)
    assert type(changed) is Run and type(changed.model) is llama.Config
    assert config.from_dict(Run, config.to_dict(changed)) == changed


@pytest.mark.parametrize(
    ("run", "args", "message"),
    [
        (YARN, ["--model.scaling.factor", "0.5"], "factor: 0.5 given; it must be at least 1"),
        (YARN, ["--model.scaling.low", "1"], "--model.scaling.low"),
        (PLAIN, ["model.scaling:yarm"], "model.scaling:yarn"),
    ],
)
def test_errors(run, args, message, capsys):
    with pytest.raises(SystemExit) as exit_:
        field_overrides.apply(run, args, "jaxlm train x.py")
    assert exit_.value.code == 2 and message in capsys.readouterr().err
