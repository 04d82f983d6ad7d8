"""Law 12, light: logits, and gradients of some, equal a golden file of transformers'.

golden.py wrote the file; test_parity.py checks live that transformers still says the same.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlm import convert, models
from jaxlm.core.batch import Batch
from jaxlm.models import model
from jaxlm.objectives import clm
from jaxlm.ops.attention import At
from jaxlm.parallel.plan import Plan
from tests.convert import cases, golden


@pytest.fixture(scope="module")
def stored():
    with np.load(golden.FILE) as arrays:
        return dict(arrays)


def test_every_model_type_is_in_the_file(stored):
    assert set(golden.records(stored)) == set(cases.FIRST.values())
    # of a Gemma 3 that sees images the text alone is read; its own tests have that layout
    assert set(convert.ARCHITECTURES) - set(cases.FIRST) == {"gemma3"}


def load(stored, name):
    cfg, params = golden.ours(name, golden.records(stored)[name])
    ids = stored[f"{name}:ids"]
    at = At(jnp.ones_like(ids), jnp.tile(jnp.arange(ids.shape[1]), (len(ids), 1)))
    return cfg, params, ids, at


@pytest.mark.parametrize("name", sorted(cases.FIRST.values()))
def test_logits(stored, name):
    cfg, params, ids, at = load(stored, name)
    if cases.by_length(cfg):
        cfg = dataclasses.replace(cfg, context=ids.shape[1])
    built = models.build(cfg, Plan())

    @jax.jit
    def run(params):
        if built.kind != "encoder_decoder":
            return model.logits(built, params, ids, at)
        x = built.hidden(params, ids, at, source=(built.encode(params, ids, at), at)).x
        return built.unembed(built.head(params), x)

    theirs = stored[f"{name}:logits"]
    np.testing.assert_allclose(run(params), theirs, rtol=0, atol=2e-5 * theirs.std())


@pytest.mark.parametrize("kind", golden.GRADIENTS)
def test_loss_and_its_gradient_in_the_table(stored, kind):
    name = cases.FIRST[kind]
    cfg, params, ids, at = load(stored, name)
    plan = Plan(attention="blockwise" if kind == "llama" else "xla")
    loss = clm.build(clm.Config(), models.build(cfg, plan), plan).loss
    # the last position predicts nothing
    weight = jnp.ones(ids.shape).at[:, -1].set(0)
    batch = Batch(ids, jnp.roll(ids, -1, 1), weight, at.segments, at.positions)

    @jax.jit
    def run(table):
        total, count, _ = loss(
            params | {"embed": params["embed"] | {"table": table}}, {}, batch, None
        )
        return total / count

    nll, gradient = jax.value_and_grad(run)(params["embed"]["table"])
    np.testing.assert_allclose(nll, stored[f"{name}:nll"], rtol=0, atol=1e-5)
    np.testing.assert_allclose(gradient, stored[f"{name}:gradient"], rtol=0, atol=1e-4)
    assert np.abs(stored[f"{name}:gradient"]).max() > 1e-2
