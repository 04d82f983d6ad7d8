"""Every loss of preferences, as the command line builds it, against its formula in NumPy: value,
weight, gradient and what is reported.

The rejected response's term of RPO and CPO could be left out without a test that failed.
"""

import functools

import numpy as np
import pytest

from jaxlm import objectives
from jaxlm.objectives.preference import dpo
from tests.objectives import bigram
from tests.objectives.bigram import (
    PARAMS,
    REFERENCE,
    batches,
    log_sigmoid,
    log_softmax,
    pairs,
    sigmoid,
)

# every loss once, with settings of its own where it reads any
SETTINGS = {
    "cdpo": {"smoothing": 0.3, "divergence": "js"},
    "robust": {"smoothing": 0.3},
    "exo": {"smoothing": 0.3},
    "hinge": {"beta": 1.5},  # some margins are wide enough to cost nothing
    "rpo": {"nll": 0.4},
    "cpo": {"nll": 0.4},
    "orpo": {"nll": 0.7, "nll_over": "text"},
    "simpo": {"beta": 2.0, "gamma": 0.4},
    "kto_pair": {"desirable": 1.3, "undesirable": 0.6},
    "discopop": {"tau": 1.0},
    "ipo_mean": {"divergence": "alpha", "alpha": 1.0},
    "dpo_mean": {"divergence": "forward_kl"},
}
PREFERENCES = {
    name: dpo.Config(loss=name, **{"beta": 0.3} | SETTINGS.get(name, {}))
    for name in dpo.LOSSES
    if name != "kto"
} | {"alpha": dpo.Config(beta=0.3, divergence="alpha", alpha=0.4)}


@functools.cache
def preferred():
    """{case: (sum, weight, sums, gradient)} of all losses of preferences, one program."""
    built = {c: objectives.build(cfg, bigram.model()) for c, cfg in PREFERENCES.items()}
    cfg = dpo.Config(loss="kto", desirable=1.2, undesirable=0.4, beta=0.3)
    built["kto"] = objectives.build(cfg, bigram.model())
    frozen = {c: {name: REFERENCE for name in o.frozen} for c, o in built.items()}
    given = {c: batches()["kto" if c == "kto" else "pairs"] for c in built}
    return bigram.slopes(built, dict.fromkeys(built, PARAMS), frozen, given)


def summed(params, batch):
    """(log-probabilities of targets, sums over responses), float64."""
    each = np.take_along_axis(
        log_softmax(params["table"][batch.tokens]), batch.targets[..., None], -1
    )
    return each[..., 0], (each[..., 0] * batch.weight).sum(-1)


def of_slope(d, cfg):
    """f'(u) of an f-divergence at u = exp(d), by its formula in u."""
    u = np.exp(d)
    if cfg.divergence == "forward_kl":
        return 1 - 1 / u
    if cfg.divergence == "js":
        return np.log(2 * u / (1 + u))
    if cfg.divergence == "alpha" and cfg.alpha != 1:
        return (u ** (cfg.alpha - 1) - 1) / (cfg.alpha - 1)
    return np.log(u)


class Side:
    """A response: p, ref: log-probabilities; n tokens; nll a token; d: the log-ratio; r: the
    implicit reward; g: the divergence's slope."""

    def __init__(self, p, ref, n, nll, cfg):
        self.p, self.n, self.nll, self.d = p, n, nll, p - ref
        self.r, self.g = cfg.beta * (p - ref), of_slope(p - ref, cfg)


def odds(x):
    q = np.exp(x.p / x.n)
    return q / (1 - q)


