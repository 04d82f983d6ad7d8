"""Conversations packed into rows: several answers a row, rows without any, padding.

Noise is drawn for a batch as it is cut: its laws are in test_sft.py.
"""

import numpy as np

from jaxlm.core.batch import Batch
from jaxlm.objectives import clm, sft
from tests.families.sizes import T, V

CONFIGS = {
    "sft": sft.Config(),
    "sft-z": sft.Config(token=clm.Config(z_loss=1e-2)),
}


def batch(seed: int) -> Batch:
    """8 rows of one or two conversations; the third has no answer, the last is padding alone."""
    r = np.random.default_rng(seed)
    shape = (8, T)
    first, held = r.integers(3, T - 1, (8, 1)), r.integers(T - 2, T + 1, (8, 1))
    first[0], held[0], held[7] = T, T, 0
    column = np.arange(T)
    segments = np.where(column < held, 1 + (column >= first), 0)
    start = np.where(segments == 2, first, 0)
    weight = (segments > 0) & (column - start >= 1)
    weight[2] = False
    return Batch(
        np.int32(r.integers(0, V, shape) * (segments > 0)),
        np.int32(r.integers(0, V, shape) * (segments > 0)),
        np.float32(weight),
        np.int32(segments),
        np.int32(np.where(segments > 0, column - start, 0)),
    )
