"""One tiny model of each family for all decode tests, with decisive random weights."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlm import models
from jaxlm.core import param
from jaxlm.models import gpt, llama
from jaxlm.models.model import Hidden, Model

CONFIGS = {
    "llama": llama.Config(
        vocab=32, embed=16, layers=2, heads=4, kv=2, head=8, ffn=24, context=64, qk_norm=True
    ),
    "window": llama.Config(
        vocab=32, embed=16, layers=2, heads=2, kv=2, head=8, ffn=24, context=64, window=5
    ),
    "bytes": llama.Config(vocab=262, embed=16, layers=1, heads=2, kv=2, head=8, ffn=24, context=96),
    "gpt": gpt.Config(vocab=32, embed=16, layers=2, heads=2, context=64),
}


def _build(name):
    model = models.build(CONFIGS[name])
    params = jax.jit(lambda key: param.init(model.spec, key))(jax.random.key(1))
    # GPT-2's initial 0.02 makes nearly uniform logits; with larger weights tokens matter
    scale = 10 if name == "gpt" else 1
    return model, param.map(lambda p, w: w * scale if len(p.shape) > 1 else w, model.spec, params)


_BUILT = {}


@pytest.fixture(scope="session")
def tiny():
    """tiny(name) -> (model, params), built once, so that compiled programs are shared."""

    def get(name):
        if name not in _BUILT:
            _BUILT[name] = _build(name)
        return _BUILT[name]

    return get


class Vocabulary(NamedTuple):
    vocab: int = 6


@pytest.fixture(scope="session")
def bigram():
    """(model, params) without layers: the logits after a token are a row of a table, one for every
    token and position, so that it compiles at once and every law can be enumerated."""

    def hidden(params, tokens, at, cache=None, key=None):
        return Hidden(params["table"][at.positions % 8, tokens], cache)

    model = Model(Vocabulary(), {}, hidden, lambda p: {}, lambda _, x: x, lambda b, s: (), 64)
    table = np.random.default_rng(5).normal(0, 1.3, (8, 6, 6))
    return model, {"table": jnp.asarray(table, jnp.float32)}
