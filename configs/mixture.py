"""A tiny model of two sources, mixed by tokens, more of the second towards the end.

Reproduces: the realised share of each source and the bits per byte of each, from `Data.mix`.
Command: jaxlm train configs/mixture.py
Hardware: 2 CPU cores
Time: 2.7 minutes on a shared machine
Expected: 2.89 bits per byte held out (pydocs 3.07, pysrc 2.86)
"""

from jaxlm.data.pretraining import Data
from jaxlm.data.rows.mix_parts import Part
from jaxlm.models import llama
from jaxlm.train.optim.optimizer import Optim
from jaxlm.train.run.run import Run


def config() -> Run:
    """Seven tokens of documentation to three of source code; from step 200 on the other way."""
    mix = (Part("pydocs", 0.7, changes=((200, 0.3),)), Part("pysrc", 0.3, changes=((200, 0.7),)))
    return Run(
        name="mixture",
        model=llama.Config(vocab=259, embed=64, layers=2, heads=4, kv=2, head=16, ffn=192),
        data=Data(mix=mix, seq=128, batch=16),
        optim=Optim(lr=3e-3, warmup=20),
        steps=300,
        eval_every=100,
        eval_batches=8,
    )