def pair_loss(c, x, cfg):
    """The loss of a chosen and a rejected response, by the papers' formulas."""
    z, mean = cfg.beta * (c.g - x.g), c.g / c.n - x.g / x.n
    q, e = sigmoid(cfg.beta * (c.g - x.g)), cfg.smoothing
    mix = sigmoid(z / cfg.tau)
    at = 1 / (2 * cfg.beta)
    return {
        "dpo": lambda: -log_sigmoid(z),
        "dpo_mean": lambda: -log_sigmoid(cfg.beta * mean),
        "cdpo": lambda: -(1 - e) * log_sigmoid(z) - e * log_sigmoid(-z),
        "robust": lambda: ((1 - e) * -log_sigmoid(z) - e * -log_sigmoid(-z)) / (1 - 2 * e),
        "hinge": lambda: max(0.0, 1 - z),
        "ipo_sum": lambda: (c.g - x.g - at) ** 2,
        "ipo_mean": lambda: (mean - at) ** 2,
        "exo": lambda: q * np.log(q / (1 - e)) + (1 - q) * np.log((1 - q) / e),
        "discopop": lambda: -log_sigmoid(z) * (1 - mix) + np.exp(-z) * mix,
        "rpo": lambda: -log_sigmoid(z) + cfg.nll * c.nll,
        "nca": lambda: -log_sigmoid(c.r) - log_sigmoid(-c.r) / 2 - log_sigmoid(-x.r) / 2,
        "bco": lambda: -log_sigmoid(c.r) - log_sigmoid(-x.r),
        "sppo": lambda: (c.d - at) ** 2 + (x.d + at) ** 2,
        "apo_zero": lambda: (1 - sigmoid(c.r)) + sigmoid(x.r),
        "apo_down": lambda: sigmoid(c.r) + (1 - sigmoid(c.r - x.r)),
        "cpo": lambda: -log_sigmoid(cfg.beta * (c.p - x.p)) + cfg.nll * c.nll,
        "simpo": lambda: -log_sigmoid(cfg.beta * (c.p / c.n - x.p / x.n) - cfg.gamma),
        "orpo": lambda: cfg.nll * c.nll - cfg.beta * log_sigmoid(np.log(odds(c) / odds(x))),
    }[cfg.loss]()


def sides(params, cfg):
    """{(prompt, response): Side} of the batch of pairs."""
    batch = batches()["pairs"]
    each, p = summed(params, batch)
    ref = summed(REFERENCE, batch)[1]
    follows = np.concatenate([batch.segments[..., 1:], 0 * batch.segments[..., :1]], -1) > 0
    learnt = follows if cfg.nll_over == "text" else batch.weight > 0
    n = (batch.weight > 0).sum(-1)
    return {
        at: Side(p[at], ref[at], n[at], -each[at][learnt[at]].mean(), cfg)
        for at in zip(*np.nonzero(n))
    }


def whole_loss(cfg, params, held):
    """The sum over prompts of the means over their pairs."""
    batch, by = batches()["pairs"], sides(params, cfg)
    listed = [(b, by[b, i], by[b, j], share) for b, i, j, share in pairs(batch.rank)]
    if cfg.loss not in ("kto_pair", "aot", "aot_unpaired"):
        total = 0.0
        for b, c, x, share in listed:
            certain = batch.preference[b]
            total += share * certain * pair_loss(c, x, cfg)
            total += share * (1 - certain) * pair_loss(x, c, cfg) if certain < 1 else 0.0
        return total
    before = sides(held, cfg)
    still = [(before[b, i], before[b, j], share) for b, i, j, share in pairs(batch.rank)]
    shares = np.array([share for *_, share in listed])
    total = 0.0
    for turn in (0, 1):
        two = [(c, x) if turn == 0 else (x, c) for _, c, x, _ in listed]
        then = [(c, x) if turn == 0 else (x, c) for c, x, _ in still]
        prefer = np.array([batch.preference[b] for b, *_ in listed])
        factor = shares * (prefer if turn == 0 else 1 - prefer)
        total += (factor * batch_loss(cfg, two, then, shares)).sum()
    return total


def batch_loss(cfg, two, then, shares):
    """Of every (chosen, rejected), given all; then: the same without a gradient."""
    if cfg.loss == "kto_pair":
        of_good, of_bad = (
            max(0.0, (shares * [s[k].d for s in then]).sum() / shares.sum()) for k in (0, 1)
        )
        good = [cfg.desirable * (1 - sigmoid(cfg.beta * (c.d - of_bad))) for c, _ in two]
        bad = [cfg.undesirable * (1 - sigmoid(cfg.beta * (of_good - x.d))) for _, x in two]
        return (np.array(good) + bad) / 2
    if cfg.loss == "aot":
        high = sorted(c.p - x.p for c, x in two)
        low = sorted((c.p - c.d) - (x.p - x.d) for c, x in two)
    else:
        high, low = (sorted(s[k].d for s in two) for k in (0, 1))
    apart = np.array(high) - np.array(low)
    return np.full(len(two), -log_sigmoid(cfg.beta * apart).mean())


