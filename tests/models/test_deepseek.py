"""DeepSeek against its papers in float64, and what their tables say of its sizes."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlm import models
from jaxlm.core import param
from jaxlm.core.batch import Batch
from jaxlm.decode import sampling_loop
from jaxlm.models import deepseek
from jaxlm.models.layers import moe
from jaxlm.objectives import clm
from jaxlm.ops import rope
from jaxlm.ops.attention import At
from jaxlm.parallel.plan import Plan
from jaxlm.scaling.cost import flops, memory
from tests.decode import test_sampling_loop
from tests.families.deepseek import CASES
from tests.models import latent

CUTS = [(5, 3), (1, 2, 4)]  # tokens of the documents of each row; the last row ends in padding
CFG = dataclasses.replace(CASES["deepseek"], layers=2, ahead=2)


def packed(seed, cuts=CUTS, width=8):
    r = np.random.default_rng(seed)
    tokens = r.integers(0, CFG.vocab, (len(cuts), width), np.int32)
    segments, positions = np.zeros_like(tokens), np.zeros_like(tokens)
    for b, row in enumerate(cuts):
        ends = np.cumsum((0, *row))
        for n, (i, j) in enumerate(zip(ends[:-1], ends[1:]), 1):
            segments[b, i:j], positions[b, i:j] = n, np.arange(j - i)
    weight = r.uniform(0.5, 1.5, tokens.shape).astype(np.float32) * (segments > 0)
    return Batch(tokens, r.integers(0, CFG.vocab, tokens.shape, np.int32), weight, segments,
                 positions)  # fmt: skip


def drawn(spec, seed=0):
    """Weights of every kind away from 0 and 1, and no larger than what they start with."""
    r = np.random.default_rng(seed)
    return param.map(
        lambda p: np.float32(
            r.normal(0, p.fan_in**-0.5, p.shape) if p.fan_in else r.normal(0.8, 0.3, p.shape)
        ),
        spec,
    )


@pytest.mark.parametrize(
    "cfg",
    [CFG, pytest.param(CASES["deepseek-v2"], marks=pytest.mark.slow)],
    ids=["v3", "v2"],
)
def test_hidden_states_and_loss_are_the_papers_equations(cfg):
    """Documents packed and padded in our rows, alone in float64. At depth k of multi-token
    prediction a document's last k tokens predict nothing."""
    model, batch = models.build(cfg), packed(3)
    w = drawn(model.spec)
    objective = clm.build(clm.Config(ahead=0.3), model)

    @jax.jit
    def run(w, batch):
        x = model.hidden(w, batch.tokens, at := At(batch.segments, batch.positions)).x
        depths = [] if model.ahead is None else model.ahead(w, x, batch.tokens, at)[0]
        return [x, *depths], objective.loss(w, {}, batch, jax.random.key(0))

    with jax.default_matmul_precision("highest"):
        hidden, (total, weight, sums) = run(w, batch)
    freqs = np.float64(rope.frequencies(cfg.rotary, cfg.theta, cfg.scaling).freqs)
    nll, seen = np.zeros(cfg.ahead + 1), 0
    for b, n in ((b, n) for b, row in enumerate(CUTS) for n in range(1, len(row) + 1)):
        here = batch.segments[b] == n
        targets, weights = batch.targets[b, here], batch.weight[b, here]
        for k, want in enumerate(latent.model(w, batch.tokens[b, here], cfg, freqs)):
            got = np.asarray(hidden[k])[b, here][: len(want)]
            np.testing.assert_allclose(got, want, atol=5e-5, err_msg=f"row {b}, {n}, depth {k}")
            z = want @ np.float64(w["unembed"])
            z = np.log(np.exp(z).sum(-1)) - z[np.arange(len(z)), targets[k:]]
            nll[k] += z @ weights[k:]
            seen += 1
    assert seen == sum(min(n, cfg.ahead + 1) for row in CUTS for n in row)
    assert nll[0] > 1
    want = nll[0] + (0.3 * nll[1:].mean() if cfg.ahead else 0)
    np.testing.assert_allclose(total, want, rtol=1e-5)
    np.testing.assert_allclose(weight, batch.weight.sum(), rtol=1e-6)
    np.testing.assert_allclose(sums["nll"], nll[0], rtol=1e-5)
    if cfg.ahead:
        np.testing.assert_allclose(sums["ahead_nll"], nll[1:].mean(), rtol=1e-5)
        # one layer with experts in the stack and two ahead; padding goes to none
        assert sums["load"].shape == (3, cfg.experts)
        lengths = np.array([n for row in CUTS for n in row])
        there = [lengths.sum()] + [np.maximum(lengths - k, 0).sum() for k in (1, 2)]
        np.testing.assert_array_equal(sums["load"].sum(-1), cfg.active * np.array(there))


