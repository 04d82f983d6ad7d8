"""A small T5 of Python's reference documentation: span corruption from raw text.

Reproduces: nothing published; that writing what is missing is learnt, far below what frequencies
alone give.
Command: jaxlm train configs/t5_tiny.py
Hardware: 2 CPU cores
Time: 6 minutes on a busy shared machine
Expected: 2.11 nats per hidden token held out (one run); their frequencies alone give 3.33
"""

from jaxlm.data.corrupt.span import Span
from jaxlm.data.pretraining import Data
from jaxlm.models import t5
from jaxlm.objectives import seq2seq
from jaxlm.train.optim.optimizer import Optim
from jaxlm.train.run.run import Run


def config() -> Run:
    """The run."""
    return Run(
        name="t5_tiny",
        # bytes are ids 0 .. 258; rows of 64 need 3 sentinels, here 268, 267, 266
        model=t5.Config(
            vocab=272,
            embed=64,
            encoder=2,
            layers=2,
            heads=4,
            head=16,
            ffn=176,
            act="gelu_tanh",
            gated=True,
            start=256,
        ),
        objective=seq2seq.Config(),
        data=Data(
            source="pydocs",
            tokenizer="bytes",
            seq=64,
            batch=32,
            corrupt=Span(sentinel=268, start=256),
        ),
        optim=Optim(name="muon", lr=1e-2, warmup=30, schedule="linear", final=0.0),
        steps=800,
        eval_every=200,
        eval_batches=8,
    )
