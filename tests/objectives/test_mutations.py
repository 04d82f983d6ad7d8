"""Bugs on purpose. In a world of 15 completions a prompt, what an objective's gradient must be is a
sum over all of them: the exact gradient of what it claims to improve. Each mutant changes one
function of the library, and the check that guards against it must notice.

Outcomes alone would not tell: training without the loss mask reaches as good a policy here.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.rlhf import world
from jaxlm.core import batch as batches
from jaxlm.core import param
from jaxlm.core.batch import Batch, Prompts, Rollout
from jaxlm.models.layers import value_head
from jaxlm.objectives import clm, log_probs
from jaxlm.objectives.preference import dpo, responses, reward
from jaxlm.objectives.rl import grpo, policy_terms, ppo
from jaxlm.ops.losses import advantages, cross_entropy, preference, ranking, surrogate
from jaxlm.parallel.plan import Plan
from jaxlm.train.rl import policy_sampling
from tests.objectives import exact_gradients as exact

pytestmark = pytest.mark.slow

SIZE, LISTED, N, R = exact.SIZE, exact.LISTED, exact.N, exact.R
MODEL, BETA = exact.MODEL, exact.BETA
PAIR, PAIR_PROMPT, CHANCE = exact.PAIR, exact.PAIR_PROMPT, exact.CHANCE
PROMPT, INDEX = (x.ravel() for x in np.meshgrid([0, 1], np.arange(N), indexing="ij"))


def pairs():
    """All pairs of completions of all prompts, the first preferred with its chance."""
    rank = np.broadcast_to([0, 1], PAIR.shape)
    rows = world.choices(SIZE, PAIR_PROMPT, PAIR, rank)
    return rows._replace(preference=CHANCE.astype(np.float32))


def same(ours, right):
    """That two trees of gradients agree to 1e-4 of the largest."""
    ours, right = (param.flatten(x) for x in (ours, right))
    for name in right:
        atol = 1e-4 * np.abs(right[name]).max() + 1e-7
        np.testing.assert_allclose(ours[name], right[name], rtol=0, atol=atol, err_msg=name)


def gradients(objective, frozen, batch, params):
    """(the loss's sum, its weight, the sum's gradient in the model's own weights)."""
    names = {name: params[name] for name in objective.spec}

    def total(params):
        return objective.loss(params, frozen, batch, None)[:2]

    (value, weight), grads = jax.jit(jax.value_and_grad(total, has_aux=True))(names)
    return value, weight, exact.trunk(grads)


# --- The checks ---------------------------------------------------------------------------------


def check_supervised():
    """The loss is the cross-entropy of completions, and nothing is learnt of prompts."""
    chance = np.exp(world.source(SIZE, 3))
    rows = world.batch(SIZE, PROMPT, INDEX)
    rows = rows._replace(weight=rows.weight * chance.ravel()[:, None].astype(np.float32))
    value, weight, grads = gradients(clm.build(clm.Config(), MODEL), {}, rows, exact.weights(1))
    assert weight == pytest.approx(rows.weight.sum())
    assert value == pytest.approx(-(chance * exact.known()[0]).sum(), abs=1e-4)
    same(grads, exact.of_source())


def check_reward():
    """A score is that of the text alone, whatever is behind it; the loss is Bradley and Terry's."""
    params = exact.weights(1)
    texts = world.choices(SIZE, PROMPT[:, None], INDEX[:, None], 0 * INDEX[:, None])
    read = functools.partial(reward.rewards, MODEL)
    rewards = np.asarray(jax.jit(read)(params, texts))[:, 0]
    lengths = texts.segments[:, 0].sum(-1)
    alone = np.zeros(len(rewards))
    forward = jax.jit(functools.partial(log_probs.forward, MODEL))
    for n in np.unique(lengths):
        mine = np.flatnonzero(lengths == n)
        tokens = texts.tokens[mine, 0, :n]
        rows = Batch(tokens, tokens, tokens, np.ones_like(tokens), 0 * tokens + np.arange(n))
        alone[mine] = np.asarray(forward(params, rows).x[:, -1]) @ params["score"]
    np.testing.assert_allclose(rewards, alone, atol=1e-5)
    value, weight, _ = gradients(reward.build(reward.Config(), MODEL), {}, pairs(), params)
    assert weight == len(PAIR)
    d = -np.diff(alone.reshape(2, N)[PAIR_PROMPT, PAIR])[:, 0]
    right = CHANCE * np.log1p(np.exp(-d)) + (1 - CHANCE) * np.log1p(np.exp(d))
    assert value == pytest.approx(right.sum(), rel=1e-5)


def check_dpo():
    """The loss is that of Bradley and Terry's preferences, of sums over whole completions."""
    objective = dpo.build(dpo.Config(beta=BETA), MODEL)
    frozen = {"reference": exact.trunk(exact.weights(2))}
    value, weight, grads = gradients(objective, frozen, pairs(), exact.weights(1))
    assert weight == len(PAIR)
    assert value == pytest.approx(float(exact.preferring(exact.known()[0])), rel=1e-5)
    same(grads, exact.of_preferences())


def judged(policy, params, index, prompt, chance):
    """The Rollout of listed completions, each with its probability in its advantage, so that sums
    over rows are expectations; and the advantages as they were estimated."""
    texts = world.choices(SIZE, prompt[:, None], index[:, None], 0 * index[:, None])
    score, ended = R[prompt, index].astype(np.float32), LISTED.ended[index]
    rows = Rollout(*(x[:, 0] for x in batches.text(texts)), None, score=score, finished=ended)

    @jax.jit
    def run(params, reference):
        frozen = {"reference": reference}
        behaviour, held, value = policy.measure(params, frozen, rows)
        scored = rows._replace(behaviour=behaviour, reference=held, value=value)
        advantage, returns, _ = policy.advantages(scored, policy.kl_coefficient)
        weighted = advantage * chance.astype(np.float32)[:, None]
        return scored._replace(advantage=weighted, returns=returns), advantage

    return run(params, exact.trunk(exact.weights(2)))


def check_ppo():
    """The expected gradient is that of J, with any value as the baseline."""
    cfg = ppo.Config(
        kl=ppo.Fixed(BETA), lam=1.0, whiten_advantages=False, value_weight=0.0, temperature=1.0
    )
    chance = np.exp(exact.known()[0]).ravel() / 2
    batch, _ = judged(ppo.policy(cfg, MODEL), exact.weights(1), INDEX, PROMPT, chance)
    _, weight, grads = gradients(ppo.build(cfg, MODEL), {}, batch, exact.weights(1))
    assert weight == 2 * LISTED.real.sum()
    same(grads, exact.descent())


def check_ppo_returns():
    """The value learns what is still to come: the score less the penalty of this and later tokens;
    advantages are whitened over tokens of responses alone."""
    cfg = ppo.Config(kl=ppo.Fixed(BETA), lam=1.0)
    batch, advantage = judged(
        ppo.policy(cfg, MODEL), exact.weights(1), INDEX, PROMPT, np.ones(2 * N)
    )
    here = np.asarray(batch.weight) > 0
    cost = np.where(here, BETA * (np.asarray(batch.behaviour) - np.asarray(batch.reference)), 0)
    to_go = R.ravel()[:, None] - np.cumsum(cost[:, ::-1], 1)[:, ::-1]
    np.testing.assert_allclose(np.asarray(batch.returns)[here], to_go[here], atol=1e-5)
    raw = (to_go - np.asarray(batch.value))[here]
    right = (raw - raw.mean()) / raw.std(ddof=1)
    np.testing.assert_allclose(np.asarray(advantage)[here], right, atol=1e-4)


def check_grpo():
    """The expected gradient of leave-one-out groups of two is that of J."""
    cfg = grpo.Config(variant="rloo", beta=BETA, kl="reward")
    log_p, x = exact.known()[0], PAIR_PROMPT[:, 0]
    both = np.exp(log_p[x, PAIR[:, 0]] + log_p[x, PAIR[:, 1]]) / 4  # of 2 prompts, of 2 responses
    policy = grpo.policy(cfg, MODEL, group=2, longest=SIZE.length)
    batch, advantage = judged(
        policy, exact.weights(1), PAIR.ravel(), PAIR_PROMPT.ravel(), np.repeat(both, 2)
    )
    first = np.asarray(advantage)[:, 1].reshape(-1, 2)
    np.testing.assert_allclose(first.sum(1), 0, atol=1e-5)
    _, weight, grads = gradients(grpo.build(cfg, MODEL), {}, batch, exact.weights(1))
    assert weight == len(batch.tokens)
    same(grads, exact.descent())


def check_penalty():
    """GRPO's penalty in the loss: k3 with its ratio has the gradient of KL(policy || reference) of
    every token, and without it that of the other way round."""
    visits = np.exp(exact.known()[0])
    for estimator in ("k3_ratio", "k3"):
        cfg = grpo.Config(variant="dr_grpo", beta=BETA, kl_estimator=estimator, divisor=2.0)
        policy = grpo.policy(cfg, MODEL, group=2 * N, longest=SIZE.length)
        batch, _ = judged(policy, exact.weights(1), INDEX, PROMPT, np.zeros(2 * N))
        chance = visits.ravel().astype(np.float32)
        batch = batch._replace(weight=batch.weight * chance[:, None])
        _, _, grads = gradients(grpo.build(cfg, MODEL), {}, batch, exact.weights(1))
        same(grads, exact.penalised(estimator))


def check_surrogate():
    """Away from the policy that sampled, the clipped surrogate and its gradient, token by token."""
    cfg = ppo.Config(kl=ppo.Fixed(BETA), value_weight=0.0, whiten_advantages=False)
    batch, advantage = judged(
        ppo.policy(cfg, MODEL), exact.weights(3), INDEX, PROMPT, np.ones(2 * N)
    )

    a = np.asarray(advantage)[:, 1 : 1 + SIZE.length]
    right, slope = exact.clipped()(exact.trunk(exact.weights(1)), exact.weights(3), a)
    value, _, grads = gradients(ppo.build(cfg, MODEL), {}, batch, exact.weights(1))
    assert value == pytest.approx(float(right), rel=1e-4)
    same(grads, slope)


def check_sampler():
    """Responses come as often as they are probable, their log-probabilities as sampled are those of
    a forward pass, token by token, and all of their tokens count, the end among them."""
    temperature = 0.7
    objective = ppo.build(ppo.Config(temperature=temperature), MODEL)
    draw = policy_sampling.program(MODEL, objective, max_new=SIZE.length, stop=(SIZE.end,))
    row = np.arange(4000, dtype=np.int32)
    tokens = np.stack([np.full_like(row, SIZE.end), row % 2], 1)
    ask = Prompts(tokens, np.ones_like(tokens), 0 * tokens + np.arange(2, dtype=np.int32), row)
    key = jax.random.key_data(jax.random.key(0))
    rows = jax.device_get(draw(exact.weights(1), {}, ask, key, temperature))
    log_p = exact.at_temperature(temperature)
    index = world.index(SIZE, rows.tokens[:, 2:], rows.segments[:, 2:] > 0)
    expected = 2000 * np.exp(log_p)
    count = np.zeros_like(expected)
    np.add.at(count, (row % 2, index), 1)
    assert ((count - expected) ** 2 / expected).sum() < 80  # 28 degrees of freedom: p = 1e-6
    sums = (rows.weight * rows.behaviour).sum(1)
    np.testing.assert_allclose(sums, log_p[row % 2, index], atol=1e-5)
    read = jax.jit(lambda w: policy_terms.read(MODEL, w, rows, Plan(), temperature).log_prob)
    again = read(exact.weights(1))
    apart = np.where(rows.weight > 0, np.asarray(again) - rows.behaviour, 0)
    assert np.abs(np.expm1(apart)).max() < 1e-5
    np.testing.assert_array_equal(rows.weight.sum(1), LISTED.real[index].sum(1))


CHECKS = {
    "supervised": check_supervised,
    "reward": check_reward,
    "dpo": check_dpo,
    "ppo": check_ppo,
    "returns": check_ppo_returns,
    "grpo": check_grpo,
    "penalty": check_penalty,
    "surrogate": check_surrogate,
    "sampler": check_sampler,
}


@pytest.mark.parametrize("name", CHECKS)
def test_the_library_passes(name):
    CHECKS[name]()


# --- The mutants --------------------------------------------------------------------------------


def without_end(rows):
    """The rows with the weight of each one's last token taken away."""
    weight = jnp.asarray(rows.weight)
    last = jnp.flip(jnp.cumsum(jnp.flip(weight, -1), -1), -1) == 1
    return rows._replace(weight=jnp.where(last, 0.0, weight))


_read, _joined, _total = responses.read, policy_sampling.joined, surrogate.total
_rows, _clipped = policy_sampling._rows, surrogate.clipped
_cross_entropy, _differences = cross_entropy.cross_entropy, ranking.differences
_k3, _gae, _whiten = advantages.k3, advantages.gae, advantages.whiten


def _shifted(prompts, out):
    rows = _joined(prompts, out)
    return rows._replace(behaviour=jnp.roll(rows.behaviour, 1, axis=1))


def _unweighted(*args, **kwargs):
    *head, weight = args
    return _cross_entropy(*head, jnp.ones_like(weight) * weight.max(), **kwargs)


# (what is wrong, module or dict, name, what stands there instead, the check that notices)
MUTANTS = {
    "no KL": (advantages.KL, "k1", lambda p, q: 0 * p, "ppo"),
    "KL sign": (advantages.KL, "k1", lambda p, q: q - p, "ppo"),
    "no KL in groups": (advantages, "k1", lambda p, q: 0 * p, "grpo"),
    "KL loss the other way round": (advantages, "k3", lambda p, q: _k3(q, p), "penalty"),
    "reference missing": (policy_terms, "reference", lambda m, f, r, *_: 0.0 * r.weight, "ppo"),
    "reference missing in DPO": (
        responses, "summed", lambda m, w, b, p: jnp.zeros(b.rank.shape), "dpo"),
    "sampled at another temperature": (
        policy_sampling, "_rows", lambda a, b, c, t, d: _rows(a, b, c, 0.7 * t, d), "sampler"),
    "trained at another temperature": (
        policy_terms, "read", lambda m, w, r, p, t, read=policy_terms.read: read(m, w, r, p, 1.0),
        "sampler"),
    "old log-probs off by one": (policy_sampling, "joined", _shifted, "sampler"),
    "old log-probs are the new ones": (
        surrogate, "clipped",
        lambda ratio, *rest, **kw: _clipped(ratio - jax.lax.stop_gradient(ratio), *rest, **kw),
        "surrogate",
    ),
    "score at the padded end": (
        advantages, "at_last", lambda s, w: jnp.zeros_like(w).at[:, -2].set(s), "ppo"),
    "reward model reads the padded end": (
        value_head, "last", lambda s: jnp.full(s.shape[:-1], s.shape[-1] - 1), "reward"),
    "loss mask dropped": (
        surrogate, "total", lambda x, w, *how: _total(x, jnp.ones_like(w), *how), "ppo"),
    "loss mask dropped in SFT": (cross_entropy, "cross_entropy", _unweighted, "supervised"),
    "whitened over padding": (
        advantages, "whiten", lambda x, w, keep=0.0: _whiten(x, jnp.ones_like(w), keep), "returns"),
    "DPO mean instead of sum": (preference, "margin", preference.mean_margin, "dpo"),
    "EOS dropped": (
        responses, "read", lambda m, w, b, *rest: _read(m, w, without_end(b), *rest), "dpo"),
    "EOS dropped from responses": (
        policy_sampling, "joined", lambda p, out: without_end(_joined(p, out)), "sampler"),
    "preferences the wrong way round": (
        ranking, "differences", lambda r: -_differences(r), "reward"),
    "no reward but the token's own": (
        advantages, "gae", lambda r, v, w, gamma, lam: _gae(r, v, w, 0.0, lam), "ppo"),
    "groups of all": (
        grpo._ADVANTAGES, "left_out", lambda s, group: s - jnp.mean(s), "grpo"),
}  # fmt: skip


@pytest.mark.parametrize("name", MUTANTS)
def test_a_mutant_is_noticed(name, monkeypatch):
    place, function, wrong, check = MUTANTS[name]
    if isinstance(place, dict):
        monkeypatch.setitem(place, function, wrong)
    else:
        monkeypatch.setattr(place, function, wrong)
    with pytest.raises(AssertionError):
        CHECKS[check]()
