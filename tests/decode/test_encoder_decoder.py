"""Targets of sources: the remembered keys give what the whole forward pass gives."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlm import models
from jaxlm.decode import encoder_decoder, token_sampling
from jaxlm.models import model as model_
from jaxlm.ops.attention import At
from tests import programs
from tests.families.t5 import T5

CFG = dataclasses.replace(T5, act="gelu_tanh", gated=True)
SOURCES = [[5, 9, 3, 7, 30, 2, 11], [4, 4, 8], [17]]
NEW = 6


@pytest.fixture(scope="module")
def tiny():
    built = models.build(CFG)
    return built, programs.drawn(built.spec, 1)


def test_greedy_is_the_argmax_of_the_whole_forward_pass(tiny):
    built, w = tiny
    out = encoder_decoder.generate(
        built, w, SOURCES, token_sampling.Sampling(max_new=NEW, temperature=0.0)
    )
    assert out.tokens.shape == (3, NEW)

    @jax.jit
    def step(source, source_at, tokens):
        x = built.encode(w, source, source_at)
        at = At(jnp.ones_like(tokens), jnp.arange(NEW)[None])
        h = built.hidden(w, tokens, at, source=(x, source_at)).x
        return jax.nn.log_softmax(built.unembed(built.head(w), h))

    for row, source in enumerate(SOURCES):
        wide = np.zeros((1, 8), np.int32)
        wide[0, : len(source)] = source
        at = At(jnp.asarray(wide > 0, jnp.int32), jnp.arange(8)[None])
        tokens = np.full((1, NEW), CFG.start, np.int32)
        for t in range(NEW):
            z = step(wide, at, tokens)[0, t]
            assert out.tokens[row, t] == jnp.argmax(z), (row, t)
            assert out.log_probs[row, t] == pytest.approx(float(z.max()), abs=2e-5)
            if t + 1 < NEW:
                tokens[0, t + 1] = out.tokens[row, t]


def test_rows_end_at_their_stop_token(tiny):
    built, w = tiny
    free = encoder_decoder.generate(
        built, w, SOURCES, token_sampling.Sampling(max_new=NEW, temperature=0.0)
    )
    stop = int(free.tokens[0, 2])
    settings = token_sampling.Sampling(max_new=NEW, temperature=0.0, stop_tokens=(stop,))
    out = encoder_decoder.generate(built, w, SOURCES, settings)
    first = free.tokens[0].tolist().index(stop)
    assert out.lengths[0] == first + 1 and token_sampling.FINISH[out.finish[0]] == "stop_token"
    np.testing.assert_array_equal(out.tokens[0, : first + 1], free.tokens[0, : first + 1])


@pytest.mark.parametrize(
    ("sources", "change", "told"),
    [
        ([[]], {}, "source 0: at least one token"),
        ([[5], [99]], {}, "source 1: token 99 is outside"),
        ([[5]], {"stop_strings": ("a",)}, "sampling.stop_strings"),
        ([], {}, "none given"),
    ],
)
def test_what_cannot_be_read_is_refused(tiny, sources, change, told):
    with pytest.raises(ValueError, match=told):
        encoder_decoder.generate(*tiny, sources, token_sampling.Sampling(max_new=NEW, **change))


def test_only_an_encoder_decoder_reads_sources(tiny):
    cfg = models.gpt.Config(vocab=32, embed=16, layers=1, heads=2, context=16)
    at = At(jnp.ones((1, 2), jnp.int32), jnp.zeros((1, 2), jnp.int32))
    with pytest.raises(ValueError, match="no encoder-decoder"):
        encoder_decoder.conditioned(models.build(cfg), {}, jnp.zeros((1, 2), jnp.int32), at)
    with pytest.raises(ValueError, match="source="):
        built, w = tiny
        built.hidden(w, jnp.zeros((1, 2), jnp.int32), at)
    with pytest.raises(ValueError, match="reads pairs"):
        model_.read(built, w, _rows())


def _rows():
    from jaxlm.core.batch import Batch

    ids = np.ones((1, 2), np.int32)
    return Batch(ids, ids, np.ones((1, 2), np.float32), ids, ids)


@pytest.mark.parametrize(
    ("change", "told"),
    [({"buckets": 3}, "model.buckets"), ({"start": 32}, "model.start"), ({"heads": 0}, "heads")],
)
def test_configs_that_are_none(change, told):
    with pytest.raises(ValueError, match=told):
        dataclasses.replace(T5, **change)


@pytest.mark.parity
@pytest.mark.parametrize("case", ["t5", "t5-gated"])
def test_greedy_is_transformers_generate_token_for_token(case, tmp_path):
    import torch

    from jaxlm.convert import read
    from tests.convert import oracle

    theirs = oracle.save(case, tmp_path)
    cfg, w = read.load(tmp_path)
    r = np.random.default_rng(3)
    sources = [r.integers(2, cfg.vocab, n).tolist() for n in (24, 7, 1, 15)]
    settings = token_sampling.Sampling(max_new=64, temperature=0.0, stop_tokens=(1,))
    out = encoder_decoder.generate(
        models.build(cfg), jax.tree.map(jnp.asarray, w), sources, settings
    )
    for row, source in enumerate(sources):
        want = theirs.generate(torch.tensor([source]), max_new_tokens=64, do_sample=False)
        assert out.tokens[row, : out.lengths[row]].tolist() == want[0, 1:].tolist()
    assert len(set(out.tokens.ravel().tolist())) > 3
