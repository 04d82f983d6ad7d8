"""Runs that end early by Run.patience."""

import math

import pytest

from jaxlm.train import loop
from jaxlm.train.run import checkpoint, directory, metrics, progress
from jaxlm.train.run import run as runs


def counted(patience, min_delta, measures):
    """The number of the evaluation after which a run of these measures ends; None if it does
    not."""

    class Settings:
        steps = 10**6

    Settings.patience, Settings.min_delta = patience, min_delta
    best = progress.Best()
    for step, measure in enumerate(measures, start=1):
        best = best.after(Settings, step, measure).after(Settings, step, measure)  # once a step
        if best.early_stop(Settings):
            return step
    return None


@pytest.mark.parametrize(
    "patience, min_delta, measures, ended",
    [
        (None, 0.0, [1, 2, 3, 4], None),
        (1, 0.0, [1, 1], 2),
        (2, 0.0, [3, 4, 2, 2.5, 2], 5),
        # a slow fall adds up against the best, which is not moved by less than min_delta
        (2, 0.5, [3, 2.8, 2.4, 2.3, 2.2], 5),
        (2, 0.5, [3, 2.8, 2.49, 2.3, 1.9], None),
        (2, 0.0, [-1, -2, -2, -1], 4),  # rewards are measured negated
    ],
)
def test_patience_counts_evaluations_without_an_improvement(patience, min_delta, measures, ended):
    assert counted(patience, min_delta, measures) == ended


def test_a_run_ends_early_also_when_it_was_stopped_meanwhile(tiny, stopping, capsys):
    """The count is part of every checkpoint: a run that was stopped ends at the same step."""
    settings = {"eval_every": 2, "patience": 2, "min_delta": 10.0, "steps": 30}
    whole = tiny(name="whole", **settings)
    result = loop.run(whole)
    # the first evaluation is the best one; those after steps 4 and 6 are no improvement by 10
    assert (result.step, result.steps, result.exit_code, result.signal) == (6, 30, 0, 0)
    assert result.early_stop.startswith("patience=2: no evaluation after step 2 is below ")
    assert "stopped early, patience=2" in capsys.readouterr().out
    records = metrics.deterministic(runs.folder(whole) / metrics.FILE)
    val = [r for r in records if r["split"] == "val"]
    assert [r["step"] for r in val] == [2, 4, 6, 6]  # and all that is held out at the end
    assert result.val == val[-1] and val[-1]["tokens"] > val[-2]["tokens"]
    assert directory.lost_records(runs.folder(whole), result) is None
    place = runs.folder(whole) / "checkpoints"
    assert checkpoint.steps(place)[-1] == 6
    cut = tiny(name="cut", **settings)
    with stopping(15, 5):
        assert loop.run(cut).signal == 15
    again = loop.run(cut)
    assert (again.step, again.early_stop) == (6, result.early_stop)
    assert metrics.deterministic(runs.folder(cut) / metrics.FILE) == records
    # killed between its last checkpoint and result.json
    (runs.folder(cut) / "result.json").unlink()
    assert loop.run(cut) == again
    assert math.isfinite(again.val["nll"])