@pytest.mark.parametrize("case", PREFERENCES)
def test_losses_of_preferences_are_their_formulas(case):
    cfg = PREFERENCES[case]
    ours = preferred()[case]
    bigram.agrees(ours, functools.partial(whole_loss, cfg), PARAMS, 4)
    by, sums = sides(PARAMS, cfg), ours[2]
    free = cfg.loss in ("cpo", "simpo", "orpo")
    right = dict.fromkeys(("reward", "log_prob", "tokens", "nll"), 0.0)
    worse = dict(right)
    accuracy = 0.0
    for b, i, j, share in pairs(batches()["pairs"].rank):
        earned = []
        for one, sum_ in ((by[b, i], right), (by[b, j], worse)):
            value = cfg.beta * (one.p if free else one.d)
            value = value / one.n if cfg.loss in ("simpo", "orpo") else value
            earned.append(value)
            parts = {"reward": value, "log_prob": one.p, "tokens": one.n, "nll": one.nll}
            for name, part in parts.items():
                sum_[name] += share * part
        accuracy += share * (earned[0] > earned[1])
    for name in ("reward", "log_prob", "tokens"):
        np.testing.assert_allclose(sums[f"{name}_chosen"], right[name], rtol=1e-5)
        np.testing.assert_allclose(sums[f"{name}_rejected"], worse[name], rtol=1e-5)
    np.testing.assert_allclose(sums["margin"], right["reward"] - worse["reward"], rtol=1e-4)
    np.testing.assert_allclose(sums["accuracy"], accuracy, rtol=1e-6)
    assert ("nll" in sums) == (cfg.loss in ("rpo", "cpo", "orpo"))
    if "nll" in sums:
        np.testing.assert_allclose(sums["nll"], right["nll"], rtol=1e-5)


def test_what_is_stored_for_a_response_that_is_not_there_is_never_read():
    """Prompts have fewer responses than the widest: value and gradient are those of the rest."""
    batch = batches()["pairs"]
    there = batch.weight.any(-1)
    assert not there.all()
    stored = np.where(there, summed(REFERENCE, batch)[1], np.nan)
    cfg = dpo.Config(beta=0.3, reference="stored")
    built = {"dpo": objectives.build(cfg, bigram.model())}
    given = {"dpo": batch._replace(reference=stored)}
    outputs = bigram.slopes(built, {"dpo": PARAMS}, {"dpo": {}}, given)["dpo"]
    for ours, frozen in zip(outputs[:2], preferred()["dpo"][:2], strict=True):
        np.testing.assert_allclose(ours, frozen, rtol=1e-6)
    np.testing.assert_allclose(outputs[3]["table"], preferred()["dpo"][3]["table"], atol=1e-6)


def test_kto_is_its_formula():
    batch = batches()["kto"]
    ref = summed(REFERENCE, batch)[1]
    there = batch.weight.any(-1)[:, 0]

    def oracle(params, held):
        d, still = (summed(p, batch)[1] - ref for p in (params, held))
        baseline = max(0.0, still[there, 1].mean())
        z = 0.3 * (d[there, 0] - baseline)
        good = batch.rank[there, 0] == 0
        return np.where(good, 1.2 * (1 - sigmoid(z)), 0.4 * (1 - sigmoid(-z))).sum()

    ours = preferred()["kto"]
    bigram.agrees(ours, oracle, PARAMS, 4)
    report = objectives.build(dpo.Config(loss="kto"), bigram.model()).report(ours[2])
    p, good = summed(PARAMS, batch)[1][there, 0], batch.rank[there, 0] == 0
    d = p - ref[there, 0]
    for name, which in (("desirable", good), ("undesirable", ~good)):
        np.testing.assert_allclose(report[f"reward_{name}"], 0.3 * d[which].mean(), rtol=1e-5)
        np.testing.assert_allclose(report[f"log_prob_{name}"], p[which].mean(), rtol=1e-5)
    apart = 0.3 * (d[good].mean() - d[~good].mean())
    np.testing.assert_allclose(
        [report["margin"], report["desirable_share"]], [apart, 0.5], rtol=1e-5
    )
