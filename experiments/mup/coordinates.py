"""Does the size of activations, and of their change in training, depend on the width?

    python -m experiments.mup.coordinates --record       two minutes, on 2 cores
    python -m experiments.mup.coordinates --quick        small widths, to see that it runs

For widths 64 to 1,024, under muP and under the standard parametrisation, the root mean square of
the residual stream and the logits at the start, and of their change after 1 and 10 steps of AdamW.
The answer is the slope of its logarithm against log width.
"""

import argparse
import dataclasses
import json
import pathlib
import time
from typing import Any

import numpy as np

from experiments.mup import activation_sizes
from experiments.mup import widths as shapes
from jaxlm.core import cache
from jaxlm.data import pretraining
from jaxlm.train.optim import optimizer

HERE = pathlib.Path(__file__).parent
WIDTHS, QUICK = (64, 128, 256, 512, 1024), (32, 64)
STEPS, LAYERS, SEEDS = (0, 1, 10), 2, 1
# What is called flat: a doubling of width changes the size by less than a tenth.
TOLERANCE = 0.135
NAMES = {True: "muP", False: "standard"}


def main() -> None:
    """Measure, write results and figure, print the table."""
    parser = argparse.ArgumentParser(description="Coordinate check of muP.")
    parser.add_argument("--quick", action="store_true", help="small widths; numbers mean little")
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("runs/mup"))
    parser.add_argument("--record", action="store_true", help="keep the results beside this file")
    args = parser.parse_args()
    begun = time.perf_counter()
    cache.programs()
    widths = QUICK if args.quick else WIDTHS
    results: dict[str, Any] = {NAMES[mup]: measure(widths, mup) for mup in (True, False)}
    results |= {"lr": LR, "seeds": SEEDS, "seconds": round(time.perf_counter() - begun)}
    args.out.mkdir(parents=True, exist_ok=True)
    for folder in (args.out, HERE) if args.record else (args.out,):
        (folder / "coordinates.json").write_text(json.dumps(results) + "\n", "utf-8")
        (folder / "coordinates.md").write_text(table(results), "utf-8")
        draw(results, folder / "coordinates.png")
    print(table(results))


LR = 2.0**-9
DATA = pretraining.Data(source="pydocs", seq=64, batch=2)


def measure(widths: tuple[int, ...], mup: bool) -> dict:
    """{"sizes": {width: {step: {place: size}}}, "slopes": {step: {place: slope}}}, sizes being
    geometric means over seeds."""
    found = {}
    for width in widths:
        optimiser = optimizer.Optim(lr=LR, schedule="constant", warmup=0)
        run = shapes.run("coordinates", width, LAYERS, mup, DATA, optimiser, steps=STEPS[-1])
        each = [
            activation_sizes.sizes(dataclasses.replace(run, seed=seed), STEPS)
            for seed in range(SEEDS)
        ]
        found[width] = {
            number: {
                place: float(np.exp(np.mean([np.log(one[number][place]) for one in each])))
                for place in each[0][number]
            }
            for number in STEPS
        }
        print(NAMES[mup], width, found[width][STEPS[-1]], flush=True)
    return {"sizes": found, "slopes": activation_sizes.slopes(found)}


def table(results: dict) -> str:
    """The slopes as markdown."""
    places = list(next(iter(results["muP"]["slopes"].values())))
    lines = [
        "| | step | " + " | ".join(places) + " |",
        "|---|---|" + "---|" * len(places),
    ]
    for name in ("muP", "standard"):
        for number, row in results[name]["slopes"].items():
            what = "size at the start" if int(number) == 0 else f"change after {number}"
            cells = [f"{row[p]:+.2f}" + ("" if abs(row[p]) <= TOLERANCE else " *") for p in places]
            lines.append(f"| {name} | {what} | " + " | ".join(cells) + " |")
    told = f"\nSlope of log size against log width; * more than {TOLERANCE} from 0.\n"
    return "\n".join(lines) + "\n" + told


def draw(results: dict, path: pathlib.Path) -> None:
    """Size against width: a row of panels for each parametrisation, a panel for each step."""
    from matplotlib import figure

    whole = figure.Figure(figsize=(10, 6), layout="constrained")
    axes = whole.subplots(2, len(STEPS), sharex=True)
    for row, name in zip(axes, ("muP", "standard"), strict=True):
        for ax, number in zip(row, STEPS, strict=True):
            sizes = results[name]["sizes"]
            for place in next(iter(sizes.values()))[number]:
                ax.loglog(list(sizes), [sizes[w][number][place] for w in sizes], "o-", label=place)
            ax.set_title(f"{name}, " + ("start" if number == 0 else f"change after {number}"))
    for ax in axes[-1]:
        ax.set_xlabel("width")
    axes[0][0].set_ylabel("root mean square")
    axes[0][0].legend(fontsize=8)
    whole.savefig(path, dpi=110)


if __name__ == "__main__":
    main()
