"""Processors against float64 numpy that sorts, and the sampler against its probabilities."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlm.ops import sampling

B, V = 6, 40
RUN = jax.jit(sampling.process)


def rows(seed=0, ties=False):
    x = np.random.default_rng(seed).normal(0, 3, (B, V)).astype(np.float32)
    return np.round(x) if ties else x


def controls(temperature=1.0, top_k=0, top_p=1.0, min_p=0.0, typical=1.0, repetition=1.0):
    """Each setting a number or a list of B."""

    def full(value, dtype):
        return jnp.asarray(np.broadcast_to(np.asarray(value, dtype), B))

    f = np.float32
    return sampling.Controls(
        temperature=full(temperature, f),
        top_k=full(top_k, np.int32),
        top_p=full(top_p, f),
        min_p=full(min_p, f),
        typical=full(typical, f),
        repetition=full(repetition, f),
    )


def softmax(x):
    e = np.exp(x - x.max())
    return e / e.sum()


def oracle(x, seen, temperature, top_k, top_p, min_p, repetition, typical=1.0):
    """One row in float64: sorts, and cuts ties at an edge as the module says."""
    x = x.astype(np.float64)
    x = np.where(seen, np.where(x > 0, x / repetition, x * repetition), x)
    if temperature == 0:
        return x
    x = x / temperature
    if top_k:
        edge = np.sort(x)[::-1][min(top_k, len(x)) - 1]
        x = np.where(x >= edge, x, -np.inf)
    if top_p < 1:
        order = np.argsort(-x)
        mass = np.cumsum(softmax(x)[order])
        edge = x[order[np.argmax(mass >= top_p)]]
        x = np.where(x >= edge, x, -np.inf)
    if min_p:
        p = softmax(x)
        x = np.where(p >= min_p * p.max(), x, -np.inf)
    if typical < 1:
        with np.errstate(divide="ignore", invalid="ignore"):
            surprise, p = -np.log(softmax(x)), softmax(x)
            distance = np.abs(surprise - np.nansum(p * surprise))
        order = np.argsort(distance)
        edge = distance[order[np.argmax(np.cumsum(p[order]) >= typical)]]
        x = np.where(distance <= edge, x, -np.inf)
    return x


SETTINGS = [
    {},
    {"repetition": 1.7},
    {"temperature": [0.0, 0.3, 1.0, 2.5, 0.0, 7.0], "repetition": 0.8},
    {"top_k": [0, 1, 2, 7, 40, 60]},
    {"top_p": [1.0, 1e-6, 0.3, 0.7, 0.95, 0.999]},
    {"min_p": [0.0, 1e-3, 0.05, 0.3, 0.8, 1.0]},
    {"typical": [1.0, 1e-6, 0.2, 0.5, 0.9, 0.99], "temperature": [1.0, 1.0, 2.0, 0.0, 0.5, 3.0]},
    {
        "temperature": [0.0, 0.5, 1.0, 2.0, 1.3, 3.0],
        "top_k": [3, 0, 9, 12, 5, 25],
        "top_p": [0.5, 0.9, 1.0, 0.8, 0.6, 0.95],
        "min_p": [0.2, 0.0, 0.02, 0.0, 0.3, 0.01],
        "typical": [0.1, 0.9, 0.5, 1.0, 0.7, 0.8],
        "repetition": [1.2, 1.0, 1.5, 0.7, 1.0, 2.0],
    },
]


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("setting", SETTINGS)
def test_process_is_the_oracle_row_by_row(setting, ties):
    """Rows of one batch have different settings. In float32 a cumulative probability may fall on
    the other side of top_p only when it is within rounding of it; these do not."""
    x, c = rows(1, ties), controls(**setting)
    seen = np.random.default_rng(2).random((B, V)) < 0.3
    got = np.asarray(RUN(x, seen, c))
    for r in range(B):
        fields = c._replace(rules=None)._asdict().items()
        one = {name: field[r].item() for name, field in fields if field is not None}
        want = oracle(x[r], seen[r], **one)
        np.testing.assert_array_equal(np.isneginf(got[r]), np.isneginf(want))
        kept = np.isfinite(want)
        assert kept.any()
        np.testing.assert_allclose(got[r][kept], want[kept], rtol=1e-6)


def test_ties_stay_or_go_together():
    """Probabilities [.4 .2 .2 .2]: the second place is tied three times."""
    x = np.log(np.tile(np.array([0.4, 0.2, 0.2, 0.2], np.float32), (B, 1)))
    kept = np.isfinite(sampling.top_k(x, jnp.full(B, 2)))
    assert (kept.sum(1) == 4).all()
    p = jnp.array([0.3, 0.39, 0.41, 0.5, 0.7, 0.99])
    assert np.isfinite(sampling.top_p(x, p)).sum(1).tolist() == [1, 1, 4, 4, 4, 4]


def test_zero_and_negative_zero_are_tied_and_infinities_stay_out():
    x = np.tile(np.array([0.0, -0.0, -1.0, -np.inf], np.float32), (B, 1))
    assert np.isfinite(sampling.top_k(x, jnp.full(B, 1))).sum(1).tolist() == [2] * B
    assert np.isfinite(sampling.top_k(x, jnp.full(B, 4))).sum(1).tolist() == [3] * B


def test_a_row_does_not_depend_on_the_others():
    x = rows(3)
    seen = np.zeros((B, V), bool)
    mixed = RUN(x, seen, controls(**SETTINGS[-1]))
    for r in range(B):
        same = {k: v[r] for k, v in SETTINGS[-1].items()}
        np.testing.assert_array_equal(mixed[r], RUN(x, seen, controls(**same))[r])


def test_sample_draws_from_the_softmax():
    """Chi-square of 20,000 draws over 6 tokens: the 0.1 % point with 5 degrees is 20.5. The same
    counts against a distribution off by 5 % of one token must fail."""
    n, p = 20_000, np.array([0.4, 0.25, 0.15, 0.1, 0.07, 0.03])
    x = jnp.broadcast_to(jnp.log(jnp.asarray(p, jnp.float32)), (n, 6))
    key = jnp.broadcast_to(jax.random.key(0), n)
    draw = jax.jit(sampling.sample)(x, key, jnp.arange(n), jnp.zeros(n, bool))
    count = np.bincount(draw, minlength=6)

    def chi(p):
        return ((count - n * p) ** 2 / (n * p)).sum()

    assert chi(p) < 20.5
    assert chi(p + np.array([-0.05, 0.05, 0, 0, 0, 0])) > 20.5


def test_sample_never_draws_what_was_removed_and_greedy_takes_the_first_largest():
    x = np.where(np.arange(V) % 4 == 0, 1.0, -np.inf).astype(np.float32)
    x = np.tile(x, (500, 1))
    keys = jax.random.split(jax.random.key(1), 500)
    greedy = jnp.arange(500) < 100
    draw = np.asarray(sampling.sample(x, keys, jnp.zeros(500, int), greedy))
    assert (draw[:100] == 0).all()
    assert set(draw[100:]) == set(range(0, V, 4))


def test_log_prob():
    x, token = rows(4), np.arange(B)
    want = [np.log(softmax(x[r].astype(np.float64)))[r] for r in range(B)]
    np.testing.assert_allclose(sampling.log_prob(x, token), want, rtol=1e-5)


@pytest.mark.parity
@pytest.mark.parametrize("setting", SETTINGS[1:])
def test_process_is_transformers(setting):
    """The chain that `generate` builds, row by row; logits without ties."""
    torch = pytest.importorskip("torch")
    process = pytest.importorskip("transformers.generation.logits_process")
    x, c = rows(5), controls(**setting)
    seen = np.random.default_rng(6).random((B, V)) < 0.3
    got = np.asarray(RUN(x, seen, c))
    for r in range(B):
        if c.temperature[r] == 0:
            continue
        chain = [
            process.RepetitionPenaltyLogitsProcessor(float(c.repetition[r])),
            process.TemperatureLogitsWarper(float(c.temperature[r])),
            process.TopKLogitsWarper(int(c.top_k[r]) or V),
            process.TopPLogitsWarper(float(c.top_p[r])),
            process.MinPLogitsWarper(float(c.min_p[r])),
        ]
        if c.typical[r] < 1:
            chain.append(process.TypicalLogitsWarper(float(c.typical[r])))
        ids, want = torch.from_numpy(np.flatnonzero(seen[r]))[None], torch.from_numpy(x[r : r + 1])
        for step in chain:
            want = step(ids, want)
        np.testing.assert_allclose(got[r], want[0].numpy(), rtol=1e-5)
