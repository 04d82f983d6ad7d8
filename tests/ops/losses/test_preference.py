"""Losses of preferences against other implementations' numbers, in value and gradient.

The fixture is of the original DPO repository and of TRL 1.16, in float64; where it has none, a few
lines of NumPy are the reference.
"""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlm.ops.losses import preference
from jaxlm.ops.losses.preference import Response
from tests.objectives import published

PLAIN = {"divergence": "reverse_kl", "alpha": 0.5}

# TRL's name in the fixture: (ours, settings beside beta)
TRL = {
    "sigmoid": ("dpo", PLAIN),
    "sigmoid_norm": ("dpo_mean", PLAIN),
    "hinge": ("hinge", PLAIN),
    "ipo": ("ipo_mean", PLAIN),
    "nca_pair": ("nca", {}),
    "bco_pair": ("bco", {}),
    "sppo_hard": ("sppo", {}),
    "aot": ("aot", {}),
    "aot_unpaired": ("aot_unpaired", {}),
    "apo_zero": ("apo_zero", {}),
    "apo_down": ("apo_down", {}),
    "discopop": ("discopop", PLAIN | {"tau": 0.05}),
    "robust_ls0.1": ("robust", PLAIN | {"smoothing": 0.1}),
    "exo_pair_ls0.1": ("exo", PLAIN | {"smoothing": 0.1}),
    "sigmoid_forward_kl": ("dpo", PLAIN | {"divergence": "forward_kl"}),
    "sigmoid_js_divergence": ("dpo", PLAIN | {"divergence": "js"}),
    "sigmoid_alpha_divergence": ("dpo", PLAIN | {"divergence": "alpha"}),
}


def block(name):
    published_block = published.blocks()[name]
    return published_block["inputs"], published_block["outputs"]


def pair(inputs):
    """(chosen, rejected) of a block's numbers, as JAX arrays of the precision in force."""
    responses = []
    for name in ("chosen", "rejected"):
        policy = jnp.asarray(inputs[f"policy_{name}"])
        reference = jnp.asarray(inputs.get(f"ref_{name}", np.zeros(len(policy))))
        tokens = jnp.asarray(inputs.get(f"len_{name}", np.ones(len(policy))), policy.dtype)
        responses.append(Response(policy, reference, tokens, jnp.zeros_like(policy)))
    return responses


def apply(name, chosen, rejected, settings):
    if name in preference.PAIRS:
        return preference.PAIRS[name](chosen, rejected, **settings)
    weight = jnp.ones_like(chosen.log_prob)
    return preference.BATCHES[name](chosen, rejected, weight, **settings)


def value_and_slopes(name, inputs, settings):
    """(mean loss, its gradient in the chosen log-probabilities, that in the rejected)."""
    chosen, rejected = pair(inputs)

    def mean(c, r):
        sides = chosen._replace(log_prob=c), rejected._replace(log_prob=r)
        return jnp.mean(apply(name, *sides, settings))

    value, slopes = jax.value_and_grad(mean, (0, 1))(chosen.log_prob, rejected.log_prob)
    return value, *slopes


@functools.cache
def of_trl(double):
    """{TRL's name: (mean loss, slopes)} of all variants, in one compiled program."""
    inputs, _ = block("dpo_trl_beta0.1")
    with jax.enable_x64(double):
        run = jax.jit(
            lambda: {
                theirs: value_and_slopes(ours, inputs, settings | {"beta": 0.1})
                for theirs, (ours, settings) in TRL.items()
            }
        )
        return jax.tree.map(np.asarray, run())


@pytest.mark.parametrize("theirs", TRL)
def test_value_and_gradient_are_trls(theirs):
    _, outputs = block("dpo_trl_beta0.1")
    value, *slopes = of_trl(True)[theirs]
    # of this one, TRL itself takes the exponential in float32
    near = 1e-6 if theirs == "sigmoid_alpha_divergence" else 1e-10
    np.testing.assert_allclose(value, outputs[theirs], rtol=near)
    for name, slope in zip(("chosen", "rejected"), slopes):
        right = outputs[f"grad_{name}:{theirs}"]
        np.testing.assert_allclose(slope, right, rtol=near, atol=near * 1e-3)
    # and in the precision of training
    np.testing.assert_allclose(of_trl(False)[theirs][0], outputs[theirs], rtol=1e-5)


def test_every_variant_of_the_fixture_is_compared():
    _, outputs = block("dpo_trl_beta0.1")
    assert {name for name in outputs if not name.startswith("grad_")} == set(TRL)


