"""Adapters over runs in few bits: trained as over the weights that these represent."""

import contextlib
import dataclasses
import json
import pathlib
import types

import jax
import numpy as np
import pytest

import jaxlm
from jaxlm import models
from jaxlm.convert import adapters, pretrained
from jaxlm.convert.quantised import rounded_runs
from jaxlm.core import param
from jaxlm.models import llama, mistral, packed_weights
from jaxlm.objectives import clm, lora
from jaxlm.ops import linear, quant
from jaxlm.train import loop, program, trained_weights
from jaxlm.train.optim import optimizer
from jaxlm.train.run import interrupts
from jaxlm.train.run import run as runs
from tests import programs
from tests.families.sizes import V

CFG = llama.Config(vocab=259, embed=32, layers=2, heads=2, kv=1, head=16, ffn=64, tied=True)
MIXED = mistral.Config(
    vocab=V, embed=32, layers=2, heads=2, kv=1, head=16, ffn=32, experts=4, active=2
)
PLAIN = llama.Config(vocab=V, embed=32, layers=2, heads=2, kv=1, head=16, ffn=64)
EVERY = lora.Lora(rank=2, alpha=3.0, targets=("stack/*/q", "stack/*/k", "stack/*/o"))


@pytest.mark.parametrize(
    "cfg, scheme",
    [
        (PLAIN, quant.Scheme("int4", 16)),
        pytest.param(PLAIN, quant.Scheme("mxfp4"), marks=pytest.mark.slow),
        pytest.param(PLAIN, quant.Scheme("nf4", double_quant=True), marks=pytest.mark.slow),
        pytest.param(PLAIN, quant.Scheme("fp8"), marks=pytest.mark.slow),
        (MIXED, quant.Scheme("int8")),
    ],
    ids=["int4", "mxfp4", "nf4", "fp8", "experts"],
)
def test_loss_and_gradient_are_those_over_the_represented_weights(cfg, scheme):
    """1e-6 of float32; no weight but the adapters' has a gradient, through experts too."""
    model = models.build(cfg)
    base = packed_weights.encode(
        model.spec, programs.drawn(model.spec, 1), packed_weights.rounding(scheme)
    )
    layout = json.loads(json.dumps(packed_weights.layout(base)))
    plain = clm.build(clm.Config(), model, jaxlm.Plan())
    over = lora.adapt(plain, model, EVERY, layout)
    part = over.frozen[lora.BASE]
    assert jax.tree.structure(part.abstract()) == jax.tree.structure(base)
    assert jax.tree.structure(jax.tree.map(lambda p: 0, part.places)) == jax.tree.structure(
        jax.tree.map(lambda x: 0, base)
    )
    r = np.random.default_rng(2)
    adapters = param.map(lambda p: 0.1 * r.standard_normal(p.shape, np.float32), over.spec)
    rows = programs.fit("llama-all", programs.rows(0))

    @jax.jit
    def graded(adapters, frozen):
        return jax.value_and_grad(lambda a: over.loss(a, {lora.BASE: frozen}, rows, None)[0])(
            adapters
        )

    got, want = graded(adapters, base), graded(adapters, jax.jit(packed_weights.dense)(base))
    np.testing.assert_allclose(got[0], want[0], rtol=1e-6)
    most = max(float(np.abs(x).max()) for x in jax.tree.leaves(want[1]))
    for a, b in zip(jax.tree.leaves(got[1]), jax.tree.leaves(want[1]), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6 * most, rtol=1e-5)


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A working directory with a corpus and a run in int4."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    texts = [f"number {i} and the {'same words ' * (i % 5)}again" for i in range(40)]
    pathlib.Path("corpus.jsonl").write_text("\n".join(json.dumps({"text": t}) for t in texts))
    data = jaxlm.Data(source="corpus.jsonl", seq=32, batch=4, holdout=0.3)
    run = jaxlm.Run(name="base", model=CFG, data=data)
    base = pathlib.Path("runs/base")
    base.mkdir(parents=True)
    tokenizer = jaxlm.data.tokenizers.load("bytes").hash
    params = programs.drawn(models.spec(CFG), 1)
    pretrained.fill(base, base, run, params, {"val": None}, {}, tokenizer)
    rounded_runs.quantise("runs/base", "runs/int4", quant.Scheme("int4", 16))
    adapter = lora.Lora(rank=2, targets=("stack/*",))
    optim = optimizer.Optim(lr=1e-2, warmup=1)
    adapted = dataclasses.replace(
        run, name="lora", start="runs/int4", adapter=adapter, optim=optim, steps=3, log_every=1,
        eval_every=3, samples=(), checkpoint=runs.Checkpoint(every=2),
    )  # fmt: skip
    return types.SimpleNamespace(run=adapted, folder=tmp_path)


@pytest.mark.slow
def test_trained_resumed_merged_and_sampled(place, monkeypatch):
    result = loop.run(place.run)
    assert result.step == 3
    kept = trained_weights.trained("runs/lora")
    assert kept.keys() == {lora.ADAPTER}
    base, saved = jaxlm.load("runs/int4"), jaxlm.load("runs/lora")
    assert all(isinstance(w, jax.Array) for w in jax.tree.leaves(saved.params))
    want = linear.merged(lora.joined(place.run.adapter, base.params, kept[lora.ADAPTER], None))
    for a, b in zip(jax.tree.leaves(saved.params), jax.tree.leaves(want), strict=True):
        np.testing.assert_allclose(np.asarray(a), np.asarray(b), rtol=1e-6, atol=1e-6)
    assert max(float(np.abs(x).max()) for p, x in param.flatten(kept).items() if p[-1] == "b") > 0
    adapters.merge("runs/lora", "runs/merged")
    merged, greedy = jaxlm.load("runs/merged"), jaxlm.Sampling(max_new=4, temperature=0)
    assert program.packed("runs/merged") is None and merged.run.start is None
    assert jaxlm.generate(saved, ["number"], greedy) == jaxlm.generate(merged, ["number"], greedy)
    adapters.export("runs/lora", "peft")
    adapters.import_adapter("peft", "runs/int4", "runs/again")
    again = jaxlm.load("runs/again")
    for a, b in zip(jax.tree.leaves(again.params), jax.tree.leaves(want), strict=True):
        np.testing.assert_allclose(np.asarray(a), np.asarray(b), rtol=1e-6, atol=1e-6)
    longer = dataclasses.replace(place.run, steps=5)
    assert loop.run(dataclasses.replace(longer, name="whole")).step == 5
    stopped = dataclasses.replace(longer, name="stopped")
    calls = iter(range(100))

    @contextlib.contextmanager
    def caught():
        yield lambda: 15 if next(calls) >= 2 else 0

    with monkeypatch.context() as patch:
        patch.setattr(interrupts, "caught", caught)
        assert loop.run(stopped).step < 5
    assert loop.run(stopped).step == 5
    for a, b in zip(
        jax.tree.leaves(trained_weights.trained("runs/whole")),
        jax.tree.leaves(trained_weights.trained("runs/stopped")),
        strict=True,
    ):
        np.testing.assert_array_equal(a, b)


def test_what_does_not_fit_is_refused_before_compute(place):
    double = dataclasses.replace(place.run.adapter, quantise="nf4")
    cases = {
        "adapter.quantise: 'nf4' given; it must be None": {"adapter": double},
        "no gradient moves; train adapters on them": {"adapter": None},
        "which one device reads; the plan has 2": {"plan": jaxlm.Plan(data=2)},
    }
    for words, change in cases.items():
        with pytest.raises(ValueError, match=words):
            loop.prepare(dataclasses.replace(place.run, **change))
