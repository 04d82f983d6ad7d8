"""Distillation from a teacher's weights."""

from jaxlm.core.batch import Batch
from jaxlm.models import llama
from jaxlm.objectives import distill
from tests import programs
from tests.families.sizes import V

TEACHER = llama.Config(vocab=V, embed=8, layers=1, heads=2, kv=2, head=4, ffn=16)
CONFIGS = {
    "distill": distill.Config(teacher="-", beta=0.25, temperature=2.0, power=2.0, hard=0.3),
    "distill-reverse": distill.Config(teacher="-", beta=1.0),
}


def batch(seed: int) -> Batch:
    """8 rows, packed and padded."""
    return programs.rows(seed, programs.UNEVEN)
