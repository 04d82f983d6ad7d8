"""Reward models over ranked lists: ties, missing responses, doubtful labels, ratings, full rows."""

import numpy as np

from jaxlm.core.batch import Choices
from jaxlm.objectives.preference import reward
from tests.families.sizes import T, V

CONFIGS = {
    "reward": reward.Config(margin=0.5, smoothing=0.1, centre=0.05),
    "reward-plain": reward.Config(),
}
# A score does not read the output matrix.
VOID = {case: ("unembed",) for case in CONFIGS}
K = 3


def batch(seed: int) -> Choices:
    """8 prompts with up to three responses; the sixth has ties alone, the last one response."""
    r = np.random.default_rng(seed)
    length = r.integers(2, T + 1, (8, K))
    length[0] = (T, T, 3)
    rank = np.stack([r.permutation(K) for _ in range(8)])
    rank[1], rank[2], rank[5], rank[7] = (0, 1, 0), (1, 0, -1), (0, 0, 0), (0, -1, -1)
    segments = np.int32((np.arange(T) < length[..., None]) & (rank[..., None] >= 0))
    tokens = r.integers(0, V, segments.shape) * segments
    targets = np.where(np.arange(T) < length[..., None] - 1, np.roll(tokens, -1, -1), 0) * segments
    weight = np.float32((np.arange(T) < length[..., None] - 1) & (np.arange(T) > 0)) * segments
    positions = np.broadcast_to(np.arange(T), segments.shape) * segments
    return Choices(
        np.int32(tokens),
        np.int32(targets),
        np.float32(weight),
        segments,
        np.int32(positions),
        np.int32(rank),
        r.uniform(0.5, 1, 8).astype(np.float32),
        r.standard_normal((8, K)).astype(np.float32),
    )
