"""Losses of preferences: rankings of up to three with certain and uncertain orders; labels."""

import numpy as np

from jaxlm.core.batch import Choices
from jaxlm.objectives.preference import dpo
from tests.families.sizes import T, V

CONFIGS = {
    "dpo": dpo.Config(beta=0.5),
    "orpo": dpo.Config(loss="orpo", nll_over="text"),
    "aot": dpo.Config(loss="aot"),
    "kto-pair": dpo.Config(loss="kto_pair", undesirable=1.5),
}
WHOLE = ("aot", "kto-pair")

# prompt and response tokens, and rank, of up to three responses of each of 8 prompts; the first
# prompts' texts fill the row
ROWS = (
    ((3, 5, 0), (3, 2, 1), (3, 4, 1)),
    ((1, 1, 1), (1, 7, 0)),
    ((2, 3, 0), (2, 3, 1), (2, 1, 2)),
    ((4, 2, 0), (4, 2, 0)),
    ((2, 2, 0), (2, 5, 1)),
    ((5, 3, 2), (5, 1, 0), (5, 2, 1)),
    (),
    ((1, 4, 1), (1, 2, 0)),
)


def batch(seed: int) -> Choices:
    """8 prompts with up to 3 responses, a tie and an empty row among them."""
    return choices(seed, ROWS, 3)


def choices(seed: int, rows: tuple, responses: int) -> Choices:
    """Random texts of the lengths in rows, [8, responses, T]."""
    r = np.random.default_rng(seed)
    shape = (len(rows), responses, T)
    tokens, targets, segments, positions = (np.zeros(shape, np.int32) for _ in range(4))
    weight, rank = np.zeros(shape, np.float32), np.full(shape[:2], -1, np.int32)
    for b, row in enumerate(rows):
        prompt = r.integers(3, V, T)
        for k, (p, n, place) in enumerate(row):
            text = np.concatenate([prompt[:p], r.integers(3, V, n)])
            tokens[b, k, : p + n], targets[b, k, : p + n - 1] = text, text[1:]
            segments[b, k, : p + n], positions[b, k, : p + n] = 1, np.arange(p + n)
            weight[b, k, p - 1 : p + n - 1], rank[b, k] = 1, place
    certain = np.where(np.arange(len(rows)) % 3 == 1, 0.8, 1.0).astype(np.float32)
    score = r.normal(size=shape[:2]).astype(np.float32)
    return Choices(tokens, targets, weight, segments, positions, rank, certain, score)
