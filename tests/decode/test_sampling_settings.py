"""Settings as a user gives them: n and the best of more, rules in whole requests, and errors."""

import dataclasses

import jax
import numpy as np
import pytest

from jaxlm import models
from jaxlm.data.tokenizers import bytelevel
from jaxlm.decode import completions, encoder_decoder, reply, sampling_loop, token_sampling
from jaxlm.decode.sampling_settings import Sampling, candidates, each, rows_of
from jaxlm.models import t5
from tests import programs
from tests.ops import test_penalties

PROMPTS = [[3], [5, 9, 2, 31, 7, 7, 1], list(range(20)), [0, 30]]
RULED = [
    Sampling(max_new=8, presence_penalty=1.0, frequency_penalty=0.5, seed=1),
    Sampling(max_new=8, temperature=0.0, no_repeat_ngram_size=2, repetition_penalty=1.2),
    Sampling(max_new=6, min_new=5, stop_tokens=(0, 4, 9), typical_p=0.8, seed=3),
    Sampling(max_new=8, forced_begin=(4, 2), forced_end=(1,), banned=((7,), (3, 3)), seed=4),
]


def same_rows(out, r, other, q):
    """Row r of one Generation has the tokens and the end of row q of another."""
    n = int(out.lengths[r])
    assert n == other.lengths[q] and out.finish[r] == other.finish[q]
    np.testing.assert_array_equal(out.tokens[r, :n], other.tokens[q, :n])
    for name in ("log_probs", "support_log_probs"):
        a, b = getattr(out, name)[r, :n], getattr(other, name)[q, :n]
        np.testing.assert_allclose(a, b, atol=2e-5)


# --- n, and the best of more -----------------------------------------------------------------


