"""Texts with scores on a model that recites: what it says next depends on the position alone."""

import dataclasses

import numpy as np
import pytest

from jaxlm import models
from jaxlm.data.corrupt import span
from jaxlm.data.tokenizers import bytelevel
from jaxlm.decode import reply
from jaxlm.decode.search import hypotheses
from jaxlm.decode.search.beam_search import Beams
from jaxlm.decode.search.contrastive_search import Contrastive
from jaxlm.models import bert, mistral
from tests import programs
from tests.decode import test_completions
from tests.families.t5 import T5

BYTES = bytelevel.Bytes()
SCRIPT = test_completions.SCRIPT
reciter = test_completions.reciter


def test_texts_end_before_the_token_that_ends_them(reciter):
    """Letters of several bytes too, and the tokenizer's eos without being asked for."""
    prompts = ["", "h\u00e9", [BYTES.special["eos"], *b"h"]]
    settings = Beams(max_new=60, num_beams=2, num_return_sequences=2)
    found = hypotheses.complete(*reciter, BYTES, prompts, settings)
    said = SCRIPT.encode()
    for prompt, row in zip(("", "h\u00e9", "h"), found, strict=True):
        best = row[0]
        assert best.text == said[len(prompt.encode()) :].decode()
        assert best.finish == "stop_token" and best.tokens[-1] == BYTES.special["eos"]
        assert len(row) == 2 and best.score >= row[1].score and best.similarity is None
        assert best.score == pytest.approx(best.log_probs.sum() / len(best.tokens), rel=1e-5)
    (one,) = hypotheses.complete(*reciter, BYTES, [""], Contrastive(max_new=2, top_k=1))[0]
    assert one.finish == "length" and one.text == "h\ufffd"  # half of the second letter
    assert len(one.similarity) == len(one.log_probs) == 2


BAD = [
    ([], Beams(4), "prompts: none given"),
    ([[1], []], Beams(4), "prompt 1: empty"),
    ([[1], [2, 32]], Beams(4), "prompt 1, position 1: token 32 is outside the vocabulary 0..31"),
    ([[1] * 60], Beams(5), "prompt 0: 60 tokens and beams.max_new=5 make 65; .* at most 4 here"),
    ([[1] * 60], Contrastive(5), "60 tokens and contrastive.max_new=5 make 65"),
    ([[1]], Beams(4, stop_tokens=(1, 99)), "beams.stop_tokens of row 0, place 1: token 99"),
    ([[1]], Contrastive(4, top_k=33), "contrastive.top_k: 33 given; the vocabulary has 32 tokens"),
]


@pytest.mark.parametrize(("prompts", "settings", "message"), BAD)
def test_requests_that_cannot_be_served(prompts, settings, message, tiny):
    model, _ = tiny("gpt")
    with pytest.raises(ValueError, match=message):  # before any compute: there are no weights
        hypotheses.find(model, None, prompts, settings)


def test_models_that_are_not_searched():
    mixture = models.build(
        mistral.Config(
            vocab=32, embed=8, layers=1, heads=2, kv=1, head=4, ffn=8, experts=2, capacity=1.0
        )
    )
    with pytest.raises(ValueError, match="beams: model.capacity=1.0 drops tokens"):
        hypotheses.find(mixture, None, [[1]], Beams(4))
    encoder = models.build(bert.Config(vocab=32, embed=8, layers=1, heads=2, ffn=8, context=16))
    with pytest.raises(ValueError, match="continue"):
        hypotheses.find(encoder, None, [[1]], Beams(4))


def test_a_model_that_has_diverged_is_an_error(tiny):
    model, params = tiny("window")
    broken = params | {"norm": np.nan * np.asarray(params["norm"])}
    with pytest.raises(FloatingPointError, match="row 0: the model's logits are not finite"):
        hypotheses.find(model, broken, [[3], [5]], dataclasses.replace(Beams(8), num_beams=2))


def test_a_source_is_checked_as_such():
    model = models.build(T5)
    with pytest.raises(ValueError, match="source 1: at least one token"):
        hypotheses.find(model, None, [[5], []], Beams(4))
    with pytest.raises(ValueError, match="contrastive.stop_tokens of row 0, place 0: token 99"):
        hypotheses.find(model, None, [[5]], Contrastive(4, stop_tokens=(99,)))


def test_replies_of_a_conversation_are_one_text(reciter):
    """A conversation goes on from the best text; there is no second."""
    prompt = [BYTES.special["eos"], *b"h"]
    settings = Beams(max_new=60, num_beams=2)
    (want,) = hypotheses.complete(*reciter, BYTES, [prompt], settings)
    (pieces,) = reply.continued(*reciter, BYTES, prompt, settings)
    assert [*pieces] == [want[0].text]
    several = dataclasses.replace(settings, num_return_sequences=2)
    with pytest.raises(ValueError, match="num_return_sequences: 2 given; a conversation has 1"):
        reply.continued(*reciter, BYTES, prompt, several)


def test_an_encoder_decoder_replies_with_its_targets():
    """The targets of a source with its sentinel, ended by the tokenizer's eos, with their scores
    where there are several."""
    small = {"vocab": 270, "encoder": 1, "layers": 1, "heads": 2}
    model = models.build(dataclasses.replace(T5, **small))
    params, spans = programs.drawn(model.spec, 0), span.Span(sentinel=269)
    settings = Beams(max_new=4, num_beams=3, num_return_sequences=3)
    source = [97, 269, 99, BYTES.special["eos"]]
    (found,) = hypotheses.complete(model, params, BYTES, [source], settings)
    names = reply.marks(BYTES, spans)
    lines = [f"  {one.score:.4f}  {reply.written(BYTES, one.tokens, names)}" for one in found]
    (pieces,) = reply.replies(model, params, BYTES, "a<extra_id_0>c", settings, spans)
    told = "".join(pieces)
    assert told == "\n".join(["a<extra_id_0>c", *lines]) and len(lines) == 3
    best = hypotheses.complete(model, params, BYTES, ["ac"], settings)[0][0]
    alone = hypotheses.find(
        model,
        params,
        [[97, 99, source[-1]]],
        dataclasses.replace(settings, stop_tokens=(source[-1],)),
    )
    assert best.tokens == alone[0][0].tokens
    with pytest.raises(ValueError, match="an encoder fills in masks"):
        encoder = models.build(bert.Config(vocab=260, embed=8, layers=1, heads=2, context=16))
        reply.replies(encoder, None, BYTES, "a<mask>c", settings, None)
