"""Rewards, distillation and plain targets, as the command line builds them, against their formulas
in NumPy: value, weight, gradient and what is reported.

The reward's formula was compared with a copy of itself, and distillation's with nothing: exchanging
teacher and student, hard and soft shares, or the sign of a margin passed all tests.
"""

import dataclasses
import functools

import numpy as np
import pytest

from jaxlm import objectives
from jaxlm.core.batch import Batch, Pairs, Taught
from jaxlm.objectives import clm, distill, mlm, seq2seq, sft
from jaxlm.objectives.preference import reward
from jaxlm.parallel.plan import Plan
from tests.objectives import bigram
from tests.objectives.bigram import (
    PARAMS,
    REFERENCE,
    T,
    V,
    batches,
    log_sigmoid,
    log_softmax,
    pairs,
    sigmoid,
)

# --- Rewards ---------------------------------------------------------------------------------

REWARDS = {
    "plain": reward.Config(),
    "margin": reward.Config(margin=0.7),
    "smoothing": reward.Config(smoothing=0.2),
    "centre": reward.Config(centre=0.3),
    "all": reward.Config(margin=0.5, smoothing=0.1, centre=0.05),
}
SCORED = PARAMS | {"score": np.random.default_rng(4).normal(size=V)}


@functools.cache
def rewarded():
    built = {c: objectives.build(cfg, bigram.model()) for c, cfg in REWARDS.items()}
    one = dict.fromkeys(built, batches()["pairs"])
    return bigram.slopes(built, dict.fromkeys(built, SCORED), dict.fromkeys(built, {}), one)


def earned(params):
    """float64[B, K]: the score's weights times the table's row of the last token."""
    batch = batches()["pairs"]
    last = np.maximum((batch.segments > 0).sum(-1) - 1, 0)[..., None]
    return params["table"][np.take_along_axis(batch.tokens, last, -1)[..., 0]] @ params["score"]


@pytest.mark.parametrize("case", REWARDS)
def test_reward_losses_are_their_formulas(case):
    """-log sigmoid(r+ - r- - margin), labels wrong with a probability, and the squared sum."""
    cfg, batch = REWARDS[case], batches()["pairs"]

    def oracle(params, held):
        r, total = earned(params), 0.0
        for b, i, j, share in pairs(batch.rank):
            z = r[b, i] - r[b, j] - cfg.margin * (batch.score[b, i] - batch.score[b, j])
            p = batch.preference[b]
            right = p * (1 - cfg.smoothing) + (1 - p) * cfg.smoothing
            total += share * (right * -log_sigmoid(z) + (1 - right) * -log_sigmoid(-z))
            total += share * cfg.centre * (r[b, i] + r[b, j]) ** 2
        return total

    ours = rewarded()[case]
    bigram.agrees(ours, oracle, SCORED, 4)
    r, sums = earned(SCORED), ours[2]
    right = dict.fromkeys(("nll", "accuracy", "margin", "brier"), 0.0)
    bins = np.zeros((10, 3))
    for b, i, j, share in pairs(batch.rank):
        z, p = r[b, i] - r[b, j], batch.preference[b]
        right["nll"] += share * (p * -log_sigmoid(z) + (1 - p) * -log_sigmoid(-z))
        won = (1 + np.sign(z)) / 2  # the second prompt's texts end alike: a tie is half right
        agreed = p * won + (1 - p) * (1 - won)
        right["accuracy"] += share * agreed
        right["margin"] += share * z
        right["brier"] += share * (p * (1 - sigmoid(z)) ** 2 + (1 - p) * sigmoid(z) ** 2)
        sure = sigmoid(abs(z))
        at = min(int((sure - 0.5) / 0.05), 9)
        bins[at] += share * np.array([1, sure, agreed])
    for name, value in right.items():
        np.testing.assert_allclose(sums[name], value, rtol=2e-5, err_msg=name)
    np.testing.assert_allclose(sums["reliability"], bins, atol=2e-5)
    report = objectives.build(cfg, bigram.model()).report(sums)
    here = r[batch.rank >= 0]
    np.testing.assert_allclose(report["reward_mean"], here.mean(), rtol=1e-4)
    np.testing.assert_allclose(report["reward_std"], here.std(), rtol=1e-4)
    ece = np.abs(bins[:, 1] - bins[:, 2]).sum() / 4
    np.testing.assert_allclose(report["calibration"], ece, rtol=1e-4)


