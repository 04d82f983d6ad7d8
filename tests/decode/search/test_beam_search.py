"""Beam search: against enumeration where nothing is lost, and against lists in float64."""

import dataclasses
import itertools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlm import models
from jaxlm.decode import sampling_loop, token_sampling
from jaxlm.decode.search import beam_search, hypotheses
from jaxlm.decode.search.beam_search import Beams
from jaxlm.models import llama
from jaxlm.ops.attention import At
from tests import programs
from tests.decode.search import recomputed
from tests.families.t5 import T5

PROMPTS = [[3], [5, 9, 2, 31, 7, 7, 1], list(range(20))]
# tokens that are also places of beams and of texts in a batch
STOP = (0, 1, 2)
OFTEN = (1, 8, 13, 15, 16, 24, 28, 31)
PLAIN = Beams(max_new=8, num_beams=4, num_return_sequences=4, stop_tokens=STOP)
GROUPS = dataclasses.replace(PLAIN, num_beam_groups=2, diversity_penalty=0.1)


# --- Nothing is lost: all texts are enumerated -----------------------------------------------


def enumerated(model, params, prompt, stop, length):
    """{text: log-probability} of every text: those that end in a stop token, and those of full
    length."""
    totals, front = {}, [((), 0.0)]
    for t in range(1, length + 1):
        z, _ = recomputed.forward(model, params, prompt, [text for text, _ in front])
        grown = [
            ((*text, v), total + row[v])
            for (text, total), row in zip(front, z)
            for v in range(model.cfg.vocab)
        ]
        totals |= {text: total for text, total in grown if text[-1] in stop or t == length}
        front = [(text, total) for text, total in grown if text[-1] not in stop]
    return totals


def exhaustive(vocab, length, penalties):
    """All texts come back, in the order of their scores, whatever the penalty and the rule to
    stop."""
    cfg = llama.Config(vocab=vocab, embed=8, layers=2, heads=2, kv=1, head=4, ffn=8, context=32)
    model = models.build(cfg)
    params = programs.drawn(model.spec, 2)
    beams, prompt, stop = vocab**length, [1, 3, 2], (vocab - 1,)
    tokens = jnp.asarray([prompt])
    at = At(jnp.ones_like(tokens), jnp.arange(3)[None])
    run = jax.jit(beam_search.search, static_argnums=(0, 6, 7))
    totals = enumerated(model, params, prompt, stop, length)
    for penalty, early in penalties:
        rule = beam_search.Rule(
            jnp.asarray(stop), jnp.int32(length), jnp.float32(penalty), jnp.float32(0)
        )
        shape = beam_search.Shape(1, beams, beams, early)
        out = run(
            model._replace(spec=None),
            params,
            tokens,
            at,
            jnp.ones(1, bool),
            rule,
            shape,
            length + 2,
        )
        assert out.steps == length
        n = int((out.scores[0] > -np.inf).sum())
        want = {text: total / len(text) ** penalty for text, total in totals.items()}
        got = [tuple(np.asarray(out.tokens[0, m, : out.lengths[0, m]]).tolist()) for m in range(n)]
        assert len(got) == len(want) and {*got} == {*want}
        scores = np.asarray(out.scores[0, :n])
        np.testing.assert_allclose(scores, [want[text] for text in got], rtol=1e-5)
        assert (np.diff(scores) <= 0).all() and (np.asarray(out.lengths[0, n:]) == 0).all()
        ends = [text[-1] in stop for text in got]
        codes = [sampling_loop.STOP_TOKEN if e else sampling_loop.LENGTH for e in ends]
        assert np.asarray(out.finish[0, :n]).tolist() == codes


def test_enough_beams_are_an_exhaustive_search():
    exhaustive(4, 3, [(0.0, False), (-1.0, False), (1.0, False), (0.6, False)])


@pytest.mark.slow
def test_many_beams_are_an_exhaustive_search():
    exhaustive(6, 4, [(p, e) for e in (False, True, "never") for p in (-1.0, 0.0, 0.7, 2.0)])


# --- Few beams: lists in float64, every text read again from its start ------------------------


@dataclasses.dataclass
class Group:
    live: list
    pool: list
    done: bool = False


