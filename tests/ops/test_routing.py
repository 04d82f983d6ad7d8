"""Routing against NumPy written out token by token, torch's top-k, and transformers' losses."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlm.ops import routing

RULES = {
    "mixtral": routing.Rule(2, renormalise=True),
    "qwen": routing.Rule(3),
    "scaled": routing.Rule(2, scale=2.5),
    "deepseek": routing.Rule(
        4, score="sigmoid", renormalise=True, scale=2.5, groups=4, groups_chosen=2
    ),
    "deepseek-v2": routing.Rule(3, groups=4, groups_chosen=2, group_best=1),
}
choose = jax.jit(routing.choose, static_argnums=1)
LOGITS = np.random.default_rng(0).standard_normal((5, 7, 16)).astype(np.float32)
BIAS = np.random.default_rng(1).uniform(-0.5, 0.5, 16).astype(np.float32)


def by_hand(logits, rule, bias):
    """{expert: weight} of one token, in float64."""
    z = logits.astype(np.float64)
    each = 1 / (1 + np.exp(-z)) if rule.score == "sigmoid" else np.exp(z) / np.exp(z).sum()
    ranked = each + bias
    size = len(z) // rule.groups
    best = [np.sort(ranked[g * size :][:size])[::-1] for g in range(rule.groups)]
    order = sorted(range(rule.groups), key=lambda g: -best[g][: rule.group_best].sum())
    open_to = [e for g in order[: rule.groups_chosen] for e in range(g * size, (g + 1) * size)]
    chosen = sorted(open_to if rule.groups > 1 else range(len(z)), key=lambda e: -ranked[e])
    chosen = chosen[: rule.count]
    total = each[chosen].sum() if rule.renormalise else 1.0
    return {e: rule.scale * each[e] / total for e in chosen}


@pytest.mark.parametrize("bias", [0.0, 1.0], ids=["plain", "biased"])
@pytest.mark.parametrize("name", RULES)
def test_choose_is_the_definition(name, bias):
    rule = RULES[name]
    got = choose(LOGITS, rule, bias * BIAS if bias else None)
    got = jax.tree.map(np.asarray, got)
    for at in np.ndindex(5, 7):
        want = by_hand(LOGITS[at], rule, bias * BIAS)
        assert list(got.experts[at]) == list(want)
        np.testing.assert_allclose(got.weights[at], list(want.values()), rtol=2e-6)


def test_of_equal_scores_the_lower_number_is_chosen():
    logits = jnp.array([[1.0, 2.0, 2.0, 1.0, 2.0, 0.0], [0.0] * 6])
    assert routing.choose(logits, routing.Rule(4)).experts.tolist() == [[1, 2, 4, 0], [0, 1, 2, 3]]


def test_the_selection_bias_gets_no_gradient_and_the_logits_do():
    rule = RULES["deepseek"]

    def f(logits, bias):
        return jnp.sum(routing.choose(logits, rule, bias).weights ** 2)

    d_logits, d_bias = jax.jit(jax.grad(f, argnums=(0, 1)))(LOGITS, BIAS)
    assert not np.any(d_bias) and np.any(d_logits)


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        (routing.Rule(17), "count=17; a token may go to 1 .. 16"),
        (routing.Rule(0), "count=0"),
        (routing.Rule(2, groups=3), "16 experts do not divide into groups=3"),
        (routing.Rule(2, groups=4, groups_chosen=5), "groups_chosen=5"),
        (routing.Rule(5, groups=4, groups_chosen=1), "count=5; a token may go to 1 .. 4"),
        (routing.Rule(2, groups=8, groups_chosen=2, group_best=3), "group_best=3"),
    ],
)
def test_rules_that_do_not_fit_are_refused(rule, message):
    with pytest.raises(ValueError, match=message.replace("..", r"\.\.")):
        routing.choose(jnp.asarray(LOGITS), rule)


@functools.partial(jax.jit, static_argnums=1)
def losses(logits, rule, keep):
    routes = routing.choose(logits, rule)
    load = routing.load(routes.experts, keep, logits.shape[-1])
    return load, routing.balance(load, routing.shares(routes.scores, keep)), routes


def test_uniform_and_collapsed_routing_have_known_values():
    keep = jnp.ones((5, 7), bool)
    rule = routing.Rule(2, renormalise=True)
    even = np.zeros((5, 7, 16), np.float32)
    load, balance, routes = losses(even, rule, keep)  # scores uniform, whatever was chosen
    assert balance == pytest.approx(1.0, rel=1e-6) and load[0] == load[1] == 35
    assert routing.router_z(even, keep) / 35 == pytest.approx(np.log(16) ** 2, rel=1e-6)
    assert routing.entropy(routes.scores, keep) / 35 == pytest.approx(np.log(16), rel=1e-6)
    sure = even.copy()
    sure[..., [3, 5]] = 50.0
    load, balance, routes = losses(sure, rule, keep)
    assert balance == pytest.approx(16 / 2, rel=1e-6) and load[3] == load[5] == 35
    assert routing.entropy(routes.scores, keep) / 35 == pytest.approx(np.log(2), rel=1e-5)
    none = jnp.zeros((5, 7), bool)
    load, balance, _ = losses(sure, rule, none)
    assert balance == 0 and not np.any(load)


@pytest.mark.parity
@pytest.mark.parametrize("count", [1, 2, 4])
def test_balance_is_transformers_over_k(count):
    torch = pytest.importorskip("torch")
    mixtral = pytest.importorskip("transformers.models.mixtral.modeling_mixtral")
    keep = np.random.default_rng(2).random((5, 7)) < 0.7
    for mask in (keep, np.ones_like(keep)):
        theirs = mixtral.load_balancing_loss_func(
            (torch.tensor(LOGITS.reshape(-1, 16)),),
            16,
            count,
            torch.tensor(mask.astype(np.int64)),
        )
        load, ours, _ = losses(LOGITS, routing.Rule(count), jnp.asarray(mask))
        assert float(theirs) == pytest.approx(count * float(ours), rel=1e-6)
        assert load.sum() == count * mask.sum()


@pytest.mark.parity
def test_ties_go_as_in_torch():
    torch = pytest.importorskip("torch")
    scores = np.random.default_rng(3).integers(0, 3, (50, 16)).astype(np.float32)
    mine = routing.choose(jnp.asarray(scores), routing.Rule(4))
    values = torch.topk(torch.softmax(torch.tensor(scores), -1), 4, dim=-1)[0].numpy()
    np.testing.assert_allclose(mine.weights, values, rtol=1e-6)
