"""DPO and its relatives over a tiny model: what is read of a batch, what is refused, and runs."""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlm import models
from jaxlm.models import llama
from jaxlm.objectives.preference import dpo, responses
from jaxlm.ops.attention import At
from jaxlm.ops.losses import preference
from jaxlm.parallel.plan import Plan
from tests import programs
from tests.families import deepseek as tiny_deepseek
from tests.families import gpt as gpt_cases
from tests.families import mistral as tiny_mistral
from tests.families.sizes import T, V
from tests.objectives.cases import dpo as cases
from tests.objectives.cases import kto as labelled

LLAMA = llama.Config(vocab=V, embed=16, layers=2, heads=4, kv=2, head=4, ffn=24, context=T)


@functools.cache
def weights(seed):
    spec = models.build(LLAMA).spec
    with jax.ensure_compile_time_eval():  # what is kept must not be another program's tracer
        params = programs.drawn(spec, seed)
    r = np.random.default_rng(seed)
    return jax.tree.map(
        lambda x: np.asarray(x) + 0.2 * r.standard_normal(x.shape, np.float32), params
    )


@functools.cache
def spoken(seed):
    """float64[8, 3, T]: log-probability of every target of the case's batch."""
    model, batch = models.build(LLAMA), cases.batch(0)
    flat = jax.tree.map(lambda x: x.reshape(-1, T), batch._replace(
        rank=None, preference=None, score=None))  # fmt: skip

    def run(params):
        x = model.hidden(params, flat.tokens, At(flat.segments, flat.positions)).x
        return model.unembed(model.head(params), x.reshape(-1, x.shape[-1]))

    logits = np.float64(jax.jit(run)(weights(seed))).reshape(*batch.targets.shape, V)
    logits -= logits.max(-1, keepdims=True)
    logits -= np.log(np.exp(logits).sum(-1, keepdims=True))
    return np.take_along_axis(logits, batch.targets[..., None], -1)[..., 0]


@functools.cache
def judged(cfg):
    """(sum, weight, sums) of the case's batch; the reference is of seed 0."""
    objective = dpo.build(cfg, models.build(LLAMA))
    frozen = {name: weights(0) for name in objective.frozen}
    batch = labelled.batch(0) if cfg.loss == "kto" else cases.batch(0)
    outputs = jax.jit(objective.loss)(weights(1), frozen, batch, None)
    return jax.tree.map(np.asarray, outputs)


def pairs():
    """(prompt, chosen, rejected, share of the prompt) of the case's batch, by hand."""
    rank = cases.batch(0).rank
    for b, row in enumerate(rank):
        ordered = [(i, j) for i in range(3) for j in range(3) if 0 <= row[i] < row[j]]
        yield from ((b, i, j, 1 / len(ordered)) for i, j in ordered)


def test_every_ordered_pair_of_a_prompt_counts_and_both_orders_if_it_is_uncertain():
    batch = cases.batch(0)
    sums = [(spoken(seed) * batch.weight).sum(-1) for seed in (1, 0)]
    ratio = sums[0] - sums[1]
    total, correct, margin = 0.0, 0.0, 0.0
    for b, i, j, share in pairs():
        h, p = 0.5 * (ratio[b, i] - ratio[b, j]), batch.preference[b]
        total += share * (p * np.log1p(np.exp(-h)) + (1 - p) * np.log1p(np.exp(h)))
        correct, margin = correct + share * (h > 0), margin + share * h
    value, weight, report = judged(dpo.Config(beta=0.5))
    # of 8 prompts one is empty and one a tie
    assert weight == 6 == pytest.approx(sum(share for *_, share in pairs()))
    assert {2, 3} == {sum(b == prompt for b, *_ in pairs()) for prompt in (0, 2)}
    np.testing.assert_allclose(value, total, rtol=2e-5)
    np.testing.assert_allclose([report["accuracy"], report["margin"]], [correct, margin], rtol=1e-4)
    chosen = sum(share * sums[0][b, i] for b, i, _, share in pairs())
    rejected = sum(share * sums[0][b, j] for b, _, j, share in pairs())
    logged = [report["log_prob_chosen"], report["log_prob_rejected"]]
    np.testing.assert_allclose(logged, [chosen, rejected], rtol=1e-4)


