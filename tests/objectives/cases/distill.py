"""Distillation: from a larger teacher's weights, and from what was kept of its distributions."""

import numpy as np

from jaxlm.core.batch import Batch, Taught
from jaxlm.models import llama
from jaxlm.objectives import distill
from tests import programs

TEACHER = llama.Config(
    vocab=32, embed=16, layers=1, heads=2, kv=2, head=8, ffn=24
)  # fmt: skip
CONFIGS = {
    "distill": distill.Config(teacher="-", beta=0.25, temperature=2.0, power=2.0, hard=0.3),
    "distill-stored": distill.Config(teacher="-", read="stored", top_k=3, beta=1.0),
}


def batch(case: str, seed: int) -> Batch | Taught:
    """8 rows, packed and padded."""
    plain = programs.rows(seed, programs.UNEVEN)
    if case == "distill":
        return plain
    r = np.random.default_rng(seed)
    made = np.log(r.dirichlet(np.ones(4), plain.tokens.shape)).astype(np.float32)
    ids = r.permuted(np.broadcast_to(np.arange(32), (*plain.tokens.shape, 32)), axis=-1)[..., :3]
    return Taught(*plain, ids.astype(np.int32), made)
