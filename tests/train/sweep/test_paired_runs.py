"""Ablations as experiments: what is refused, when they stop, what they record."""

import dataclasses
import json
import math
import zlib

import numpy as np
import pytest

from jaxlm.cli import main
from jaxlm.data.records import prompts
from jaxlm.scaling.ablation import paired
from jaxlm.train import loop
from jaxlm.train.optim.optimizer import Optim
from jaxlm.train.run import directory
from jaxlm.train.sweep import engines, paired_runs


@pytest.fixture
def plan(tiny):
    """Two arms of the tiny run; the variant has another learning rate."""
    other = tiny(name="other", optim=Optim(lr=2e-2, warmup=2))
    return paired_runs.Ablation(name="a", baseline=tiny(), variants=(other,), out=tiny().out)


@pytest.fixture
def trained(monkeypatch):
    """No training: a run's loss is its seed's and its arm's, 0.03 below for `other`, and falls with
    its steps; runs that were started are listed."""
    started, ended = [], {}

    def run(run):
        started.append(run.name)
        noise = np.random.default_rng(zlib.crc32(run.name.encode())).normal(0, 0.004)
        shared = np.random.default_rng([run.seed, run.data.seed]).normal(0, 0.05)
        gain = {"other": -0.03, "worse": 0.03}.get(run.name.split("-")[1], 0.0)
        loss = 3 + shared + noise + gain - 0.2 * math.log(run.steps / 12)
        ended[run.name] = directory.Result(run.name, run.steps, run.steps, 0, {"nll": loss}, 0)
        return ended[run.name]

    monkeypatch.setattr(loop, "run", run)
    monkeypatch.setattr(directory, "finished", lambda run: ended.get(run.name))
    return started


HERE = engines.Execution(engine="inline")


def test_power_is_stated_first_and_a_clear_effect_stops_early(plan, trained, tmp_path):
    said = []
    plan = dataclasses.replace(plan, noise=0.006, looks=(4, 6, 8), lengths=(0.5,))
    found = paired_runs.run(plan, HERE, lambda text: said.append((len(trained), text)))
    arm = found["arms"]["other"]
    assert arm["verdict"] == "better" and len(arm["looks"]) < 3
    pairs = arm["looks"][-1].effect.pairs
    assert pairs < 8 and len(arm["losses"]) == pairs
    # power before the first run
    before = [text for runs_, text in said if not runs_]
    assert any(text.startswith("power") and "80%" in text for text in before)
    least = found["power"]["detectable"]
    assert paired.power(least, 0.006, 8, found["power"]["levels"][-1]) == pytest.approx(0.8)
    # pairs share their seeds, arms their lengths, and only the baseline is cut short
    names = set(trained)
    assert len(names) == len(trained)
    wanted = {f"a-{arm}-s{s}" for arm in ("tiny", "other") for s in range(pairs)}
    assert names == wanted | {f"a-tiny-s{s}-x0.5" for s in range(4)}
    # the truth: 0.2 nats per e-fold of compute, so 0.03 nats are 16 % more of it
    worth = arm["worth"]
    assert worth.low < math.exp(0.03 / 0.2) < worth.high and worth.cost == 1.0
    record = json.loads((tmp_path / "runs" / "a" / paired_runs.FILE).read_text("utf-8"))
    assert record["arms"]["other"]["looks"][0]["verdict"] in paired.VERDICTS
    assert record["plan"]["variants"][0]["changes"] == [
        ["name", "tiny", "other"],
        ["optim.lr", 0.01, 0.02],
    ]


def test_two_variants_share_alpha_and_stop_apart(plan, trained):
    """One is better and stops; one does nothing, within what matters, or goes on to the end."""
    same = dataclasses.replace(plan.baseline, name="same", optim=Optim(lr=3e-2, warmup=2))
    plan = dataclasses.replace(plan, variants=(*plan.variants, same), matters=0.02)
    said = []
    found = paired_runs.run(plan, HERE, said.append)
    assert found["power"]["levels"][0] < 0.0005
    assert found["arms"]["other"]["verdict"] == "better"
    assert found["arms"]["same"]["verdict"] == "no difference that matters"
    assert "baseline runs" in found["power"]["source"]
    assert any("that matter" in text for text in said)
    # noise of the baseline alone overstates what pairs leave of it: 0.05 against 0.004 nats
    assert found["power"]["noise"] > 0.01


@pytest.mark.parametrize("number", [2, 15])
def test_a_signal_ends_it_and_nothing_is_recorded(plan, monkeypatch, tmp_path, number):
    """SIGTERM of a sweep in this process counted as a failure of its trial, which was retried."""
    started = []

    def run(run):
        started.append(run.name)
        return directory.Result("x", 3, 12, 0, None, number)

    monkeypatch.setattr(loop, "run", run)
    with pytest.raises(KeyboardInterrupt):
        paired_runs.run(plan, HERE, lambda text: None)
    assert len(started) == 1 and not (tmp_path / "runs" / "a" / paired_runs.FILE).exists()


