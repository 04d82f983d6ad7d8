"""Populations: each member is its own sequential run, and leaves what that leaves."""

import dataclasses
import json

import jax
import numpy as np
import pytest

from jaxlm.models import llama
from jaxlm.train import loop
from jaxlm.train.run import checkpoint, directory, metrics
from jaxlm.train.run import run as runs
from jaxlm.train.sweep import population


def member(run, name, **changes):
    """The run with another name, and changes by path."""
    fields = {path: value for path, value in changes.items() if "__" not in path}
    for path, value in changes.items():
        part, _, field = path.partition("__")
        if field:
            changed = dataclasses.replace(fields.get(part, getattr(run, part)), **{field: value})
            fields[part] = changed
    return dataclasses.replace(run, name=name, **fields)


def close(a, b, what):
    """Records equal to 1e-6, numbers relative to their size."""
    assert a.keys() == b.keys()
    for name, x in a.items():
        if isinstance(x, float) and b[name] is not None:
            assert b[name] == pytest.approx(x, rel=1e-6, abs=1e-6), (what, a["step"], name)
        else:
            assert x == b[name], (what, name)


@pytest.fixture
def three(tiny):
    """Members of other seeds, rows, learning rates, schedules and decays; the last diverges."""
    run = tiny(steps=6, eval_every=3, log_every=1)
    return [
        member(run, "a"),
        member(run, "b", seed=5, data__seed=3, optim__lr=3e-3, optim__schedule="linear"),
        member(run, "c", seed=6, optim__lr=1e3, optim__warmup=0, optim__weight_decay=0.3),
    ]


def apart(run, tmp_path):
    """The same run, to be trained by itself."""
    return dataclasses.replace(run, out=str(tmp_path / "apart"))


def same(three, tmp_path, final_state):
    """Every number recorded of the first two members is that of the run by itself, and so are its
    weights, optimiser state and key: to 1e-6."""
    for run in three[:2]:
        loop.run(apart(run, tmp_path))
        alike = [run, apart(run, tmp_path)]
        found = [metrics.deterministic(runs.folder(r) / metrics.FILE) for r in alike]
        for ours, theirs in zip(*found, strict=True):
            close(theirs, ours, run.name)
        for x, y in zip(*(jax.tree.leaves(final_state(r)) for r in alike), strict=True):
            np.testing.assert_allclose(x, y, rtol=1e-6, atol=1e-6)


@pytest.mark.slow
def test_in_turn_members_are_their_own_runs(three, tmp_path, final_state):
    ends = population.run(three)
    assert [(e.step, e.signal, e.exit_code) for e in ends] == [(6, 0, 0)] * 3
    same(three, tmp_path, final_state)
    assert ends == [directory.finished(run) for run in three]
    for run in three:
        folder = runs.folder(run)
        assert directory.load(folder) == run
        assert checkpoint.steps(folder / "checkpoints") == [3, 6]
        described = json.loads((folder / "env.json").read_text())
        assert described["config_digest"] == runs.digest(run)
        assert directory.lost_records(folder, directory.finished(run)) is None
    calm, _, wild = (end.val["nll"] for end in ends)
    assert wild > calm + 0.5  # it went where its learning rate took it, alone
    assert population.run(three) == ends and loop.run(three[0]) == ends[0]


@pytest.mark.slow
def test_side_by_side_members_are_their_own_runs(three, tmp_path, final_state, monkeypatch):
    """What accelerators do, here in float32. Adam's eps is above the gradients' rounding, which it
    would else magnify in weights whose gradient nearly vanishes."""
    monkeypatch.setattr(population, "abreast", lambda: True)
    calm = [member(run, run.name, optim__eps=1e-4) for run in three]
    population.run(calm)
    same(calm, tmp_path, final_state)


@pytest.mark.slow
def test_stopped_members_go_on_together_or_alone(three, stopping, final_state):
    """Killed at step 4: three ordinary unfinished runs, of which one then goes on by itself."""
    a, b, _ = three
    whole = [dataclasses.replace(r, name=f"{r.name}-whole") for r in (a, b)]
    population.run(whole)
    with stopping(15, 4):
        ends = population.run([a, b])
    assert [(e.step, e.signal) for e in ends] == [(4, 15)] * 2
    assert directory.finished(a) is None
    population.run([a, b])
    for cut, uncut in zip((a, b), whole, strict=True):
        same = jax.tree.map(np.array_equal, final_state(cut), final_state(uncut))
        assert all(jax.tree.leaves(same)), same
        assert metrics.deterministic(runs.folder(cut) / metrics.FILE) == metrics.deterministic(
            runs.folder(uncut) / metrics.FILE
        )


def test_what_cannot_share_is_refused_by_field(tiny):
    run = tiny()
    wide = llama.Config(vocab=259, embed=32, layers=2, heads=2, kv=1, head=8, ffn=24, context=32)
    cases = {
        r"model\.embed: 16 in run 'a' and 32 in 'b'": {"model": wide},
        r"optim\.b1: None in run 'a' and 0\.5 in 'b'": {"optim__b1": 0.5},
        r"steps: 12 in run 'a' and 13": {"steps": 13},
        r"weight_decay > 0: True in run 'a' and False": {"optim__weight_decay": 0.0},
        r"profile: \(1, 2\) given; .* \(run 'b'\)": {"profile": (1, 2)},
        r"samples: \('a',\) given; .* \(run 'b'\)": {"samples": ("a",)},
    }
    for message, changes in cases.items():
        with pytest.raises(ValueError, match=message):
            population.run([member(run, "a"), member(run, "b", **changes)])
    with pytest.raises(ValueError, match="directory of several runs"):
        population.run([run, run])
    with pytest.raises(ValueError, match="optim.lr: -1"):
        population.run([member(run, "a", optim__lr=-1.0)])


def test_groups_are_what_may_share(tiny):
    run = tiny()
    named = [
        member(run, "a"),
        member(run, "b", optim__b1=0.5),
        member(run, "c", seed=3, optim__lr=0.1, optim__schedule="wsd", optim__decay=0.5),
        member(run, "d", samples=("x",)),
        member(run, "e", optim__b1=0.5, data__seed=9),
    ]
    found = [[r.name for r in group] for group in population.groups(named)]
    assert found == [["a", "c"], ["b", "e"], ["d"]]
