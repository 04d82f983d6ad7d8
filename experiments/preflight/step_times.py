"""How well does the roofline predict the step times that others have published?

    python -m experiments.preflight.step_times          prints the table of results.md

15 steps of MaxText on TPU v6e, v5p and tpu7x (AI-Hypercomputer/tpu-recipes). Two constants, the
same for all chips, are fitted to the steps of odd number, and the others are predicted; then the
other way round. The third, the share of its links' bandwidth that an all-gather reaches, is that of
published measurements, since links bind in none of these steps.
"""

import math
import statistics
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from jaxlm import models
from jaxlm.parallel import topology
from jaxlm.parallel.plan import Plan
from jaxlm.scaling.cost import roofline

# Dimensions of a pod's torus.
TORUS = {"v5e": 2, "v6e": 2, "v5p": 3, "tpu7x": 3}
MLP = frozenset({"up", "gate"})


class Step(NamedTuple):
    """A published step. tokens: of a chip. fsdp, expert, data, slices: the layout, in chips or, of
    tpu7x, in the two devices that a chip has; fsdp=0 is all that are left. again: weights whose
    products are computed again in the backward pass, and "scores"; None is all but the last."""

    model: str
    chip: str
    chips: int
    seq: int
    tokens: int
    seconds: float
    again: frozenset[str] | None = None
    expert: int = 1
    data: int = 1
    slices: int = 1


STEPS = (
    Step("llama3.1-8b", "v6e", 8, 8192, 24579, 3.443, MLP | {"scores"}),
    Step("llama3.1-8b", "v6e", 32, 8192, 24576, 3.495, MLP | {"scores"}),
    Step("llama3.1-8b", "v6e", 128, 8192, 32765, 4.602, MLP | {"scores"}),
    Step("llama3.1-70b", "v6e", 32, 8192, 16384, 17.79, MLP | {"scores", "o"}),
    Step("llama3.1-70b", "v6e", 128, 8192, 32768, 34.786, MLP | {"scores", "o"}),
    Step("llama2-70b", "v6e", 256, 4096, 8192, 9.052, MLP | {"scores", "o"}),
    Step("mixtral-8x22b", "v6e", 256, 4096, 32768, 24.706, MLP | {"scores"}, expert=4),
    Step("gemma3-12b", "v6e", 256, 32768, 32768, 7.318),
    Step("gemma3-12b", "v6e", 1024, 32768, 32768, 8.39, data=4, slices=4),
    Step("llama3.1-405b", "v5p", 512, 8192, 16384, 131.474, MLP | {"q", "k", "v", "o"}),
    Step("deepseek-v3", "tpu7x", 128, 4096, 65544, 27.02),
    Step("gpt-oss-120b", "tpu7x", 64, 8192, 163846, 17.1, data=2),
    Step("llama3.1-405b", "tpu7x", 256, 8192, 49147, 98.34, MLP | {"scores", "q", "o"}),
    Step("llama3.1-70b", "tpu7x", 64, 8192, 32781, 12.2, MLP | {"o"}),
    Step("qwen3-235b-a22b", "tpu7x", 256, 4096, 131071, 30.87),
)


def work(row: Step) -> roofline.Work:
    """The Work of a device."""
    chip = topology.CHIPS[row.chip]
    count = row.chips * chip.per_chip
    plan = Plan(
        fsdp=count // row.expert // row.data, expert=row.expert, data=row.data, slices=row.slices
    )
    cfg = models.presets()[row.model]
    batch = round(row.tokens * row.chips / row.seq)
    return roofline.work(cfg, plan, batch=batch, seq=row.seq, mxu=chip.mxu, again=row.again)


def predicted(row: Step, own: roofline.Work, rates: roofline.Rates) -> float:
    """Seconds of a step."""
    return roofline.seconds(own, topology.CHIPS[row.chip], rates, TORUS[row.chip]).total


def fit(rows: Sequence[Step], works: Sequence[roofline.Work]) -> roofline.Rates:
    """The rates of the least sum of |log(predicted / measured)|, over a grid of two decimals."""

    def off(rates: roofline.Rates) -> float:
        pairs = zip(rows, works, strict=True)
        return sum(abs(math.log(predicted(row, own, rates) / row.seconds)) for row, own in pairs)

    grid = [
        roofline.Rates(round(float(p), 2), round(float(m), 2), roofline.RATES.links)
        for p in np.arange(0.6, 1.001, 0.01)
        for m in np.arange(0.2, 0.9, 0.01)
    ]
    return min(grid, key=off)


def errors(indices: Sequence[int], works: Sequence[roofline.Work], rates: roofline.Rates):
    """{index: predicted / measured - 1}."""
    return {i: predicted(STEPS[i], works[i], rates) / STEPS[i].seconds - 1 for i in indices}


def summary(name: str, rates: roofline.Rates, off: dict[int, float]) -> str:
    """A line of the table of scores."""
    sizes = [abs(x) for x in off.values()]
    within = sum(x <= 0.25 for x in sizes)
    return (
        f"| {name} | {rates.products:.2f} | {rates.memory:.2f} | {statistics.median(sizes):.1%} | "
        f"{within} of {len(sizes)} | {max(sizes):.0%} |"
    )


def main() -> None:
    """Print the tables."""
    works = [work(row) for row in STEPS]
    halves = [range(0, 15, 2), range(1, 15, 2)]
    print("| scored on | products | memory | median error | within 25 % | largest |")
    print("|---|---|---|---|---|---|")
    heldout: dict[int, float] = {}
    for train, test, name in ((0, 1, "even rows"), (1, 0, "odd rows")):
        rates = fit([STEPS[i] for i in halves[train]], [works[i] for i in halves[train]])
        off = errors(halves[test], works, rates)
        heldout |= off
        print(summary(f"{name}, fitted on the others", rates, off))
    rates = fit(STEPS, works)
    off = errors(range(15), works, rates)
    print(summary("all, fitted on all", rates, off))
    print("\n| | model | chips | tokens/chip | measured, s | predicted, s | off | held out |")
    print("|---|---|---|---|---|---|---|---|")
    for i, row in enumerate(STEPS):
        print(
            f"| {i + 1} | {row.model} | {row.chip} x {row.chips} | {row.tokens:,} | {row.seconds} "
            f"| {predicted(row, works[i], rates):.2f} | {off[i]:+.1%} | {heldout[i]:+.1%} |"
        )


if __name__ == "__main__":
    main()
