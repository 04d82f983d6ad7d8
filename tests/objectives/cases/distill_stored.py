"""Distillation from what was kept of a teacher's distributions."""

import numpy as np

from jaxlm.core.batch import Taught
from jaxlm.objectives import distill
from tests import programs
from tests.families.sizes import V
from tests.objectives.cases import distill as weights

TEACHER = weights.TEACHER
CONFIGS = {"distill-stored": distill.Config(teacher="-", read="stored", top_k=3, hard=0.5)}


def batch(seed: int) -> Taught:
    """8 rows, packed and padded, with three outcomes kept and the rest."""
    plain = programs.rows(seed, programs.UNEVEN)
    r = np.random.default_rng(seed)
    shape = plain.tokens.shape
    ids = r.permuted(np.broadcast_to(np.arange(V), (*shape, V)), axis=-1)[..., :3]
    kept = np.log(r.dirichlet(np.ones(4), shape))
    return Taught(*plain, ids.astype(np.int32), kept.astype(np.float32))
