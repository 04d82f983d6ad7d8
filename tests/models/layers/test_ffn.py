"""The feed-forward layer against its formula in float64."""

import math

import jax
import numpy as np
import pytest

from jaxlm.core import param
from jaxlm.models.layers import ffn

P = param.shaper(embed=6, ffn=10)
erf = np.vectorize(math.erf)
FORMULAS = {
    "silu": lambda x: x / (1 + np.exp(-x)),
    "gelu": lambda x: x * (1 + erf(x / 2**0.5)) / 2,
    "gelu_tanh": lambda x: x / 2 * (1 + np.tanh((2 / np.pi) ** 0.5 * (x + 0.044715 * x**3))),
    "relu": lambda x: x * (x > 0),
    "relu2": lambda x: x * x * (x > 0),
}


def test_activations():
    x = np.linspace(-6, 6, 97)
    assert set(ffn.ACTIVATIONS) == set(FORMULAS)
    for name, formula in FORMULAS.items():
        got = ffn.ACTIVATIONS[name](np.float32(x))
        np.testing.assert_allclose(got, formula(x), atol=2e-6, err_msg=name)
    # the two GELUs differ, by 5e-4 at most
    apart = np.abs(FORMULAS["gelu"](x) - FORMULAS["gelu_tanh"](x)).max()
    assert 4e-4 < apart < 5e-4


@pytest.mark.parametrize("gated", [True, False])
@pytest.mark.parametrize("bias", [True, False])
def test_forms(gated, bias):
    spec = ffn.spec(P, gated=gated, bias=bias, out=param.fan_in(0.5))
    assert ("gate" in spec, "gate_bias" in spec) == (gated, gated and bias)
    assert param.count(spec) == (3 if gated else 2) * 60 + bias * (26 if gated else 16)
    rng = np.random.default_rng(0)
    w = jax.tree.map(lambda p: rng.normal(size=p.shape), spec, is_leaf=param.is_param)
    h = rng.normal(size=(2, 3, 6))
    act = FORMULAS["relu2"]
    up = h @ w["up"] + w.get("up_bias", 0)
    up = act(h @ w["gate"] + w.get("gate_bias", 0)) * up if gated else act(up)
    want = up @ w["down"] + w.get("down_bias", 0)
    got = ffn.apply(*jax.tree.map(np.float32, (w, h)), ffn.ACTIVATIONS["relu2"])
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-4)