# --- Distillation, and plain targets ---------------------------------------------------------

AHEAD = PARAMS | {"ahead": bigram.table(8)}
DISTILLED = {
    "forward": distill.Config(teacher="-"),
    "reverse": distill.Config(teacher="-", beta=1.0),
    "between": distill.Config(teacher="-", beta=0.3),
    "soft and hard": distill.Config(teacher="-", temperature=2.0, power=2.0, hard=0.3),
    "power": distill.Config(teacher="-", temperature=0.6, power=1.0, beta=0.7),
    "kept": distill.Config(teacher="-", read="stored", top_k=3, hard=0.4, temperature=1.5),
    "kept reverse": distill.Config(teacher="-", read="stored", top_k=2, beta=1.0),
    "kept between": distill.Config(teacher="-", read="stored", top_k=V, beta=0.25),
}
PLAIN = {
    "clm": clm.Config(),
    "clm z": clm.Config(z_loss=0.02),
    "clm ahead": clm.Config(ahead=0.4, z_loss=0.01),
    "sft": sft.Config(token=clm.Config(z_loss=0.03)),
    "mlm": mlm.Config(z_loss=0.04),
    "seq2seq": seq2seq.Config(z_loss=0.05),
}


@functools.cache
def rows():
    """Two packed rows with holes, uneven weights and padding."""
    r = np.random.default_rng(6)
    tokens, targets = (r.integers(0, V, (2, T)).astype(np.int32) for _ in range(2))
    segments = np.array([[1, 1, 1, 2, 2, 2], [1, 1, 1, 1, 0, 0]], np.int32)
    positions = np.array([[0, 1, 2, 0, 1, 2], [0, 1, 2, 3, 0, 0]], np.int32)
    weight = r.uniform(0.5, 2, (2, T)) * (segments > 0) * (np.arange(T) != 1)
    return Batch(tokens, targets, weight, segments, positions)


def softened(params, temperature):
    return log_softmax(params["table"][rows().tokens] / temperature)


def kept_of(cfg):
    """(ids, log-probabilities of them and of the rest) of the teacher, likeliest first."""
    log_p = softened(REFERENCE, cfg.temperature)
    ids = np.argsort(-log_p, -1)[..., : cfg.top_k]
    return ids.astype(np.int32), coarse(log_p, ids)


def coarse(log_p, ids):
    kept = np.take_along_axis(log_p, ids, -1)
    if ids.shape[-1] == V:
        return kept
    rest = 1 - np.exp(kept).sum(-1, keepdims=True)
    return np.concatenate([kept, np.log(rest)], -1)


@functools.cache
def learnt():
    """{case: (sum, weight, sums, gradient)} of distillation and of plain targets, one program."""
    built, params, frozen, given = {}, {}, {}, {}
    for case, cfg in (DISTILLED | PLAIN).items():
        models = {
            "mlm": {"kind": "encoder"},
            "seq2seq": {"kind": "encoder_decoder"},
            "clm ahead": {"ahead": True},
        }
        teacher = bigram.model() if case in DISTILLED else None
        built[case] = objectives.build(cfg, bigram.model(**models.get(case, {})), Plan(), teacher)
        params[case] = AHEAD if case == "clm ahead" else PARAMS
        frozen[case] = {name: REFERENCE for name in built[case].frozen}
        given[case] = rows()
        if case.startswith("kept"):
            given[case] = Taught(*rows(), *kept_of(cfg))
        if case == "seq2seq":
            given[case] = Pairs(*rows(), rows().targets, rows().segments, rows().positions)
    return bigram.slopes(built, params, frozen, given)


def kl(p, q):
    return (np.exp(p) * (p - q)).sum(-1)


