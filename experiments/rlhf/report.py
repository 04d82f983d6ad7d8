"""The table and the picture of align.py's results."""

import pathlib
from collections.abc import Callable
from typing import Any, NamedTuple

from experiments import spread


class Line(NamedTuple):
    """One line of the table: a number of a seed's results, and what it is held to."""

    name: str
    of: Callable[[dict[str, Any]], float]
    bar: str
    holds: Callable[[float], bool]


LINES = [
    Line(
        "SFT: KL(source to model), nats", lambda s: s["sft"]["kl"], "<= 0.02", lambda x: x <= 0.02
    ),
    Line(
        "reward model: accuracy below Bayes",
        lambda s: s["reward"]["bayes_accuracy"] - s["reward"]["accuracy"],
        "<= 0.012",
        lambda x: x <= 0.012,
    ),
    Line(
        "reward model: NLL above Bayes, nats",
        lambda s: s["reward"]["nll"] - s["reward"]["bayes_nll"],
        "<= 0.02",
        lambda x: x <= 0.02,
    ),
    Line(
        "reward model: correlation with the reward",
        lambda s: s["reward"]["correlation"],
        ">= 0.96",
        lambda x: x >= 0.96,
    ),
    Line(
        "DPO: correlation of the implicit reward",
        lambda s: s["dpo"]["correlation"],
        ">= 0.96",
        lambda x: x >= 0.96,
    ),
    Line(
        "DPO: slope of the implicit reward",
        lambda s: s["dpo"]["slope"],
        "0.85 .. 1.15",
        lambda x: 0.85 <= x <= 1.15,
    ),
    Line("DPO: share of the way to J*", lambda s: s["dpo"]["gap"], ">= 0.92", lambda x: x >= 0.92),
    Line("PPO: share of the way to J*", lambda s: s["ppo"]["gap"], ">= 0.95", lambda x: x >= 0.95),
    Line(
        "PPO: efficiency at its KL",
        lambda s: s["ppo"]["efficiency"],
        ">= 0.97",
        lambda x: x >= 0.97,
    ),
    Line(
        "PPO: KL over that of the best policy",
        lambda s: s["ppo"]["kl"] / s["ppo"]["best_kl"],
        "<= 1.1",
        lambda x: x <= 1.1,
    ),
    Line(
        "GRPO: share of the way to J*", lambda s: s["grpo"]["gap"], ">= 0.97", lambda x: x >= 0.97
    ),
    Line(
        "GRPO: efficiency at its KL",
        lambda s: s["grpo"]["efficiency"],
        ">= 0.97",
        lambda x: x >= 0.97,
    ),
]


def table(results: dict[str, Any]) -> str:
    """The results as Markdown: mean and 95 % interval over seeds, every seed, and the bar."""
    seeds = results["seeds"]
    head = ["", "mean", "95 %", *(f"seed {s['seed']}" for s in seeds), "bar", "held by"]
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    for line in LINES:
        values = [line.of(s) for s in seeds]
        mean, half = spread.interval(values)
        held = sum(map(line.holds, values))
        cells = [line.name, f"{mean:.4f}", f"+- {half:.4f}", *(f"{x:.4f}" for x in values)]
        lines.append("| " + " | ".join([*cells, line.bar, f"{held} of {len(values)}"]) + " |")
    return "\n".join(lines) + "\n"


def draw(results: dict[str, Any], path: pathlib.Path) -> None:
    """A picture: where each seed's policies stand between the reference's J and J*, and the reward
    while PPO and GRPO learn."""
    from matplotlib import figure

    picture = figure.Figure(figsize=(11, 4.2), layout="constrained")
    left, right = picture.subplots(1, 2)
    names = ("dpo", "ppo", "grpo")
    for x, name in enumerate(names):
        for i, seed in enumerate(results["seeds"]):
            left.plot(x + 0.08 * (i - 2), seed[name]["gap"], "o", color=f"C{x}")
    left.axhline(1, color="gray", linewidth=0.8, linestyle=":")
    left.set_xticks(range(len(names)), [name.upper() for name in names])
    left.set(ylabel="(J - J of the reference) / (J* - J of the reference)", title="every seed")
    for color, name in (("C1", "ppo"), ("C2", "grpo")):
        for i, seed in enumerate(results["seeds"]):
            course = seed[name]["course"]
            label = name.upper() if not i else None
            right.plot(range(0, 5 * len(course), 5), course, color=color, alpha=0.6, label=label)
    right.set(xlabel="iteration", ylabel="mean reward of its samples", title="learning")
    right.legend()
    picture.savefig(path, dpi=100)
