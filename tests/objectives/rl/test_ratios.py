"""exp of log-ratios that no float32 holds, and groups of which nothing, or something, is learnt.

A clipped token has no gradient. With exp of a log-ratio above 88 it had NaN (0 times infinity), and
the optimiser then skipped the whole step: 400 tokens, each 0.25 nats likelier than when they were
sampled, were enough for RLOO, whose ratio is that of whole responses.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlm.core.batch import Rollout
from jaxlm.objectives.rl import grpo, ppo
from jaxlm.ops.losses import advantages, preference, surrogate
from jaxlm.train.rl import episodes
from tests import programs
from tests.objectives import free

V = 5
FAR = np.float32([0, 1, 19.9, -19.9, 21, 30, 39.9, 41, 87, 90, 200, 1e3, 1e4])
FAR = np.concatenate([FAR, -FAR])
NEAR = np.float32([0, 1e-6, 0.2, -0.3, 1, -2, 7.7, -11, 19.9, -19.9])


def _surrogates(advantage):
    """{name: loss of a log-ratio} of every surrogate, by token."""
    a = jnp.float32(advantage)
    return {
        "clipped": lambda x: surrogate.clipped(x, a, 0.2, 0.28)[0],
        "clipped most": lambda x: surrogate.clipped(x, a, 0.2, 0.2, most=4.0)[0],
        "clipped dual": lambda x: surrogate.clipped(x, a, 0.2, 0.2, dual=3.0)[0],
        "capped": lambda x: surrogate.capped(x, a, x - 3, 5.0)[0],
        "gated": lambda x: surrogate.gated(x, a)[0],
        "shaped": lambda x: surrogate.shaped(x, a, x - 3)[0],
    }


def _pairs():
    """{name: loss of a log-ratio} of every loss of preferences and divergence, of both sides."""
    settings = {"beta": 0.5, "smoothing": 0.1, "tau": 0.05, "nll": 1.0, "gamma": 0.5,
                "desirable": 1.0, "undesirable": 1.5, "alpha": 0.5}  # fmt: skip
    still = preference.Response(*jnp.float32([-20, -20, 7, 3]))

    def response(x):
        return preference.Response(still.reference + x, still.reference, still.tokens, -x / 7)

    log_probs = {}
    for name, f in (preference.PAIRS | preference.BATCHES).items():
        names = f.__kwdefaults__ or f.__annotations__
        read = {k: v for k, v in settings.items() if k in names}
        rest = (jnp.float32(1.0),) if name in preference.BATCHES else ()
        # all take a divergence's slope alike, in sums, means or squares
        several = ("reverse_kl",) if "divergence" in names else (None,)
        if name in ("dpo", "dpo_mean", "ipo_sum"):
            several = ("reverse_kl", "forward_kl", "js", "alpha")
        for divergence in several:
            more = read if divergence is None else read | {"divergence": divergence}

            def chosen(x, f=f, rest=rest, more=more):
                return jnp.sum(f(response(x), still, *rest, **more))

            def rejected(x, f=f, rest=rest, more=more):
                return jnp.sum(f(still, response(x), *rest, **more))

            log_probs[f"{name} {divergence} chosen"] = chosen
            log_probs[f"{name} {divergence} rejected"] = rejected
    return log_probs


def _slopes(functions, at):
    """{name: (values, gradients)} at every place; one program."""

    @jax.jit
    def run(at):
        return {name: jax.vmap(jax.value_and_grad(f))(at) for name, f in functions.items()}

    return jax.tree.map(np.asarray, run(at))


def test_every_loss_and_gradient_is_finite_however_far_policies_are_apart():
    functions = {f"{n} {a}": f for a in (1.0, -1.0, 0.0) for n, f in _surrogates(a).items()}
    functions |= _pairs()
    for name, kl in advantages.KL.items():
        functions[name] = lambda x, kl=kl: kl(x - 3, jnp.float32(-3))
    functions["k3 with its ratio"] = lambda x: (
        advantages.k3(x - 3, jnp.float32(-3)) * surrogate.ratio(x)
    )
    functions["value"] = lambda x: surrogate.value(x, 0 * x, 0 * x, 0.2)[0]
    kto = {"beta": 0.1, "desirable": 1.0, "undesirable": 1.0}
    functions["kto"] = lambda x: preference.kto(x, x > 0, jnp.float32(0), **kto)
    for name, (values, grads) in _slopes(functions, jnp.asarray(FAR)).items():
        assert np.all(np.isfinite(values)), (name, FAR[~np.isfinite(values)])
        assert np.all(np.isfinite(grads)), (name, FAR[~np.isfinite(grads)])


def test_below_the_bound_every_surrogate_has_the_bits_it_had():
    a, x = jnp.float32(-0.7), jnp.asarray(NEAR)
    plain = {
        "clipped": lambda x: (
            -jnp.minimum(a * jnp.exp(x), a * jnp.clip(jnp.exp(x), 1.0 - 0.2, 1.0 + 0.28))
        ),
        "gated": lambda x: -jax.nn.sigmoid(jnp.float32(1.05) * (jnp.exp(x) - 1.0)) * 4.0 / 1.05 * a,
        "capped": lambda x: -jax.lax.stop_gradient(jnp.minimum(jnp.exp(x), 5.0)) * a * (x - 3),
        "k3": lambda x: jnp.where(
            jnp.abs(x) < 0.03,
            x * x * (0.5 + x * (-1 / 6 + x * (1 / 24 - x / 120))),
            jnp.expm1(-x) + x,
        ),
    }
    ours = {n: f for n, f in _surrogates(a).items() if n in plain}
    ours |= {"k3": lambda x: advantages.k3(x, jnp.float32(0))}
    slopes, right = _slopes(ours, x), _slopes(plain, x)
    for name in plain:
        for one, other in zip(slopes[name], right[name]):
            np.testing.assert_allclose(one, other, rtol=3e-7, err_msg=name)
    np.testing.assert_array_equal(surrogate.ratio(x), jnp.exp(x))
    assert surrogate.ratio(jnp.float32(1e4)) == jnp.exp(jnp.float32(20))


@pytest.mark.parametrize("variant", ["rloo", "grpo", "gspo", "vespo", "cispo"])
def test_a_whole_objective_is_finite_where_its_responses_are_far_likelier(variant):
    """400 tokens at 0.25 nats: log-ratios of 0.25, and of 100 for a whole response. The reference
    is 100 nats away from a token."""
    weight = np.ones((2, 400), np.float32)
    logits, targets = free.given(np.full((2, 400), -1.0, np.float32), V)
    cfg = grpo.Config(variant=variant, beta=0.04, kl_estimator="k3_ratio")
    batch = free.rollout(
        weight, -1.25 * weight, reference=99 * weight, advantage=weight, targets=targets
    )
    objective = grpo.build(cfg, free.model(2, 400, V))
    value, metrics, grads = free.slope(
        objective, {"logits": jnp.asarray(logits, jnp.float32)}, {}, batch
    )
    assert np.isfinite(value) and np.all(np.isfinite(grads["logits"]))
    assert all(np.isfinite(x) for x in metrics.values()), metrics


def _of(score, finished=None):
    """Responses of three tokens each, which earned these scores."""
    n = len(score)
    weight = np.zeros((n, 6), np.float32)
    weight[:, 1:4] = 1
    ids, zero = np.zeros((n, 6), np.int32), np.zeros((n, 6), np.float32)
    ended = np.ones(n, bool) if finished is None else np.array(finished)
    return Rollout(
        ids, ids, weight, ids + 1, ids, behaviour=weight * -1.5, reference=weight * -2.0,
        value=zero, score=np.float32(score), finished=ended,
    )  # fmt: skip


def _advantages(cfg, rows, group):
    """(advantage, returns, metrics) of groups of rows, without a penalty in the reward."""
    return programs.Whole(grpo).group_advantages(cfg, rows, 0.0, group=group, longest=6)


def test_dapo_leaves_out_groups_that_scored_alike_and_no_response_besides():
    """Scores 0, 0.5, 1: the second is its group's mean, so that its advantage is 0. It was taken
    for one of a group that scored alike: 6 of 9 tokens counted, and its KL term was lost. The
    second group scored alike, the third has one response at the mean and is kept too."""
    scores = [0, 0.5, 1, 1, 1, 1, 2, 1, 0]
    of = _of(scores)
    cfg = grpo.Config(variant="dapo", beta=0.1)
    advantage, _, metrics = _advantages(cfg, of, 3)
    plain, _, _ = _advantages(dataclasses.replace(cfg, variant="grpo"), of, 3)
    np.testing.assert_allclose(advantage, plain, atol=1e-30)
    np.testing.assert_allclose(metrics["ties"], 1 / 3, rtol=1e-6)
    batch = free.rollout(of.weight, of.behaviour, reference=of.reference, advantage=advantage)
    objective = grpo.build(cfg, free.model(9, 6, V))
    logits = jnp.zeros((9, 6, V))

    @jax.jit
    @functools.partial(jax.value_and_grad, has_aux=True)
    def run(logits):
        return objective.loss({"logits": logits}, {}, batch, None)[:2]

    (total, weight), grads = run(logits)
    assert weight == 18
    size = np.abs(np.asarray(grads)).max((1, 2))
    assert not size[3:6].any() and np.all(size[[0, 1, 2, 6, 7, 8]] > 0)
    # the surrogate's sum is 0, as that of a group's advantages is: what is left is the penalty
    k3 = advantages.k3(jnp.log(1 / V), jnp.float32(-2.0))
    np.testing.assert_allclose(total, 18 * 0.1 * k3, rtol=1e-4)


def test_filling_is_no_group_that_scored_alike():
    """Rows that only fill a batch have score 0, all alike: `ties` counted their groups."""
    of = _of([0, 1, 0, 0, 0, 0])
    of = of._replace(weight=of.weight * (np.arange(6) < 4)[:, None])
    assert _advantages(grpo.Config(), of, 2)[2]["ties"] == 0.5
    empty = of._replace(weight=0 * of.weight)
    advantage, _, metrics = _advantages(grpo.Config(variant="dapo"), empty, 2)
    assert not np.any(advantage) and all(np.isfinite(x) for x in metrics.values())


def test_dynamic_sampling_compares_what_advantages_are_made_of():
    """Raw scores of 0 and 0, one response unfinished at -1: something is learnt. Raw scores of 5
    and 7, clipped at 2: nothing is. The raw scores said the opposite."""
    of = _of([0, 0, 5, 7], finished=[True, False, True, True])
    cfg = grpo.Config(unfinished=-1.0, score_clip=2.0)
    score = np.asarray(grpo.shaped_score(cfg, of, longest=6))
    np.testing.assert_array_equal(score, [0, -1, 2, 2])
    own = ppo.Config(unfinished=-1.0, score_clip=2.0)
    np.testing.assert_array_equal(ppo.shaped_score(own, of), score)
    np.testing.assert_array_equal(episodes.differing(score, 2), [True, True, False, False])


def test_what_is_at_places_without_weight_reaches_no_gradient():
    """A log-probability that nobody sampled may be anything; 0 times NaN would be NaN."""
    weight = np.float32([[0, 1, 1, 0], [1, 1, 0, 0]])
    logits, targets = free.given(np.full(weight.shape, -1.0, np.float32), V)
    params = {"logits": jnp.asarray(logits, jnp.float32), "value": jnp.zeros(V)}
    objective = ppo.build(ppo.Config(), free.model(2, 4, V))
    outputs = []
    for filling in (0, np.nan):
        behaviour = np.where(weight > 0, np.float32(-1.2), np.float32(filling))
        batch = free.rollout(weight, behaviour, advantage=weight, targets=targets)
        outputs.append(free.slope(objective, params, {}, batch))
    assert np.all(np.isfinite(outputs[1][2]["logits"]))
    np.testing.assert_array_equal(outputs[0][2]["logits"], outputs[1][2]["logits"])
    assert outputs[0][0] == outputs[1][0] and np.isfinite(outputs[1][1]["ratio"])
