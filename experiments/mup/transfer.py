"""Does the best learning rate of a narrow model stay the best of wide ones?

    python -m experiments.mup.transfer --record       five minutes, on 2 quiet cores
    python -m experiments.mup.transfer --quick        tiny, to see that it runs

A model of bytes at four widths, each trained at a grid of learning rates that are powers of two,
under muP and under the standard parametrisation. All learning rates and seeds of one width are one
population (jaxlm.train.sweep.population), so one program. The answer is the best learning rate of
each width, from a parabola through the three points around the least loss, and how far it moves.
"""

import argparse
import json
import pathlib
import time
from typing import NamedTuple

import numpy as np

from experiments.mup import widths as shapes
from jaxlm.data import pretraining
from jaxlm.train.optim import optimizer
from jaxlm.train.sweep import population

HERE = pathlib.Path(__file__).parent
NAMES = {True: "muP", False: "standard"}


class Size(NamedTuple):
    """One scale of the experiment; powers are those of the learning rates."""

    widths: tuple[int, ...]
    powers: tuple[int, ...]
    seeds: int
    steps: int
    layers: int
    data: pretraining.Data


FULL = Size(
    (32, 64, 128, 256),
    tuple(range(-10, -1)),
    1,
    100,
    2,
    pretraining.Data(seq=64, batch=8, holdout=0.02),
)
QUICK = Size((16, 32), (-9, -7, -5), 1, 6, 1, pretraining.Data(seq=32, batch=2, holdout=0.02))
# The loss compared is the mean over the last steps: each step's rows are read once, so it is as
# unseen as held-out text, and costs nothing.
LAST = 0.1


def main() -> None:
    """Train all members, write results and figure, print the table."""
    parser = argparse.ArgumentParser(description="Learning-rate transfer over widths.")
    parser.add_argument("--quick", action="store_true", help="tiny settings; numbers mean nothing")
    parser.add_argument("--out", type=pathlib.Path, help="where results and runs go")
    parser.add_argument("--record", action="store_true", help="keep the results beside this file")
    args = parser.parse_args()
    size = QUICK if args.quick else FULL
    out = args.out or pathlib.Path("runs") / f"transfer{'_quick' if args.quick else ''}"
    begun = time.perf_counter()
    losses = {
        NAMES[mup]: {width: train(size, width, mup, out) for width in size.widths}
        for mup in (True, False)
    }
    results = {"powers": size.powers, "steps": size.steps, "seeds": size.seeds, "loss": losses}
    results["best"] = {
        name: {width: best(size.powers, row) for width, row in rows.items()}
        for name, rows in losses.items()
    }
    results["seconds"] = round(time.perf_counter() - begun)
    for folder in (out, HERE) if args.record else (out,):
        (folder / "results.json").write_text(json.dumps(results) + "\n", "utf-8")
        (folder / "results.md").write_text(table(results), "utf-8")
        draw(results, folder / "results.png")
    print(table(results))


def train(size: Size, width: int, mup: bool, out: pathlib.Path) -> list[float]:
    """The loss in nats per byte of each learning rate, a mean over seeds: one population."""
    members = [
        shapes.run(
            f"{NAMES[mup]}-{width}-{power}-{seed}",
            width,
            size.layers,
            mup,
            size.data,
            optimizer.Optim(lr=2.0**power, warmup=size.steps // 10, schedule="linear", final=0.0),
            steps=size.steps,
            seed=seed,
            eval_every=None,
            log_every=1,
            out=str(out / "members"),
        )
        for power in size.powers
        for seed in range(size.seeds)
    ]
    population.run(members)
    found = [last(out / "members" / run.name, size.steps) for run in members]
    return list(np.mean(np.reshape(found, (len(size.powers), size.seeds)), axis=1))


def last(folder: pathlib.Path, steps: int) -> float:
    """The mean loss over the last steps of a run; infinite where it is no number."""
    lines = (folder / "metrics.jsonl").read_text("utf-8").splitlines()
    seen = [json.loads(line) for line in lines]
    tail = [r["loss"] for r in seen if r["split"] == "train" and r["step"] > steps * (1 - LAST)]
    return float("inf") if None in tail else float(np.mean(tail))


def best(powers: tuple[int, ...], losses: list[float]) -> float | None:
    """The power of two of the best learning rate, by a parabola through three points; None where
    the least loss is at an end of the grid, so that the best may lie outside."""
    at = int(np.argmin(losses))
    if not 0 < at < len(powers) - 1 or not np.all(np.isfinite(losses[at - 1 : at + 2])):
        return None
    left, low, right = losses[at - 1 : at + 2]
    return powers[at] + 0.5 * (left - right) / (left - 2 * low + right)


def table(results: dict) -> str:
    """Best learning rates by width as markdown, and how far they move."""
    widths = list(results["loss"]["muP"])
    lines = ["| log2 of the best learning rate | " + " | ".join(map(str, widths)) + " | moves |"]
    lines.append("|---|" + "---|" * (len(widths) + 1))
    for name, row in results["best"].items():
        cells = ["at the grid's end" if row[w] is None else f"{row[w]:.2f}" for w in widths]
        known = [row[w] for w in widths if row[w] is not None]
        moves = f"{max(known) - min(known):.2f}" if len(known) == len(widths) else "unknown"
        lines.append(f"| {name} | " + " | ".join(cells) + f" | {moves} |")
    for name, rows in results["loss"].items():
        lines += ["", f"| {name}: loss at 2^ | " + " | ".join(map(str, results["powers"])) + " |"]
        lines.append("|---|" + "---|" * len(results["powers"]))
        for width, losses in rows.items():
            lines.append(f"| {width} | " + " | ".join(f"{x:.3f}" for x in losses) + " |")
    return "\n".join(lines) + "\n"


def draw(results: dict, path: pathlib.Path) -> None:
    """Loss against learning rate, a line a width."""
    from matplotlib import figure

    whole = figure.Figure(figsize=(9, 4), layout="constrained")
    for ax, (name, rows) in zip(whole.subplots(1, 2, sharey=True), results["loss"].items()):
        for width, losses in rows.items():
            ax.plot(results["powers"], losses, "o-", label=f"width {width}")
        ax.set_title(name)
        ax.set_xlabel("log2 learning rate")
    whole.axes[0].set_ylabel("nats per byte")
    whole.axes[0].legend(fontsize=8)
    whole.savefig(path, dpi=110)


if __name__ == "__main__":
    main()