def test_a_run_that_fails_is_retried_and_then_named(plan, trained, monkeypatch):
    train, odd = loop.run, {"a-other-s1": [None, None]}

    def run(run):
        if odd.get(run.name):
            odd[run.name].pop()
            raise MemoryError("no luck")
        return train(run)

    monkeypatch.setattr(loop, "run", run)
    plan = dataclasses.replace(plan, noise=0.006)
    with pytest.raises(ValueError, match=r"a-other-s1 failed: exit code 1: .*no luck"):
        paired_runs.run(plan, HERE, lambda text: None)
    before = len(trained)
    found = paired_runs.run(plan, HERE, lambda text: None)
    assert found["arms"]["other"]["verdict"] == "better"
    assert trained.count("a-other-s1") == 1 and not set(trained[:before]) & set(trained[before:])


def test_a_diverged_variant_ends_its_own_comparison_and_a_baseline_all(plan, monkeypatch):
    def ended(run):
        diverged = "held-out nll is nan" if lost in run.name else None
        return directory.Result(run.name, 12, 12, 0, {"nll": 3.0 + run.seed / 9}, 0, diverged)

    monkeypatch.setattr(directory, "finished", ended)
    plan, lost = dataclasses.replace(plan, noise=0.006), "a-other-s2"
    arm = paired_runs.run(plan, HERE, lambda text: None)["arms"]["other"]
    assert arm["verdict"] == "diverged" and "a-other-s2 diverged at step 12" in arm["reason"]
    lost = "a-tiny-s2"
    with pytest.raises(ValueError, match="baseline: a-tiny-s2 diverged.*nothing to compare with"):
        paired_runs.run(plan, HERE, lambda text: None)


def variant(change):
    return lambda p: {
        "variants": (dataclasses.replace(p.baseline, name="v", **change(p.baseline)),)
    }


def data(**change):
    return variant(lambda run: {"data": dataclasses.replace(run.data, **change)})


@pytest.mark.parametrize(
    "change, told",
    [
        (lambda p: {"variants": ()}, r"variants: \(\) given; it must be at least one Run"),
        (lambda p: {"variants": (p.baseline,)}, "every arm needs a name of its own"),
        (variant(lambda run: {}), "'v' differs from the baseline in nothing"),
        (variant(lambda run: {"seed": 3}), "seed=3, the baseline 0; seeds are the ablation's"),
        (data(seed=3), "data.seed=3, the baseline 0; seeds are the ablation's"),
        (data(holdout=0.1), "data.holdout=0.1, the baseline 0.2; losses on different text"),
        (data(packing="concat"), "reads the same batches in the same order"),
        (variant(lambda run: {"eval_every": None}), "judged by their evaluation"),
        (
            lambda p: {"variants": (*p.variants, dataclasses.replace(p.variants[0], name="w"))},
            "'other' and 'w' compute the same",
        ),
        (lambda p: {"seeds": (0, 1, 1, 2, 3, 4, 5, 6)}, "each makes one pair"),
        (lambda p: {"looks": (3, 5)}, r"looks: \(3, 5\) given; .* last is that of all 8 pairs"),
        (lambda p: {"looks": (1, 8)}, "rise from 2 or more"),
        (lambda p: {"noise": 0.0}, "noise: 0.0 given; it must be above 0"),
        (lambda p: {"power": 0.01}, r"power: 0.01 given; it must be in \(0.05, 1\)"),
        (lambda p: {"lengths": (1.0,)}, "lengths: .* other than 1"),
        (
            lambda p: {"lengths": (0.5,), "law": "study.json"},
            r"lengths: \(0.5,\) given; it must be \(\) with law='study.json'",
        ),
        (
            lambda p: {"baseline": dataclasses.replace(p.baseline, data=prompts.Prompts("p"))},
            "baseline.data: prompts given; it must be text",
        ),
        (variant(lambda run: {"steps": 0}), "a-v-s0: steps: 0 given"),
    ],
)
def test_what_is_no_comparison_is_refused(plan, trained, change, told):
    with pytest.raises(ValueError, match=told):
        paired_runs.run(dataclasses.replace(plan, **change(plan)), HERE, lambda text: None)
    assert not trained


def test_the_command_reads_a_plan_and_nothing_else(tmp_path, capsys):
    file = tmp_path / "p.py"
    file.write_text("def arms():\n    return 3\n", "utf-8")
    assert main.main(["ablate", str(file)]) == 2
    assert "int given; an Ablation is needed" in capsys.readouterr().err
    assert main.main(["ablate", str(tmp_path / "none.py")]) == 2


@pytest.mark.slow
def test_a_real_ablation_finds_that_not_learning_is_worse(tiny):
    """Two pairs of real runs; a second call trains nothing and says the same."""
    idle = tiny(name="idle", optim=Optim(lr=1e-6, warmup=2))
    plan = paired_runs.Ablation(
        name="real", baseline=tiny(), variants=(idle,), seeds=(0, 1), looks=(2,), out=idle.out
    )
    first = paired_runs.run(plan, engines.Execution(engine="population"), lambda text: None)
    assert first["arms"]["idle"]["verdict"] == "worse"
    losses = first["arms"]["idle"]["losses"]
    assert len(set(losses)) == 2 and (losses > first["arms"]["idle"]["baseline"] + 0.1).all()
    again = paired_runs.run(plan, HERE, lambda text: None)
    np.testing.assert_array_equal(again["arms"]["idle"]["losses"], losses)
