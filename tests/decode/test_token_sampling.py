"""generate: against the full forward, alone or in a batch, per-row settings, stops and errors."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special

from jaxlm.decode import sampling_loop, token_sampling
from jaxlm.models import model as models
from jaxlm.ops.attention import At
from tests.ops import test_sampling

PROMPTS = [[3], [5, 9, 2, 31, 7, 7, 1], list(range(20)), [0, 30]]
GREEDY = token_sampling.Sampling(max_new=12, temperature=0.0)
MIXED = [
    token_sampling.Sampling(max_new=12, temperature=0.7, top_k=5, seed=1),
    token_sampling.Sampling(max_new=9, temperature=0.0, repetition_penalty=1.4),
    token_sampling.Sampling(max_new=12, temperature=1.5, top_p=0.8, min_p=0.05, seed=7),
    token_sampling.Sampling(max_new=4, temperature=1.0, seed=2**32 - 1, repetition_penalty=0.9),
]
NAMES = ["llama", "gpt"]


def full_logits(model, params, row):
    """float64 [len(row), V] by the forward pass without a cache, padded to one shape."""
    tokens = np.zeros((1, 32), np.int32)
    tokens[0, : len(row)] = row
    at = At(jnp.asarray(np.arange(32)[None] < len(row), jnp.int32), jnp.arange(32)[None])
    return np.asarray(_full(model, params, tokens, at)[0, : len(row)], np.float64)


_PROGRAMS = {}


def _full(model, params, tokens, at):
    if model.cfg not in _PROGRAMS:
        _PROGRAMS[model.cfg] = jax.jit(lambda p, t, at: models.logits(model, p, t, at))
    return _PROGRAMS[model.cfg](params, tokens, at)


def log_softmax(x):
    return x - x.max() - np.log(np.exp(x - x.max()).sum())


@pytest.mark.parametrize("name", NAMES)
def test_greedy_is_the_argmax_of_the_full_forward(name, tiny):
    model, params = tiny(name)
    out = token_sampling.generate(model, params, PROMPTS, GREEDY)
    assert out.tokens.shape == (4, 12) and out.lengths.tolist() == [12] * 4
    assert out.finish.tolist() == [sampling_loop.LENGTH] * 4
    for r, prompt in enumerate(PROMPTS):
        row = [*prompt, *out.tokens[r]]
        x = full_logits(model, params, row)[len(prompt) - 1 : -1]
        np.testing.assert_array_equal(out.tokens[r], x.argmax(1))
        raw = [log_softmax(x[t])[token] for t, token in enumerate(out.tokens[r])]
        np.testing.assert_allclose(out.log_probs[r], raw, atol=2e-5)
    assert (out.support_log_probs == 0).all()
    assert len(np.unique(out.tokens)) > 3


@pytest.mark.parametrize("name", NAMES)
def test_both_log_probs_of_mixed_rows_are_the_oracle(name, tiny):
    """Raw ones from the full forward; those of the support after numpy's processors in float64."""
    model, params = tiny(name)
    out = token_sampling.generate(model, params, PROMPTS, MIXED)
    assert out.lengths.tolist() == [12, 9, 12, 4]
    for r, (prompt, s) in enumerate(zip(PROMPTS, MIXED)):
        row = [*prompt, *out.tokens[r, : out.lengths[r]]]
        x = full_logits(model, params, row)
        for t in range(out.lengths[r]):
            here = len(prompt) + t
            token, raw = row[here], x[here - 1]
            np.testing.assert_allclose(out.log_probs[r, t], log_softmax(raw)[token], atol=2e-5)
            seen = np.isin(np.arange(32), row[:here])
            with np.errstate(divide="ignore"):
                kept = test_sampling.oracle(
                    raw, seen, s.temperature, s.top_k or 0, s.top_p, s.min_p, s.repetition_penalty
                )
            want = log_softmax(kept)[token] if s.temperature else 0.0
            np.testing.assert_allclose(out.support_log_probs[r, t], want, atol=5e-5)
            if not s.temperature:
                assert token == kept.argmax()
        assert (out.tokens[r, out.lengths[r] :] == 0).all()
        assert (out.log_probs[r, out.lengths[r] :] == 0).all()


