"""A small LLaMA-style model of Python's reference documentation: what `make demo` trains.

Reproduces: nothing published; the first run of a new user, from raw text to samples.
Command: make demo
Hardware: 2 CPU cores
Time: not measured yet
Expected: not measured yet
"""

from jaxlm.data.loader import Data
from jaxlm.models import llama
from jaxlm.parallel.plan import Plan
from jaxlm.train.optim import Optim
from jaxlm.train.run import Checkpoint, Run

VOCAB = 2048


def config() -> Run:
    """The run."""
    return Run(
        name="demo",
        model=llama.Config(vocab=VOCAB, embed=192, layers=5, heads=6, kv=2, head=32, ffn=512),
        data=Data(source="pydocs", tokenizer=f"runs/tokenizer-pydocs-{VOCAB}", seq=256, batch=16),
        optim=Optim(name="muon", lr=4e-3, warmup=40, final=0.0),
        plan=Plan(attention="blockwise"),
        steps=300,
        eval_every=150,
        eval_batches=4,
        samples=("The with statement",),
        checkpoint=Checkpoint(every=150),
    )
