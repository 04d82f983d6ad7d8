"""Checkpoints that transformers saved, with what it computed from them: read, and equal.

They lie beside the project (`../shared/fixtures/families`); where they do not, this is skipped.
"""

import dataclasses
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlm import models
from jaxlm.convert import read
from jaxlm.core.batch import Batch
from jaxlm.decode import token_sampling
from jaxlm.models import model
from jaxlm.objectives import clm
from jaxlm.ops.attention import At
from jaxlm.parallel.plan import Plan
from tests.convert import cases

FOLDER = pathlib.Path(__file__).parents[3] / "shared" / "fixtures" / "families"
NAMES = sorted(p.name for p in FOLDER.glob("*") if (p / "oracle.npz").is_file())

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not NAMES, reason="no ../shared/fixtures/families beside the project"),
]


# Decoded with a cache, too; of the others one pass over what transformers decoded says the same, by
# law 4 (tests/test_laws.py), and tests/convert/test_parity.py decodes a case of every architecture.
DECODED = ("llama_yarn",)


@pytest.mark.parametrize("name", NAMES)
def test_logits_loss_and_greedy_tokens(name):
    """In one pass over the ids and what transformers decoded from them."""
    cfg, params = read.load(FOLDER / name)
    with np.load(FOLDER / name / "oracle.npz") as file:
        oracle = dict(file)
    ids = oracle["ids"]
    width = ids.shape[1]
    if cases.by_length(cfg):
        cfg = dataclasses.replace(cfg, context=width)
    built = models.build(cfg, Plan())
    params = jax.tree.map(jnp.asarray, params)
    if built.kind != "decoder":
        logits = jax.jit(lambda params: _logits(built, params, oracle))(params)
        np.testing.assert_allclose(logits, oracle["logits"], rtol=0, atol=2e-5)
        return
    # what transformers decodes with angles that change on the way is not reproduced
    greedy = "greedy" in oracle and not cases.by_length(cfg)
    whole = oracle["greedy"] if greedy else ids
    logits, loss = jax.jit(lambda params: _learnt(built, params, whole, width))(params)
    logits = np.asarray(logits)
    np.testing.assert_allclose(logits[:, :width], oracle["logits"], rtol=0, atol=2e-5)
    if "loss_masked" in oracle:
        np.testing.assert_allclose(loss, oracle["loss_masked"], rtol=0, atol=1e-5)
    if greedy:
        assert whole.shape[1] > width
        np.testing.assert_array_equal(logits[:, width - 1 : -1].argmax(-1), whole[:, width:])
    if name in DECODED:
        sampling = token_sampling.Sampling(max_new=whole.shape[1] - width, temperature=0.0)
        tokens = token_sampling.generate(built, params, ids.tolist(), sampling).tokens
        np.testing.assert_array_equal(tokens, whole[:, width:])


def _logits(built, params, oracle):
    """[B, T, V] of an encoder, or of an encoder-decoder's decoder."""
    ids = oracle["ids"]
    ones, positions = np.ones_like(ids), np.tile(np.arange(ids.shape[1]), (len(ids), 1))
    at = At(ones, positions)
    if "global" in oracle:
        at = at._replace(shared=jnp.asarray(oracle["global"], bool))
    if built.kind != "encoder_decoder":
        return model.logits(built, params, ids, at)
    dec = oracle["dec"]
    ones, positions = np.ones_like(dec), np.tile(np.arange(dec.shape[1]), (len(dec), 1))
    source = (built.encode(params, ids, at), at)
    x = built.hidden(params, dec, At(ones, positions), source=source).x
    return built.unembed(built.head(params), x)


def _learnt(built, params, ids, width):
    """(logits [B, T, V], the mean loss over the targets that the oracle has: of the first `width`
    tokens all but the first 7 labels), from the same hidden states."""
    weight = np.zeros(ids.shape, np.float32)
    weight[:, 6 : width - 1] = 1  # the label of position t is the token at t + 1
    positions = np.tile(np.arange(ids.shape[1], dtype=np.int32), (len(ids), 1))
    batch = Batch(ids, np.roll(ids, -1, 1), weight, np.ones_like(ids), positions)
    out = built.hidden(params, ids, At(batch.segments, positions))
    same = built._replace(hidden=lambda *args, **kwargs: out)
    total, count, _ = clm.build(clm.Config(), same, Plan()).loss(params, {}, batch, None)
    return built.unembed(built.head(params), out.x), total / count
