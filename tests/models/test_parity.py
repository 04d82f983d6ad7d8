"""Law 12, live: both families against transformers on tiny random models.

    make parity

Packed rows are compared to each document alone, and padded rows to unpadded ones, because that is
what packing and padding must not change.
"""

import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlm import models
from jaxlm.core import param
from jaxlm.models import model
from jaxlm.ops.attention import At
from jaxlm.parallel.plan import Plan
from tests.models.test_golden import NAMES

pytestmark = pytest.mark.parity
FILE = pathlib.Path(__file__).parent / "golden" / "parity.npz"


@pytest.fixture(scope="module")
def oracle():
    """The oracle module, which imports torch and transformers."""
    from tests.models import oracle

    return oracle


def _case(oracle, name, kernel="xla"):
    theirs = oracle.model(name)
    built = models.build(oracle.CASES[name][0], Plan(attention=kernel))
    params = jax.tree.map(jnp.asarray, oracle.weights(name, theirs))
    run = jax.jit(lambda ids, at: model.logits(built, params, ids, at))
    return theirs, run


@pytest.mark.parametrize("name", NAMES)
def test_logits(oracle, name):
    theirs, run = _case(oracle, name)
    ids = oracle.tokens(name, 3, 20)
    at = At(jnp.ones_like(ids), jnp.tile(jnp.arange(20), (3, 1)))
    np.testing.assert_allclose(run(ids, at), oracle.outputs(theirs, ids)[0], rtol=0, atol=2e-5)


@pytest.mark.parametrize("kernel", ["xla", "blockwise"])
@pytest.mark.parametrize("name", NAMES)
def test_packed_and_padded_rows(oracle, name, kernel):
    """One row of documents of 7, 9 and 1 tokens and 3 of padding; padding before, too."""
    theirs, run = _case(oracle, name, kernel)
    lengths = [("pad", 2), (1, 7), (2, 9), (3, 1), ("pad", 3)]
    ids = oracle.tokens(name, 1, 22)
    segments = np.concatenate([[0 if s == "pad" else s] * n for s, n in lengths])
    positions = np.concatenate([np.arange(n) for _, n in lengths])
    packed = run(ids, At(jnp.asarray(segments)[None], jnp.asarray(positions)[None]))[0]
    for segment in (1, 2, 3):
        alone = ids[:, segments == segment]
        expected = oracle.outputs(theirs, alone)[0][0] if alone.size > 1 else None
        if expected is None:  # one token has no next one to score, only logits
            expected = theirs(oracle.torch.tensor(alone)).logits.detach().numpy()[0]
        np.testing.assert_allclose(packed[segments == segment], expected, rtol=0, atol=2e-5)


def test_the_golden_file_is_what_transformers_says(oracle):
    with np.load(FILE) as golden:
        assert set(json.loads(str(golden["facts"]))["configs"]) == set(oracle.CASES)
        for name in oracle.CASES:
            theirs = oracle.model(name)
            logits, _, gradient = oracle.outputs(theirs, golden[f"{name}:ids"])
            np.testing.assert_allclose(logits, golden[f"{name}:logits"], rtol=0, atol=1e-5)
            np.testing.assert_allclose(gradient, golden[f"{name}:gradient"], rtol=0, atol=1e-5)
            for path, w in param.flatten(oracle.weights(name, theirs)).items():
                np.testing.assert_array_equal(w, golden[f"{name}:w:{path}"])
