"""Curves over schedules against the sums written out, known truth, and another schedule."""

import numpy as np
import pytest

from jaxlm.cli import main
from jaxlm.scaling.extended import schedules

TRUTH = {"L_0": 2.6, "A": 1.2, "alpha": 0.5, "C": 3.0}


def sums(rate, momentum):
    """S_1 and S_2 as the paper's double sums have them, in plain loops."""
    s1, s2, m = [], [], 0.0
    forward = annealed = 0.0
    for i, lr in enumerate(rate):
        m = momentum * m + (rate[i - 1] - lr if i else 0.0)
        forward += lr
        annealed += m
        s1.append(forward)
        s2.append(annealed)
    return np.array(s1), np.array(s2)


def shape(kind, steps):
    """[steps] learning rates with 50 steps of warm-up."""
    t = np.arange(1, steps + 1) / steps
    rate = {
        "cosine": 1e-3 * (0.55 + 0.45 * np.cos(np.pi * t)),
        "wsd": 1e-3 * np.clip((1 - t) / 0.2, 0.1, 1.0),
        "constant": np.full(steps, 1e-3),
    }[kind]
    return rate * np.minimum(np.arange(1, steps + 1) / 50, 1.0)


def curve(kind, steps=2000, params=np.nan, noise=0.0, every=10, seed=0):
    rate = shape(kind, steps)
    s1, s2 = sums(rate, 0.99)
    loss = TRUTH["L_0"] + TRUTH["A"] * s1 ** -TRUTH["alpha"] - TRUTH["C"] * s2
    if np.isfinite(params):
        loss = loss + 30 * params**-0.25
    loss = loss * np.exp(noise * np.random.default_rng(seed).normal(size=steps))
    at = slice(every - 1, None, every)
    return schedules.Curve(kind, np.arange(1, steps + 1.0)[at], rate[at], loss[at], params)


def test_the_areas_are_the_sums():
    rate = shape("cosine", 300)
    result = schedules.areas(np.arange(1, 301.0), rate, 0.97)
    s1, s2 = sums(rate, 0.97)
    assert result.forward == pytest.approx(s1) and result.annealed == pytest.approx(s2)
    assert result.fitted.argmax() == rate.argmax()


@pytest.mark.parametrize("of_size", [False, True])
def test_a_known_law_is_recovered_and_reaches_another_schedule(of_size):
    sizes = (1e7, 1e8, 1e9) if of_size else (np.nan,) * 3
    kinds = ("cosine", "constant", "wsd")
    curves = [curve(k, params=n, every=5) for k, n in zip(kinds, sizes)]
    result = schedules.run(curves, 0.99, 20, 0.95, 0)
    for name, value in TRUTH.items():
        assert result["theta"][name][0] == pytest.approx(value, rel=2e-3)
    if of_size:
        assert result["theta"]["beta"][0] == pytest.approx(0.25, rel=1e-2)
    unseen = result["runs"]["wsd"]["unseen"]
    assert unseen is None if of_size else unseen["mae"] < 0.05
    # a checkpoint of the trunk becomes the run of its length with the schedule compressed
    half = next(p for p in result["runs"]["wsd"]["points"] if p["step"] == 1000)
    short = curve("wsd", 1000, sizes[2], every=5)
    assert half["as_a_run"] == pytest.approx(short.loss[-1], rel=1e-3)
    assert half["loss"] > half["as_a_run"] + 0.005
    last = result["runs"]["wsd"]["points"][-1]
    assert last["as_a_run"] == pytest.approx(last["loss"], abs=1e-9)


def test_noisy_curves_have_intervals_that_hold_the_truth():
    curves = [curve(k, noise=0.003, seed=i) for i, k in enumerate(("cosine", "wsd"))]
    result = schedules.run(curves, 0.99, 60, 0.95, 0)
    for name, value in TRUTH.items():
        low, high = result["theta"][name][1]
        assert low - 0.1 * abs(value) < value < high + 0.1 * abs(value)


def columns():
    parts = [curve("cosine"), curve("wsd")]
    return {
        "run": np.repeat(["a", "b"], len(parts[0].step)),
        "step": np.concatenate([c.step for c in parts]),
        "loss": np.concatenate([c.loss for c in parts]),
        "lr": np.concatenate([c.rate for c in parts]),
        "note": np.repeat("x", 400),
    }


@pytest.mark.parametrize(
    ("change", "rate", "text"),
    [
        ({"step": None}, "lr", r"no column for step \(step, _step"),
        ({}, "rate", "--schedule: no column 'rate'"),
        ({}, "note", "column 'note': 'x' is no number"),
        ({"loss": -1.0}, "lr", "row 5, column 'loss': -1"),
        ({"step": 10.0}, "lr", "run a: 200 rows with 199 different steps"),
    ],
)
def test_curves_that_cannot_be_read_are_refused(change, rate, text):
    data = columns()
    for name, value in change.items():
        if value is None:
            del data[name]
        else:
            data[name][3] = value
    with pytest.raises(ValueError, match=text):
        schedules.read(data, rate)


def test_schedules_that_do_not_anneal_are_refused():
    with pytest.raises(ValueError, match="no learning rate falls"):
        schedules.run([curve("constant")], 0.99, 5, 0.95, 0)


def test_the_command(tmp_path, capsys):
    data = columns()
    lines = [",".join(data), *(",".join(str(v) for v in r) for r in zip(*data.values()))]
    (tmp_path / "curves.csv").write_text("\n".join(lines) + "\n")
    args = ["fit", str(tmp_path / "curves.csv"), "--schedule", "lr", "--replicates", "20"]
    args += ["--out", str(tmp_path / "out")]
    assert main.main([*args, "--momentum", "0.99"]) == 0
    assert "checkpoints as runs of their length" in capsys.readouterr().out
    assert main.main([*args, "--momentum", "1.5"]) == 2
    assert "--momentum 1.5: a share between 0 and 1" in capsys.readouterr().err
