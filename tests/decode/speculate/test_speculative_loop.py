"""The laboratory of speculation: 5 tokens, continuations of 5, drafts of several kinds and lengths,
each draw beside the plain one of its seed."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlm.decode import sampling_loop, sampling_settings
from jaxlm.decode.sampling_settings import Sampling
from jaxlm.decode.speculate import speculative_loop
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
    {"temperature": 0.0, "repetition_penalty": 1.3},
]
MANY, ADAPTIVE = 2000, (0, 1, 3)


def settings_of(fields):
    return Sampling(max_new=T, stop_tokens=(4,), **fields)


EVERY = {k: v for fields in RULES for k, v in fields.items()}


@pytest.fixture(scope="module")
def draw(bigram):
    """draw(settings, draft, lengths) -> (Generation, tally), and without a draft the Generation of
    plain decoding, of seeds 0 to MANY; "other" is another table than the model's."""
    model = bigram[0]._replace(cfg=type(bigram[0].cfg)(V))
    tables = [np.random.default_rng(i).normal(0, 1.3, (8, V, V)) for i in (5, 6)]
    target, other = ({"table": jnp.asarray(t, jnp.float32)} for t in tables)
    drafts = {"same": target, "other": other}
    tokens = jnp.asarray([PROMPT])
    at = At(jnp.ones_like(tokens), jnp.arange(len(PROMPT))[None])

    def program(source, lengths):
        @jax.jit
        def plain(rows, draft):
            return sampling_loop.generate(model, target, tokens, at, rows, T)

        @jax.jit
        def run(rows, draft):
            costs = tuple(1 + 0.07 * n for n in lengths)
            method = speculative_loop.Method(source, lengths, costs, ngram=2)
            args = (model, method, Weights(target, draft))
            first = speculative_loop.start(*args, tokens, at, rows, T)
            done = speculative_loop.advance(*args, first, rows, T)
            return done.state.out, done.tally

        return run if lengths else plain

    programs = {}

    def drawn(fields, draft=None, lengths=()):
        source = model if draft in drafts else draft
        kind = (draft == "lookup", lengths)
        run = programs[kind] = programs.get(kind) or program(source, lengths)
        # beside a row with every setting, all settings are one program
        both = [settings_of(fields), settings_of(EVERY)]
        rows = sampling_settings.rows_of(both, 2)._replace(keys=None)
        rows = jax.tree.map(lambda x: jnp.broadcast_to(x[:1], (MANY, *x.shape[1:])), rows)
        keys = jax.vmap(jax.random.key)(jnp.arange(MANY, dtype=jnp.uint32))
        rows = rows._replace(keys=keys, origin=jnp.zeros(MANY, jnp.int32))
        return jax.tree.map(np.asarray, run(rows, drafts.get(draft, other)))

    return drawn, target


def equal(draw, fields, draft, lengths):
    """The tally of a call whose texts are those of plain decoding."""
    plain = draw[0](fields)
    out, tally = draw[0](fields, draft, lengths)
    for name, mine, its in zip(out._fields, out, plain, strict=True):
        np.testing.assert_allclose(mine, its, atol=1e-6, err_msg=f"{name}, {fields}")
    return tally


def test_draws_are_the_plain_ones(draw):
    """Under every setting, of a draft whose law is another one: about half are rejected."""
    tallies = [equal(draw, fields, "other", (K,)) for fields in (*LAWS, *RULES)]
    shares = [t.accepted.sum() / t.drafted.sum() for t in tallies]
    assert 0.05 < min(shares) < max(shares) < 0.9


def test_draws_follow_the_exact_law(draw):
    """By enumeration, and a chi-square finds another law wrong."""
    for fields, wrong in ((LAWS[7], LAWS[4]), (RULES[4], None)):
        exact = enumerated(draw[1], settings_of(fields))
        assert sum(exact.values()) == pytest.approx(1, abs=1e-12)
        out, _ = draw[0](fields, "other", (K,))
        written = np.arange(T) < out.lengths[:, None]
        codes = np.sum(np.where(written, out.tokens + 1, 0) * (V + 1) ** np.arange(T), axis=1)
        assert surprise(exact, codes) > 1e-5, fields
        cells, inverse = np.unique(codes, return_inverse=True)
        want = np.log([exact[c] for c in cells.tolist()])[inverse]
        np.testing.assert_allclose(np.sum(out.support_log_probs, axis=1), want, atol=1e-4)
        if wrong is not None:
            assert surprise(enumerated(draw[1], settings_of(wrong)), codes) < 1e-9


def test_a_draft_like_the_target_is_accepted(draw):
    tally = equal(draw, RULES[1], "same", (K,))
    np.testing.assert_array_equal(tally.accepted, tally.drafted)
    assert (tally.tokens >= tally.passes).all()
    # four tokens are left after the first: three drafts and one more, in one pass
    assert (tally.passes <= 1).all() and tally.drafted.max() == K


@pytest.mark.slow
@pytest.mark.parametrize(
    ("draft", "lengths"), [("other", ADAPTIVE), ("lookup", ADAPTIVE), ("lookup", (K,))]
)
def test_draws_are_the_plain_ones_by_every_draft_and_length(draw, draft, lengths):
    """Lengths that the whole batch decides on: they change no token."""
    tallies = [equal(draw, fields, draft, lengths) for fields in (*LAWS, *RULES)]
    counts = np.concatenate([t.drafted for t in tallies])
    assert len(np.unique(counts)) > 2 and sum(t.accepted.sum() for t in tallies) > 0
