"""Filling in masks: probabilities of the model at the holes, text with special tokens."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlm import models
from jaxlm.data import tokenizers
from jaxlm.data.corrupt import mask, span
from jaxlm.decode import fill_mask, reply, token_sampling
from jaxlm.models import bert, t5
from tests import programs

BYTES = tokenizers.load("bytes")
CFG = bert.Config(vocab=260, embed=16, layers=1, heads=2, ffn=24, context=48)
MARKS = {"<mask>": 259}


@pytest.fixture(scope="module")
def tiny():
    built = models.build(CFG)
    return built, programs.drawn(built.spec, 0)


def test_every_hole_has_its_likeliest_tokens(tiny):
    built, w = tiny
    found = fill_mask.fill(built, w, BYTES, "a<mask>c <mask>", 259, top=3, marks=MARKS)
    z = fill_mask.log_probs(built, w, [257, 97, 259, 99, 32, 259, 258])
    for hole, row in zip(found, z[[2, 5]], strict=True):
        assert [g.token for g in hole] == np.argsort(-row)[:3].tolist()
        np.testing.assert_allclose([g.probability for g in hole], np.exp(np.sort(-row)[:3] * -1))
    assert np.exp(z).sum(-1) == pytest.approx(np.ones(7), abs=1e-5)
    # the padding that makes the shape of a program changes nothing
    longer = fill_mask.log_probs(built, w, [257, *range(32), 258])
    assert longer.shape == (34, 260)


def test_what_cannot_be_filled_in_is_refused(tiny):
    with pytest.raises(ValueError, match="nothing to fill in: write <mask>"):
        fill_mask.fill(*tiny, BYTES, "abc", 259, marks=MARKS)
    with pytest.raises(ValueError, match="48 positions"):
        fill_mask.fill(*tiny, BYTES, "<mask>" * 60, 259, marks=MARKS)
    causal = models.build(models.gpt.Config(vocab=260, embed=16, layers=1, heads=2, context=16))
    with pytest.raises(ValueError, match="both ways"):
        fill_mask.log_probs(causal, {}, [1, 2])


def test_reply_speaks_as_the_model_was_trained(tiny):
    about, settings = mask.Mask(token=259), token_sampling.Sampling(max_new=4, temperature=0.0)
    told = "".join(*reply.replies(*tiny, BYTES, "a<mask>c", settings, about))
    assert told.startswith("a<mask>c\n  mask 1: ") and told.count("  ") >= 5
    several = token_sampling.Sampling(n=2)
    with pytest.raises(ValueError, match="sampling.n: 2 given; it must be 1: an encoder"):
        reply.replies(*tiny, BYTES, "a<mask>c", several, about)
    with pytest.raises(ValueError, match="no mask"):
        reply.replies(*tiny, BYTES, "a<mask>c", settings, None)


@pytest.mark.slow
def test_reply_of_an_encoder_decoder_is_the_target():
    settings = token_sampling.Sampling(max_new=4, temperature=0.0)
    cfg = t5.Config(
        vocab=270, embed=16, encoder=1, layers=1, heads=2, head=8, ffn=24, buckets=8, farthest=8
    )
    built = models.build(cfg)
    w = programs.drawn(built.spec, 0)
    spans = span.Span(sentinel=269)
    told = "".join(*reply.replies(built, w, BYTES, "a<extra_id_0>c", settings, spans))
    assert told.startswith("a<extra_id_0>c\n  ")


def test_special_tokens_are_spelled_and_read():
    """Without marks: the tokenizer's own, in brackets; its mask by two names."""
    special = {"eos": 1, "[SEP]": 4, "<extra_id_0>": 5, "mask": 6, "[x": 7}
    own = types.SimpleNamespace(special=special, encode=BYTES.encode)
    assert fill_mask.spelled(own) == {"[SEP]": 4, "<extra_id_0>": 5, "<mask>": 6, "[MASK]": 6}
    told = fill_mask.encode(own, "a[MASK][SEP]<mask>[x<extra_id_0>")
    assert told == [97, 6, 4, 6, 91, 120, 5]
    names = reply.marks(BYTES, span.Span(sentinel=269))
    ids = fill_mask.encode(BYTES, "a<extra_id_0>bc<extra_id_10>", names)
    assert ids == [97, 269, 98, 99, 259]
    assert reply.written(BYTES, [*ids, 258], names) == "a<extra_id_0>bc<extra_id_10>"


@pytest.mark.parity
@pytest.mark.parametrize("case", ["bert", "roberta"])
def test_logits_at_the_holes_are_those_of_fill_mask(case, tmp_path):
    """The pipeline's scores are the softmax of the logits at the mask, of [CLS] text [SEP]."""
    from jaxlm.convert import read
    from tests.convert import oracle

    theirs = oracle.save(case, tmp_path)
    cfg, w = read.load(tmp_path)
    ids = [5, 17, 40, 4, 33, 4, 60, 6]  # 4 stands for the mask
    z = oracle.logits(theirs, np.array([ids]))[0]
    want = z - np.log(np.exp(z).sum(-1, keepdims=True))
    found = fill_mask.log_probs(models.build(cfg), jax.tree.map(jnp.asarray, w), ids)
    np.testing.assert_allclose(found, want, rtol=0, atol=2e-5)
