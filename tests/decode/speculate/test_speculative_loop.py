"""The laboratory of speculation: 5 tokens, 3 drafts, continuations of 5, every one enumerated."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlm.decode import sampling_settings
from jaxlm.decode.sampling_settings import Sampling
from jaxlm.decode.speculate import draft_length, speculative_loop
from jaxlm.decode.speculate.drafts import Weights
from jaxlm.ops.attention import At
from tests.decode.test_sampler_laws import PROMPT, enumerated, surprise

V, T, K = 5, 5, 3
LAWS = [
    {"temperature": t, "top_p": p, "top_k": k}
    for t, p, k in itertools.product((1.0, 0.6, 1.7), (1.0, 0.8), (None, 3))
]
RULES = [
    {"repetition_penalty": 1.8, "temperature": 0.8},
    {"presence_penalty": 0.8, "frequency_penalty": 1.2},
    {"no_repeat_ngram_size": 2, "top_k": 4},
    {"logit_bias": ((0, 1.5), (3, -2.0)), "min_p": 0.1},
    {"banned": ((2,), (1, 4), (0, 3, 0)), "min_new": 3},
    {"forced_begin": (3, 1), "forced_end": (0, 4)},
    {"typical_p": 0.6, "temperature": 1.3},
]


def settings_of(fields):
    return Sampling(max_new=T, stop_tokens=(4,), **fields)


EVERY = {k: v for fields in RULES for k, v in fields.items()}


@pytest.fixture(scope="module")
def draw(bigram):
    """draw(settings, n, draft, method) -> (codes, support_log_probs summed, tally), seeds 0 to n;
    params are the model's, and another table is the draft's."""
    model = bigram[0]._replace(cfg=type(bigram[0].cfg)(V))
    tables = [np.random.default_rng(i).normal(0, 1.3, (8, V, V)) for i in (5, 6)]
    target, other = ({"table": jnp.asarray(t, jnp.float32)} for t in tables)
    drafts = {"same": target, "other": other}

    def program(source, lengths):
        method = speculative_loop.Method(
            source, lengths, draft_length.costs(lengths, 0.02), ngram=2
        )

        @jax.jit
        def run(rows, seeds, draft):
            tokens = jnp.asarray([PROMPT])
            at = At(jnp.ones_like(tokens), jnp.arange(len(PROMPT))[None])
            n = len(seeds)
            many = jax.tree.map(
                lambda x: jnp.broadcast_to(x[:1], (n, *x.shape[1:])), rows._replace(keys=None)
            )
            many = many._replace(
                keys=jax.vmap(jax.random.key)(seeds), origin=jnp.zeros(n, jnp.int32)
            )
            args = (model, method, Weights(target, draft))
            first = speculative_loop.start(*args, tokens, at, many, T)
            done = speculative_loop.advance(*args, first, many, T)
            out = done.state.out
            written = jnp.arange(T) < out.lengths[:, None]
            power = (V + 1) ** jnp.arange(T)
            code = jnp.sum(jnp.where(written, out.tokens + 1, 0) * power, axis=1)
            return code, jnp.sum(out.support_log_probs, axis=1), done.tally

        return run

    programs = {}

    def drawn(fields, n, draft="other", lengths=(K,)):
        source = model if draft in drafts else draft
        run = programs.setdefault((draft == "lookup", lengths), program(source, lengths))
        # beside a row with every setting, all settings are one program
        both = [settings_of(fields), settings_of(EVERY)]
        rows = sampling_settings.rows_of(both, 2)
        seeds = jnp.arange(n, dtype=jnp.uint32)
        return jax.tree.map(np.asarray, run(rows, seeds, drafts.get(draft)))

    return drawn, target


def follows(draw, fields, n, *args):
    """The tally of draws that follow the exact law, with its log-probabilities."""
    drawn, target = draw
    exact = enumerated(target, settings_of(fields))
    assert sum(exact.values()) == pytest.approx(1, abs=1e-12)
    codes, support, tally = drawn(fields, n, *args)
    assert surprise(exact, codes) > 1e-5, (fields, args)
    cells, inverse = np.unique(codes, return_inverse=True)
    want = np.log([exact[c] for c in cells.tolist()])[inverse]
    np.testing.assert_allclose(support, want, atol=1e-4)
    return codes, tally


def test_draws_follow_the_exact_law(draw):
    """And a chi-square finds another law wrong."""
    codes, tally = follows(draw, LAWS[7], 20_000)
    assert surprise(enumerated(draw[1], settings_of(LAWS[4])), codes) < 1e-9
    assert 0.05 < tally.accepted.sum() / tally.drafted.sum() < 0.8
    follows(draw, RULES[4], 20_000)


def test_a_draft_like_the_target_is_accepted(draw):
    _, tally = follows(draw, RULES[1], 20_000, "same")
    np.testing.assert_array_equal(tally.accepted, tally.drafted)
    assert (tally.tokens >= tally.passes).all()
    # four tokens are left after the first: three drafts and one more, in one pass
    assert (tally.passes <= 1).all() and tally.drafted.max() == K


@pytest.mark.slow
@pytest.mark.parametrize("draft", ["other", "lookup"])
@pytest.mark.parametrize("fields", [*LAWS, *RULES], ids=str)
def test_200000_draws_follow_the_exact_law(draw, fields, draft):
    follows(draw, fields, 200_000, draft)


@pytest.mark.slow
@pytest.mark.parametrize("draft", ["other", "same", "lookup"])
@pytest.mark.parametrize("fields", [LAWS[7], RULES[0]], ids=str)
def test_adaptive_lengths_follow_the_exact_law(draw, fields, draft):
    follows(draw, fields, 200_000, draft, (0, 1, 3))
