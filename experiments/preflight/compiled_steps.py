"""Do the steps of well-known models fit on TPU slices, and how long do they take?

    python -m experiments.preflight.compiled_steps          prints a table of results.md

Every step is compiled by libtpu, one after the other, with splash attention, which has to be in the
program. A row states what the compiler refuses. Arguments, if any, are the models to compile.
"""

import resource
import sys
from collections.abc import Iterator

import jax

from jaxlm import models, objectives
from jaxlm.data.pretraining import Data
from jaxlm.parallel import topology
from jaxlm.parallel.plan import Plan
from jaxlm.train import program
from jaxlm.train.preflight import compiled_step, memory_check, step_report
from jaxlm.train.preflight.compiled_step import Compiled, Refused
from jaxlm.train.run.run import Run

SMALL = ("v5e:4x4", "v5p:2x2x4", "v6e:4x4", "tpu7x:2x2x4")
LARGE = ("v5e:16x16", "v5p:4x4x8", "v6e:16x16", "tpu7x:4x4x8")
MODELS = {
    "llama3-8b": SMALL,
    "llama3-70b": LARGE,
    "llama3.1-405b": LARGE,
    "mixtral-8x7b": LARGE,
    "gemma3-27b": LARGE,
    "deepseek-v3": LARGE,
}
HEAD = (
    "| model | slice | plan | compiled, s | CPU s | peak, GiB a device | | closed form, GiB | "
    "sent by a device, GB | s a step | MFU | binds | tokens/s a chip |\n" + "|---" * 13 + "|"
)


def steps(names: list[str]) -> Iterator[tuple[Run, str]]:
    """The runs, one row of 8,192 tokens (DeepSeek V3: 4,096) a device, and their slices."""
    for name in names:
        cfg = models.presets()[name]
        kind = objectives.fitting(models.build(cfg))
        for slice_ in MODELS[name]:
            there = topology.describe(slice_)
            devices = there.chips * there.chip.per_chip
            plan = Plan(
                fsdp=devices,
                remat="full",
                attention="splash",
                loss_chunk=1024,
                compute="bfloat16",
            )
            data = Data(seq=4096 if name == "deepseek-v3" else 8192, batch=devices)
            objective = objectives.OBJECTIVES[kind].Config()
            yield Run(name=name, model=cfg, data=data, objective=objective, plan=plan), slice_


def row(run: Run, slice_: str) -> str:
    """A line of the table."""
    there = topology.load(slice_)
    begin = sum(resource.getrusage(resource.RUSAGE_CHILDREN)[:2])
    head = f"| {run.name} | {slice_} | {run.plan} |"
    try:
        step = compiled_step.compile_step(run, there)
    except jax.errors.JaxRuntimeError as error:
        return f"{head} not compiled: {str(error).splitlines()[0][:120]} |" + " |" * 9
    spent = sum(resource.getrusage(resource.RUSAGE_CHILDREN)[:2]) - begin
    closed = memory_check.estimate(run, program.training(run)[1]).total / step_report.GIB
    head += f" {step.seconds:.0f} | {spent:.0f} |"
    if isinstance(step, Refused):
        return (
            f"{head} {step.used:.1f} of {step.available:.1f} | refused | {closed:.1f} |" + " |" * 5
        )
    return f"{head} {_compiled(run, there, step, closed)}"


def _compiled(run: Run, there: topology.Topology, step: Compiled, closed: float) -> str:
    assert any(name.startswith("splash") for name in step.kernels), step.kernels
    prediction = step_report.predict(run, there, step.ledger)
    peak = sum(step.bytes) / step_report.GIB
    speed = prediction.tokens / prediction.seconds / there.chips
    sent = sum(entry.sent for entry in step.ledger)
    return (
        f"{peak:.1f} of {there.chip.hbm} | fits | {closed:.1f} | {sent / 1e9:,.0f} | "
        f"{prediction.seconds:.2f} | {prediction.utilisation:.0%} | {prediction.parts.binds} | "
        f"{speed:,.0f} |"
    )


def main() -> None:
    """Print the table, a row as soon as it is compiled."""
    print(HEAD, flush=True)
    for run, slice_ in steps(sys.argv[1:] or list(MODELS)):
        print(row(run, slice_), flush=True)


if __name__ == "__main__":
    main()
