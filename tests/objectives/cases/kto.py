"""KTO: labelled responses, each with another prompt's in its place."""

from jaxlm.core.batch import Choices
from jaxlm.objectives.preference import dpo
from tests.objectives.cases import dpo as pairs

CONFIGS = {"kto": dpo.Config(loss="kto", desirable=1.2, undesirable=0.7)}
WHOLE = ("kto",)

ROWS = (
    ((3, 5, 0), (3, 2, -1)), ((1, 1, 1), (1, 7, -1)), ((2, 3, 0), (2, 3, -1)),
    ((4, 2, 1), (4, 2, -1)), ((2, 2, 0), (2, 5, -1)), ((5, 3, 0), (5, 1, -1)), (),
    ((1, 4, 1), (1, 2, -1)),
)  # fmt: skip


def batch(seed: int) -> Choices:
    """8 labelled responses, one row empty."""
    return pairs.choices(seed, ROWS, 2)
