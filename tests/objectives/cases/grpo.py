"""GRPO and its relatives: each surrogate, each level of the ratio, each mean."""

import numpy as np

from jaxlm.core.batch import Rollout
from jaxlm.objectives.rl import grpo
from tests.objectives.cases import ppo

CONFIGS = {
    "grpo": grpo.Config(beta=0.04, kl_estimator="k3_ratio", temperature=0.7, most=4.0),
    "dapo": grpo.Config(variant="dapo", entropy=0.02, dual=3.0),
    "dr_grpo": grpo.Config(variant="dr_grpo", beta=0.1, kl_estimator="k2"),
    "gspo": grpo.Config(variant="gspo", clip_low=0.2, clip_high=0.2, beta=0.04),
    "rloo": grpo.Config(variant="rloo", beta=0.04, kl="reward", clip_low=0.9, clip_high=9.0),
    "cispo": grpo.Config(variant="cispo"),
    "vespo": grpo.Config(variant="vespo"),
}


def batch(seed: int) -> Rollout:
    """8 rows with an advantage for each response, of which two have none."""
    rows = ppo.batch(seed)
    by_row = np.random.default_rng(seed).normal(size=len(rows.tokens)) * (np.arange(8) % 4 != 1)
    return rows._replace(advantage=(rows.weight * by_row[:, None]).astype(np.float32))