def test_every_routers_selection_bias_follows_its_loads():
    """In the order in which the statistics come: the stack's layers, then those ahead."""
    w = drawn(spec := models.build(dataclasses.replace(CFG, layers=3)).spec)
    load = np.random.default_rng(0).uniform(0, 9, (4, CFG.experts))
    new = moe.rebalance(jax.tree.map(jnp.asarray, w), jnp.asarray(load), 0.01)
    moved = {p: x - param.flatten(w)[p] for p, x in param.flatten(new).items()}
    stack, ahead = (moved.pop(p) for p in sorted(moved, reverse=True) if "select_bias" in p)
    want = 0.01 * np.sign(load.mean(-1, keepdims=True) - load)
    np.testing.assert_allclose(np.concatenate([stack, ahead]), want, atol=1e-6)
    assert not any(np.any(x) for x in moved.values())
    assert not any(
        yes for p, yes in param.flatten(param.decayed(spec)).items() if "select_bias" in p
    )


def test_a_model_that_predicts_ahead_is_trained_to():
    with pytest.raises(ValueError, match=r"objective.ahead: 0 given.*model.ahead=0"):
        clm.build(clm.Config(ahead=0.0), models.build(CFG))


@pytest.mark.parametrize(
    ("field", "value"), [("groups", 3), ("active", 9), ("dense", 3), ("rotary", 3), ("ahead", -1)]
)
def test_a_wrong_config_is_named(field, value):
    with pytest.raises(ValueError, match=f"{field}|count"):
        dataclasses.replace(CFG, **{field: value})


def test_active_parameters():
    """Of V3's 671B a token meets 37B, of V2's 236B 21B, of V2-Lite's 15.7B 2.4B, embedding and
    output matrix included; V3's module ahead has 11.5B of its own (README of the release)."""
    for name, billions in (("deepseek-v3", 36.7), ("deepseek-v2", 21.4), ("deepseek-v2-lite", 2.7)):
        cfg = models.presets()[name]
        met = flops.per_token(cfg, 1).layers / 2 + 2 * cfg.vocab * cfg.embed
        assert met / 1e9 == pytest.approx(billions, rel=0.03)
    v3 = models.presets()["deepseek-v3"]
    more = deepseek.spec(dataclasses.replace(v3, ahead=1))["ahead"]
    assert param.count(more) / 1e9 == pytest.approx(11.5, rel=0.01)


def test_the_cache_of_v3_is_its_latents():
    v3 = models.presets()["deepseek-v3"]
    size = memory.cache(v3, Plan(), batch=1, slots=4096, dtype=jnp.bfloat16)
    assert size == 4096 * 61 * (512 + 64) * 2


def test_no_copy_of_cache_or_weights_while_decoding():
    """The absorbed form reads cache and weights as they lie; scores alone are sliced and joined."""
    cfg = dataclasses.replace(CFG, layers=1, ahead=0, rank=32, nope=16, value=16)
    model = models.build(cfg)
    params = param.abstract(model.spec)
    text = (
        jax.jit(lambda p, t, at, r: sampling_loop.generate(model, p, t, at, r, 32))
        .lower(params, t := jnp.ones((2, 16), int), At(t, t), test_sampling_loop.greedy_rows(2, 32))
        .compile()
        .as_text()
    )
    assert test_sampling_loop.loop_bodies(text)
    cache, weight, scores = 2 * 47 * 36, 4 * 32 * 16, 2 * 4 * 48
    assert "f32[2,47,36]" in text and cache > weight > 2 * scores
    assert test_sampling_loop.moved(text, weight) == []
