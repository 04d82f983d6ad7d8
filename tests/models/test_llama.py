"""Rotary scalings whose angles the length of a call decides in transformers, on both sides of the
original context."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlm import models
from jaxlm.convert import read
from jaxlm.models import llama, model
from jaxlm.ops import rope
from jaxlm.ops.attention import At
from tests.families import llama as cases


def logits(cfg, params, ids):
    at = At(jnp.ones_like(ids), jnp.tile(jnp.arange(ids.shape[1]), (len(ids), 1)))
    with jax.default_matmul_precision("highest"):
        return model.logits(models.build(cfg), params, ids, at)


def _dynamic(transformers):
    sizes = {k: v for k, v in cases.ORACLES["llama-dynamic"].items() if k != "architecture"}
    return transformers.LlamaForCausalLM, transformers.LlamaConfig(**sizes)


def _longrope(transformers):
    sizes = {k: v for k, v in cases.ORACLES["phi3-longrope"].items() if k != "architecture"}
    return transformers.Phi3ForCausalLM, transformers.Phi3Config(**sizes)


@pytest.mark.parity
@pytest.mark.parametrize("make", [_dynamic, _longrope])
def test_a_call_as_long_as_the_context_agrees(make, tmp_path):
    """A fresh model of transformers per call, as theirs keeps the angles of the longest one."""
    import torch
    import transformers

    torch.manual_seed(0)
    cls, cfg = make(transformers)
    first = cls(cfg).eval()
    with torch.no_grad():
        for w in first.parameters():
            w.add_(0.1 * torch.randn_like(w))
    first.save_pretrained(tmp_path)
    ours, params = read.load(tmp_path)
    ids = np.random.default_rng(0).integers(3, 97, (2, 40))
    for length in (12, 16, 17, 40):
        theirs = cls.from_pretrained(tmp_path).eval()
        with torch.no_grad():
            want = theirs(torch.tensor(ids[:, :length]), use_cache=False).logits.numpy()
        got = logits(dataclasses.replace(ours, context=length), params, ids[:, :length])
        np.testing.assert_allclose(got, want, rtol=0, atol=2e-5 * want.std())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rotary_share": 0.75}, "rotary_share: 0.75 given; .* an even number .*, not 3"),
        ({"rotary_share": 1.5}, "rotary_share: 1.5 given; .* of model.head=4 .*, not 6"),
        ({"qk_norm": True, "qk_norm_all": True}, "qk_norm_all: True given with model.qk_norm"),
    ],
)
def test_errors(changes, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(cases.LLAMA, **changes)


def test_published_models_are_stretched_as_published():
    cfg = llama.PRESETS["llama3.1-8b"]
    assert cfg.scaling == rope.Llama3(8.0, 1.0, 4.0, 8192) and cfg.context == 16 * 8192
    assert llama.PRESETS["llama3.2-1b"].scaling == rope.Llama3(32.0, 1.0, 4.0, 8192)
