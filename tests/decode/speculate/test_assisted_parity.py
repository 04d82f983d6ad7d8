"""Greedy speculation against assisted generation of transformers, on the same random weights."""

import pathlib
import tempfile
import types

import pytest

from jaxlm import models
from jaxlm.convert import read
from jaxlm.decode import token_sampling
from jaxlm.decode.speculate import speculative_sampling
from jaxlm.decode.speculate.speculative_sampling import Speculate
from tests.convert import cases

pytestmark = pytest.mark.parity
NEW = 24


@pytest.fixture(scope="module", params=["llama", "gemma2", "mistral_window", "gpt2"])
def case(request):
    from tests.convert import oracle

    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        theirs = oracle.save(request.param, folder)
        cfg, params = read.load(folder)
        yield theirs, models.build(cfg), params, request.param


def test_assisted_generation_has_our_tokens(case):
    import torch

    theirs, model, params, name = case
    (ids,) = cases.tokens(name, 1, 7, model.cfg.vocab)
    prompt = ids.tolist()
    s = token_sampling.Sampling(max_new=NEW, temperature=0.0)
    for draft, settings in (
        ("lookup", {"prompt_lookup_num_tokens": 3}),
        (types.SimpleNamespace(model=model, params=params), {"assistant_model": theirs}),
    ):
        told = Speculate(draft, length=3, adaptive=False)
        ours = speculative_sampling.generate(model, params, [prompt], s, told)
        with torch.no_grad():
            out = theirs.generate(
                torch.tensor([prompt]), max_new_tokens=NEW, do_sample=False, eos_token_id=None,
                pad_token_id=0, **settings,
            )  # fmt: skip
        assert ours.tokens[0].tolist() == out[0, len(prompt) :].tolist()
