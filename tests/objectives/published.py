"""Values of published losses on small inputs, in published.json: {block: {inputs, outputs}}.

They are what other implementations returned in float64: TRL's trainers (DPO and its relatives, KTO,
ORPO, SimPO, rewards, GRPO, GKD), the original DPO repository (`dpo_ref_*`: sums of log-probs), and
verl's functions for PPO (advantages, KL estimators, clipped losses). `grad_*`, `*_grads*` and `d_*`
are gradients with respect to the log-probs or values of the block of the same family.
"""

import functools
import json
import pathlib
from typing import Any


@functools.cache
def blocks() -> dict[str, dict[str, dict[str, Any]]]:
    """{block: {"inputs": {...}, "outputs": {...}}}"""
    return json.loads(pathlib.Path(__file__).with_suffix(".json").read_text("utf-8"))