def test_a_row_alone_is_the_row_in_the_batch(tiny):
    """Ragged prompts, other shapes, other neighbours: same tokens, for sampled rows too."""
    model, params = tiny("llama")
    out = token_sampling.generate(model, params, PROMPTS, MIXED)
    for r, s in enumerate(MIXED):
        alone = token_sampling.generate(model, params, [PROMPTS[r]], [s])
        n = out.lengths[r]
        np.testing.assert_array_equal(alone.tokens[0], out.tokens[r, : s.max_new])
        np.testing.assert_allclose(alone.log_probs[0], out.log_probs[r, : s.max_new], atol=2e-5)
        assert alone.lengths[0] == n


def test_the_seed_decides_and_a_sample_can_be_continued(tiny):
    """One Sampling gives row r seed + r. A token's draw depends on seed and position alone, so a
    prompt with the first 5 sampled tokens goes on as the whole did."""
    model, params = tiny("llama")
    s = token_sampling.Sampling(max_new=12, seed=5)
    out = token_sampling.generate(model, params, [[1, 2]] * 4, s)
    again = token_sampling.generate(model, params, [[1, 2]] * 4, s)
    np.testing.assert_array_equal(out.tokens, again.tokens)
    assert len(np.unique(out.tokens, axis=0)) == 4
    third = token_sampling.generate(model, params, [[1, 2]], dataclasses.replace(s, seed=7))
    np.testing.assert_array_equal(third.tokens[0], out.tokens[2])
    half = dataclasses.replace(s, max_new=7, seed=7)
    rest = token_sampling.generate(model, params, [[1, 2, *out.tokens[2, :5]]], half)
    np.testing.assert_array_equal(rest.tokens[0], out.tokens[2, 5:])


def test_samples_have_the_models_distribution(tiny):
    """Chi-square of 512 first tokens (256 rows a call, which shares one program) against the full
    forward's probabilities, cells below 5 expected put together; 0.1 % point."""
    model, params = tiny("llama")
    p = np.exp(log_softmax(full_logits(model, params, [4, 8])[-1]))
    first = [
        token_sampling.generate(
            model, params, [[4, 8]] * 256, token_sampling.Sampling(max_new=2, seed=seed)
        )
        for seed in (0, 1000)
    ]
    count = np.bincount(np.concatenate([out.tokens[:, 0] for out in first]), minlength=32)
    big = 512 * p >= 5

    def chi(p):
        want, have = (
            512 * np.append(p[big], p[~big].sum()),
            np.append(count[big], count[~big].sum()),
        )
        return ((have - want) ** 2 / want).sum()

    edge = special.chdtri(big.sum(), 0.001)
    assert big.sum() >= 4
    assert chi(p) < edge < chi(np.roll(p, 1))


def test_stop_tokens_end_their_row_alone(tiny):
    model, params = tiny("llama")
    free = token_sampling.generate(model, params, PROMPTS, GREEDY)
    stop = [int(free.tokens[0, 5]), int(free.tokens[1, 2])]
    where = [int(np.argmax(np.isin(free.tokens[r], stop))) + 1 for r in range(2)]
    some = [dataclasses.replace(GREEDY, stop_tokens=tuple(stop))] * 2 + [GREEDY] * 2
    out = token_sampling.generate(model, params, PROMPTS, some)
    assert out.lengths.tolist() == [*where, 12, 12]
    assert out.finish.tolist() == [sampling_loop.STOP_TOKEN] * 2 + [sampling_loop.LENGTH] * 2
    for r in range(4):
        n = out.lengths[r]
        np.testing.assert_array_equal(out.tokens[r, :n], free.tokens[r, :n])
        assert (out.tokens[r, n:] == 0).all()
        np.testing.assert_allclose(out.log_probs[r, :n], free.log_probs[r, :n], atol=2e-5)


def test_the_loop_ends_when_every_row_has(tiny):
    """4 tokens of 64 are asked for: the loop makes 3 steps behind prefill, not 63."""
    model, params = tiny("llama")
    rows = token_sampling.rows_of([dataclasses.replace(GREEDY, max_new=4)], 1)
    tokens = jnp.ones((1, 16), jnp.int32)
    at = At(tokens, jnp.arange(16)[None])
    state = token_sampling._start(
        token_sampling._static(model), 64, sampling_loop.unstacked(params), tokens, at, rows
    )
    state = token_sampling._advance(
        token_sampling._static(model), 64, sampling_loop.unstacked(params), state, rows
    )
    assert int(state.step) == 4 and int(state.cache.filled) == 19


