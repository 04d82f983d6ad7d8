"""The laboratory of samplers: 6 tokens, continuations of 4, every one of them enumerated."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special

from jaxlm.decode import sampling_loop, sampling_settings
from jaxlm.decode.sampling_settings import Sampling
from jaxlm.ops.attention import At
from tests.ops import test_penalties

V, T = 6, 4
PROMPT = [1, 4, 1]
# Each alone, and in pairs; a stop token ends a text in all of them.
SETTINGS = {
    "temperature": {"temperature": 0.6},
    "top_k": {"top_k": 3},
    "top_p": {"top_p": 0.7},
    "min_p": {"min_p": 0.2},
    "typical_p": {"typical_p": 0.6},
    "repetition": {"repetition_penalty": 1.8},
    "counts": {"presence_penalty": 0.8, "frequency_penalty": 1.2},
    "ngrams": {"no_repeat_ngram_size": 2},
    "once": {"no_repeat_ngram_size": 1},
    "bias": {"logit_bias": ((0, 1.5), (5, -2.0))},
    "banned": {"banned": ((2,), (1, 4), (0, 3, 0))},
    "begin": {"forced_begin": (3, 1)},
    "end": {"forced_end": (0, 5)},
    "min_new": {"min_new": 3},
}
PAIRS = [(a, b) for a, b in itertools.combinations(SETTINGS, 2) if {a, b} != {"ngrams", "once"}]


def settings_of(*names):
    fields = {k: v for name in names for k, v in SETTINGS[name].items()}
    return Sampling(max_new=T, stop_tokens=(5,), **fields)


@pytest.fixture(scope="module")
def draw(bigram):
    """draw(settings, n) -> (the code of each of n continuations, their support_log_probs summed):
    row i has seed i, and the prompt is read once."""
    model, params = bigram

    @jax.jit
    def run(rows, seeds):
        tokens = jnp.asarray([PROMPT])
        at = At(jnp.ones_like(tokens), jnp.arange(len(PROMPT))[None])
        n = len(seeds)
        many = jax.tree.map(
            lambda x: jnp.broadcast_to(x[:1], (n, *x.shape[1:])), rows._replace(keys=None)
        )
        many = many._replace(keys=jax.vmap(jax.random.key)(seeds), origin=jnp.zeros(n, jnp.int32))
        out = sampling_loop.generate(model, params, tokens, at, many, T)
        written = jnp.arange(T) < out.lengths[:, None]
        code = jnp.sum(jnp.where(written, out.tokens + 1, 0) * (V + 1) ** jnp.arange(T), axis=1)
        return code, jnp.sum(out.support_log_probs, axis=1)

    def drawn(s, n, alone=False):
        # beside a row with every setting, all settings are one program
        rows = [s] if alone else [s, settings_of(*SETTINGS)]
        return tuple(
            map(
                np.asarray,
                run(sampling_settings.rows_of(rows, len(rows)), jnp.arange(n, dtype=jnp.uint32)),
            )
        )

    return drawn


def enumerated(params, s):
    """{code of a continuation: its probability}, by the chain rule over float64 distributions."""
    table, exact, todo = np.asarray(params["table"]), {}, [([], 1.0)]
    base = table.shape[-1] + 1
    while todo:
        new, mass = todo.pop()
        if len(new) == s.max_new or (new and new[-1] in s.stop_tokens):
            exact[sum((t + 1) * base**i for i, t in enumerate(new))] = mass
            continue
        text = [*PROMPT, *new]
        x = test_penalties.law(table[len(text) - 1, text[-1]], PROMPT, new, s)
        p = np.exp(x - x.max())
        todo += [([*new, t], mass * q) for t, q in enumerate(p / p.sum()) if q > 0]
    return exact


def surprise(exact, codes):
    """The probability of a chi-square above that of the draws, cells below 5 put together; 0 where
    one was drawn that never should be."""
    cells, counts = np.unique(codes, return_counts=True)
    if set(cells.tolist()) - set(exact):
        return 0.0
    want = np.array(list(exact.values())) * len(codes)
    have = np.array([dict(zip(cells.tolist(), counts)).get(c, 0) for c in exact])
    big = want >= 5
    rest = want[~big].sum()
    if rest >= 5:
        want, have = np.append(want[big], rest), np.append(have[big], have[~big].sum())
    else:
        want, have = want[big], have[big]
    if len(want) == 1:
        return 1.0
    return float(special.chdtrc(len(want) - 1, ((have - want) ** 2 / want).sum()))


def follows(bigram, draw, names, n, alone=False):
    """The draws follow the exact law, and not that of the settings without the last name."""
    s = settings_of(*names)
    exact = enumerated(bigram[1], s)
    assert sum(exact.values()) == pytest.approx(1, abs=1e-12)
    codes, support = draw(s, n, alone)
    assert surprise(exact, codes) > 1e-5, names
    cells, inverse = np.unique(codes, return_inverse=True)
    want = np.log([exact[c] for c in cells.tolist()])[inverse]
    np.testing.assert_allclose(support, want, atol=1e-4)
    return exact, codes


def test_draws_follow_the_exact_law(bigram, draw):
    """One program for settings without rules, and a chi-square that finds another law wrong."""
    plain, _ = follows(bigram, draw, (), 20_000, alone=True)
    assert len(plain) > 700
    for names in [("typical_p", "temperature"), ("top_k", "repetition")]:
        _, codes = follows(bigram, draw, names, 20_000)
        assert surprise(enumerated(bigram[1], settings_of(names[0])), codes) < 1e-9
    _, codes = follows(bigram, draw, ("banned", "counts", "min_new", "ngrams", "end"), 20_000)
    assert surprise(plain, codes) < 1e-9


@pytest.mark.slow
@pytest.mark.parametrize("names", [(name,) for name in SETTINGS] + PAIRS, ids="+".join)
def test_200000_draws_follow_the_exact_law(bigram, draw, names):
    follows(bigram, draw, names, 200_000)


@pytest.mark.slow
def test_all_settings_together_follow_the_exact_law(bigram, draw):
    follows(bigram, draw, [name for name in SETTINGS if name not in ("once", "begin")], 200_000)