def test_at_the_reference_the_loss_is_log_two_and_nothing_is_right_or_wrong():
    # a dropout rate of a half, and a key: neither forward pass drops anything
    model = models.build(dataclasses.replace(gpt_cases.GPT, dropout=0.5))
    params = programs.drawn(model.spec, 1)
    objective = dpo.build(dpo.Config(), model)
    outputs = jax.jit(objective.loss)(
        params, {"reference": params}, cases.batch(0), jax.random.key(3)
    )
    total, weight, sums = jax.tree.map(np.asarray, outputs)
    assert total / weight == pytest.approx(np.log(2), rel=1e-6)
    assert sums["margin"] == pytest.approx(0, abs=1e-5)
    same = dpo._sums(dpo.Config(), _ties(), jnp.ones((1, 2, 2)) * jnp.float32([[0, 1], [0, 0]]))
    assert same["accuracy"] == 0.5 and same["margin"] == 0


def _ties():
    two = jnp.full((1, 2), -3.0)
    return preference.Response(two, two + 1, two + 5, two)


def test_the_end_of_a_response_is_learnt_and_padding_is_not():
    """The last token of every response is its end: without it the loss is another. What stands
    behind it, and wider rows, change nothing."""
    model, batch = models.build(LLAMA), cases.batch(0)
    run = jax.jit(lambda batch: responses.summed(model, weights(1), batch, Plan()))
    whole = np.asarray(run(batch))
    by_hand = (spoken(1) * batch.weight).sum(-1)
    np.testing.assert_allclose(whole, by_hand, rtol=1e-5, atol=1e-6)
    ends = batch.weight * (np.cumsum(batch.weight[..., ::-1], -1)[..., ::-1] == 1)
    there = ends.any(-1)
    assert there.sum() == sum(len(row) for row in cases.ROWS)
    shorter = np.asarray(run(batch._replace(weight=batch.weight - ends)))
    np.testing.assert_allclose(
        (whole - shorter)[there], (spoken(1) * ends).sum(-1)[there], rtol=1e-4, atol=1e-5
    )

    noise = np.random.default_rng(3).integers(1, V, batch.tokens.shape, np.int32)
    filled = batch._replace(
        tokens=np.where(batch.segments > 0, batch.tokens, noise),
        targets=np.where(batch.weight > 0, batch.targets, noise),
    )
    np.testing.assert_allclose(run(filled), whole, rtol=1e-6)


def test_orpo_learns_the_chosen_text_with_or_without_its_prompt():
    batch, log_prob = cases.batch(0), spoken(1)
    length = (batch.segments > 0).sum(-1)
    places = np.arange(T) < length[..., None] - 1  # every token but the last has a next one
    for over, learnt in (("response", batch.weight > 0), ("text", places)):
        nll = -(log_prob * learnt).sum(-1) / np.maximum(learnt.sum(-1), 1)
        expected = sum(share * nll[b, i] for b, i, _, share in pairs())
        _, _, sums = judged(dpo.Config(loss="orpo", nll_over=over))
        np.testing.assert_allclose(sums["nll"], expected, rtol=1e-4)


def test_kto_holds_labelled_responses_to_a_baseline_of_stand_ins():
    batch = labelled.batch(0)
    total, weight, sums = judged(dpo.Config(loss="kto", undesirable=0.5))
    model = models.build(LLAMA)
    run = jax.jit(lambda params: responses.summed(model, params, batch, Plan()))
    ratio = np.float64(run(weights(1))) - np.float64(run(weights(0)))
    there = batch.weight.any(-1)[:, 0]
    baseline = max(0.0, ratio[there, 1].mean())
    z = 0.1 * (ratio[there, 0] - baseline)
    good = batch.rank[there, 0] == 0
    each = np.where(good, 1 / (1 + np.exp(z)), 0.5 / (1 + np.exp(-z)))
    assert weight == 7 and baseline > 0 and good.sum() == 4
    np.testing.assert_allclose(total, each.sum(), rtol=1e-4)
    np.testing.assert_allclose(sums["baseline"] / weight, baseline, rtol=1e-4)
    report = dpo.build(dpo.Config(loss="kto"), model).report(sums)
    np.testing.assert_allclose(report["reward_desirable"], 0.1 * ratio[there, 0][good].mean(),
                               rtol=1e-4)  # fmt: skip
    assert report["desirable_share"] == pytest.approx(4 / 7)