def test_prepared_weights_and_buckets_change_nothing(tiny):
    model, params = tiny("gpt")
    want = token_sampling.generate(model, params, PROMPTS, GREEDY)
    ready = token_sampling.prepare(model, params)
    assert token_sampling.prepare(model, ready) is ready
    got = token_sampling.generate(model, ready, PROMPTS, GREEDY)
    np.testing.assert_array_equal(got.tokens, want.tokens)
    assert [token_sampling.bucket(n) for n in (1, 16, 17, 25, 33, 49, 100)] == [
        16,
        16,
        24,
        32,
        48,
        64,
        128,
    ]
    assert [token_sampling.bucket(n, 1) for n in range(1, 10)] == [1, 2, 3, 4, 6, 6, 8, 8, 12]


def test_a_model_that_has_diverged_is_an_error(tiny):
    model, params = tiny("gpt")
    broken = params | {"norm": jax.tree.map(lambda x: x * jnp.nan, params["norm"])}
    with pytest.raises(FloatingPointError, match="row 0, new token 0: .* not finite"):
        token_sampling.generate(model, broken, PROMPTS, GREEDY)


BAD_SETTINGS = [
    ({"max_new": 0}, "sampling.max_new: 0 given; it must be at least 1"),
    ({"temperature": -0.5}, "sampling.temperature: -0.5 given"),
    ({"temperature": float("nan")}, "sampling.temperature: nan given"),
    ({"top_k": 0}, "sampling.top_k: 0 given"),
    ({"top_p": 0.0}, r"sampling.top_p: 0.0 given; it must be in \(0, 1\]"),
    ({"top_p": 1.1}, "sampling.top_p: 1.1 given"),
    ({"min_p": -0.1}, "sampling.min_p: -0.1 given"),
    ({"repetition_penalty": 0.0}, "sampling.repetition_penalty: 0.0 given"),
    ({"seed": -1}, "sampling.seed: -1 given"),
    ({"stop_strings": ("",)}, "sampling.stop_strings: '' given"),
]


@pytest.mark.parametrize(("fields", "message"), BAD_SETTINGS)
def test_settings_that_make_no_sense(fields, message):
    with pytest.raises(ValueError, match=message):
        token_sampling.Sampling(**fields)


BAD_REQUESTS = [
    ([], GREEDY, "prompts: none given"),
    ([[1], []], GREEDY, "prompt 1: empty; a model continues at least one token"),
    ([[1], [2, 32]], GREEDY, r"prompt 1, position 1: token 32 is outside the vocabulary 0..31"),
    ([[-1]], GREEDY, "prompt 0, position 0: token -1 is outside"),
    ([["a"]], GREEDY, r"prompt 0: token ids are needed, got \['a'\]"),
    ([[1] * 60], GREEDY, "prompt 0: 60 tokens and sampling.max_new=12 make 72; .* at most 4 here"),
    ([[1]], [GREEDY] * 2, "sampling: 2 settings given for 1 prompts"),
    (
        [[1]],
        dataclasses.replace(GREEDY, stop_tokens=(1, 99)),
        "sampling.stop_tokens of row 0, place 1: token 99 is outside the vocabulary",
    ),
    ([[1]], dataclasses.replace(GREEDY, stop_strings=("x",)), "a tokenizer is needed"),
]


@pytest.mark.parametrize(("prompts", "settings", "message"), BAD_REQUESTS)
def test_requests_that_cannot_be_served(prompts, settings, message, tiny):
    model, _ = tiny("gpt")
    with pytest.raises(ValueError, match=message):  # before any compute: there are no weights
        token_sampling.generate(model, None, prompts, settings)


def test_rope_models_may_exceed_the_context_they_were_meant_for(tiny):
    model, _ = tiny("llama")
    assert len(token_sampling.check_prompts(model, [[1] * 100], [GREEDY])) == 1
