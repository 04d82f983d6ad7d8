"""What do replicas that train apart lose against one that is updated by all rows, at equal tokens?

    jaxlm ablate experiments/ablation/diloco.py

DiLoCo (Douillard et al. 2023): four replicas that agree every 20 steps, on the standard library's
docstrings, bytes as tokens. diloco.md has the record.
"""

import dataclasses

from jaxlm.data.pretraining import Data
from jaxlm.models import llama
from jaxlm.train.optim.diloco import Replicas
from jaxlm.train.optim.optimizer import Optim
from jaxlm.train.run.run import Checkpoint, Run
from jaxlm.train.sweep.paired_runs import Ablation


def arms() -> Ablation:
    """The plan: three pairs of runs of 240 steps."""
    baseline = Run(
        name="synchronous",
        model=llama.Config(
            vocab=259, embed=32, layers=2, heads=2, kv=1, head=16, ffn=64, context=128
        ),
        data=Data(source="pydocs", tokenizer="bytes", seq=128, batch=16, holdout=0.02),
        optim=Optim(lr=1e-2, warmup=24),
        steps=240,
        eval_every=240,
        log_every=60,
        checkpoint=Checkpoint(every=1000, keep_last=1, keep_best=False),
    )
    return Ablation(
        name="diloco",
        baseline=baseline,
        variants=(
            dataclasses.replace(baseline, name="apart", diloco=Replicas(replicas=4, every=20)),
        ),
        seeds=(0, 1, 2),
        looks=(3,),
    )
