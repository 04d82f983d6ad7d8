"""muP: the rules by hand and by the authors' package; activations that do not know the width."""

import dataclasses
import math

import jax
import numpy as np
import pytest

from experiments.mup import activation_sizes
from jaxlm import models
from jaxlm.core import config, param
from jaxlm.models import gpt, llama, mistral, t5
from jaxlm.train import program
from jaxlm.train.optim import mup, optimizer
from jaxlm.train.run import run as runs

BASE = (("embed", 16), ("heads", 2), ("kv", 2), ("ffn", 24))


def shape(width, **changes):
    """A LLaMA of that width, whose base at 16 is BASE."""
    heads = width // 8
    return llama.Config(
        **{
            **dict(vocab=259, embed=width, layers=2, heads=heads, kv=heads, head=8, context=32),
            **dict(ffn=width * 3 // 2),
            **changes,
        }
    )


def scaled(width, name="adamw"):
    """{path: Param} under muP."""
    small = models.spec(mup.base(shape(width), BASE))
    return param.flatten(mup.spec(models.spec(shape(width)), small, name))


# Table 3 of Yang et al. 2022 at 4 times the base's width: {weight: (std, over the base's; rate)}.
BY_HAND = {
    "embed/table": (1, 1),
    "norm": (None, 1),
    "stack/0/0_global/attn_norm": (None, 1),
    "stack/0/0_global/attn/q": (1 / 2, 1 / 4),
    "stack/0/0_global/attn/k": (1 / 2, 1 / 4),
    "stack/0/0_global/attn/o": (1 / 2, 1 / 4),
    "stack/0/0_global/ffn/gate": (1 / 2, 1 / 4),
    "stack/0/0_global/ffn/down": (1 / 2, 1 / 4),
    "unembed": (1 / 4, 1 / 4),
}


@pytest.mark.parametrize("name", ["adamw", "lion"])
def test_the_rules_are_those_of_the_table(name):
    small, wide = param.flatten(models.spec(shape(16))), scaled(64, name)
    for path, (std, rate) in BY_HAND.items():
        p, q = wide[path], small[path]
        assert p.rate == rate, path
        assert p.shape == param.flatten(models.spec(shape(64)))[path].shape
        if std is None:
            assert p.init is q.init
        else:
            assert p.init.std(p) == pytest.approx(std * q.init.std(q), rel=1e-12), path


def test_muons_matrices_follow_the_spectral_condition():
    """lr * rate * sqrt(max(fan_in, fan_out)) goes as sqrt(fan_out / fan_in). Only matrices."""
    wide = scaled(64, "muon")
    for path in ("stack/0/0_global/attn/q", "stack/0/0_global/ffn/down"):
        assert wide[path].rate == pytest.approx(64**-0.5 / 16**-0.5)
    assert wide["unembed"].rate == 1 / 4 and wide["embed/table"].rate == 1
    # grouped queries: kv stays where embed grows by 4, so fan_out / fan_in falls by 4
    model = shape(64, kv=2)
    base = tuple(pair for pair in BASE if pair[0] != "kv")
    spec = mup.spec(models.spec(model), models.spec(mup.base(model, base)), "muon")
    assert param.flatten(spec)["stack/0/0_global/attn/k"].rate == pytest.approx(1 / 4)


def test_a_router_is_an_output_and_a_position_an_input():
    wide = mistral.Config(
        vocab=259, embed=32, layers=1, heads=4, kv=4, head=8, ffn=48, experts=4, active=2
    )
    found = param.flatten(mup.spec(models.spec(wide), models.spec(mup.base(wide, BASE)), "adamw"))
    base = param.flatten(models.spec(mup.base(wide, BASE)))
    (router,) = [path for path in found if path.endswith("router")]
    for path, power in ((router, 1), (router.replace("router", "down"), 0.5)):
        p, q = found[path], base[path]
        assert p.init.std(p) == pytest.approx(q.init.std(q) * 2**-power)
        assert p.rate == 1 / 2
    gpt2 = gpt.Config(vocab=300, embed=32, layers=1, heads=4, ffn=48, tied=False)
    base = (("embed", 16), ("heads", 2), ("ffn", 24))
    found = param.flatten(mup.spec(models.spec(gpt2), models.spec(mup.base(gpt2, base)), "adamw"))
    p = found["embed/positions"]
    assert (p.init.std(p), p.rate) == (0.01, 1.0)


def test_at_the_bases_width_it_is_the_standard_parametrisation_bit_for_bit():
    """The same draws, times the same float, and the same optimiser: no rate, no part of its own."""
    plain, ours = models.spec(shape(16)), scaled(16)
    for path, q in param.flatten(plain).items():
        p = ours[path]
        assert (p.rate, p.shape, p.axes, p.inputs) == (1.0, q.shape, q.axes, q.inputs), path
        assert not isinstance(q.init, param.Normal) or p.init.std(p) == q.init.std(q), path
    key = jax.random.key(3)
    same = [p.init(key, p) for p in (ours["unembed"], param.flatten(plain)["unembed"])]
    np.testing.assert_array_equal(*same)
    states = [
        jax.eval_shape(
            optimizer.build(optimizer.Optim(), spec, 200, False).init, param.abstract(spec)
        )
        for spec in (plain, param.nested(ours))
    ]
    assert jax.tree.structure(states[0]) == jax.tree.structure(states[1])


def test_a_run_trains_by_its_spec(tiny):
    run = tiny(model=shape(64), mup=BASE)
    _, objective = program.training(run)
    assert {p.rate for p in param.flatten(objective.spec).values()} == {1.0, 0.25}
    with pytest.raises(ValueError, match="mup: weight score is not the model's"):
        mup.spec({**objective.spec, "score": objective.spec["norm"]}, objective.spec, "adamw")
    with pytest.raises(ValueError, match="untie"):
        runs.validate(dataclasses.replace(run, model=shape(64, tied=True)))


def test_the_rate_is_in_the_step_and_not_in_the_decay():
    p = param.shaper(embed=4, ffn=6)("embed -> ffn")
    spec = {"plain": p, "slow": dataclasses.replace(p, rate=0.25)}
    weights = param.map(lambda p: np.full(p.shape, 2.0, np.float32), spec)
    grads = param.map(lambda p: np.ones(p.shape, np.float32), spec)
    cfg = optimizer.Optim(lr=0.1, schedule="constant", warmup=0, weight_decay=0.5, clip=None)
    tx = optimizer.build(cfg, spec, 3, False)
    moved, _ = tx.update(grads, tx.init(weights), weights)
    # Adam's first step is the gradient's sign; decay takes lr * 0.5 * 2 from both
    np.testing.assert_allclose(moved["plain"], -0.1 - 0.1, rtol=1e-6)
    np.testing.assert_allclose(moved["slow"], -0.1 / 4 - 0.1, rtol=1e-6)


def test_what_has_no_rule_is_refused_in_words():
    def told(model, base=BASE, **changes):
        return "\n".join(mup.problems(model, base, optimizer.Optim(**changes)))

    assert told(shape(64)) == "" and told(shape(64), None) == ""
    assert "multiplier" in told(shape(64, tied=True))
    assert "optim.name: 'adafactor' given; it must be adamw, lion or muon with mup" in told(
        shape(64), name="adafactor"
    )
    assert "axis 'head' of weight" in told(shape(64), (*BASE, ("head", 16)))
    assert "'wide' given, but model has no such width" in told(shape(64), (("wide", 3),))
    assert "2 times" in told(shape(64), (("embed", 16), ("embed", 8)))
    assert "make no model: model.kv" in told(shape(64), (("kv", 3),))
    assert "'vocab'" in told(shape(64), (*BASE, ("vocab", 3)))
    assert "model.scaled" in told(t5.Config(tied=False), (("embed", 16),))
    run = runs.Run(name="x", model=shape(64), mup=BASE)
    assert config.from_dict(runs.Run, config.to_dict(run)) == run


@pytest.mark.slow
def test_changes_do_not_grow_with_width_under_mup_and_do_without(tiny):
    """Widths 16 to 64 only: slopes are noisy there, and the two are far apart all the same."""
    still = optimizer.Optim(lr=2e-3, schedule="constant", warmup=0)
    found = {True: {}, False: {}}
    for scale, sizes in found.items():
        for width in (16, 64):
            run = tiny(model=shape(width), mup=BASE if scale else None, optim=still, steps=4)
            sizes[width] = activation_sizes.sizes(run, (0, 1, 4))
    ours, theirs = activation_sizes.slopes(found[True]), activation_sizes.slopes(found[False])
    assert list(ours[0]) == ["embed", "layer 1", "layer 2", "logits"]
    for place in ("layer 1", "layer 2"):
        assert abs(ours[0][place]) < 0.2
        for number in (1, 4):
            assert abs(ours[number][place]) < 0.3 < 0.5 < theirs[number][place], (number, place)
    # logits at the start are a sum of `width` terms of size 1 / width, without correlation
    assert ours[0]["logits"] == pytest.approx(-0.5, abs=0.2)
    assert ours[4]["logits"] < theirs[4]["logits"] - 0.3
    with pytest.raises(ValueError, match=r"steps: \[1\] given"):
        activation_sizes.sizes(run, (1,))
    with pytest.raises(ValueError, match="at least 2"):
        activation_sizes.slopes({16: found[True][16]})


@pytest.mark.parity
def test_the_authors_package_gives_the_same_ratios():
    """Layers by torch with mup.set_base_shapes: its multipliers for MuAdam and its initial std."""
    package, torch = pytest.importorskip("mup"), pytest.importorskip("torch")

    class Net(torch.nn.Module):
        def __init__(self, width):
            super().__init__()
            self.table = torch.nn.Embedding(259, width)
            self.up = torch.nn.Linear(width, 2 * width, bias=False)
            self.out = package.MuReadout(width, 259, bias=False)

    made = {w: Net(w) for w in (16, 32, 64)}
    for width in (64, 16):
        package.set_base_shapes(made[width], Net(16), delta=made[32])
    wide = made[64]
    groups = package.MuAdam(wide.parameters(), lr=1.0).param_groups
    rates = {id(p): g["lr"] for g in groups for p in g["params"]}
    ours = scaled(64)
    assert rates[id(wide.up.weight)] == ours["stack/0/0_global/ffn/up"].rate
    assert rates[id(wide.table.weight)] == ours["embed/table"].rate
    # it keeps the output matrix large, multiplies by 1 / r in the forward pass, and does not slow
    # Adam: table 8, of which table 3 is the same network
    mult = 1 / wide.out.width_mult()
    assert rates[id(wide.out.weight)] * mult == ours["unembed"].rate
    torch.manual_seed(0)
    spread = {}
    for width in (16, 64):
        package.init.normal_(made[width].up.weight, std=1.0)
        spread[width] = float(made[width].up.weight.std())
    p, q = ours["stack/0/0_global/ffn/up"], param.flatten(models.spec(shape(16)))
    theirs = q["stack/0/0_global/ffn/up"]
    ratio = p.init.std(p) / theirs.init.std(theirs)
    assert math.isclose(spread[64], ratio, rel_tol=0.05)