def expected(model, params, prompt, s):
    """[(score, text, log-probabilities)], best first, as the paper and `Beams` describe it."""
    width = s.num_beams // s.num_beam_groups
    groups = [Group([(0.0, (), ())], []) for _ in range(s.num_beam_groups)]
    for t in range(1, s.max_new + 1):
        taken = []
        for group in groups:
            if group.done:
                continue
            z, _ = recomputed.forward(model, params, prompt, [text for _, text, _ in group.live])
            grown = [
                (total + p - s.diversity_penalty * taken.count(v), (*text, v), (*old, p))
                for (total, text, old), row in zip(group.live, z)
                for v, p in enumerate(row)
            ]
            grown.sort(key=lambda one: -one[0])
            ends = [one[1][-1] in s.stop_tokens or t == s.max_new for one in grown]
            group.pool += [
                (total / t**s.length_penalty, text, logs)
                for (total, text, logs), end in zip(grown[:width], ends)
                if end
            ]
            group.pool = sorted(group.pool, key=lambda one: -one[0])[:width]
            group.live = [one for one, end in zip(grown, ends) if not end][:width]
            taken += [text[-1] for _, text, _ in group.live]
            if len(group.pool) == width and group.live:
                longest = s.early_stopping == "never" and s.length_penalty > 0
                hope = group.live[0][0] / (s.max_new if longest else t) ** s.length_penalty
                group.done = s.early_stopping is True or hope <= group.pool[-1][0]
            group.done |= not group.live
    found = [one for group in groups for one in group.pool]
    return sorted(found, key=lambda one: -one[0])[: s.num_return_sequences]


def agree(model, params, prompts, settings):
    """The texts of a batch are those of the reference, which reads each prompt alone."""
    found = hypotheses.find(model, params, prompts, settings)
    for prompt, row in zip(prompts, found, strict=True):
        want = expected(model, params, prompt, settings)
        assert [one.tokens for one in row] == [list(text) for _, text, _ in want]
        np.testing.assert_allclose([one.score for one in row], [s for s, _, _ in want], rtol=2e-5)
        for one, (_, text, logs) in zip(row, want):
            np.testing.assert_allclose(one.log_probs, logs, atol=2e-5)
            stopped = text[-1] in settings.stop_tokens
            assert one.finish == ("stop_token" if stopped else "length")
    return found


@pytest.mark.slow
@pytest.mark.parametrize("penalty", [-1.0, 0.0, 1.0])
def test_beams_of_ragged_prompts(penalty, tiny):
    """Prompts are not counted in a length, nor is padding: the score of every text is the sum of
    its log-probabilities over its own length. (TensorRT-LLM 15621: a place in the batch compared
    with a token id; transformers 25455: padding counted.)"""
    found = agree(*tiny("window"), PROMPTS, dataclasses.replace(PLAIN, length_penalty=penalty))
    for one in itertools.chain(*found):
        n, total = len(one.tokens), one.log_probs.sum()
        assert one.score == pytest.approx(total / n**penalty, rel=1e-5)
    assert len({len(one.tokens) for one in itertools.chain(*found)}) > 2


@pytest.mark.parametrize("penalty", [-0.5, 1.0])
def test_when_a_prompt_is_done(penalty, tiny):
    """Each rule to stop is the reference's; with a positive penalty the three find different
    texts, some of prompts that are done long before others."""
    texts = []
    for early in (True, False, "never"):
        settings = dataclasses.replace(PLAIN, early_stopping=early, length_penalty=penalty)
        settings = dataclasses.replace(settings, stop_tokens=OFTEN)
        found = agree(*tiny("window"), PROMPTS, settings)
        texts.append([[one.tokens for one in row] for row in found])
    assert penalty < 0 or texts[0] != texts[1] != texts[2] != texts[0]


def test_groups_pay_for_the_tokens_of_those_before_them(tiny):
    model, params = tiny("window")
    found = agree(model, params, PROMPTS, GROUPS)
    more = agree(model, params, PROMPTS, dataclasses.replace(GROUPS, diversity_penalty=5.0))
    first = [{one.tokens[0] for one in row} for row in more]
    assert all(len(tokens) > 1 for tokens in first)
    texts = [[[one.tokens for one in row] for row in rows] for rows in (found, more)]
    assert texts[0] != texts[1]


@pytest.mark.slow
def test_an_encoder_decoder_reads_its_source():
    model = models.build(dataclasses.replace(T5, act="gelu_tanh", gated=True))
    sources = [[5, 9, 3, 7, 30, 2, 11], [4, 4, 8], [17]]
    agree(model, programs.drawn(model.spec, 1), sources, PLAIN)


# --- A row by itself --------------------------------------------------------------------------


def test_a_row_does_not_depend_on_its_neighbours(tiny):
    """Other places, other neighbours, some of which are done long before it is."""
    model, params = tiny("window")
    settings = dataclasses.replace(PLAIN, early_stopping=True, stop_tokens=OFTEN)
    one = hypotheses.find(model, params, PROMPTS, settings)
    other = hypotheses.find(model, params, [PROMPTS[2], [8, 8], PROMPTS[0]], settings)
    for a, b in ((one[0], other[2]), (one[2], other[0])):
        assert [x.tokens for x in a] == [x.tokens for x in b]
        np.testing.assert_allclose([x.score for x in a], [x.score for x in b], rtol=1e-5)