@pytest.mark.parametrize(("beta", "smoothing"), [(0.1, 0.0), (0.5, 0.1)])
def test_the_original_repository_sums_and_smooths(beta, smoothing):
    inputs, outputs = block(f"dpo_ref_beta{beta}_ls{smoothing}")
    with jax.enable_x64():
        chosen, rejected = pair(inputs)
        settings = PLAIN | {"beta": beta}
        smooth = preference.cdpo(chosen, rejected, smoothing=smoothing, **settings)
        summed = preference.ipo_sum(chosen, rejected, **settings)
        rewards = [beta * preference.ratio(r) for r in (chosen, rejected)]
    np.testing.assert_allclose(smooth, outputs["loss"], rtol=1e-10)
    np.testing.assert_allclose(summed, outputs["ipo_sum"], rtol=1e-10)
    np.testing.assert_allclose(rewards[0], outputs["chosen_rewards"], rtol=1e-10)
    np.testing.assert_allclose(rewards[1], outputs["rejected_rewards"], rtol=1e-10)


def test_simpo_orpo_and_kto_are_their_closed_forms():
    inputs, outputs = block("simpo")
    with jax.enable_x64():
        losses = preference.simpo(*pair(inputs), beta=2.0, gamma=1.0)
        np.testing.assert_allclose(jnp.mean(losses), outputs["loss"], rtol=1e-10)

        inputs, outputs = block("orpo_or_term")
        chosen, rejected = pair(inputs)
        odds = preference.log_odds_ratio(chosen, rejected)
        np.testing.assert_allclose(odds, outputs["log_odds"], rtol=1e-9)
        losses = preference.orpo(chosen, rejected, beta=0.1, nll=1.0)  # its nll is 0
        np.testing.assert_allclose(jnp.mean(losses), outputs["term"], rtol=1e-9)

        inputs, outputs = block("kto")
        both = [preference.ratio(r) for r in pair(inputs)]
        wanted = jnp.arange(10) < 5
        weights = {"beta": 0.1, "desirable": inputs["w_d"], "undesirable": inputs["w_u"]}
        losses = preference.kto(jnp.concatenate(both), wanted, inputs["kl"], **weights)
        np.testing.assert_allclose(jnp.mean(losses), outputs["loss"], rtol=1e-10)


def test_six_nats_apart():
    """One token each, beta = 0.1, h = 6: the table of ms-swift's issue 10167."""
    one = {"policy_chosen": [4.0], "policy_rejected": [-2.0]}
    expected = {"dpo": (0.437488, -0.035434), "hinge": (0.4, -0.1), "ipo_sum": (1.0, 2.0)}
    for name, (value, slope) in expected.items():
        loss, up, down = value_and_slopes(name, one, PLAIN | {"beta": 0.1})
        np.testing.assert_allclose([loss, up[0], down[0]], [value, slope, -slope], atol=1e-6)


SETTINGS = {
    "beta": 0.3, "smoothing": 0.2, "tau": 0.05, "gamma": 0.0, "nll": 0.5, "desirable": 1.0,
    "undesirable": 1.0, **PLAIN,
}  # fmt: skip
READS = {
    "cdpo": ("smoothing",), "robust": ("smoothing",), "exo": ("smoothing",), "discopop": ("tau",),
    "rpo": ("nll",), "cpo": ("nll",), "orpo": ("nll",), "simpo": ("gamma",),
    "kto_pair": ("desirable", "undesirable"),
}  # fmt: skip
DIVERGES = (
    "dpo", "dpo_mean", "cdpo", "robust", "hinge", "ipo_sum", "ipo_mean", "exo", "discopop", "rpo",
)  # fmt: skip


def settings_of(name):
    read = ("beta", *READS.get(name, ()), *(PLAIN if name in DIVERGES else ()))
    return {n: SETTINGS[n] for n in read}


# At the reference h = 0, and every loss is a number: log 2 where it is a log-sigmoid of h.
AT_REFERENCE = {
    "dpo": math.log(2), "dpo_mean": math.log(2), "cdpo": math.log(2), "robust": math.log(2),
    "hinge": 1.0, "ipo_sum": (1 / 0.6) ** 2, "ipo_mean": (1 / 0.6) ** 2,
    "exo": -math.log(2) - math.log(0.8 * 0.2) / 2, "discopop": (math.log(2) + 1) / 2,
    "rpo": math.log(2) + 0.5 * 1.7, "nca": 2 * math.log(2), "bco": 2 * math.log(2),
    "sppo": 2 * (0.5 / 0.3) ** 2, "apo_zero": 1.0, "apo_down": 1.0, "kto_pair": 0.5,
    "aot": math.log(2), "aot_unpaired": math.log(2),
}  # fmt: skip


