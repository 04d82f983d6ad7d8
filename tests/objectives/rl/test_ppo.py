"""PPO: the whole loss against a reference in float64, advantages of scores."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlm import models
from jaxlm.core.batch import Rollout
from jaxlm.models import llama
from jaxlm.objectives.rl import ppo
from tests import programs
from tests.objectives import free
from tests.objectives.cases import ppo as cases

V = 7
WEIGHT = np.array(
    [[1, 1, 1, 1, 1], [1, 1, 1, 0, 0], [0, 1, 1, 0, 0], [1, 0, 0, 0, 0], [0] * 5], float
)


def log_softmax(z):
    z = z - z.max(-1, keepdims=True)
    return z - np.log(np.exp(z).sum(-1, keepdims=True))


def reference_loss(cfg, logits, head, batch):
    """(loss, {metric: value}) by the papers' formulas, token by token, in float64."""
    log_p = log_softmax(np.float64(logits) / cfg.temperature)
    sums = dict.fromkeys(("policy", "value", "entropy", "clipped", "k1", "k3"), 0.0)
    tokens = 0
    errors, returns = [], []
    for n, t in zip(*np.nonzero(batch.weight), strict=True):
        tokens += 1
        now, before = log_p[n, t, batch.targets[n, t]], batch.behaviour[n, t]
        ratio, advantage = np.exp(now - before), batch.advantage[n, t]
        free_, bound = ratio * advantage, np.clip(ratio, 1 - cfg.clip, 1 + cfg.clip) * advantage
        loss = -min(free_, bound)
        if cfg.dual is not None and advantage < 0:
            loss = min(loss, -cfg.dual * advantage)
        value, old, wanted = logits[n, t] @ head, batch.value[n, t], batch.returns[n, t]
        near = (
            value
            if cfg.value_clip is None
            else np.clip(value, old - cfg.value_clip, old + cfg.value_clip)
        )
        sums["policy"] += loss
        sums["value"] += 0.5 * max((value - wanted) ** 2, (near - wanted) ** 2)
        sums["entropy"] -= np.exp(log_p[n, t]) @ log_p[n, t]
        sums["clipped"] += bound < free_
        sums["k1"] += now - batch.reference[n, t]
        d = batch.reference[n, t] - now
        sums["k3"] += np.exp(d) - 1 - d
        errors.append(wanted - value)
        returns.append(wanted)
    means = {name: x / tokens for name, x in sums.items()}
    total = means["policy"] + cfg.value_weight * means["value"] - cfg.entropy * means["entropy"]
    return total, means | {"explained": 1 - np.var(errors) / np.var(returns)}


def drawn(seed=0):
    """(logits, value head, Rollout) in float64, ratios well away from 1."""
    r = np.random.default_rng(seed)
    shape = WEIGHT.shape
    more = {name: WEIGHT * r.normal(size=shape) for name in ("value", "advantage", "returns")}
    targets = r.integers(0, V, shape).astype(np.int32)
    near = [WEIGHT * r.normal(-2.2, 0.5, shape) for _ in range(2)]
    batch = free.rollout(WEIGHT, near[0], reference=near[1], targets=targets, **more)
    return r.normal(size=(*shape, V)), 0.3 * r.normal(size=V), batch


@pytest.mark.parametrize(
    "cfg",
    [
        ppo.Config(value_weight=0.5),
        ppo.Config(dual=1.5, entropy=0.3, temperature=0.6, value_clip=None, clip=0.1),
    ],
)
def test_the_loss_its_metrics_and_its_gradient_are_those_of_a_plain_reference(cfg):
    logits, head, batch = drawn()
    with jax.enable_x64(True):
        objective = ppo.build(cfg, free.model(*logits.shape))
        params = {"logits": logits, "value": head}
        value, metrics, grads = free.slope(objective, params, {}, batch)
    right, means = reference_loss(cfg, logits, head, batch)
    # heads sum in float32
    np.testing.assert_allclose(value, right, atol=1e-6)
    names = {
        "policy": "policy_loss",
        "value": "value_loss",
        "entropy": "entropy",
        "clipped": "clipped",
        "k1": "reference_kl1",
        "k3": "reference_kl3",
        "explained": "explained_variance",
    }
    for ours, theirs in names.items():
        np.testing.assert_allclose(metrics[theirs], means[ours], rtol=1e-5, err_msg=ours)
    # the gradient, by differences of the reference, in directions at random
    r = np.random.default_rng(1)
    for _ in range(4):
        dz, dv = r.normal(size=logits.shape), 0.1 * r.normal(size=V)
        step = 1e-5
        up, down = (
            reference_loss(cfg, logits + s * dz, head + s * dv, batch)[0] for s in (step, -step)
        )
        slope = np.sum(grads["logits"] * dz) + np.sum(grads["value"] * dv)
        np.testing.assert_allclose(slope, (up - down) / (2 * step), atol=1e-5)


