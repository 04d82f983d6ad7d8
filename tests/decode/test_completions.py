"""Text to text on a model that recites: what it says next depends on the position alone."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

from jaxlm import models
from jaxlm.core import param
from jaxlm.data.tokenizers import bytelevel
from jaxlm.decode import completions, token_sampling
from jaxlm.models import gpt

BYTES = bytelevel.Bytes()
SCRIPT = "h\u00e9llo w\u00f6rld \U0001f600, then the end."
GREEDY = token_sampling.Sampling(max_new=64, temperature=0.0)


@pytest.fixture(scope="module")
def reciter():
    """(model, params): position p's embedding is its own axis, which reads out as the script's
    byte p, eos behind the end. All other weights are 0, so the layers add nothing."""
    cfg = gpt.Config(vocab=BYTES.vocab, embed=96, layers=1, heads=2, context=96, tied=False)
    model = models.build(cfg)
    params = param.map(lambda p: jnp.zeros(p.shape), model.spec)
    said = [*SCRIPT.encode(), BYTES.special["eos"]]
    unembed = np.zeros((96, BYTES.vocab), np.float32)
    unembed[np.arange(len(said)), said] = 1.0
    return model, params | {
        "embed": {"table": params["embed"]["table"], "positions": jnp.eye(96)},
        "norm": {"scale": jnp.ones(96), "bias": jnp.zeros(96)},
        "unembed": jnp.asarray(unembed),
    }


def with_stops(*strings):
    return dataclasses.replace(GREEDY, stop_strings=strings, max_new=60)


def test_eos_ends_the_text_and_prompts_are_ragged(reciter):
    """An empty prompt is the bos token alone, so the script starts at its beginning."""
    prompts = ["", "h\u00e9", "12345678"]
    out = completions.complete(*reciter, BYTES, prompts, dataclasses.replace(GREEDY, max_new=60))
    said = SCRIPT.encode()
    for prompt, one in zip(prompts, out):
        assert one.text == said[len(prompt.encode()) :].decode()
        assert one.finish == "stop_token" and one.tokens[-1] == BYTES.special["eos"]
        assert len(one.log_probs) == len(one.support_log_probs) == len(one.tokens)
        assert (one.log_probs < 0).all()
    short = completions.complete(*reciter, BYTES, [""], dataclasses.replace(GREEDY, max_new=2))[0]
    assert short.finish == "length" and short.text == "h\ufffd"  # half of the second letter


@pytest.mark.parametrize("strings", [("w\u00f6r",), ("\U0001f600",), ("nd.", "the"), ("no such",)])
def test_stop_strings_end_a_row_and_the_text_before_them(strings, reciter):
    """The row keeps the tokens up to the string's last; a neighbour without stops goes on."""
    settings = [with_stops(*strings), with_stops()]
    one, other = completions.complete(*reciter, BYTES, ["", ""], settings)
    ends = [SCRIPT.index(s) + len(s) for s in strings if s in SCRIPT]
    assert other.text == SCRIPT
    if not ends:
        assert (one.text, one.finish) == (SCRIPT, "stop_token")
        return
    assert one.finish == "stop_string"
    assert one.text == SCRIPT[: min(SCRIPT.index(s) for s in strings)]
    assert bytes(one.tokens).decode() == SCRIPT[: min(ends)]
    np.testing.assert_allclose(one.log_probs, other.log_probs[: len(one.tokens)], rtol=1e-5)


def test_every_prompt_has_n_completions(reciter):
    """Prompt by prompt, each with the text, the end and the settings of its own; stop strings of
    one prompt do not end another's."""
    some = token_sampling.Sampling(max_new=9, temperature=2.0, n=2, seed=8, stop_strings=("l",))
    other = token_sampling.Sampling(max_new=4, temperature=2.0, best_of=3, seed=1)
    boost = tuple((ord(c), 30.0) for c in "helo")
    settings = [dataclasses.replace(s, logit_bias=boost) for s in (some, other)]
    out = completions.complete(*reciter, BYTES, ["", "h"], settings)
    assert len(out) == 3 and len(out[2].tokens) == 4 and out[2].finish == "length"
    alone = [dataclasses.replace(settings[0], n=1, seed=s) for s in (8, 9)]
    for row, s in zip(out, alone):
        (one,) = completions.complete(*reciter, BYTES, [""], [s])
        assert (row.text, row.tokens, row.finish) == (one.text, one.tokens, one.finish)
        assert (ord("l") in row.tokens) == (row.finish == "stop_string")
        assert "l" not in row.text
    assert out[0].tokens != out[1].tokens


@pytest.mark.parametrize("every", [1, 5])
def test_a_stream_is_the_completion_in_whole_characters(every, reciter):
    for s in (with_stops(), with_stops("then", "d.")):
        pieces = list(completions.stream(*reciter, BYTES, "", s, every))
        assert "".join(pieces) == completions.complete(*reciter, BYTES, [""], s)[0].text
        assert len(pieces) > 3 and not any("\ufffd" in piece for piece in pieces)


def test_bad_requests_fail_at_the_call(reciter):
    model, _ = reciter
    with pytest.raises(ValueError, match="every: 0 given"):
        completions.stream(model, None, BYTES, "a", GREEDY, every=0)
    with pytest.raises(ValueError, match="prompt 0: 41 tokens and sampling.max_new=64 make 105"):
        completions.stream(model, None, BYTES, "a" * 40, GREEDY)
