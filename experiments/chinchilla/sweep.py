"""Where is the optimum between size and data, on text that every machine has?

    jaxlm sweep experiments/chinchilla --workers 2            2 CPU cores
    jaxlm sweep experiments/chinchilla:quick --workers 2      smaller, in 5 minutes
    jaxlm sweep experiments/chinchilla:gpu                    one GPU
    jaxlm sweep experiments/chinchilla:tpu                    a TPU host of 4 chips

On a CPU: bytes of Python's standard library. On a GPU or TPU: your own text in shards, see README.
"""

import dataclasses

from jaxlm.data.pretraining import Data
from jaxlm.models import llama
from jaxlm.parallel.plan import Plan
from jaxlm.scaling.cost import ladder
from jaxlm.scaling.study import analysis
from jaxlm.train.optim.optimizer import Optim
from jaxlm.train.run.run import Checkpoint, Run
from jaxlm.train.sweep.sweep_cells import Cell, Speed, Sweep, isoflop

BYTES = 259
TUNING = (
    "as published; at 67,728 parameters and 5e11 FLOPs half of it is 0.050 nats worse, twice 0.018"
)
# Farseer's nine parameters are more than 20 points tell, and the over-training form is `tied` when
# C = 6ND; forms of one variable are for other sweeps.
FORMS = analysis.Options(laws=("chinchilla", "tied", "kaplan", "offset"), bootstrap="cluster")
# One core of a 2-core x86-64 with AVX-512, two of these runs at once; and a GPU and TPU host at
# what such small models reach there.
CORE = Speed(flops_per_second=35e9, flops_overhead=5e5, seconds_per_run=10.0)
GPU = Speed(flops_per_second=3e14, flops_overhead=1e8, seconds_per_run=60.0)
TPU = Speed(flops_per_second=6e14, flops_overhead=2e8, seconds_per_run=60.0)


def sizes(*shapes: tuple[int, int]) -> list[llama.Config]:
    """Byte models of these (width, layers)."""
    return [ladder.rung(width, BYTES, layers) for width, layers in shapes]


def sweep() -> Sweep:
    """Four budgets of five sizes, one cell with three seeds, and a held-out run of four times the
    largest budget. The text has 8.9 million bytes: no run reads it more than 1.2 times."""
    a, b, c, d, e, f, g = sizes((16, 2), (32, 2), (48, 2), (64, 2), (64, 3), (80, 3), (96, 4))
    budgets = {
        5e11: (a, b, c, d, e),
        1e12: (b, c, d, e, f),
        2e12: (b, c, d, e, f),
        4e12: (c, d, e, f, g),
    }
    repeats = [Cell(c, 1e12, seed) for seed in (1, 2)]
    return Sweep(
        name="chinchilla",
        base=base(),
        cells=(*isoflop(budgets), *repeats),
        held_out=Cell(ladder.rung(80, BYTES, 4), 1.6e13),
        rule="deepseek",
        tuning=TUNING,
        speed=CORE,
        options=FORMS,
    )


def quick() -> Sweep:
    """Three budgets of five sizes and a held-out run, smaller still."""
    many = sizes((16, 1), (16, 2), (32, 1), (32, 2), (48, 2))
    return Sweep(
        name="chinchilla-quick",
        base=base(),
        cells=isoflop({c: many for c in (6e10, 1.2e11, 2.4e11)}),
        held_out=Cell(ladder.rung(48, BYTES, 2), 9.6e11),
        rule="deepseek",
        tuning=TUNING,
        speed=CORE,
        options=FORMS,
    )


def base() -> Run:
    """What all runs on a CPU share."""
    return Run(
        name="base",
        model=ladder.rung(64, BYTES),
        data=Data(source="pysrc", tokenizer="bytes", packing="concat", holdout=0.02, seq=128),
        optim=Optim(),
        plan=Plan(attention="blockwise", unroll=8),
        log_every=50,
        checkpoint=Checkpoint(every=400),
    )


def gpu() -> Sweep:
    """Five budgets of six sizes, 2M to 138M parameters; held out 72M."""
    return accelerator("chinchilla-gpu", GPU, 3e15, Plan(compute="bfloat16"))


def tpu() -> Sweep:
    """The same with ten times the compute, on 4 chips that share each batch."""
    plan = Plan(compute="bfloat16", data=4, attention="splash")
    return accelerator("chinchilla-tpu", TPU, 3e16, plan)


VOCAB = 32768
TOKENIZER, SHARDS = "runs/tokenizer-text-32768", "runs/shards-text"


def accelerator(name: str, speed: Speed, least: float, plan: Plan) -> Sweep:
    """Budgets from `least` on, each 2.56 times the one before, which moves the sizes around 20
    tokens per parameter by one rung; the held-out run has 5 times the largest."""
    budgets = [least * 2.56**i for i in range(5)]
    rungs = [
        ladder.nearest((least / 120) ** 0.5 * 1.6**i, "matmul-only", VOCAB) for i in range(-2, 8)
    ]
    shared = dataclasses.replace(
        base(),
        model=rungs[0],
        data=Data(source=SHARDS, tokenizer=TOKENIZER, packing="concat", seq=1024),
        plan=plan,
        checkpoint=Checkpoint(every=2000),
    )
    largest = 5 * budgets[-1]
    return Sweep(
        name=name,
        base=shared,
        cells=isoflop({c: rungs[i : i + 6] for i, c in enumerate(budgets)}),
        held_out=Cell(ladder.nearest((largest / 120) ** 0.5, "matmul-only", VOCAB), largest),
        rule="deepseek",
        multiple=plan.data,
        speed=speed,
    )
