"""Runs that take their beginning from a longer one."""

import dataclasses

import pytest

from jaxlm.train import loop
from jaxlm.train.optim import optimizer
from jaxlm.train.run import checkpoint, directory
from jaxlm.train.run import run as runs


def wsd(**changes):
    given = {"lr": 1e-2, "warmup": 2, "schedule": "wsd", "decay": 0.25} | changes
    return optimizer.Optim(**given)


@pytest.fixture(scope="module")
def trunk(whole, home, tmp_path_factory):
    """A finished run of 14 steps with checkpoints where those of 8 and 12 steps begin to fall."""
    run = dataclasses.replace(
        whole[0],
        out=str(tmp_path_factory.mktemp("trunk")),
        name="trunk",
        optim=wsd(),
        steps=14,
        eval_every=None,
        checkpoint=runs.Checkpoint(every=100, keep_last=1, at=(6, 9)),
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(home))
        loop.run(run)
    return run


def test_a_branch_ends_as_the_same_run_trained_whole(tiny, trunk, assert_same_run):
    """Weights, optimiser state, key and metrics, every bit; the steps it took are the decay's."""
    assert checkpoint.steps(runs.folder(trunk) / "checkpoints") == [6, 9, 14]
    whole = tiny(name="whole", optim=wsd(), eval_every=12)
    branch = dataclasses.replace(whole, name="branch", trunk=str(runs.folder(trunk)))
    assert runs.digest(branch) == runs.digest(whole)
    loop.run(whole)
    result = loop.run(branch)
    assert_same_run(whole, branch)
    assert result.val == directory.finished(whole).val
    assert checkpoint.steps(runs.folder(branch) / "checkpoints")[0] == 9


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"optim": wsd(), "seed": 1}, "has seed=0, this run has seed=1"),
        ({"optim": wsd(lr=2e-2)}, "has optim.lr=0.01, this run has optim.lr=0.02"),
        ({"optim": optimizer.Optim(lr=1e-2, warmup=2)}, "'cosine' given with a trunk"),
        ({"optim": wsd(), "steps": 4, "eval_every": 4}, r"steps \[6, 9, 14\], none at or before 3"),
        ({"trunk": "runs/nothing"}, "trunk: runs/nothing is no run directory"),
        ({"optim": wsd(), "start": "runs/else"}, "given with a trunk"),
    ],
)
def test_another_runs_trunk_is_refused(tiny, trunk, changes, said, monkeypatch):
    monkeypatch.setattr(loop.initial_weights, "check", lambda run: [])
    given = {"optim": wsd(), "trunk": str(runs.folder(trunk))} | changes
    with pytest.raises(ValueError, match=said):
        loop.run(tiny(name="branch", **given))
