"""Law 12, light: logits and gradients of both families equal a golden file of transformers'.

make_golden.py wrote the file; test_parity.py checks live that transformers still says the same.
"""

import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlm import models, objectives
from jaxlm.core import config
from jaxlm.core.batch import Batch
from jaxlm.models import gpt, llama, model
from jaxlm.ops.attention import At
from jaxlm.parallel.plan import Plan
from tests.models import hf_weights

FILE = pathlib.Path(__file__).parent / "golden" / "parity.npz"
NAMES = [
    "gpt1",
    "gpt2",
    "gpt2-untied",
    "llama-mha",
    "llama-gqa",
    "llama-tied",
    "qwen2-bias",
    "qwen3-qk-norm",
    "mistral-window",
]


@pytest.fixture(scope="module")
def golden():
    with np.load(FILE) as arrays:
        return dict(arrays)


def case(golden, name):
    record = json.loads(str(golden["facts"]))["configs"][name]
    cfg = config.from_dict({"gpt": gpt.Config, "llama": llama.Config}[record["kind"]], record)
    prefix = f"{name}:w:"
    flat = {k.removeprefix(prefix): jnp.asarray(v) for k, v in golden.items() if prefix in k}
    return cfg, hf_weights.nested(flat), golden[f"{name}:ids"]


def test_every_model_of_the_file_is_tested(golden):
    assert set(json.loads(str(golden["facts"]))["configs"]) == set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_logits_and_gradients(golden, name):
    cfg, params, ids = case(golden, name)
    plan = Plan(attention="blockwise" if name == "llama-gqa" else "xla")
    built = models.build(cfg, plan)
    rows, length = ids.shape
    at = At(jnp.ones_like(ids), jnp.tile(jnp.arange(length), (rows, 1)))
    # the last position predicts nothing
    weight = jnp.ones((rows, length)).at[:, -1].set(0)
    batch = Batch(ids, jnp.roll(ids, -1, 1), weight, at.segments, at.positions)
    loss = objectives.build(objectives.clm.Config(), built, plan).loss

    @jax.jit
    def run(params):
        def mean(params):
            total, count, _ = loss(params, {}, batch, None)
            return total / count

        return model.logits(built, params, ids, at), *jax.value_and_grad(mean)(params)

    logits, nll, grads = run(params)
    np.testing.assert_allclose(logits, golden[f"{name}:logits"], rtol=0, atol=2e-5)
    np.testing.assert_allclose(nll, golden[f"{name}:nll"], rtol=0, atol=1e-5)
    ours = grads["embed"]["table"]
    np.testing.assert_allclose(ours, golden[f"{name}:gradient"], rtol=0, atol=1e-4)
    # the tolerances mean something: values and gradients are far larger
    assert np.abs(golden[f"{name}:logits"]).max() > 1
    assert np.abs(golden[f"{name}:gradient"]).max() > 1e-2