@pytest.mark.parametrize("case", DISTILLED)
def test_distillation_is_its_formula(case):
    cfg, batch = DISTILLED[case], rows()
    assert sorted(objectives.build(cfg, bigram.model(), Plan(), bigram.model()).frozen) == (
        ["teacher"] if cfg.read == "frozen" else []
    )

    def parts(params):
        ours = softened(params, cfg.temperature)
        if cfg.read == "stored":
            ids, theirs = kept_of(cfg)
            ours = coarse(ours, ids)
        else:
            theirs = softened(REFERENCE, cfg.temperature)
        m = np.log(cfg.beta * np.exp(theirs) + (1 - cfg.beta) * np.exp(ours))
        apart = cfg.beta * kl(theirs, m) + (1 - cfg.beta) * kl(ours, m)
        apart = {0.0: kl(theirs, ours), 1.0: kl(ours, theirs)}.get(cfg.beta, apart)
        plain = softened(params, 1.0)
        nll = -np.take_along_axis(plain, batch.targets[..., None], -1)[..., 0]
        return (batch.weight * apart).sum(), (batch.weight * nll).sum()

    def oracle(params, held):
        soft, hard = parts(params)
        return (1 - cfg.hard) * cfg.temperature**cfg.power * soft + cfg.hard * hard

    outputs = learnt()[case]
    bigram.agrees(outputs, oracle, PARAMS, batch.weight.sum())
    soft, hard = parts(PARAMS)
    np.testing.assert_allclose(
        [outputs[2]["divergence"], outputs[2]["nll"]], [soft, hard], rtol=1e-5
    )
    best = [p["table"][batch.tokens].argmax(-1) for p in (PARAMS, REFERENCE)]
    agreed = (batch.weight * (best[0] == best[1])).sum()
    np.testing.assert_allclose(outputs[2]["agreement"], agreed, rtol=1e-6)
    assert 0 < agreed < batch.weight.sum()


def test_what_is_kept_of_a_teacher_is_its_likeliest_tokens_and_the_rest():
    cfg = dataclasses.replace(DISTILLED["kept"], top_k=4)
    ids, log_probs = distill.kept(cfg, bigram.model(), REFERENCE, rows(), Plan())
    right = kept_of(cfg)
    np.testing.assert_array_equal(ids, right[0])
    np.testing.assert_allclose(log_probs, right[1], rtol=1e-4)


@pytest.mark.parametrize("case", PLAIN)
def test_plain_targets_are_their_formula(case):
    batch = rows()
    cfg = PLAIN[case].token if case == "sft" else PLAIN[case]

    def terms(z, targets, weight):
        peak = z.max(-1)
        log_z = peak + np.log(np.exp(z - peak[..., None]).sum(-1))
        at = np.take_along_axis(z, targets[..., None], -1)[..., 0]
        return (
            (weight * (log_z - at)).sum(),
            (weight * log_z**2).sum(),
            (weight * (at == peak)).sum(),
        )

    def oracle(params, held):
        z = params["table"][batch.tokens]
        z = z + params["table"][batch.targets] if case == "seq2seq" else z
        nll, square, _ = terms(z, batch.targets, batch.weight)
        more = 0.0
        if case == "clm ahead":
            same = batch.segments[:, 1:] == batch.segments[:, :-1]
            later = batch.weight[:, 1:] * (same & (batch.segments[:, 1:] > 0))
            z = params["ahead"][batch.tokens[:, :-1]]
            more = cfg.ahead * terms(z, batch.targets[:, 1:], later)[0]
        return nll + cfg.z_loss * square + more

    params = AHEAD if case == "clm ahead" else PARAMS
    ours = learnt()[case]
    bigram.agrees(ours, oracle, params, batch.weight.sum())
    z = PARAMS["table"][batch.tokens]
    z = z + PARAMS["table"][batch.targets] if case == "seq2seq" else z
    sums = ours[2]
    right = terms(z, batch.targets, batch.weight)
    np.testing.assert_allclose([sums["nll"], sums["z"], sums["correct"]], right, rtol=1e-5)
