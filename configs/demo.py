"""A small LLaMA-style model of Python's reference documentation: what `make demo` trains.

Reproduces: nothing published; the first run of a new user, from raw text to samples.
Command: make demo
Hardware: 2 CPU cores
Time: 5.4 minutes with installation (4.2 of training), 2-core x86-64 with AVX-512
Expected: 1.596 +- 0.03 bits per byte held out; xz -9e, having read the training text, needs 1.648
"""

from jaxlm.data.pretraining import Data
from jaxlm.models import llama
from jaxlm.parallel.plan import Plan
from jaxlm.train.optim.optimizer import Optim
from jaxlm.train.run.run import Checkpoint, Run

VOCAB = 2048


def config() -> Run:
    """The run."""
    return Run(
        name="demo",
        model=llama.Config(
            vocab=VOCAB, embed=128, layers=4, heads=4, kv=4, head=32, ffn=352, qk_norm=True
        ),
        data=Data(source="pydocs", tokenizer=f"runs/tokenizer-pydocs-{VOCAB}", seq=128, batch=16),
        # About three epochs. With Muon, 240 steps at lr 5e-3, 1.2e-2, 2.4e-2 end at 2.03, 1.95,
        # 1.93 bits per byte.
        optim=Optim(name="muon", lr=2e-2, warmup=40, schedule="linear", final=0.0),
        # Each core a device of its own: 1.4 times as fast here as one device of two threads.
        plan=Plan(data=2, attention="blockwise", unroll=4),
        steps=800,
        eval_every=200,
        checkpoint=Checkpoint(every=200),
    )