def test_at_the_reference_every_loss_is_known():
    log_prob = jnp.array([-3.0, -8.5, -0.1])
    tokens, nll = jnp.array([2.0, 7.0, 1.0]), jnp.full(3, 1.7)
    chosen = Response(log_prob, log_prob, tokens, nll)
    rejected = Response(log_prob - 2, log_prob - 2, tokens + 1, nll)
    assert set(AT_REFERENCE) == {*preference.PAIRS, *preference.BATCHES} - {*preference.FREE}
    for name, value in AT_REFERENCE.items():
        losses = apply(name, chosen, rejected, settings_of(name))
        np.testing.assert_allclose(losses, np.full(3, value), rtol=1e-6, err_msg=name)


def test_without_a_reference_equal_responses_are_log_two():
    same = Response(jnp.array([-3.0]), jnp.array([9.0]), jnp.array([2.0]), jnp.array([1.5]))
    expected = {"cpo": math.log(2) + 0.75, "simpo": math.log(2), "orpo": 0.75 + 0.3 * math.log(2)}
    for name, value in expected.items():
        loss = apply(name, same, same, settings_of(name))
        np.testing.assert_allclose(loss, [value], rtol=1e-6, err_msg=name)


def test_robust_is_dpo_on_the_mean_of_noisy_labels():
    chosen, rejected = pair({"policy_chosen": [1.0, -2.0], "policy_rejected": [0.5, 3.0]})
    given = settings_of("robust")
    right = preference.robust(chosen, rejected, **given)
    wrong = preference.robust(rejected, chosen, **given)
    plain = preference.dpo(chosen, rejected, **settings_of("dpo"))
    np.testing.assert_allclose(0.8 * right + 0.2 * wrong, plain, rtol=1e-5)


def test_far_from_the_reference_nothing_is_infinite():
    far = np.float32([-2000.0, 2000.0, -1e-9, 300.0])
    inputs = {"policy_chosen": far, "policy_rejected": -far[::-1]}
    inputs |= {"len_chosen": [3, 1, 1, 9], "len_rejected": [1, 2, 9, 1]}
    cases = [
        (name, settings_of(name) | ({"divergence": kind} if name in DIVERGES else {}))
        for name in (*preference.PAIRS, *preference.BATCHES)
        for kind in ("reverse_kl", "forward_kl", "js", "alpha")[: 4 if name in DIVERGES else 1]
    ]
    run = jax.jit(lambda: [value_and_slopes(name, inputs, given) for name, given in cases])
    for case, values in zip(cases, run(), strict=True):
        assert all(np.all(np.isfinite(x)) for x in values), (case, values)


def test_alpha_one_is_the_reverse_kl_and_slopes_agree_at_the_reference():
    x = jnp.linspace(-2, 2, 9)
    near = preference.slope(x, "alpha", 1 + 1e-3)
    np.testing.assert_allclose(near, preference.slope(x, "reverse_kl", 0.5), atol=3e-3)
    assert np.array_equal(preference.slope(x, "alpha", 1.0), x)
    for divergence, curvature in (("reverse_kl", 1), ("forward_kl", 1), ("js", 0.5), ("alpha", 1)):
        value, slope = jax.value_and_grad(preference.slope)(0.0, divergence, 0.5)
        np.testing.assert_allclose([value, slope], [0, curvature], atol=1e-6)


def test_what_has_no_weight_takes_no_part_in_a_batch_statistic():
    inputs = {"policy_chosen": [1.0, 9.0, -2.0, 0.5], "policy_rejected": [0.0, -9.0, 3.0, 0.1]}
    kept = {n: [v[0], v[2], v[3]] for n, v in inputs.items()}
    weight = jnp.array([1.0, 0.0, 1.0, 1.0])
    for name in preference.BATCHES:
        given = settings_of(name)
        whole = preference.BATCHES[name](*pair(inputs), weight, **given)
        alone = preference.BATCHES[name](*pair(kept), jnp.ones(3), **given)
        np.testing.assert_allclose(jnp.sum(whole * weight), jnp.sum(alone), rtol=1e-6)


def test_kto_baseline_is_a_detached_mean_and_never_negative():
    there = jnp.array([True, True, False])
    ratios = jnp.array([1.0, 0.5, 100.0])
    assert preference.kto_baseline(ratios, there) == 0.75
    assert preference.kto_baseline(-ratios, there) == 0
    assert preference.kto_baseline(ratios, jnp.zeros(3, bool)) == 0
    assert not np.any(jax.grad(lambda x: preference.kto_baseline(x, there))(ratios))
