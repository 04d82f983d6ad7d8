"""Speculative decoding against plain decoding and against recomputation, and what is refused."""

import dataclasses
import functools
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlm import models
from jaxlm.data.tokenizers import bytelevel
from jaxlm.decode import completions, sampling_loop, token_sampling
from jaxlm.decode.speculate import draft_length, speculative_sampling
from jaxlm.decode.speculate.speculative_sampling import Speculate
from jaxlm.decode.token_sampling import Sampling
from jaxlm.models import bert, deepseek
from jaxlm.models.model import Hidden, Model
from jaxlm.ops.attention import At
from tests import programs
from tests.decode.conftest import Vocabulary

PROMPTS = [[3], [5, 9, 2, 31, 7, 7, 1], list(range(20)), [0, 30]]
GREEDY = Sampling(max_new=12, temperature=0.0)
MIXED = [
    Sampling(max_new=12, temperature=0.7, top_k=5, seed=1),
    Sampling(max_new=9, temperature=0.0, repetition_penalty=1.4),
    Sampling(max_new=12, temperature=0.4, top_p=0.8, min_p=0.05, seed=7),
    Sampling(max_new=4, temperature=1.0, seed=2**32 - 1, no_repeat_ngram_size=2),
]
HEADS = deepseek.Config(
    vocab=6, embed=16, layers=1, dense=1, heads=2, q_rank=None, rank=8, nope=4, rotary=4, value=4,
    ffn=16, experts=4, active=2, expert_ffn=8, groups=1, groups_chosen=1, context=64, ahead=1,
)  # fmt: skip


def pair(built):
    return types.SimpleNamespace(model=built[0], params=built[1])


@functools.cache
def heads():
    model = models.build(HEADS)
    return model, jax.tree.map(lambda w: 2 * w, programs.drawn(model.spec, 4))


def compare(built, prompts, s, draft, **fields):
    """The Report of a call whose result is that of plain decoding."""
    plain = token_sampling.generate(*built, prompts, s)
    reports = []
    told = Speculate(draft, report=reports.append, **fields)
    out = speculative_sampling.generate(*built, prompts, s, told)
    np.testing.assert_array_equal(out.tokens, plain.tokens)
    np.testing.assert_array_equal(out.lengths, plain.lengths)
    np.testing.assert_array_equal(out.finish, plain.finish)
    np.testing.assert_allclose(out.log_probs, plain.log_probs, atol=2e-5)
    np.testing.assert_allclose(out.support_log_probs, plain.support_log_probs, atol=5e-5)
    (report,) = reports
    assert report.tokens == out.lengths.sum() - len(out.lengths)
    return report


@pytest.mark.slow
def test_greedy_is_plain_greedy(tiny):
    """By another family's drafts, most of them wrong: rows roll back by different lengths, in a
    window of 5 too. Stop tokens end the rows at different places."""
    built = tiny("window")
    s = dataclasses.replace(GREEDY, stop_tokens=(30, 31))
    plain = token_sampling.generate(*built, PROMPTS, s)
    assert plain.lengths[0] > 5 and plain.lengths[1] > 6
    stops = (int(plain.tokens[0, 3]), int(plain.tokens[1, 5]))
    s = dataclasses.replace(GREEDY, stop_tokens=stops)
    report = compare(built, PROMPTS, s, pair(tiny("gpt")), length=2, adaptive=False)
    assert report.accepted < report.drafted / 2 and report.passes <= report.tokens


@pytest.mark.slow
def test_a_model_that_drafts_for_itself_is_always_right(tiny):
    """So its cache holds what it would have computed alone, whatever was accepted before."""
    built = tiny("llama")
    s = [Sampling(max_new=n, temperature=t, seed=n) for n, t in ((12, 1.0), (7, 0.0), (11, 2.0))]
    reports = []
    told = Speculate(pair(built), length=2, adaptive=False, report=reports.append)
    out = speculative_sampling.generate(*built, PROMPTS[:3], s, told)
    assert out.lengths.tolist() == [12, 7, 11]
    (report,) = reports
    assert report.accepted == report.drafted and report.tokens_per_pass > 2.4
    assert "100.0%" in str(report) and report.acceptance == 1


@functools.cache
def _ahead():
    """(x of the model, x of its further depth) over a padded text, without any cache."""
    model = heads()[0]
    depth = model.further

    def run(params, tokens, count):
        at = At((jnp.arange(64) < count)[None].astype(jnp.int32), jnp.arange(64)[None])
        return model.hidden(params, tokens, at).x

    def further(params, x, tokens, count):
        at = At((jnp.arange(64) < count)[None].astype(jnp.int32), jnp.arange(64)[None])
        x = depth.hidden(params, tokens, at, sampling_loop.empty(depth, 1), source=x).x
        return x, model.unembed(model.head(params), x)

    return jax.jit(run), jax.jit(further)


