"""Rewards to advantages, and losses by token: against definitions in float64, published numbers and
tests/objectives/published.json, in value and gradient."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlm.ops.losses import advantages as advantages_
from jaxlm.ops.losses import surrogate as surrogate_
from tests import programs
from tests.objectives import published

advantages, surrogate = programs.Whole(advantages_), programs.Whole(surrogate_)
RAGGED = np.array(
    [[1, 1, 1, 1, 1, 1], [1, 1, 1, 1, 0, 0], [0, 1, 1, 0, 1, 0], [0] * 6, [1] + [0] * 5]
)


@pytest.fixture(scope="module")
def anchors():
    """{block: (inputs, outputs)} as float64 arrays where they are lists."""
    blocks = published.blocks()
    return {
        block: [
            {k: np.array(v) if isinstance(v, list) else v for k, v in blocks[block][side].items()}
            for side in ("inputs", "outputs")
        ]
        for block in blocks
    }


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


def drawn(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape)


# --- KL estimators ---------------------------------------------------------------------------


def test_kl_estimators_are_the_published_ones(anchors):
    given, right = anchors["kl_estimators"]
    for name, kl in advantages.KL.items():
        np.testing.assert_allclose(kl(given["logps"], given["ref"]), right[name], atol=1e-7)


def test_k2_and_k3_are_never_negative_in_float32_and_exact_near_0():
    """expm1(d) - d in float32 is 2 % off at d = 1e-4 and may be -1e-12 below."""
    d = np.concatenate([np.geomspace(1e-12, 20, 400), -np.geomspace(1e-12, 20, 400)])
    d = d.astype(np.float32)
    k3 = np.asarray(jax.jit(advantages.k3)(jnp.zeros_like(d), jnp.asarray(d)))
    exact = np.where(
        np.abs(d) < 1e-3,
        np.float64(d) ** 2 * (0.5 + np.float64(d) / 6),
        np.expm1(np.float64(d)) - d,
    )
    assert k3.dtype == np.float32 and np.all(k3 >= 0)
    tiny = np.float64(d) ** 2 < 1e-37  # below what float32 can hold
    for which, rtol in ((np.abs(d) < 0.03, 1e-6), (np.abs(d) >= 0.03, 3e-5)):
        here = which & ~tiny
        np.testing.assert_allclose(k3[here], exact[here], rtol=rtol)
    assert np.all(np.asarray(advantages.k2(jnp.zeros_like(d), jnp.asarray(d))) >= 0)


def test_gradients_of_kl_estimators_over_four_categories():
    """Of a loss under the policy's own samples, in expectation: k1 has no gradient, k2 and the
    ratio times k3 have that of KL(policy || reference), k3 that of KL(reference || policy)."""
    z, other = jnp.asarray(drawn(0, 4)), jnp.asarray(drawn(1, 4))
    reference = jax.nn.log_softmax(other)

    def expected(estimate):
        """The gradient of estimate(log p), weighted by p as it is."""
        before = jax.nn.log_softmax(z)

        def f(z):
            now = jax.nn.log_softmax(z)
            return jnp.sum(jnp.exp(before) * estimate(now, before))

        return jax.jit(jax.grad(f))(z)

    def kl(p, q):
        return jnp.sum(jnp.exp(p) * (p - q))

    reverse = jax.jit(jax.grad(lambda z: kl(jax.nn.log_softmax(z), reference)))(z)
    forward = jax.jit(jax.grad(lambda z: kl(reference, jax.nn.log_softmax(z))))(z)
    close = lambda a, b: np.testing.assert_allclose(a, b, atol=1e-12)  # noqa: E731
    close(expected(lambda now, _: advantages.k1(now, reference)), np.zeros(4))
    close(expected(lambda now, _: advantages.k2(now, reference)), reverse)
    close(expected(lambda now, old: jnp.exp(now - old) * advantages.k3(now, reference)), reverse)
    close(expected(lambda now, _: advantages.k3(now, reference)), forward)
    assert np.abs(forward - reverse).max() > 0.01


# --- Advantages ------------------------------------------------------------------------------


def gae_by_definition(reward, value, weight, gamma, lam):
    """Schulman et al. 2016, eq. 16, over the places of weight 1."""
    advantage = np.zeros(reward.shape)
    for b, row in enumerate(weight):
        at = np.flatnonzero(row)
        later = [*value[b, at[1:]], 0.0]
        error = [reward[b, t] + gamma * v - value[b, t] for t, v in zip(at, later)]
        for i, t in enumerate(at):
            advantage[b, t] = sum((gamma * lam) ** k * e for k, e in enumerate(error[i:]))
    return advantage


@pytest.mark.parametrize("gamma, lam", [(0.97, 0.9), (1.0, 1.0)])
def test_gae_is_its_definition_on_ragged_rows_with_holes(gamma, lam):
    reward, value = drawn(2, *RAGGED.shape), drawn(3, *RAGGED.shape)
    advantage, returns = advantages.gae(reward, value, RAGGED, gamma, lam)
    right = gae_by_definition(reward, value, RAGGED, gamma, lam)
    np.testing.assert_allclose(advantage, right, atol=1e-12)
    np.testing.assert_allclose(returns, right + RAGGED * value, atol=1e-12)
    if lam == 1:
        to_go = advantages.to_go(reward, RAGGED, gamma)
        np.testing.assert_allclose(to_go, right + RAGGED * value, atol=1e-12)


def test_gae_and_whitening_are_verls(anchors):
    given, right = anchors["gae"]
    mask = given["mask"]
    for name, gamma, lam in (("g1_l95", 1.0, 0.95), ("g97_l90", 0.97, 0.9)):
        advantage, returns = advantages.gae(given["rewards"], given["values"], mask, gamma, lam)
        np.testing.assert_allclose(returns, right[f"returns_{name}"] * mask, atol=1e-9)
        whitened = advantages.whiten(advantage, mask)
        np.testing.assert_allclose(whitened, right[f"adv_whitened_{name}"] * mask, atol=1e-7)


def test_the_score_belongs_to_the_last_token_and_not_one_later():
    weight = np.array([[0, 1, 1, 1, 1, 0], [1, 1, 1, 1, 1, 1], [0] * 6])
    reward = advantages.at_last(jnp.array([1.0, 2.0, 5.0]), weight)
    assert reward.tolist() == [[0, 0, 0, 0, 1, 0], [0, 0, 0, 0, 0, 2], [0] * 6]
    advantage, _ = advantages.gae(reward, jnp.zeros_like(reward), weight, 1.0, 0.95)
    np.testing.assert_allclose(advantage[0, 1:5], [0.85738, 0.9025, 0.95, 1.0], atol=5e-6)
    later, _ = advantages.gae(
        jnp.roll(reward, 1, axis=1), jnp.zeros((3, 6)), np.ones((3, 6)), 1.0, 0.95
    )
    np.testing.assert_allclose(later[0, 1:5], [0.81451, 0.85738, 0.9025, 0.95], atol=5e-6)


def test_whitening_reads_valid_tokens_alone():
    x = drawn(4, *RAGGED.shape)
    noise = np.where(RAGGED > 0, x, 1e6)
    whitened, other = advantages.whiten(x, RAGGED), advantages.whiten(noise, RAGGED)
    np.testing.assert_array_equal(whitened, other)
    kept = x[RAGGED > 0]
    right = (kept - kept.mean()) / np.sqrt(kept.var(ddof=1) + 1e-8)
    np.testing.assert_allclose(whitened[RAGGED > 0], right, atol=1e-12)
    assert not np.any(whitened[RAGGED == 0])
    held = advantages.whiten(x, RAGGED, keep=1.0)
    np.testing.assert_allclose(held[RAGGED > 0], right + kept.mean(), atol=1e-12)
    nothing = advantages.whiten(x, np.zeros_like(RAGGED))
    assert np.all(np.isfinite(nothing)) and not np.any(nothing)


def test_group_advantages_are_the_published_ones(anchors):
    given, right = anchors["group_adv"]
    for name, f in (
        ("grpo", advantages.standardised),
        ("dr_grpo", advantages.centred),
        ("rloo", advantages.left_out),
    ):
        advantage = f(given["rewards"], given["group"])
        np.testing.assert_allclose(advantage, right[name], atol=1e-7)


def test_group_advantages_sum_to_0_and_are_exactly_0_where_all_scored_alike():
    """0.3 four times has a mean of 0.30000001 in float32, and would be divided by 1e-8."""
    np.testing.assert_allclose(
        advantages.standardised(jnp.array([1.0, 0, 0, 1]), 4),
        [0.86602, -0.86602, -0.86602, 0.86602],
        atol=1e-5,
    )
    score = jnp.asarray(np.r_[drawn(5, 6), [0.3] * 6, [1e8] * 6], jnp.float32)
    for f in (advantages.standardised, advantages.centred, advantages.left_out):
        advantage = np.asarray(f(score, 6)).reshape(3, 6)
        np.testing.assert_allclose(advantage.sum(1), 0, atol=1e-5)
        assert not np.any(advantage[1:]) and np.all(advantage[0])
    assert advantages.alike(score, 6).tolist() == [False] * 6 + [True] * 12
    for group in (1, 4):
        with pytest.raises(ValueError, match=f"groups of {group}"):
            advantages.standardised(score, group)


def test_the_adaptive_coefficient_is_the_published_one(anchors):
    given, right = anchors["adaptive_kl"]
    c = given["init"]
    for kl, wanted in zip(given["kls"], right["values"], strict=True):
        c = advantages.adapted(c, kl, given["target"], given["horizon"], given["n_steps"])
        np.testing.assert_allclose(c, wanted, rtol=1e-12)


def test_known_values_of_controller_overlong_penalty_and_entropy():
    np.testing.assert_allclose(advantages.adapted(0.2, 12.0, 6.0, 1e4, 64), 0.200256)
    length = jnp.array([0, 12, 16, 18, 20, 25])
    np.testing.assert_allclose(advantages.overlong(length, 20, 8), [0, 0, -0.5, -0.75, -1, -1])
    np.testing.assert_allclose(advantages.entropy(jnp.zeros(7)), np.log(7))
    assert advantages.entropy(jnp.array([0.0, -jnp.inf, -jnp.inf])) == 0


# --- Losses by token -------------------------------------------------------------------------


def both(f, at):
    """(value, gradient) of f at a float64 array."""
    return jax.jit(jax.value_and_grad(f))(jnp.asarray(at))


def test_gspos_gradient_is_the_published_one(anchors):
    """One advantage and one ratio, the geometric mean, for all tokens of a response."""
    given, each = anchors["ppo"][0], anchors["grpo_family"][0]["advantages"]
    mask = given["mask"].astype(float)

    def policy(now):
        ratio = surrogate.of_response(now - given["old_logps"], mask, mean=True)
        loss, _ = surrogate.clipped(ratio, each[:, None], 0.2, 0.2)
        total, weight = surrogate.total(jnp.broadcast_to(loss, mask.shape), mask, "sequence")
        return total / weight

    _, grad = both(policy, given["logps"])
    np.testing.assert_allclose(grad, anchors["ppo_grads"][1]["d_gspo"], atol=1e-7)


def test_ppo_and_value_losses_are_the_published_ones_in_value_and_gradient(anchors):
    given, right = anchors["ppo"]
    grads = anchors["ppo_grads"][1]
    mask, advantage = given["mask"].astype(float), given["advantages"]

    def policy(now, aggregate, dual=None):
        loss, _ = surrogate.clipped(now - given["old_logps"], advantage, 0.2, 0.2, dual=dual)
        total, weight = surrogate.total(loss, mask, aggregate)
        return total / weight

    def critic(now, clip):
        loss, _ = surrogate.value(now, given["old_values"], given["returns"], clip)
        total, weight = surrogate.total(loss, mask, "token")
        return total / weight

    value, grad = both(lambda x: policy(x, "token"), given["logps"])
    np.testing.assert_allclose(value, right["policy_token_mean"], atol=1e-7)
    np.testing.assert_allclose(grad, grads["d_policy_token_mean"], atol=1e-7)
    value, grad = both(lambda x: policy(x, "token", 3.0), given["logps"])
    np.testing.assert_allclose(value, right["dual_clip3"], atol=1e-7)
    np.testing.assert_allclose(grad, grads["d_policy_dual_clip3"], atol=1e-7)
    policy_loss = policy(given["logps"], "sequence")
    np.testing.assert_allclose(policy_loss, right["policy_seq_mean"], atol=1e-7)
    value, grad = both(lambda x: critic(x, 0.2), given["values"])
    np.testing.assert_allclose(value, right["value_clip02"], atol=1e-7)
    np.testing.assert_allclose(grad, grads["d_value_clip02"], atol=1e-7)
    np.testing.assert_allclose(critic(given["values"], None), right["value_noclip"], atol=1e-7)
    _, bound = surrogate.clipped(given["logps"] - given["old_logps"], advantage, 0.2, 0.2)
    np.testing.assert_allclose((bound * mask).sum() / mask.sum(), right["clip_frac"])


def test_dual_clip_bounds_the_loss_of_bad_tokens_alone():
    log_ratio = jnp.log(jnp.array([[10.0, 10.0, 0.5]]))
    advantage = jnp.array([[-1.0, 1.0, -1.0]])
    free, _ = surrogate.clipped(log_ratio, advantage, 0.2, 0.2)
    dual, _ = surrogate.clipped(log_ratio, advantage, 0.2, 0.2, dual=3.0)
    capped, _ = surrogate.clipped(log_ratio, advantage, 0.2, 0.2, most=4.0)
    np.testing.assert_allclose(free, [[10, -1.2, 0.8]])
    np.testing.assert_allclose(dual, [[3, -1.2, 0.8]])
    np.testing.assert_allclose(capped, [[4, -1.2, 0.8]])


def test_a_ratio_at_its_bound_is_not_counted_as_clipped():
    """There the loss is what it is without a bound."""
    held = surrogate.capped(jnp.log(jnp.array([1.0, 1.5])), jnp.ones(2), -jnp.ones(2), 1.0)[1]
    np.testing.assert_array_equal(held, [False, True])


def test_a_shaped_loss_holds_its_ratio_at_least_at_one_in_a_hundred_million():
    """As TRL does: phi is then tiny and not 0."""
    advantage = np.array([[1.0], [-1.0]])
    loss, _ = surrogate.shaped(jnp.full((2, 1), -50.0), jnp.float32(advantage), jnp.float32(-2.0))
    phi = [[1e-8**2 * np.exp(3.0)], [1e-8**3 * np.exp(2.0)]]
    np.testing.assert_allclose(loss, 2 * np.array(phi) * advantage, rtol=1e-4)


def test_means_over_tokens_and_responses():
    """Of [2 2 2 2], [4 4] and nothing: by token 16 / 6, by response 3, per response 8, and the
    constant 4 makes it 2."""
    weight = np.array([[1, 1, 1, 1.0], [1, 1, 0, 0], [0, 0, 0, 0]])
    loss = np.array([[2, 2, 2, 2.0], [4, 4, 99, 99], [99, 99, 99, np.nan]])
    right = {"token": 16 / 6, "sequence": 3, "sequence_sum": 8, "constant": 2}
    for name, wanted in right.items():
        total, count = surrogate.total(loss, weight, name, constant=4.0)
        np.testing.assert_allclose(total / count, wanted)


def test_at_ratio_1_every_surrogate_has_the_gradient_of_minus_advantage_times_log_policy():
    now, advantage = jnp.asarray(drawn(6, 2, 5)), jnp.asarray(drawn(7, 2, 5))
    before = np.asarray(now)
    of_tokens = {
        "clipped": lambda x: surrogate.clipped(x - before, advantage, 0.2, 0.28),
        "capped": lambda x: surrogate.capped(x - before, advantage, x, 5.0),
        "gated": lambda x: surrogate.gated(x - before, advantage),
        "shaped": lambda x: surrogate.shaped(0 * (x - before), advantage, x),
    }
    for name, f in of_tokens.items():
        _, pull, _ = jax.vjp(f, now, has_aux=True)
        np.testing.assert_allclose(
            pull(jnp.ones_like(now))[0], -advantage, atol=1e-12, err_msg=name
        )
    np.testing.assert_allclose(of_tokens["clipped"](now)[0], -advantage)
