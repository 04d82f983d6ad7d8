"""PPO: both critics, both controllers, every term of the loss; and the rows that RL learns from."""

import numpy as np

from jaxlm.core.batch import Rollout
from jaxlm.objectives.rl import ppo
from tests.families.sizes import T, V

CONFIGS = {
    "ppo": ppo.Config(dual=3.0, entropy=0.02, temperature=0.7),
    "ppo-own": ppo.Config(kl=ppo.Fixed(0.0), critic="own", value_clip=None, value_weight=1.0),
}

# prompt and response tokens of 8 rows: full ones, one of padding alone, a response of one token
ROWS = ((3, 5), (1, 7), (2, 3), (4, 1), (2, 6), (5, 2), (0, 0), (1, 4))


def batch(seed: int) -> Rollout:
    """8 rows of random texts with random advantages, away from the policy that sampled."""
    r = np.random.default_rng(seed)
    shape = (len(ROWS), T)
    tokens, targets, segments, positions = (np.zeros(shape, np.int32) for _ in range(4))
    weight = np.zeros(shape, np.float32)
    for b, (p, n) in enumerate(ROWS):
        text = r.integers(3, V, p + n)
        tokens[b, : p + n], targets[b, : max(p + n - 1, 0)] = text, text[1:]
        segments[b, : p + n], positions[b, : p + n] = 1, np.arange(p + n)
        weight[b, max(p - 1, 0) : max(p + n - 1, 0)] = 1
    near = [(weight * r.normal(-3.4, 0.4, shape)).astype(np.float32) for _ in range(2)]
    value, advantage, returns = ((weight * r.normal(size=shape)).astype(np.float32) for _ in "123")
    return Rollout(tokens, targets, weight, segments, positions, *near, value, advantage, returns)
