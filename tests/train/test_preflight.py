"""A run that cannot fit is refused before anything is computed, with what would fit."""

import dataclasses

import pytest

from jaxlm.cli import main
from jaxlm.data.pretraining import Data
from jaxlm.data.records.prompts import Prompts
from jaxlm.models import llama
from jaxlm.objectives import clm
from jaxlm.objectives.rl import grpo
from jaxlm.parallel import devices
from jaxlm.parallel.devices import Space
from jaxlm.parallel.plan import Plan
from jaxlm.train import loop, program
from jaxlm.train.preflight import memory_check
from jaxlm.train.rl.rollout import Rollout
from jaxlm.train.run.run import Run

GIB = 2**30
SMALL = llama.Config(vocab=259, embed=64, layers=2, heads=4, kv=2, head=16, ffn=192)
LARGE = llama.Config(vocab=259, embed=16384, layers=40, heads=128, kv=8, head=128, ffn=53248)


@pytest.fixture
def machine(monkeypatch):
    """A machine of so many bytes, which the devices of a plan share or each have."""

    def of(size, shared=True):
        monkeypatch.setattr(devices, "space", lambda: Space(size, shared, "this machine"))

    return of


def run(tmp_path, **changes):
    data = Data(source="markov", seq=128, batch=changes.pop("batch", 16))
    return Run(name="run", out=str(tmp_path), data=data, steps=200, **({"model": SMALL} | changes))


def refusal(run, there):
    return memory_check.refusal(run, program.training(run)[1], there)


def test_a_model_that_is_too_large_is_refused_before_its_directory_is_made(tmp_path, machine):
    """129 billion parameters on 24 GB were announced as training, hung, and ignored SIGTERM."""
    machine(24 * GIB)
    too_large = run(tmp_path, model=LARGE)
    with pytest.raises(ValueError, match=r"largest part is optimiser, 0.93 TiB[^$]*no batch fits"):
        loop.run(too_large)
    assert not list(tmp_path.iterdir())


def test_a_batch_that_is_too_large_is_refused_with_what_fits(tmp_path, machine, monkeypatch):
    """A batch of 100,000 rows ended in XLA's out-of-memory traceback after a minute. What is
    advised fits; half of it in micro-batches would not."""
    machine(24 * GIB)
    wide = run(tmp_path, batch=100_000)
    with pytest.raises(ValueError, match="the largest part is activations") as refused:
        loop.run(wide)
    assert "--plan.microbatches 16; or" in str(refused.value)
    there = Space(24 * GIB, True, "this machine")
    for parts, fits in ((16, True), (8, False)):
        cut = dataclasses.replace(wide, plan=Plan(microbatches=parts))
        assert (refusal(cut, there) is None) is fits
    monkeypatch.setenv(devices.UNCHECKED, "0")
    memory_check.check(wide)


def test_more_devices_help_where_each_has_its_own_memory(tmp_path):
    large = run(tmp_path, model=LARGE)
    own = refusal(large, Space(80 * GIB, False, "a device"))
    assert "--plan.remat full --plan.fsdp" not in own and "--plan.fsdp 32 --data.batch 32" in own
    assert "no batch fits" in refusal(large, Space(80 * GIB, True, "this machine"))
    # a row of two devices takes twice the memory of one machine
    space = memory_check.estimate(run(tmp_path), program.training(run(tmp_path))[1]).least
    two = run(tmp_path, plan=Plan(data=2), batch=32)
    assert refusal(two, Space(space, False, "a device")) is None
    assert refusal(two, Space(space, True, "this machine")) is not None


def test_what_is_estimated_is_what_is_trained(tmp_path):
    """An objective's own head counts, and the longest batch of a curriculum."""
    plain = run(tmp_path)
    part = memory_check.estimate(plain, program.training(plain)[1])
    ahead = dataclasses.replace(plain, objective=clm.Config())
    assert memory_check.estimate(ahead, program.training(ahead)[1]) == part
    growing = dataclasses.replace(plain.data, seq=64, curriculum=((50, 128),))
    grown = dataclasses.replace(plain, data=growing)
    assert memory_check.estimate(grown, program.training(grown)[1]).logits == part.logits


def test_the_responses_of_a_rollout_have_to_fit(tmp_path):
    prompts = Prompts(source="none.jsonl", seq=8, batch=1000)
    sampled = Rollout(samples=100, minibatches=100_000, max_new=4000, rewards=("number",))
    long = run(tmp_path, objective=grpo.Config())
    long = dataclasses.replace(long, data=prompts, rollout=sampled)
    there = Space(24 * GIB, True, "this machine")
    # 100,000 rows x 4,000 slots x 2 layers x keys and values of 2 heads of 16, float32
    assert "cache of 100000 responses of 4,000 tokens is 0.19 TiB" in refusal(long, there)
    short = dataclasses.replace(sampled, max_new=50)
    assert refusal(dataclasses.replace(long, rollout=short), there) is None


def test_plan_gives_the_same_verdict(capsys, machine):
    machine(GIB)
    args = ["plan", "llama3-8b", "--plan.fsdp", "8", "--data.batch", "8"]
    assert main.main([*args, "--memory", "80"]) == 0
    out = capsys.readouterr().out
    assert "memory: such a device has 80.00 GiB" in out and "--plan.remat full" in out
    assert main.main([*args, "--memory", "80", "--plan.remat", "full"]) == 0
    assert "does it fit?                  it fits" in capsys.readouterr().out
    assert main.main(args) == 0
    assert "this machine has 1.00 GiB" in capsys.readouterr().out
    layout = [*args[:2], "--layout", "pipeline:2x4", "--data.batch", "16", "--memory", "80"]
    assert main.main(layout) == 0
    out = capsys.readouterr().out
    assert "bytes per device: pipe=2 x fsdp=4" in out and "32 of 32 in the stages" in out
    assert "5 of a stage for 4 parts x 1 rounds" in out and "20.0% of them" in out
    assert main.main([*layout, "--plan.pipe-parts", "2"]) == 0
    assert "33.3% of them" in capsys.readouterr().out
    assert main.main([*args[:2], "--layout", "expert:8"]) == 2
    assert "plan.expert: 8 given; it must be 1 for a model without exp" in capsys.readouterr().err
    assert main.main([*args[:2], "--layout", "fsdp"]) == 2
    assert "--layout: 'fsdp' given; it must be NAME:DEVICES" in capsys.readouterr().err
    assert main.main([*args, "--memory", "big"]) == 2
    assert "--memory: 'big' given" in capsys.readouterr().err
