"""The table and the picture of the constitutional experiment."""

import pathlib
import statistics
from typing import Any

from experiments import spread

STAGES = ("base", "SFT", "SL-CAI", "RL-CAI")


def shown(values: list[float]) -> str:
    """A mean with its interval."""
    return "{:.3f} \u00b1 {:.3f}".format(*spread.interval(values))


def table(results: dict[str, Any]) -> str:
    """results.md."""
    seeds = results["seeds"]
    heads = {"violates": "violates", "helps": "helps", "refuses": "over-refuses"}
    by = {"p": "rude", "q": "leaks", "r": "stutters", "s": "complies", "t": "no help"}
    lines = [
        "# Constitutional AI: results",
        "",
        f"{len(seeds)} seeds, mean and 95 % interval; {results['seconds']} s in all. Shares of "
        f"{results['size']['tests']} answers to prompts that no stage has seen, sampled at "
        "temperature 1.",
        "",
        f"| stage | {' | '.join((*heads.values(), *by.values()))} |",
        "|---" * (1 + len(heads) + len(by)) + "|",
    ]
    for stage in STAGES:
        rows = [s["stages"][stage] for s in seeds]
        cells = [shown([r[name] for r in rows]) for name in heads]
        cells += [f"{statistics.mean(r[name] for r in rows):.3f}" for name in by]
        lines.append(f"| {stage} | {' | '.join(cells)} |")
    lines += ["", "| rounds | violates | helps | over-refuses |", "|---|---|---|---|"]
    for number in range(len(seeds[0]["rounds"])):
        cells = [shown([s["rounds"][number][name] for s in seeds]) for name in heads]
        lines.append(f"| {number} | {' | '.join(cells)} |")
    told = {
        "critiques that are wrong": [s["critiques_wrong"] for s in seeds],
        "labels right, of pairs that differ": [s["labels"]["right"] for s in seeds],
        "of those that are learnt from": [s["decided"]["right"] for s in seeds],
        "distance from 0.5 of labels of pairs that do not": [
            s["labels"]["ties_off_by"] for s in seeds
        ],
        "position bias": [s["labels"]["position_bias"] for s in seeds],
        "readings that the order turns around": [s["labels"]["flips"] for s in seeds],
    }
    lines += ["", "| of the model's own judgement | |", "|---|---|"]
    lines += [f"| {name} | {shown(values)} |" for name, values in told.items()]
    return "\n".join(lines) + "\n"


def draw(results: dict[str, Any], path: pathlib.Path) -> None:
    """Rates by stage, and by round of revision."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 2, figsize=(10, 4), layout="constrained", sharey=True)
    names = {"violates": "violates", "helps": "does not help", "refuses": "over-refuses"}
    seeds = results["seeds"]
    columns = {
        "stage": (list(STAGES), lambda s, i: s["stages"][STAGES[i]]),
        "rounds of critique and revision": (
            [str(i) for i in range(len(seeds[0]["rounds"]))], lambda s, i: s["rounds"][i],
        ),
    }  # fmt: skip
    for axis, (title, (ticks, at)) in zip(axes, columns.items(), strict=True):
        for name, told in names.items():
            values = [[at(s, i)[name] for s in seeds] for i in range(len(ticks))]
            if name == "helps":
                values = [[1 - v for v in row] for row in values]
            means, halves = zip(*map(spread.interval, values), strict=True)
            axis.errorbar(range(len(ticks)), means, halves, marker="o", capsize=3, label=told)
        axis.axhline(0.02, color="grey", linewidth=0.8, linestyle=":")
        axis.set_xticks(range(len(ticks)), ticks)
        axis.set_xlabel(title)
    axes[0].set_ylabel("share of answers")
    axes[0].set_ylim(bottom=0)
    axes[0].legend()
    figure.savefig(path, dpi=120)
    pyplot.close(figure)