def recomputed(params, text, start, length):
    """(passes, drafted, accepted) of greedy multi-token drafts for a text, by recomputation."""
    run, further = _ahead()
    padded = np.zeros((1, 64), np.int32)
    padded[0, : len(text)] = text
    true = np.asarray(run(params, padded, len(text)))
    end, counts = start, np.zeros(3, int)  # the text up to `end` tokens is there
    while end < len(text):
        x, after, guess = true.copy(), np.zeros((1, 64), np.int32), []
        after[0, : end - 1] = text[1:end]
        for i in range(min(length, len(text) - end - 1)):
            own, logits = further(params, x, after, end - 1 + i)
            guess.append(int(np.argmax(logits[0, end - 2 + i])))
            x[0, end - 1 + i], after[0, end - 1 + i] = own[0, end - 2 + i], guess[-1]
        right = np.cumprod([g == t for g, t in zip(guess, text[end:])]).sum() if guess else 0
        counts += [1, len(guess), int(right)]
        end += int(right) + 1
    return counts.tolist()


def test_own_heads_draft_what_they_predict_without_a_cache():
    """Rejected drafts leave nothing in the heads' cache, and accepted ones are read anew from the
    model's own x."""
    built = heads()
    prompts, s = [[1, 4], [2, 0, 3, 3, 5]], Sampling(max_new=24, temperature=0.0)
    report = compare(built, prompts, s, "mtp", length=3, adaptive=False)
    out = token_sampling.generate(*built, prompts, s)
    each = [
        recomputed(built[1], [*p, *row.tolist()], len(p) + 1, 3)
        for p, row in zip(prompts, out.tokens)
    ]
    assert [report.passes, report.drafted, report.accepted] == np.sum(each, axis=0).tolist()
    assert report.accepted > 3


@pytest.mark.slow
def test_lookup_follows_repetitions(tiny):
    """A row does not depend on its batch, nor on what is drafted: settings of all kinds."""
    built = tiny("llama")
    prompts = [[1, 2, 3] * 5, *PROMPTS[1:]]
    report = compare(built, prompts, MIXED, "lookup", length=3)
    assert 0 < report.accepted < report.drafted
    alone = compare(built, prompts[2:3], MIXED[2:3], "lookup", length=3)
    assert alone.tokens == 11


@pytest.mark.slow
def test_a_text_ends_at_a_stop_string_and_arrives_in_pieces():
    """By a model of bytes whose logits are those of a table: a, b, c, ... go round."""
    tokenizer, size = bytelevel.Bytes(), bytelevel.Bytes().vocab
    table = np.zeros((size, size), np.float32)
    letters = [*b"abcdefgh"]
    table[letters, [*letters[1:], letters[0]]] = 5

    def hidden(params, tokens, at, cache=None, key=None):
        return Hidden(params["table"][tokens], cache)

    model = Model(Vocabulary(size), {}, hidden, lambda p: {}, lambda _, x: x, lambda b, s: (), 96)
    built = model, {"table": jnp.asarray(table)}
    reports = []
    told = Speculate("lookup", length=3, report=reports.append)
    s = Sampling(max_new=60, temperature=0.0, stop_strings=("hab", "no such"))
    prompt = "abcdefghabc"
    (one,) = completions.complete(*built, tokenizer, [prompt], [s], speculate=told)
    assert one.text == "defg" and one.finish == "stop_string" and len(one.tokens) == 7
    pieces = completions.stream(*built, tokenizer, prompt, s, every=1, speculate=told)
    assert "".join(pieces) == "defg" and len(reports) == 2
    free = dataclasses.replace(s, stop_strings=())
    (whole,) = completions.complete(*built, tokenizer, [prompt], [free], speculate=told)
    (plain,) = completions.complete(*built, tokenizer, [prompt], [free])
    assert whole.text == plain.text and len(whole.tokens) == 60
    assert reports[-1].acceptance == 1 and reports[-1].tokens == 59


@pytest.mark.slow
def test_candidates_of_a_prompt(tiny):
    """Several continuations of a prompt are those of calls with their seeds; the best are kept."""
    built = tiny("llama")
    told = Speculate("lookup", length=3)
    s = Sampling(max_new=12, temperature=0.5, n=2, seed=3)
    out = speculative_sampling.generate(*built, PROMPTS[1:3], s, told)
    four = [dataclasses.replace(s, n=1, seed=3 + i) for i in range(4)]
    each = [PROMPTS[1], PROMPTS[1], PROMPTS[2], PROMPTS[2]]
    want = speculative_sampling.generate(*built, each, four, told)
    np.testing.assert_array_equal(out.tokens, want.tokens)


def test_lengths_are_chosen_by_sizes_batch_and_platform(tiny, monkeypatch):
    llama, gpt, real, asked = tiny("llama"), tiny("gpt"), draft_length.costs, []
    monkeypatch.setattr(draft_length, "costs", lambda *a: asked.append(a) or real(*a))
    for built, source in ((llama, pair(gpt)), (llama, "lookup"), (heads(), "mtp")):
        told = Speculate(source, length=2)
        method = speculative_sampling._prepared(*built, [[1], [2, 3], [4]], 3 * [GREEDY], told)[1]
        costs = real(method.lengths, *asked[-1][1:])
        assert method.lengths[0] == 0 and method.costs == costs

    def size(params):
        return sum(x.size for x in jax.tree.leaves(params))

    own, every = heads()[1], (0, 1, 2)
    assert asked == [
        (every, 3, size(llama[1]), size(gpt[1]), "cpu"),
        (every, 3, size(llama[1]), 0, "cpu"),
        (every, 3, size(own), size(own["ahead"]), "cpu"),
    ]