def test_at_ratio_1_the_policy_loss_is_minus_the_mean_advantage():
    logits, head, batch = drawn()
    before = np.take_along_axis(log_softmax(logits), batch.targets[..., None], -1)[..., 0]
    batch = batch._replace(behaviour=WEIGHT * before)
    cfg = ppo.Config(value_weight=0.0)
    with jax.enable_x64(True):
        objective = ppo.build(cfg, free.model(*logits.shape))
        value, metrics, _ = free.slope(objective, {"logits": logits, "value": head}, {}, batch)
    np.testing.assert_allclose(value, -batch.advantage.sum() / WEIGHT.sum(), atol=1e-12)
    assert metrics["clipped"] == 0 and abs(metrics["behaviour_kl3"]) < 1e-12
    assert metrics["ratio_gap"] < 1e-6


def of(**more):
    """Responses over WEIGHT, with random log-probabilities, values and scores."""
    r = np.random.default_rng(3)
    ids = np.zeros(WEIGHT.shape, np.int32)
    drawn_ = [(WEIGHT * r.normal(size=WEIGHT.shape)).astype(np.float32) for _ in range(3)]
    names = ("behaviour", "reference", "value")
    parts = dict(zip(names, drawn_)) | dict.fromkeys(
        ("tokens", "targets", "segments", "positions"), ids
    )
    parts |= {
        "weight": WEIGHT.astype(np.float32),
        "score": r.normal(size=5).astype(np.float32),
        "finished": np.array([True, False, True, True, False]),
    }
    return Rollout(**parts | more)


def judged(cfg, whole, coefficient):
    """(reward [N, T], advantage, returns) by the papers' formulas, in float64."""
    score = np.float64(whole.score)
    score = score if cfg.score_clip is None else np.clip(score, -cfg.score_clip, cfg.score_clip)
    score = np.where(whole.finished | (cfg.unfinished is None), score, cfg.unfinished)
    reward = np.zeros(WEIGHT.shape)
    advantage, returns = np.zeros(WEIGHT.shape), np.zeros(WEIGHT.shape)
    for n in range(len(WEIGHT)):
        at = np.flatnonzero(WEIGHT[n])
        reward[n, at] = -coefficient * (np.float64(whole.behaviour) - whole.reference)[n, at]
        if len(at):
            reward[n, at[-1]] += score[n]
        for i, t in enumerate(at):
            for k, s in enumerate(at[i:]):
                after = whole.value[n, at[i + k + 1]] if i + k + 1 < len(at) else 0.0
                error = reward[n, s] + cfg.gamma * after - whole.value[n, s]
                advantage[n, t] += (cfg.gamma * cfg.lam) ** k * error
            returns[n, t] = advantage[n, t] + whole.value[n, t]
    if cfg.whiten_advantages:
        kept = advantage[WEIGHT > 0]
        advantage = WEIGHT * (advantage - kept.mean()) / np.sqrt(kept.var(ddof=1) + 1e-8)
    return advantage, returns


@pytest.mark.parametrize(
    "cfg",
    [
        ppo.Config(),
        ppo.Config(whiten_advantages=False, unfinished=-1.0, score_clip=0.5, gamma=0.9, lam=0.8),
    ],
)
def test_judging_is_that_of_a_plain_reference(cfg):
    whole = of()
    advantage, returns, metrics = jax.jit(
        lambda c: programs.Whole(ppo).gae_advantages(cfg, whole, c)
    )(0.2)
    right = judged(cfg, whole, 0.2)
    np.testing.assert_allclose(advantage, right[0], atol=1e-5)
    np.testing.assert_allclose(returns, right[1], atol=1e-5)
    kl = np.float64(whole.behaviour - whole.reference).sum() / 4  # the fifth row is filling
    np.testing.assert_allclose(metrics["kl"], kl, rtol=1e-5)
    plain = judged(dataclasses.replace(cfg, whiten_advantages=False), whole, 0.2)[0]
    np.testing.assert_allclose(metrics["advantage_std"], plain[WEIGHT > 0].std(), rtol=1e-5)
    assert metrics["length"] == WEIGHT.sum() / 4 and metrics["finished"] == 3 / 4
    np.testing.assert_allclose(metrics["score"], np.float64(whole.score[:4]).mean(), rtol=1e-5)
    np.testing.assert_allclose(
        metrics["objective"], metrics["score"] - 0.2 * metrics["kl"], rtol=1e-6
    )


