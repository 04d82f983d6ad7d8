"""A small BERT of Python's reference documentation: masked language modelling from raw text.

Reproduces: nothing published; that filling in is learnt, far below what frequencies alone give.
Command: jaxlm train configs/bert_tiny.py
Hardware: 2 CPU cores
Time: 4 minutes beside other work, 2-core x86-64 with AVX-512
Expected: 1.58 nats per hidden token held out (one run); their frequencies alone give 3.27
"""

from jaxlm.data.corrupt.mask import Mask
from jaxlm.data.pretraining import Data
from jaxlm.models import bert
from jaxlm.objectives import mlm
from jaxlm.parallel.plan import Plan
from jaxlm.train.optim.optimizer import Optim
from jaxlm.train.run.run import Run


def config() -> Run:
    """The run."""
    return Run(
        name="bert_tiny",
        # Bytes are ids 0 .. 258; the mask is the next. Rows are short, so that positions are soon
        # learnt: until attention finds the neighbours, the loss stays near 2.85 (rows of 64 were
        # still there after 750 steps of AdamW).
        model=bert.Config(vocab=260, embed=64, layers=3, heads=4, ffn=256, context=32),
        objective=mlm.Config(),
        data=Data(source="pydocs", tokenizer="bytes", seq=32, batch=128, corrupt=Mask(token=259)),
        optim=Optim(name="muon", lr=2e-2, warmup=100, schedule="linear", final=0.0),
        plan=Plan(data=2),
        steps=800,
        eval_every=200,
        eval_batches=8,
    )
