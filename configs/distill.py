"""A small student of a larger teacher, on Python's reference documentation.

Reproduces: nothing published; experiments/distillation trains the same pair, less long.
Command: jaxlm train configs/distill.py:teacher && jaxlm train configs/distill.py
Hardware: 2 CPU cores
Time: the teacher 3.5 minutes, the student 1, each beside other work
Expected: 2.378 bits per byte held out, the teacher 1.981; `configs/distill.py:alone`, the student
    without a teacher, 2.647; `:stored`, with 16 tokens stored of the teacher, 2.419
"""

import dataclasses

from jaxlm.data.pretraining import Data
from jaxlm.models import llama
from jaxlm.objectives import distill
from jaxlm.train.optim.optimizer import Optim
from jaxlm.train.run.run import Run


def config() -> Run:
    """The student, with the teacher's distribution of every token."""
    return dataclasses.replace(
        alone(), name="distill", objective=distill.Config(teacher="runs/distill-teacher")
    )


def stored() -> Run:
    """The same from what is stored of the teacher: its 16 likeliest tokens, and the rest as one."""
    asked = distill.Config(teacher="runs/distill-teacher", read="stored", top_k=16)
    return dataclasses.replace(alone(), name="distill-stored", objective=asked)


def alone() -> Run:
    """The student without a teacher."""
    return _run("distill-alone", 64, 2, 250)


def teacher() -> Run:
    """The teacher."""
    return _run("distill-teacher", 128, 3, 600)


def _run(name: str, embed: int, layers: int, steps: int) -> Run:
    return Run(
        name=name,
        model=llama.Config(
            vocab=259, embed=embed, layers=layers, heads=embed // 16, kv=embed // 16, head=16,
            ffn=embed * 11 // 4, qk_norm=True,
        ),
        data=Data(source="pydocs", tokenizer="bytes", seq=128, batch=16),
        optim=Optim(name="muon", lr=2e-2, warmup=steps // 10, schedule="linear", final=0.0),
        steps=steps,
        eval_every=steps,
    )  # fmt: skip
