"""Law 13: the FLOP formula agrees with XLA's own count of the compiled program's operations."""

import dataclasses

import jax
import jax.numpy as jnp
import pytest

from jaxlm import models, objectives
from jaxlm.core import param
from jaxlm.core.batch import Batch
from jaxlm.models import bert, deepseek, gpt, llama, mistral, model, t5
from jaxlm.ops.attention import At
from jaxlm.parallel.plan import Plan
from jaxlm.scaling.cost import flops

T = 256
# wide enough that norms, activations and softmax stay far below 1 %
CASES = {
    "gpt": gpt.Config(vocab=2048, embed=512, layers=2, heads=4, context=T),
    "gpt-post-untied": gpt.Config(
        vocab=2048, embed=512, layers=2, heads=4, context=T, norm="post", tied=False
    ),
    "llama": llama.Config(vocab=2048, embed=512, layers=2, heads=4, kv=4, head=128, ffn=1408),
    "llama-gqa": llama.Config(vocab=2048, embed=512, layers=2, heads=8, kv=2, head=128, ffn=1408),
    "llama-plain-tied": llama.Config(
        vocab=2048, embed=512, layers=2, heads=4, kv=1, head=128, ffn=2048, gated=False, tied=True
    ),
    # as many places as choices; without a capacity XLA counts the loop over groups once
    "mistral-experts": mistral.Config(
        vocab=2048, embed=512, layers=2, heads=4, kv=2, head=128, ffn=704, window=None, experts=4,
        capacity=1.0,
    ),
    "deepseek": deepseek.Config(
        vocab=2048, embed=512, layers=2, dense=1, heads=4, q_rank=256, rank=128, nope=96, rotary=64,
        value=128, ffn=1408, experts=4, active=2, shared=1, expert_ffn=704, groups=1,
        groups_chosen=1, capacity=1.0,
    ),
}  # fmt: skip


def _lowered_flops(f, *args) -> float:
    cost = jax.jit(f).lower(*args).cost_analysis()
    return (cost[0] if isinstance(cost, list) else cost)["flops"]


def _shapes(cfg):
    ids = jax.ShapeDtypeStruct((1, T), jnp.int32)
    return param.abstract(models.spec(cfg)), ids, At(ids, ids)


@pytest.mark.parametrize("name", CASES)
def test_forward_agrees_with_xla(name):
    cfg = CASES[name]
    built = models.build(cfg, Plan(unroll=cfg.layers, loss_chunk=T))
    xla = _lowered_flops(lambda w, ids, at: model.logits(built, w, ids, at), *_shapes(cfg))
    ours = flops.per_token(cfg, T, causal=False).forward * T
    assert ours == pytest.approx(xla, rel=0.01)
    # the attention part is large enough here that leaving it out would be seen
    assert flops.per_token(cfg, T, causal=False).attention * T > 0.03 * xla


@pytest.mark.parametrize("name", ["gpt", "llama-gqa", "deepseek"])
def test_training_is_three_forward_passes(name):
    cfg = CASES[name]
    if name == "deepseek":
        cfg = dataclasses.replace(cfg, ahead=1)
    plan = Plan(unroll=cfg.layers, loss_chunk=T)
    loss = objectives.build(objectives.clm.Config(), models.build(cfg, plan), plan).loss
    params, ids, _ = _shapes(cfg)
    batch = Batch(ids, ids, jax.ShapeDtypeStruct((1, T), jnp.float32), ids, ids)
    key = jax.eval_shape(lambda: jax.random.key(0))
    # one step's dropout key is unused here, so that only the mathematics is counted
    grad = jax.value_and_grad(lambda w, b, k: loss(w, {}, b, k)[0])
    xla = _lowered_flops(grad, params, batch, key)
    assert flops.per_token(cfg, T, causal=False).training * T == pytest.approx(xla, rel=0.01)


# the exact GELU is a polynomial of some 80 operations an element: 2 % at this width
BERT = bert.Config(vocab=2048, embed=512, layers=2, heads=4, ffn=2048, context=T, act="relu")
T5 = t5.Config(vocab=2048, embed=512, encoder=2, layers=3, heads=4, head=128, ffn=1408, gated=True)


def test_an_encoder_agrees_with_xla():
    built = models.build(BERT, Plan(unroll=2, loss_chunk=T))
    xla = _lowered_flops(lambda w, ids, at: model.logits(built, w, ids, at), *_shapes(BERT))
    ours = [flops.per_token(BERT, T, causal=c).forward * T for c in (True, False)]
    assert ours[0] == ours[1] == pytest.approx(xla, rel=0.01)
    near = dataclasses.replace(BERT, window=(9, 17))
    # a token sees those on both sides, fewer at the ends
    assert flops.per_token(near, T).attention == pytest.approx(4 * 512 * (17 + 33), rel=0.1)


@pytest.mark.parametrize("targets", [T, 64])
def test_an_encoder_decoder_agrees_with_xla(targets):
    built = models.build(T5, Plan(unroll=3, loss_chunk=T))
    w, source, at = _shapes(T5)
    ids = jax.ShapeDtypeStruct((1, targets), jnp.int32)

    def forward(w, source, at, ids):
        x = built.encode(w, source, at)
        h = built.hidden(w, ids, At(ids, ids), source=(x, at)).x
        return built.unembed(built.head(w), h)

    xla = _lowered_flops(forward, w, source, at, ids)
    ours = flops.per_token(T5, T, causal=False, targets=targets)
    assert ours.forward * T == pytest.approx(xla, rel=0.01)
    assert ours.attention * T > 0.03 * xla
    if targets == T:
        assert ours == flops.per_token(T5, T, causal=False)
    with pytest.raises(ValueError, match="no encoder-decoder"):
        flops.per_token(BERT, T, targets=targets)


def test_causal_counts_the_keys_a_query_sees():
    assert flops.visible_keys(4, None) == (1 + 2 + 3 + 4) / 4
    assert flops.visible_keys(5, 2) == (1 + 2 + 2 + 2 + 2) / 5
    assert flops.visible_keys(3, 100) == 2
    cfg = CASES["llama-gqa"]
    causal, full = (flops.per_token(cfg, T, causal=c) for c in (True, False))
    assert causal.attention / full.attention == (T + 1) / (2 * T)
    assert causal.layers == full.layers
    assert causal.head == full.head == 2 * 2048 * 512


def test_gpt3_is_within_a_percent_of_the_papers_compute():
    # Brown et al. 2020, table D.1: 3.14e23 FLOPs for 300e9 tokens, 6 per parameter and token
    # without attention and embeddings
    cfg = models.presets()["gpt3-175b"]
    assert flops.TRAINING * flops.per_token(cfg, 2048).layers * 300e9 == pytest.approx(
        3.14e23, rel=0.01
    )


def test_empty_sequence_is_refused():
    with pytest.raises(ValueError, match="seq: 0"):
        flops.per_token(CASES["gpt"], 0)
