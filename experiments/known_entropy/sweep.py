"""Does a scaling law find the entropy of a source, where the entropy is known?

    jaxlm sweep experiments/known_entropy:flat --workers 2 --record     and :steep, :deep
    python experiments/known_entropy/score.py                           the table of all three

Context trees, fresh text without end (no run reads a token twice), GPT-style models of one block
with learned positions, so that the end of a document, at a fixed place, costs nothing.
"""

from jaxlm.data.pretraining import Data
from jaxlm.models import gpt
from jaxlm.train.optim.optimizer import Optim
from jaxlm.train.run.run import Checkpoint, Run
from jaxlm.train.sweep.sweep_cells import Cell, Speed, Sweep, isoflop

BYTES = 259
LENGTH = 127  # symbols of a document, a row with its end
SOURCES = {
    "flat": "known:tree?alphabet=94&fan=94&depth=1&zipf=1.2&change=30",
    "steep": "known:tree?alphabet=94&fan=94&depth=1&zipf=1.4&change=100",
    "deep": "known:tree?alphabet=94&fan=8&depth=2&zipf=1.4&change=60",
}
DOCUMENTS = 16384  # 2.1 million tokens, more than the longest run reads


def flat() -> Sweep:
    """94 contexts of one symbol, 3.17 nats."""
    return _sweep("flat")


def steep() -> Sweep:
    """The same with more to learn in each, 2.70 nats."""
    return _sweep("steep")


def deep() -> Sweep:
    """752 contexts of two symbols besides, which models of this size hardly begin to learn."""
    return _sweep("deep")


def sweep() -> Sweep:
    """The first of the three."""
    return flat()


def model(width: int) -> gpt.Config:
    """A model of this width."""
    return gpt.Config(vocab=BYTES, embed=width, layers=1, heads=2, context=LENGTH + 1, tied=False)


def _sweep(name: str) -> Sweep:
    budgets = {
        6e9: (6, 8, 12, 16, 24),
        1.2e10: (8, 12, 16, 24, 32),
        2.4e10: (12, 16, 24, 32, 48),
        4.8e10: (16, 24, 32, 48, 64),
    }
    return Sweep(
        name=f"known-{name}",
        base=_base(SOURCES[name]),
        cells=isoflop({c: [model(w) for w in widths] for c, widths in budgets.items()}),
        held_out=Cell(model(56), 2e11),
        rule="deepseek",
        tuning="rates of 0.015 and 0.03 gave 2.784 and 2.782 nats at width 24 on `steep`",
        speed=Speed(flops_per_second=35e9, flops_overhead=5e5, seconds_per_run=8.0),
    )


def _base(source: str) -> Run:
    return Run(
        name="base",
        model=model(16),
        data=Data(source=f"{source}&documents={DOCUMENTS}", seq=LENGTH + 1, holdout=0.03),
        optim=Optim(weight_decay=0.0),
        log_every=50,
        checkpoint=Checkpoint(every=100_000),
    )
