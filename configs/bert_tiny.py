"""A small BERT of Python's reference documentation: masked language modelling from raw text.

Reproduces: nothing published; that filling in is being learnt: it has left what frequencies
alone give, and is far from done (15 % of bytes are few targets a step).
Command: jaxlm train configs/bert_tiny.py
Hardware: 2 CPU cores
Time: 6 minutes on a busy shared machine
Expected: 2.87 nats per hidden token held out (one run); their frequencies alone give 3.28
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
        model=bert.Config(vocab=260, embed=64, layers=3, heads=4, ffn=256, context=64),
        objective=mlm.Config(),
        data=Data(source="pydocs", tokenizer="bytes", seq=64, batch=32, corrupt=Mask(token=259)),
        optim=Optim(name="muon", lr=1e-2, warmup=30, schedule="linear", final=0.0),
        steps=800,
        eval_every=200,
        eval_batches=8,
    )
