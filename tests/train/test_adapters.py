"""A run of adapters from its config to its directory, and what can be made of that."""

import contextlib
import dataclasses
import pathlib
import shutil

import numpy as np
import pytest

from jaxlm.cli import main
from jaxlm.convert import adapters, peft
from jaxlm.core import param
from jaxlm.eval import perplexity
from jaxlm.objectives import lora
from jaxlm.parallel.plan import Plan
from jaxlm.train import inputs, loop, trained_weights
from jaxlm.train.optim import optimizer
from jaxlm.train.run import interrupts
from jaxlm.train.run import run as runs


def equal(a, b):
    a, b = param.flatten(a), param.flatten(b)
    return a.keys() == b.keys() and all(np.array_equal(a[p], b[p]) for p in a)


@pytest.fixture(scope="module")
def trained(whole, home, tmp_path_factory):
    """(Run, Result) of 4 steps of adapters in 4 bits, on a copy of the tiny run."""
    place = tmp_path_factory.mktemp("adapters")
    shutil.copytree(runs.folder(whole[0]), place / "base")
    run = dataclasses.replace(
        whole[0],
        name="lora",
        out=str(place),
        start=str(place / "base"),
        adapter=lora.Lora(rank=2, targets=("stack/*",), quantise="nf4"),
        optim=optimizer.Optim(lr=1e-2, warmup=1),
        steps=4,
        log_every=1,
        eval_every=4,
        eval_batches=None,
        samples=("a model",),
        sample_tokens=4,
        checkpoint=runs.Checkpoint(every=2),
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(home))
        return run, loop.run(run)


@pytest.mark.slow
def test_a_run_begins_where_its_base_ended_and_keeps_adapters_alone(trained, whole, monkeypatch):
    run, result = trained
    monkeypatch.setenv("XDG_CACHE_HOME", str(pathlib.Path(run.data.source).parent))
    kept = trained_weights.trained(runs.folder(run))
    assert kept.keys() == {lora.ADAPTER}
    assert all(p.endswith(("/a", "/b")) for p in param.flatten(kept))
    found = trained_weights.load(runs.folder(run))
    assert param.flatten(found.params).keys() == param.flatten(found.model.spec).keys()
    text = inputs.open_text(run.data, True, run.model.vocab)[1]
    score = perplexity.scorer(found.model, found.plan)
    told = perplexity.evaluate(score, found.params, run.data, text, found.plan)
    assert told.nll == pytest.approx(result.val["nll"], abs=1e-5)
    assert result.val["nll"] < whole[1].val["nll"] + 0.02
    drawn = (runs.folder(run) / "samples" / "00000004.txt").read_text()
    assert drawn.startswith("--- 'a model'")


@pytest.mark.slow
def test_stopped_and_resumed_is_the_same_run(trained, monkeypatch, assert_same_run):
    monkeypatch.setenv("XDG_CACHE_HOME", str(pathlib.Path(trained[0].data.source).parent))
    other, steps = dataclasses.replace(trained[0], name="stopped"), iter(range(1, 100))

    @contextlib.contextmanager
    def caught():
        yield lambda: 15 if next(steps) >= 3 else 0

    with monkeypatch.context() as patch:
        patch.setattr(interrupts, "caught", caught)
        assert loop.run(other).step == 3
    assert loop.run(other).step == 4
    assert_same_run(trained[0], other)


@pytest.mark.slow
def test_merged_and_as_peft_s_files_and_back(trained, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    folder, base = str(runs.folder(trained[0])), trained[0].start
    assert main.main(["adapter", "merge", folder, "merged"]) == 0
    assert main.main(["adapter", "export", folder, "theirs", "--base", "base"]) == 0
    assert main.main(["adapter", "import", "theirs", base, "again"]) == 0
    assert "rank 2 on 7 weights" in capsys.readouterr().out
    assert (pathlib.Path("theirs") / peft.WEIGHTS).is_file()
    assert equal(
        trained_weights.trained(pathlib.Path("again")),
        trained_weights.trained(pathlib.Path(folder)),
    )
    whole = trained_weights.load(pathlib.Path(folder)).params
    # a base that went on: adapters stand on the weights of one step, and no other
    place = pathlib.Path(base) / "checkpoints"
    shutil.copytree(place / "12", place / "15")
    assert equal(trained_weights.load(pathlib.Path(folder)).params, whole)
    (place / "12").rename(tmp_path / "12")
    with pytest.raises(FileNotFoundError, match=r"lora holds adapters on .*base.*of step 12"):
        trained_weights.load(pathlib.Path(folder))
    (tmp_path / "12").rename(place / "12")
    shutil.rmtree(place / "15")
    # what is merged needs no base
    pathlib.Path(base).rename(tmp_path / "gone")
    with pytest.raises(FileNotFoundError, match="holds adapters on the weights of .*no run dir"):
        trained_weights.load(pathlib.Path(folder))
    assert equal(trained_weights.load(pathlib.Path("merged")).params, whole)
    (tmp_path / "gone").rename(base)


@pytest.mark.slow
def test_an_average_is_merged_as_the_weights(trained, tmp_path):
    """The merged run kept the average's setting, and held none."""
    optim = dataclasses.replace(trained[0].optim, ema=0.5)
    changes = {"optim": optim, "out": str(tmp_path), "steps": 2, "eval_every": None, "samples": ()}
    run = dataclasses.replace(trained[0], name="averaged", **changes)
    loop.run(run)
    adapters.merge(runs.folder(run), tmp_path / "merged")
    whole = trained_weights.load(runs.folder(run)).params
    assert equal(trained_weights.load(tmp_path / "merged").params, whole)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"start": None}, "start: None given with an adapter"),
        (
            {"adapter": lora.Lora(targets=("stack/*/qq",))},
            r"adapter.targets: 'stack/\*/qq' matches no weight",
        ),
        (
            {"plan": Plan(fsdp=8)},
            "adapter.quantise: 'nf4' given: weight stack.*k/codes: dimension 'block' of size 2",
        ),
    ],
)
def test_what_is_wrong_is_named_before_compute(tiny, change, message):
    given = {"start": "base", "adapter": lora.Lora(targets=("stack/*",), quantise="nf4")}
    with pytest.raises(ValueError, match=message):
        loop.run(tiny(**(given | change)))


@pytest.mark.slow
def test_a_run_without_adapters_has_none_to_export(whole, tmp_path, capsys):
    for action in ("export", "merge"):
        assert main.main(["adapter", action, str(runs.folder(whole[0])), str(tmp_path / "x")]) == 2
        assert "has no adapters" in capsys.readouterr().err
