"""Gemma's layers, and the Configs that are refused."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlm.core import param
from jaxlm.models import gemma
from jaxlm.ops.attention import At
from jaxlm.parallel.plan import Plan
from tests.families.gemma import GEMMA


def test_presets_see_what_the_papers_say():
    two, three = gemma.PRESETS["gemma2-9b"], gemma.PRESETS["gemma3-27b"]
    assert two.kinds[:4] == ("local", "global", "local", "global")
    assert three.kinds.count("global") == 10 and three.kinds[60:] == ("local", "local")
    windows = [layer.window for layer in gemma.layers(three)]
    assert windows[:7] == 5 * [1024] + [None, 1024]


def test_embeddings_are_multiplied_by_the_rounded_root():
    """In bfloat16 sqrt(12) = 3.4641 is 3.46875, and 1.2578125 times it 4.375; times the exact root
    it were 4.34375. Layers of zeros add nothing, and a norm with a large eps keeps the size."""
    cfg = dataclasses.replace(GEMMA, embed=12, eps=1e4, layers=1)
    params = param.map(lambda p: np.zeros(p.shape, np.float32), gemma.spec(cfg))
    params["embed"]["table"] += 1.2578125
    tokens = np.zeros((1, 2), np.int32)
    at = At(tokens + 1, np.arange(2, dtype=np.int32)[None])

    def last(compute):
        x = jax.jit(gemma.build(cfg, Plan(compute=compute)).hidden)(params, tokens, at).x
        return np.asarray(x, np.float32)[0, 0, 0]

    def normed(x):
        return x / np.sqrt(x**2 + 1e4)

    assert last("float32") == pytest.approx(normed(1.2578125 * np.sqrt(12.0)), rel=1e-6)
    rounded, exact = (float(jnp.bfloat16(normed(x))) for x in (4.375, 4.34375))
    assert last("bfloat16") == rounded != exact


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"pattern": ("local",)}, "model.window: None given"),
        ({"pattern": ("local",), "window": 0}, "model.window: 0 given"),
        ({"window": 4}, "no local layer"),
        ({"pattern": ()}, r"model.pattern: \(\) given; it must be 1 to model.layers=2"),
        ({"pattern": 3 * ("global",)}, "model.pattern: .* given; it must be 1 to model.layers=2"),
        ({"kv": 3}, "model.kv: 3 does not divide"),
        ({"head": 5}, "model.head: 5 given; it must be even"),
        ({"ffn": 0}, "model.ffn: 0 given"),
    ],
)
def test_refusals(changes, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(GEMMA, **changes)