def test_stored_and_frozen_references_are_one_loss():
    batch = cases.batch(0)
    model = models.build(LLAMA)
    kept = np.asarray(jax.jit(lambda b: responses.summed(model, weights(0), b, Plan()))(batch))
    objective = dpo.build(dpo.Config(reference="stored"), model)
    assert not objective.frozen
    outputs = jax.jit(objective.loss)(weights(1), {}, batch._replace(reference=kept), None)
    np.testing.assert_allclose(outputs[0], judged(dpo.Config())[0], rtol=1e-6)
    with pytest.raises(ValueError, match="objective.reference"):
        jax.eval_shape(objective.loss, weights(1), {}, batch, None)


def test_experts_are_balanced_by_the_policy_alone():
    """At the reference the loss is log 2; the rest is Fedus et al. 2022's balance, N sum f P, and
    the routers' z-loss, over the tokens of all responses."""
    model = models.build(tiny_mistral.MISTRAL)
    objective = dpo.build(dpo.Config(balance=0.5, router_z=0.25), model)
    params = programs.drawn(model.spec, 1)
    total, weight, sums = jax.tree.map(
        np.asarray, jax.jit(objective.loss)(params, {"reference": params}, cases.batch(0), None)
    )
    tokens = sum(p + n for row in cases.ROWS for p, n, _ in row)
    assert sums["routed"].tolist() == [tokens] * 3
    fractions, shares = sums["load"] / (2 * tokens), sums["shares"] / tokens
    balance = fractions.shape[1] * np.mean(np.sum(fractions * shares, axis=1))
    z = np.mean(sums["router_z"]) / tokens
    assert z > 0.1 and total / weight == pytest.approx(
        math.log(2) + 0.5 * balance + 0.25 * z, rel=1e-5
    )


def test_a_field_that_the_loss_does_not_read_is_refused():
    with pytest.raises(
        ValueError, match="objective.gamma: 0.5 given; .* loss='dpo', which does not read"
    ):
        dpo.Config(gamma=0.5)
    with pytest.raises(
        ValueError, match="objective.reference: 'stored' given; .*'simpo', which does not read"
    ):
        dpo.Config(loss="simpo", reference="stored")
    with pytest.raises(ValueError, match="objective.divergence"):
        dpo.Config(loss="nca", divergence="js")
    with pytest.raises(ValueError, match="objective.alpha"):
        dpo.Config(divergence="js", alpha=0.3)
    for smoothing in (0.0, 0.5):
        with pytest.raises(ValueError, match=r"objective.smoothing.*in \(0, 0.5\)"):
            dpo.Config(loss="cdpo", smoothing=smoothing)
    with pytest.raises(ValueError, match="objective.loss.*one of"):
        dpo.Config(loss="ipo")
    with pytest.raises(ValueError, match="objective.balance"):
        dpo.build(dpo.Config(balance=0.1), models.build(LLAMA))
    with pytest.raises(ValueError, match="objective.bias_speed"):
        dpo.build(dpo.Config(bias_speed=0.1), models.build(LLAMA))
    # of a model whose routers have one, it is taken
    routed = models.build(dataclasses.replace(tiny_deepseek.CASES["deepseek"], ahead=0))
    assert dpo.build(dpo.Config(bias_speed=0.1, balance=0.1), routed).adjust is not None
    assert dpo.build(dpo.Config(balance=0.1), routed).adjust is None
    # every loss is reached by its name, and every field by some loss
    read = {name: dpo.fields(name, "alpha") for name in dpo.LOSSES}
    assert set.union(*read.values()) == {f.name for f in dataclasses.fields(dpo.Config)}
    for name in dpo.LOSSES:
        dpo.Config(loss=name)
    assert set(dpo.LOSSES) == set(dpo.Name.__args__)


def test_a_setting_of_a_loss_that_is_no_field_is_named(monkeypatch):
    def penalised(chosen, rejected, *, beta, penalty):
        return chosen.log_prob - rejected.log_prob

    monkeypatch.setitem(dpo.LOSSES, "penalised", penalised)
    with pytest.raises(ValueError, match=r"'penalised' reads \['penalty'\], and dpo.Config has no"):
        dpo.Config(loss="penalised")
