"""A small BERT of Python's reference documentation: masked language modelling from raw text.

Reproduces: nothing published; that filling in is learnt, far below what frequencies alone give.
Command: jaxlm train configs/bert_tiny.py
Hardware: 2 CPU cores
Time: ? minutes
Expected: ?
"""

from jaxlm.data.loader import Data
from jaxlm.data.mask import Mask
from jaxlm.models import bert
from jaxlm.objectives import mlm
from jaxlm.train.optim import Optim
from jaxlm.train.run import Run


def config() -> Run:
    """The run."""
    return Run(
        name="bert_tiny",
        # bytes are ids 0 .. 258; the mask is the next
        model=bert.Config(vocab=260, embed=64, layers=3, heads=4, ffn=256, context=128),
        objective=mlm.Config(),
        data=Data(source="pydocs", tokenizer="bytes", seq=128, batch=16, corrupt=Mask(token=259)),
        optim=Optim(lr=3e-3, warmup=50),
        steps=1200,
        eval_every=300,
        eval_batches=8,
    )