def test_whitened_rewards_keep_their_mean():
    whole = of(value=np.zeros(WEIGHT.shape, np.float32))
    cfg = ppo.Config(whiten_rewards=True, whiten_advantages=False, gamma=0.0)
    advantage, _, _ = programs.Whole(ppo).gae_advantages(
        cfg, whole, 0.2
    )  # gamma=0: of each token its own reward
    plain, _, _ = programs.Whole(ppo).gae_advantages(
        dataclasses.replace(cfg, whiten_rewards=False), whole, 0.2
    )
    one, other = (np.asarray(x)[WEIGHT > 0] for x in (advantage, plain))
    np.testing.assert_allclose(one.mean(), other.mean(), rtol=1e-5)
    np.testing.assert_allclose(one.std(ddof=1), 1, rtol=1e-5)


def test_without_a_penalty_nothing_reads_a_reference():
    cfg = ppo.Config(kl=ppo.Fixed(0.0))
    assert ppo.build(cfg, free.model(1, 1, V)).frozen == {}
    bad = of(reference=np.full(WEIGHT.shape, np.nan, np.float32))
    advantage, returns, metrics = programs.Whole(ppo).gae_advantages(cfg, bad, 0.0)
    assert np.all(np.isfinite(advantage)) and np.all(np.isfinite(returns)) and "kl" not in metrics


def test_a_critic_begins_where_it_is_told():
    model = free.model(1, 1, V)
    given = ppo.build(ppo.Config(critic="own", critic_start="runs/judge"), model).begun
    assert {name: x._asdict() for name, x in given.items()} == {
        "critic": {"run": "runs/judge", "renamed": {"value": "score"}}
    }
    assert ppo.build(ppo.Config(critic="own"), model).begun == {}


def test_controllers():
    adaptive = ppo.Config(kl=ppo.Adaptive(0.2, target=6.0, horizon=1e4))
    metrics, model = {"kl": jnp.float32(12.0)}, free.model(1, 1, V)
    steered = ppo.policy(adaptive, model)
    then = steered.adapt_kl(steered.kl_coefficient, metrics, 64)
    np.testing.assert_allclose(then, 0.200256)
    fixed = ppo.policy(ppo.Config(kl=ppo.Fixed(0.3)), model)
    assert fixed.adapt_kl(fixed.kl_coefficient, metrics, 64) == 0.3


def test_what_was_sampled_has_ratio_1_when_it_is_learnt_from():
    """By way of a real model, padding and temperature: `measure` is the pass that `loss` reads."""
    cfg = ppo.Config(temperature=0.7, critic="own")
    model = models.build(
        llama.Config(vocab=32, embed=16, layers=1, heads=2, kv=1, head=8, ffn=16, context=8)
    )
    objective = ppo.build(cfg, model)
    params = programs.drawn(objective.spec, 0)
    r = np.random.default_rng(0)
    params["critic"]["value"] = jnp.asarray(r.normal(size=16), jnp.float32)
    rows = cases.batch(0)
    frozen = {"reference": {name: params[name] for name in model.spec}}
    behaviour, reference, value = jax.jit(ppo.policy(cfg, model).measure)(params, frozen, rows)
    assert "unembed" not in objective.spec["critic"] and "unembed" in objective.spec
    np.testing.assert_allclose(behaviour, reference, atol=1e-6)
    batch = rows._replace(behaviour=behaviour, reference=reference, value=value)
    _, metrics, _ = free.slope(objective, params, frozen, batch)
    assert metrics["ratio_gap"] < 1e-5 and metrics["clipped"] == 0 and metrics["value_clipped"] == 0
    np.testing.assert_allclose(metrics["ratio"], 1, rtol=1e-6)


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"clip": 0.0}, "objective.clip: 0.0"),
        ({"temperature": 0.0}, "objective.temperature"),
        ({"value_clip": -0.2}, "objective.value_clip"),
        ({"gamma": 1.5}, "objective.gamma: 1.5"),
        ({"dual": 0.5}, "above 1"),
        ({"kl": ppo.Fixed(-1.0)}, "objective.kl.coefficient: -1.0"),
        ({"kl": ppo.Adaptive(0.2, target=0.0)}, "objective.kl.target"),
    ],
)
def test_a_number_that_cannot_be_right_is_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        ppo.Config(**fields)
