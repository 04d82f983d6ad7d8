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


@pytest.mark.parametrize("name", NAMES)
def test_logits_loss_and_greedy_tokens(name):
    cfg, params = read.load(FOLDER / name)
    params = jax.tree.map(jnp.asarray, params)
    oracle = np.load(FOLDER / name / "oracle.npz")
    ids = oracle["ids"]
    if cases.by_length(cfg):
        cfg = dataclasses.replace(cfg, context=ids.shape[1])
    built = models.build(cfg, Plan())
    ones = jnp.ones_like(ids)
    at = At(ones, jnp.tile(jnp.arange(ids.shape[1]), (len(ids), 1)))
    logits = jax.jit(lambda params: _logits(built, params, oracle, at))(params)
    np.testing.assert_allclose(logits, oracle["logits"], rtol=0, atol=2e-5)
    if "loss_masked" in oracle and built.kind != "encoder_decoder":
        np.testing.assert_allclose(
            _loss(built, params, ids, at), oracle["loss_masked"], rtol=0, atol=1e-5
        )
    # what transformers decodes with angles that change on the way is not reproduced
    if "greedy" in oracle and built.kind != "encoder_decoder" and not cases.by_length(cfg):
        new = oracle["greedy"].shape[1] - ids.shape[1]
        sampling = token_sampling.Sampling(max_new=new, temperature=0.0)
        tokens = token_sampling.generate(built, params, ids.tolist(), sampling).tokens
        np.testing.assert_array_equal(tokens, oracle["greedy"][:, ids.shape[1] :])


def _logits(built, params, oracle, at):
    ids = oracle["ids"]
    if "global" in oracle:
        at = at._replace(shared=jnp.asarray(oracle["global"], bool))
    if built.kind != "encoder_decoder":
        return model.logits(built, params, ids, at)
    dec = oracle["dec"]
    ones, positions = np.ones_like(dec), np.tile(np.arange(dec.shape[1]), (len(dec), 1))
    source = (built.encode(params, ids, at), at)
    x = built.hidden(params, dec, At(ones, positions), source=source).x
    return built.unembed(built.head(params), x)


def _loss(built, params, ids, at):
    """The mean over the targets that the oracle has: all but the first 7 labels."""
    weight = np.ones(ids.shape, np.float32)
    weight[:, -1] = 0
    weight[:, :6] = 0  # the label of position t is the token at t + 1
    batch = Batch(ids, np.roll(ids, -1, 1), weight, at.segments, at.positions)
    objective = clm.build(clm.Config(), built, Plan())
    total, count, _ = jax.jit(lambda p: objective.loss(p, {}, batch, None))(params)
    return total / count
