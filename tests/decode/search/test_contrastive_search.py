"""Contrastive search: against the paper's rule, with every text read again from its start."""

import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlm import models
from jaxlm.decode import token_sampling
from jaxlm.decode.search import contrastive_search, hypotheses
from jaxlm.decode.search.contrastive_search import Contrastive
from jaxlm.ops.attention import At
from tests import programs
from tests.decode.search import recomputed
from tests.families.deepseek import DEEPSEEK
from tests.families.t5 import T5

PROMPTS = [[3], [5, 9, 2, 31, 7, 7, 1], list(range(20))]
SETTINGS = Contrastive(max_new=8, penalty_alpha=0.6, top_k=4)


def expected(model, params, prompt, s):
    """(tokens, log-probabilities, similarities) by equation 5, in float64."""
    text, logs, similar = [], [], []
    while len(text) < s.max_new and not (text and text[-1] in s.stop_tokens):
        (p,), (before,) = recomputed.forward(model, params, prompt, [text])
        tried = np.argsort(-p, kind="stable")[: s.top_k]
        _, states = recomputed.forward(model, params, prompt, [[*text, v] for v in tried])
        before /= np.linalg.norm(before, axis=-1, keepdims=True)
        cosines = [(before @ h[-1] / np.linalg.norm(h[-1])).max() for h in states]
        alpha = s.penalty_alpha
        best = np.argmax((1 - alpha) * np.exp(p[tried]) - alpha * np.array(cosines))
        text.append(int(tried[best]))
        logs.append(p[text[-1]])
        similar.append(cosines[best])
    return text, logs, similar


def agree(model, params, prompts, settings):
    found = hypotheses.find(model, params, prompts, settings)
    for prompt, (one,) in zip(prompts, found, strict=True):
        text, logs, similar = expected(model, params, prompt, settings)
        assert one.tokens == text
        np.testing.assert_allclose(one.log_probs, logs, atol=2e-5)
        np.testing.assert_allclose(one.similarity, similar, atol=2e-5)
        assert one.score == pytest.approx(sum(logs), abs=1e-4)
        stopped = text[-1] in settings.stop_tokens
        assert one.finish == ("stop_token" if stopped else "length")
    return [one.tokens for (one,) in found]


@pytest.mark.parametrize("alpha", [0.3, 0.6, 1.0])
def test_tokens_and_similarities_are_the_papers(alpha, tiny):
    """With a window, whose keys of rejected candidates would count if they were left."""
    agree(*tiny("window"), PROMPTS, dataclasses.replace(SETTINGS, penalty_alpha=alpha))


def test_stop_tokens_end_their_row_alone(tiny):
    free = agree(*tiny("window"), PROMPTS, SETTINGS)
    stops = (free[0][4], free[1][2], 1)
    settings = dataclasses.replace(SETTINGS, stop_tokens=stops)
    ended = agree(*tiny("window"), PROMPTS, settings)
    assert len({len(text) for text in ended}) > 1
    assert all(a[: len(b)] == b for a, b in zip(free, ended))


@pytest.mark.slow
def test_an_encoder_decoder_compares_states_of_its_decoder():
    model = models.build(dataclasses.replace(T5, act="gelu_tanh", gated=True))
    sources = [[5, 9, 3, 7, 30, 2, 11], [4, 4, 8], [17]]
    agree(model, programs.drawn(model.spec, 1), sources, SETTINGS)


def test_without_a_penalty_it_is_greedy(tiny):
    model, params = tiny("window")
    greedy = token_sampling.Sampling(max_new=8, temperature=0.0)
    want = token_sampling.generate(model, params, PROMPTS, greedy)
    plain = dataclasses.replace(SETTINGS, penalty_alpha=0.0)
    found = hypotheses.find(model, params, PROMPTS, plain)
    assert [row[0].tokens for row in found] == want.tokens.tolist()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["llama", "gpt", "deepseek"])
def test_other_families_and_a_row_alone(name, tiny):
    if name == "deepseek":
        model = models.build(dataclasses.replace(DEEPSEEK, context=64))
        params = programs.drawn(model.spec, 1)
    else:
        model, params = tiny(name)
    prompts = [[t % model.cfg.vocab for t in prompt] for prompt in PROMPTS]
    found = agree(model, params, prompts, SETTINGS)
    alone = [hypotheses.find(model, params, [p], SETTINGS)[0][0].tokens for p in prompts]
    assert alone == found


def test_one_slot_a_step_is_copied(tiny):
    """In the compiled loop nothing gathers or copies an array of the cache's size."""
    model, params = tiny("llama")
    tokens = jnp.ones((2, 16), jnp.int32)
    rule = contrastive_search.Rule(jnp.array([0]), jnp.int32(8), jnp.float32(0.6))
    at, static = At(tokens, jnp.arange(16)[None] + 0 * tokens), model._replace(spec=None)
    run = jax.jit(
        lambda params, tokens, at, rule: contrastive_search.search(
            static, params, tokens, at, jnp.ones(2, bool), rule, 4, 8
        )
    )
    text = run.lower(params, tokens, at, rule).compile().as_text()
    keys = f"f32[2,2,{16 + 7 + 4},8]"  # [B,K,S,H]
    made = re.findall(re.escape(f"= {keys}") + r"\S* ([\w-]+)\(", text)
    assert "dynamic-update-slice" in made
    assert not {*made} & {"copy", "gather", "select", "concatenate", "transpose"}


BAD = [
    ({"penalty_alpha": -0.1}, r"contrastive.penalty_alpha: -0.1 given; it must be in \[0, 1\]"),
    ({"penalty_alpha": 1.1}, "contrastive.penalty_alpha: 1.1 given"),
    ({"top_k": 0}, "contrastive.top_k: 0 given; it must be at least 1"),
    ({"max_new": 0}, "contrastive.max_new: 0 given"),
]


@pytest.mark.parametrize(("fields", "message"), BAD)
def test_settings_that_make_no_sense(fields, message):
    with pytest.raises(ValueError, match=message):
        Contrastive(**fields)
