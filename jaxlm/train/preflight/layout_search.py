"""Layouts of a run on a topology, the fastest first: by the closed form, then as compiled."""

import dataclasses
import itertools
from collections.abc import Iterator

from jaxlm import models
from jaxlm.core import param
from jaxlm.objectives.objective import Objective
from jaxlm.parallel.plan import Plan
from jaxlm.parallel.topology import Topology
from jaxlm.scaling.cost.cost_report import Row
from jaxlm.train import program
from jaxlm.train.preflight import compiled_step, memory_check, step_report
from jaxlm.train.preflight.compiled_step import Compiled, Refused
from jaxlm.train.preflight.scheduled_step import Options
from jaxlm.train.preflight.step_report import GIB
from jaxlm.train.run.run import Run

# Devices of one tensor or context axis, at most: beyond, every layer waits for distant chips.
WIDEST = 16


def plans(run: Run, topology: Topology) -> Iterator[Plan]:
    """Plans for all devices of a topology: powers of two of tensor, context (where the run's
    attention has it) and expert, the rest fsdp; each remat; micro-batches that divide the rows."""
    slices = topology.slices
    devices = topology.chips * topology.chip.per_chip // slices  # of each
    powers = [1 << n for n in range(WIDEST.bit_length())]
    contexts = powers if run.plan.attention in ("xla", "blockwise") else [1]
    weights = param.flatten(models.spec(run.model)).values()
    experts = powers if any("expert" in p.axes[: p.copies] for p in weights) else [1]
    for tensor, context, expert in itertools.product(powers, contexts, experts):
        fsdp, left = divmod(devices, tensor * context * expert)
        rows, over = divmod(run.data.batch, max(1, slices * fsdp * expert))
        if left or over or not fsdp:
            continue
        for parts in (n for n in powers if rows % n == 0):
            for remat in ("none", "dots", "full"):
                yield dataclasses.replace(
                    run.plan,
                    **{
                        "data": slices,
                        "slices": slices,
                        "zero": 0,
                        "sequence": False,
                        "context_keys": "ring",
                    },
                    **{"fsdp": fsdp, "tensor": tensor, "context": context, "expert": expert},
                    **{"microbatches": parts, "remat": remat},
                )


def best(run: Run, objective: Objective, topology: Topology, count: int) -> list[Run]:
    """The runs of the `count` plans that take the least time and fit, by the closed form.

    Raises: ValueError where none fits.
    """
    timed = []
    for plan in plans(run, topology):
        changed = dataclasses.replace(run, plan=plan)
        timed.append((step_report.predict(changed, topology).seconds, str(plan), changed))
    space = topology.chip.hbm * GIB
    fitting: list[Run] = []
    for _, _, changed in sorted(timed, key=lambda each: each[:2]):
        try:
            part = memory_check.estimate(changed, objective)
        except ValueError:  # a dimension that does not divide
            continue
        if part.total <= space:
            fitting.append(changed)
        if len(fitting) == count:
            break
    if not fitting:
        raise ValueError(
            f"--search: none of {len(timed)} layouts of {topology.name} fits; it requires more "
            "chips, or a smaller data.batch that still divides over them"
        )
    return fitting


def compiled(
    runs: list[Run], topology: Topology, options: Options
) -> list[tuple[Run, Compiled | Refused | None]]:
    """The runs with their compiled steps (None of a topology that has no devices), those that fit
    first, and the fastest of them by their own collectives first."""
    steps = [
        (run, compiled_step.compile_step(run, topology, options) if topology.devices else None)
        for run in runs
    ]

    def order(each: tuple[Run, Compiled | Refused | None]) -> tuple[bool, float]:
        run, step = each
        ledger = step.ledger if isinstance(step, Compiled) else None
        return isinstance(step, Refused), step_report.predict(run, topology, ledger).seconds

    return sorted(steps, key=order)


def rows(steps: list[tuple[Run, Compiled | Refused | None]], topology: Topology) -> Iterator[Row]:
    """A line for each layout."""
    yield Row(f"layouts of {topology.name}, best first", "")
    for run, step in steps:
        ledger = step.ledger if isinstance(step, Compiled) else None
        prediction = step_report.predict(run, topology, ledger)
        plan = run.plan
        name = f"{plan}, remat {plan.remat}, {plan.microbatches} micro-batches"
        held = memory_check.estimate(run, program.build(run, plan)[1]).total
        if isinstance(step, Compiled):
            held = sum(step.bytes)
        fits = "refused by the compiler" if isinstance(step, Refused) else f"{held / GIB:.1f} GiB"
        text = f"{prediction.seconds:.4f} s, {prediction.utilisation:.1%} MFU, {fits}"
        yield Row(name, text)