@pytest.mark.slow
def test_a_row_alone_is_the_row_in_the_batch(tiny):
    """Other shapes too."""
    for name in ("llama", "window", "gpt"):
        model, params = tiny(name)
        found = hypotheses.find(model, params, PROMPTS, PLAIN)
        for prompt, row in zip(PROMPTS, found):
            (alone,) = hypotheses.find(model, params, [prompt], PLAIN)
            assert [x.tokens for x in row] == [x.tokens for x in alone]
            for a, b in zip(row, alone):
                np.testing.assert_allclose(a.log_probs, b.log_probs, atol=2e-5)


def test_a_text_of_one_token_needs_no_pass_but_prefill(tiny):
    """And ends with the room for it."""
    model, params = tiny("window")
    tokens = jnp.asarray([[5, 9, 2]])
    at = At(jnp.ones_like(tokens), jnp.arange(3)[None])
    rule = beam_search.Rule(jnp.array([-1]), jnp.int32(1), jnp.float32(1), jnp.float32(0))
    run = jax.jit(beam_search.search, static_argnums=(0, 6, 7))
    given = model._replace(spec=None), params, tokens, at, jnp.ones(1, bool), rule
    out = run(*given, beam_search.Shape(1, 3, 3, False), 1)
    z, _ = recomputed.forward(model, params, [5, 9, 2], [[]])
    assert out.tokens[0, :, 0].tolist() == np.argsort(-z[0])[:3].tolist() and out.steps == 1


def test_one_beam_is_greedy(tiny):
    model, params = tiny("gpt")
    greedy = token_sampling.Sampling(max_new=8, temperature=0.0)
    want = token_sampling.generate(model, params, PROMPTS, greedy)
    found = hypotheses.find(model, params, PROMPTS, Beams(max_new=8, num_beams=1))
    assert [row[0].tokens for row in found] == want.tokens.tolist()
    np.testing.assert_allclose([row[0].log_probs for row in found], want.log_probs, atol=2e-5)


# --- What is copied, and what is refused ------------------------------------------------------


def test_no_key_is_copied_from_beam_to_beam(tiny):
    """In the compiled loop nothing gathers or copies an array of the cache's size."""
    model, params = tiny("llama")
    tokens = jnp.ones((2, 16), jnp.int32)
    rule = beam_search.Rule(jnp.array([0]), jnp.int32(8), jnp.float32(1), jnp.float32(0))
    shape, room = beam_search.Shape(1, 4, 4, False), 8
    at, static = At(tokens, jnp.arange(16)[None] + 0 * tokens), model._replace(spec=None)
    run = jax.jit(
        lambda params, tokens, at, rule: beam_search.search(
            static, params, tokens, at, jnp.ones(2, bool), rule, shape, room
        )
    )
    text = run.lower(params, tokens, at, rule).compile().as_text()
    keys = f"f32[2,2,{16 + 4 * 7},8]"  # [B,K,S,H]
    assert keys in text
    made = re.findall(re.escape(f"= {keys}") + r"\S* ([\w-]+)\(", text)
    assert "dynamic-update-slice" in made
    assert not {*made} & {"copy", "gather", "select", "concatenate", "transpose"}


BAD = [
    ({"num_beams": 0}, "beams.num_beams: 0 given; it must be at least 1"),
    ({"max_new": 0}, "beams.max_new: 0 given"),
    ({"num_return_sequences": 5}, "beams.num_return_sequences: 5 given; .* beams.num_beams=4"),
    ({"length_penalty": float("nan")}, "beams.length_penalty: nan given"),
    ({"length_penalty": float("-inf")}, "beams.length_penalty: -inf given"),
    ({"early_stopping": "ever"}, "beams.early_stopping: 'ever' given; .* True, False or 'never'"),
    ({"early_stopping": 1}, "beams.early_stopping: 1 given"),
    ({"num_beam_groups": 3}, "beams.num_beam_groups: 3 given; it must be a divisor of 4"),
    ({"num_beam_groups": 2}, "beams.diversity_penalty: 0.0 given; it must be above 0"),
    ({"diversity_penalty": 1.0}, "beams.diversity_penalty: 1.0 given; it must be 0 with one group"),
]


@pytest.mark.parametrize(("fields", "message"), BAD)
def test_settings_that_make_no_sense(fields, message):
    with pytest.raises(ValueError, match=message):
        Beams(**fields)
