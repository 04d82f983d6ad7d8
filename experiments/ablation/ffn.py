"""Is a gate in the feed-forward layer worth its place, at equal parameters and equal compute?

    jaxlm ablate experiments/ablation/ffn.py

SwiGLU (Shazeer 2020) against a plain GELU layer with half as wide again, on the standard library's
docstrings, bytes as tokens. README.md has the record.
"""

import dataclasses

from jaxlm.data.pretraining import Data
from jaxlm.models import llama
from jaxlm.train.optim.optimizer import Optim
from jaxlm.train.run.run import Checkpoint, Run
from jaxlm.train.sweep.paired_runs import Ablation


def arms() -> Ablation:
    """The plan: at most 8 pairs of runs of 120 steps."""
    gated = llama.Config(vocab=259, embed=32, layers=2, heads=2, kv=1, head=16, ffn=64, context=128)
    baseline = Run(
        name="gelu",
        model=dataclasses.replace(gated, gated=False, activation="gelu", ffn=96),
        data=Data(source="pydocs", tokenizer="bytes", seq=128, batch=8, holdout=0.02),
        optim=Optim(lr=1e-2, warmup=12),
        steps=120,
        eval_every=120,
        log_every=60,
        checkpoint=Checkpoint(every=1000, keep_last=1, keep_best=False),
    )
    return Ablation(
        name="ffn",
        baseline=baseline,
        variants=(dataclasses.replace(baseline, name="swiglu", model=gated),),
        looks=(3, 5, 8),
        lengths=(0.5,),
    )
