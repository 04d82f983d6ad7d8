"""Beam search against `generate(num_beams=...)` of transformers on the same random weights.

Up to as many beams as the vocabulary has tokens: with more, transformers goes on from beams that do
not exist.
"""

import pathlib
import tempfile

import numpy as np
import pytest

from jaxlm import models
from jaxlm.convert import read
from jaxlm.decode.search import hypotheses
from jaxlm.decode.search.beam_search import Beams
from tests.convert import cases

pytestmark = pytest.mark.parity

CASES = ["llama", "gemma2", "mistral_window", "gpt_oss", "deepseek-v3", "gpt2", "bloom", "t5"]
LENGTHS = (5, 11, 8)
NEW = 9
SETTINGS = [
    {},
    {"length_penalty": 0.0},
    {"length_penalty": -1.0, "num_return_sequences": 4},
    {"length_penalty": 2.0, "early_stopping": True},
    {"length_penalty": 1.5, "early_stopping": "never", "num_return_sequences": 3},
    {"length_penalty": 0.6, "early_stopping": True, "num_return_sequences": 2, "num_beams": 7},
]


@pytest.fixture(scope="module", params=CASES)
def case(request):
    from tests.convert import oracle

    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        theirs = oracle.save(request.param, folder)
        cfg, params = read.load(folder)
        built = models.build(cfg)
        ids = cases.tokens(request.param, len(LENGTHS), max(LENGTHS), cfg.vocab)
        prompts = [row[:n].tolist() for row, n in zip(ids, LENGTHS)]
        yield theirs, built, params, prompts


def stops(case):
    """Tokens that end some of the best texts early and others not."""
    _, built, params, prompts = case
    free = hypotheses.find(built, params, prompts, Beams(max_new=NEW, num_return_sequences=4))
    often = np.bincount([t for row in free for one in row for t in one.tokens[1:6]])
    return [int(t) for t in np.argsort(-often, kind="stable")[:2]]


def theirs_of(model, prompts, stop, settings):
    """[(tokens, score), ...] of each prompt, from left-padded prompts in one batch."""
    import torch

    width, decoder = max(map(len, prompts)), not model.config.is_encoder_decoder
    rows = np.zeros((len(prompts), width), int)
    mask = np.zeros_like(rows)
    for r, prompt in enumerate(prompts):
        here = slice(width - len(prompt), None) if decoder else slice(0, len(prompt))
        rows[r, here], mask[r, here] = prompt, 1
    given = {"num_beams": 4, "num_return_sequences": 1, "early_stopping": False} | settings
    out = model.generate(
        torch.tensor(rows),
        attention_mask=torch.tensor(mask),
        max_new_tokens=NEW,
        do_sample=False,
        pad_token_id=0,
        eos_token_id=stop,
        return_dict_in_generate=True,
        output_scores=True,
        **given,
    )
    begin, n, found = width if decoder else 1, given["num_return_sequences"], []
    for tokens, score in zip(out.sequences[:, begin:].tolist(), out.sequences_scores.tolist()):
        ends = [i for i, t in enumerate(tokens) if t in stop]
        found.append((tokens[: ends[0] + 1] if ends else tokens, score))
    return [found[i : i + n] for i in range(0, len(found), n)]


def test_texts_and_scores_are_transformers(case):
    theirs, built, params, prompts = case
    stop, lengths = stops(case), set()
    for settings in SETTINGS:
        beams = Beams(NEW, stop_tokens=tuple(stop), **settings)
        ours = hypotheses.find(built, params, prompts, beams)
        want = theirs_of(theirs, prompts, stop, settings)
        tokens = [[one.tokens for one in row] for row in ours]
        assert tokens == [[t for t, _ in row] for row in want], settings
        np.testing.assert_allclose(
            [one.score for row in ours for one in row],
            [score for row in want for _, score in row],
            rtol=2e-5,
        )
        lengths |= {len(t) for row in tokens for t in row}
    assert len(lengths) > 2