def test_n_samples_are_n_calls_with_their_seeds(tiny):
    """The prompt is read once and its cache repeated; continuation i of prompt r has the seed of
    the settings plus r * n + i, and of its own settings plus i."""
    model, params = tiny("llama")
    s = Sampling(max_new=8, n=3, seed=2**32 - 2, presence_penalty=0.5)
    out = token_sampling.generate(model, params, PROMPTS[:2], s)
    assert out.tokens.shape == (6, 8)
    one = dataclasses.replace(s, n=1)
    for row in range(6):
        own = dataclasses.replace(one, seed=(s.seed + row) % 2**32)
        alone = token_sampling.generate(model, params, [PROMPTS[row // 3]], [own])
        same_rows(out, row, alone, 0)
    assert len(np.unique(out.tokens, axis=0)) == 6


def test_each_prompt_has_its_own_n(bigram):
    model, params = bigram
    settings = [Sampling(max_new=9, n=2, seed=1, top_p=0.9), Sampling(max_new=7, n=3, seed=8)]
    rows, origin = candidates(settings)
    assert origin.tolist() == [0, 0, 1, 1, 1] and [row.seed for row in rows] == [1, 2, 8, 9, 10]
    out = token_sampling.generate(model, params, [[1, 2], [3]], settings)
    every = token_sampling.generate(model, params, [[[1, 2], [3]][p] for p in origin], rows)
    assert out.tokens.shape == (5, 9)
    for r in range(5):
        same_rows(out, r, every, r)


def test_the_prompt_is_read_once(tiny):
    """Of 4 rows that continue one prompt of 16 places, prefill multiplies 16 vectors, not 64."""
    model, params = tiny("llama")
    rows, count = token_sampling.rows_from([Sampling(n=4)])
    assert count == 4 and rows.origin.tolist() == [0] * 4
    one = np.ones((1, 16), np.int32)
    at = sampling_loop.At(one, np.arange(16)[None])
    start = jax.make_jaxpr(lambda p: sampling_loop.start(model, p, one, at, rows, 4))
    text = str(start(sampling_loop.unstacked(params)))
    assert "f32[1,16,16]" in text and "f32[4,16,16]" not in text


def test_best_of_keeps_the_likeliest_by_enumeration(bigram):
    """OpenAI's rule: the highest log-probability per token, under the model itself. The mean of a
    short text may beat the sum's choice."""
    model, params = bigram
    prompts = [[1, 2], [3]]
    s = Sampling(max_new=6, stop_tokens=(5,), temperature=1.5, n=2, best_of=9, seed=11)
    out = token_sampling.generate(model, params, prompts, s)
    every = token_sampling.generate(
        model, params, prompts, dataclasses.replace(s, n=9, best_of=None)
    )
    table = np.asarray(params["table"], np.float64)
    by_sum = []
    for p, prompt in enumerate(prompts):
        means, sums = [], []
        for r in range(9 * p, 9 * p + 9):
            text = [*prompt, *every.tokens[r, : every.lengths[r]]]
            x = [table[i - 1, text[i - 1]] for i in range(len(prompt), len(text))]
            logs = [v[t] - np.log(np.exp(v).sum()) for v, t in zip(x, text[len(prompt) :])]
            means.append(np.mean(logs))
            sums.append(np.sum(logs))
        best = np.argsort(means)[::-1][:2]
        by_sum += (np.argsort(sums)[::-1][:2].tolist() != best.tolist(),)
        for i, row in enumerate(best):
            same_rows(out, 2 * p + i, every, 9 * p + row)
    assert len(set(every.lengths.tolist())) > 2 and any(by_sum)
    kept = token_sampling.generate(model, params, prompts, dataclasses.replace(s, n=9))
    np.testing.assert_array_equal(kept.tokens, every.tokens)  # all of them, in their order


@pytest.mark.slow
def test_an_encoder_decoder_has_n_targets():
    cfg = t5.Config(
        vocab=270, embed=16, encoder=1, layers=1, heads=2, head=8, ffn=24, buckets=8, farthest=8
    )
    model = models.build(cfg)
    params = programs.drawn(model.spec, 0)
    s = Sampling(max_new=4, n=2, seed=3, presence_penalty=1.0, temperature=2.0)
    sources = [[5, 6, 7], [9]]
    out = encoder_decoder.generate(model, params, sources, s)
    rows, origin = candidates(each(s, 2))
    alone = encoder_decoder.generate(model, params, [sources[i] for i in origin], rows)
    assert len(np.unique(out.tokens, axis=0)) == 4
    for r in range(4):
        same_rows(out, r, alone, r)
    shown = reply.replies(model, params, bytelevel.Bytes(), "ab", s, None)
    assert len({*map("".join, shown)}) == 2


# --- Rules in whole requests -----------------------------------------------------------------


def test_a_ruled_row_alone_is_the_row_in_the_batch(tiny):
    """Other neighbours, slots, widths and paddings: the same tokens."""
    model, params = tiny("llama")
    out = token_sampling.generate(model, params, PROMPTS, RULED)
    assert len({*out.tokens[1].tolist()}) > 2
    order = [1, 0, 3, 1, 3]  # without the longest, so that the width is another
    moved = token_sampling.generate(
        model, params, [PROMPTS[i] for i in order], [RULED[i] for i in order]
    )
    for r, i in enumerate(order):
        same_rows(moved, r, out, i)


@pytest.mark.parametrize("strings", [(), ("no such",)])
def test_greedy_tokens_are_those_of_the_definitions(bigram, strings):
    """Rows of a batch with different settings; with a stop string the host looks on the way."""
    model, params = bigram
    base = {"temperature": 0.0, "max_new": 10, "stop_strings": strings}
    settings = [
        Sampling(**base),
        Sampling(**base, no_repeat_ngram_size=2, frequency_penalty=0.3),
        Sampling(**base, banned=((1, 0), (2, 3), (4,)), presence_penalty=0.7),
        Sampling(**base, stop_tokens=(0, 1, 2), min_new=7, logit_bias=((3, 1.0),)),
        Sampling(**base, forced_begin=(2, 2, 4), forced_end=(5,), repetition_penalty=1.5),
    ]
    prompts = [[1], [0, 1, 2, 3], [2], [4, 4], [1, 1, 1]]
    out = token_sampling.generate(model, params, prompts, settings, bytelevel.Bytes())
    table = np.asarray(params["table"])
    for r, (prompt, s) in enumerate(zip(prompts, settings)):
        new = []
        while len(new) < s.max_new and not (new and new[-1] in s.stop_tokens):
            text = [*prompt, *new]
            x = table[(len(text) - 1) % 8, text[-1]]
            new.append(int(test_penalties.ruled(x, prompt, new, s).argmax()))
        assert out.tokens[r, : out.lengths[r]].tolist() == new
        assert s.forced_begin == tuple(new[: len(s.forced_begin)]) and len(new) >= s.min_new
        assert not s.forced_end or new[-1] in s.forced_end


def test_a_banned_sequence_may_begin_in_the_prompt(bigram):
    """The likeliest token after the prompt, banned as the end of a sequence: transformers looks at
    prompt and continuation as one text, and so does this."""
    model, params = bigram
    free = Sampling(max_new=1, temperature=0.0)
    first = int(token_sampling.generate(model, params, [[0, 3, 2]], free).tokens[0, 0])
    ends = [(2, first), (3, 2, first), (0, 3, 2, first)]
    others = [(1, first), (2, 2, first), (1, 0, 3, 2, first)]
    settings = [dataclasses.replace(free, banned=(row,)) for row in ends + others]
    tokens = token_sampling.generate(model, params, [[0, 3, 2]] * 6, settings).tokens[:, 0]
    assert (tokens == first).tolist() == [False] * 3 + [True] * 3


def test_the_programs_of_plain_settings_have_no_rules():
    """One row with a rule gives all rows the arrays of rules, whose widths are few."""
    plain = rows_of([Sampling(seed=4), Sampling(stop_tokens=(1, 2), top_p=0.5)], 2)
    assert plain.controls.rules is plain.controls.typical is plain.origin is None
    assert token_sampling.rows_from([Sampling()] * 2)[0].origin is None
    some = [Sampling(), Sampling(banned=((1,), (2, 3), (4,), (5, 6, 7, 8, 9)))]
    rules = rows_of(some, 2).controls.rules
    assert rules.banned.shape == (2, 4, 6) and rules.begin.shape == rules.end.shape == (2, 0)
    assert rules.banned[1, 1].tolist() == [-1] * 4 + [2, 3] and (rules.banned[0] == -1).all()


def test_rows_cut_by_a_stop_string_are_empty_beyond_it(bigram):
    """The host looks every few tokens. What a row generated after its stop string was cut off where
    it was found, and came back at the next look; rules that left it nothing there were an error."""
    model, params = bigram
    bytes_ = bytelevel.Bytes()
    base = Sampling(max_new=40, temperature=0.0, logit_bias=((2, 60.0),), forced_begin=(3, 1))
    ends = dataclasses.replace(base, stop_strings=("\x01",), no_repeat_ngram_size=1, logit_bias=())
    out = token_sampling.generate(model, params, [[1], [1]], [base, ends], bytes_)
    assert out.lengths.tolist() == [40, 2] and out.finish[1] == sampling_loop.STOP_STRING
    assert out.tokens[1].tolist() == [3, 1] + [0] * 38
    assert (out.log_probs[1, 2:] == 0).all() and (out.support_log_probs[1] == 0).all()


# --- Errors ----------------------------------------------------------------------------------

BAD_SETTINGS = [
    ({"typical_p": 0.0}, r"sampling.typical_p: 0.0 given; it must be in \(0, 1\]"),
    ({"presence_penalty": 2.5}, r"sampling.presence_penalty: 2.5 given; it must be in \[-2, 2\]"),
    ({"frequency_penalty": float("nan")}, "sampling.frequency_penalty: nan given"),
    ({"no_repeat_ngram_size": -1}, "sampling.no_repeat_ngram_size: -1 given"),
    ({"min_new": 9, "max_new": 8}, r"sampling.min_new: 9 given; it must be in \[0, 8\]"),
    ({"logit_bias": ((1, 2.0), (1, 3.0))}, "sampling.logit_bias: .* each id once"),
    ({"logit_bias": ((1, float("inf")),)}, "sampling.logit_bias: .* a finite number"),
    ({"logit_bias": {1: 2.0}}, "sampling.logit_bias: .* pairs of a token id"),
    ({"banned": (1, 2)}, r"sampling.banned: \(1, 2\) given; .* such as \(\(5,\), \(7, 8\)\)"),
    ({"banned": ((),)}, "sampling.banned: .* one or more token ids"),
    ({"banned": ((1.5,),)}, "sampling.banned"),
    ({"forced_begin": ("a",)}, r"sampling.forced_begin: \('a',\) given; it must be token ids"),
    ({"forced_begin": (1, 2, 3), "max_new": 2}, "at most sampling.max_new=2 tokens"),
    ({"forced_end": (True,)}, "sampling.forced_end"),
    ({"forced_end": 5}, "sampling.forced_end: 5 given; it must be token ids"),
    ({"n": 0}, "sampling.n: 0 given; it must be at least 1"),
    ({"n": 3, "best_of": 2}, "sampling.best_of: 2 given; it must be at least sampling.n=3"),
    ({"n": 2, "temperature": 0}, "sampling.n: 2 given; at temperature 0 all samples are the same"),
    ({"best_of": 2, "temperature": 0}, "sampling.best_of: 2 given; at temperature 0"),
]


@pytest.mark.parametrize(("fields", "message"), BAD_SETTINGS)
def test_settings_that_make_no_sense(fields, message):
    with pytest.raises(ValueError, match=message):
        Sampling(**fields)


ALL = tuple((i,) for i in range(6))
BAD_REQUESTS = [
    ({"forced_begin": (0, 6)}, "sampling.forced_begin of row 1, place 1: token 6 is outside"),
    ({"forced_end": (-1,)}, "sampling.forced_end of row 1, place 0: token -1 is outside"),
    ({"logit_bias": ((7, 1.0),)}, "sampling.logit_bias of row 1, pair 0: token 7 is outside"),
    ({"banned": ((1,), (2, 9))}, "sampling.banned of row 1, sequence 1, place 1: token 9 is"),
    ({"banned": ALL}, "prompt 1: sampling.banned, .* leave none of the 6 tokens for new token 0"),
    ({"banned": ALL[:4], "stop_tokens": (4, 5), "min_new": 1}, "prompt 1: .* for new token 0"),
    ({"banned": ALL[3:], "no_repeat_ngram_size": 1}, "prompt 1: .* for new token 0"),
    ({"banned": tuple((2, i) for i in range(6))}, "prompt 1: .* for new token 0"),
    ({"banned": tuple((2, 4, i) for i in range(6)), "forced_begin": (4,)}, "for new token 1"),
]


@pytest.mark.parametrize(("fields", "message"), BAD_REQUESTS)
def test_requests_that_cannot_be_served(fields, message, bigram):
    """Before any compute: there are no weights. The row is named; the other has no rules."""
    settings = [Sampling(max_new=4), Sampling(max_new=4, **fields)]
    with pytest.raises(ValueError, match=message):
        token_sampling.generate(bigram[0], None, [[0], [0, 1, 2]], settings)


def test_forced_places_need_no_token_to_choose(bigram):
    settings = [
        Sampling(max_new=2, banned=ALL, forced_begin=(2,), forced_end=(4,)),
        Sampling(max_new=3, banned=ALL, forced_begin=(2, 3), stop_tokens=(3,)),
    ]
    out = token_sampling.generate(*bigram, [[1], [1]], settings)
    assert out.tokens.tolist() == [[2, 4, 0], [2, 3, 0]] and out.lengths.tolist() == [2, 2]


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("strings", [(), ("no such",)])
def test_a_row_that_runs_out_of_tokens_is_named(bigram, temperature, strings):
    """Each token once: after the 2 of the prompt and 4 more there is none."""
    s = Sampling(max_new=8, temperature=temperature, no_repeat_ngram_size=1, stop_strings=strings)
    free = Sampling(max_new=8)
    with pytest.raises(ValueError, match="row 1, new token 4: .* leave no token to choose"):
        token_sampling.generate(*bigram, [[1], [0, 1]], [free, s], bytelevel.Bytes())
    s = dataclasses.replace(s, max_new=4)
    out = token_sampling.generate(*bigram, [[1], [0, 1]], [free, s], bytelevel.Bytes())
    assert sorted(out.tokens[1, :4].tolist()) == [2, 3, 4, 5]


def test_a_stream_is_one_text(bigram):
    for fields, name in [({"n": 2}, "n"), ({"best_of": 2}, "best_of")]:
        with pytest.raises(ValueError, match=f"sampling.{name}: 2 given; it must be 1: a stream"):
            completions.stream(bigram[0], None, bytelevel.Bytes(), "a", Sampling(**fields))