def test_what_cannot_be_done_is_refused(tiny):
    llama, small = tiny("llama"), tiny("bytes")

    def refused(text, draft, built=llama, s=GREEDY, **fields):
        with pytest.raises(ValueError, match=text):
            speculative_sampling.generate(*built, PROMPTS[:1], s, Speculate(draft, **fields))

    refused("speculate.draft: 'mtp' given; this llama model has no multi-token", "mtp")
    refused("speculate.draft: a model with 262 token ids given; .* the 32 ", pair(small))
    refused("speculate.length: 0 given", "lookup", length=0)
    refused("speculate.ngram: 0 given", "lookup", ngram=0)
    refused("speculate.draft: 'model' given; it must be a trained model", "model")
    refused("speculate.draft: 3 given; it must be a trained model", 3)
    short = llama[0]._replace(context=10)
    refused("its 10 positions are fewer than the 13 ", pair((short, llama[1])))
    refused("stop_strings: a tokenizer", "lookup", s=Sampling(stop_strings=("a",)))
    reader = models.build(bert.Config(vocab=32, embed=16, layers=1, heads=2, ffn=16, context=32))
    refused("speculate: this model is an encoder", "lookup", (reader, {}))
    refused("speculate.draft: an encoder given", pair((reader, {})))
    full = models.build(dataclasses.replace(HEADS, layers=2, capacity=1.0))
    refused("speculate: model.capacity=1.0 drops tokens", "lookup", (full, {}))
    bare = llama[0]._replace(cache=lambda b, s: ({"tokens": None},))
    refused("speculate.draft: a llama model has no KV cache", pair((bare, {})))
    tokenizer = bytelevel.Bytes()
    with pytest.raises(ValueError, match="speculate: given with a constraint"):
        constraint = types.SimpleNamespace()
        completions.complete(
            *small, tokenizer, ["a"], GREEDY, constraint, speculate=Speculate("lookup")
        )
    with pytest.raises(ValueError, match="no multi-token prediction"):
        completions.stream(*small, tokenizer, "a", GREEDY, speculate=Speculate("mtp"))


FAMILIES = {  # what drafts
    "gemma": "own",
    "gemma-all": "lookup",
    "mistral": "lookup",
    "deepseek-v2": "lookup",
    "qwen": "lookup",
    "palm": "lookup",
}


def family(name):
    return programs.shape(name), programs.weights(name)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["window", "gpt"])
def test_every_draft_gives_the_plain_tokens(name, tiny):
    """Long enough for rows to be rolled back often, and for a window of 5 to be left behind."""
    s = [dataclasses.replace(x, max_new=n) for x, n in zip(MIXED, (30, 40, 40, 25), strict=True)]
    report = compare(tiny(name), PROMPTS, s, pair(tiny("gpt")), length=5, adaptive=False)
    assert 0 < report.accepted <= report.drafted
    if name != "gpt":
        compare(tiny(name), PROMPTS, s, "lookup", length=5)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "draft"), FAMILIES.items())
def test_every_family_gives_the_plain_tokens(name, draft):
    built = family(name)
    room = built[0].context or 64
    prompts = [[3, 1, 3], [5, 2], [1]]
    source = draft if draft == "lookup" else pair(built)
    s = Sampling(max_new=min(24, room - 4), temperature=0.0)
    report = compare(built, prompts, s, source, length=3, adaptive=False)
    if draft == "own":
        assert report.accepted > 0.9 * report.drafted


@pytest.mark.slow
@pytest.mark.parametrize("name", ["window", "bytes"])
def test_logits_of_several_tokens_are_those_of_one(name, tiny):
    """The largest difference of a logit between a pass over 6 tokens and 6 passes: rounding."""
    model, params = tiny(name)
    params = token_sampling.prepare(model, params)
    tokens = jnp.asarray(np.random.default_rng(0).integers(0, 32, (2, 20)))
    hidden = jax.jit(model.hidden)

    def logits(sizes):
        cache, out, first = sampling_loop.empty(model, 2), [], 0
        for size in sizes:
            places = jnp.broadcast_to(jnp.arange(first, first + size), (2, size))
            part = tokens[:, first : first + size]
            x, cache, _ = hidden(params, part, At(jnp.ones_like(part), places), cache)
            if not first:
                cache = sampling_loop.grow(model, cache, 20)
            out.append(model.unembed(model.head(params), x))
            first += size
        return np.concatenate(out, axis=1)

    gap = np.abs(logits([14, 6]) - logits([14, *[1] * 6])).max()
    assert gap < 1e-4, gap
