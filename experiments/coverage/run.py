"""How often the plan of a study holds the truth, over simulated studies of eleven kinds.

    python -m experiments.coverage.run --studies 40 --out runs/coverage.jsonl

Every line of the file is one study: whether the intervals of N* and of the loss at ten times the
largest budget hold the truth, how wide they are, and the same of chinchilla's bootstrap alone.
Printed is the table by kind. A run that is stopped goes on where it was.
"""

import argparse
import json
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from experiments.coverage import studies
from jaxlm.core import cache
from jaxlm.scaling import study_parts
from jaxlm.scaling.study import analysis, report_formats

LAWS = ("chinchilla", "tied", "kaplan", "offset")


def one(kind: str, seed: int, replicates: int) -> dict[str, Any]:
    """The record of a study: {kind, seed, plan, chinchilla: {params, loss: [held, log width]}}."""
    t, truth = studies.draw(kind, seed)
    options = analysis.Options(laws=LAWS, replicates=replicates, target=truth.target)
    record = analysis.run(t, options)
    plan, form = record.planned, record.forms["chinchilla"].optimum
    assert isinstance(form, study_parts.Optimum)
    return {
        "kind": kind,
        "seed": seed,
        "planner": plan.form,
        "caution": record.cautions[0].kind,
        "plan": {
            "params": _held(plan.params.interval, truth.params),
            "loss": _held(plan.loss.interval, truth.loss),
        },
        "chinchilla": {
            "params": _held(form.params[1], truth.params),
            "loss": _held(form.loss[1], truth.loss),
        },
    }


def _held(interval: study_parts.Interval, value: float) -> list[float]:
    assert interval is not None
    low, high = interval
    return [float(low <= value <= high), float(np.log(high / low))]


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Coverage and median width by kind, the plan's and chinchilla's own."""
    lines = []
    for kind in studies.KINDS:
        own = [r for r in rows if r["kind"] == kind]
        if not own:
            continue
        cells = [kind, str(len(own))]
        for who in ("plan", "chinchilla"):
            for what in ("params", "loss"):
                held, width = np.array([r[who][what] for r in own]).T
                cells.append(f"{held.mean():.2f} ({np.median(width):.3f})")
        lines.append(cells)
    header = ["kind", "studies", "N*", "loss", "N*, chinchilla alone", "loss, chinchilla alone"]
    return report_formats.table(header, lines, "markdown")


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--studies", type=int, default=40, help="of each kind")
    parser.add_argument("--first", type=int, default=0, help="seed of the first")
    parser.add_argument("--replicates", type=int, default=300)
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("runs/coverage.jsonl"))
    args = parser.parse_args()
    cache.programs(0.0)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    lines = args.out.read_text().splitlines() if args.out.exists() else []
    rows = [json.loads(line) for line in lines]
    done = {(r["kind"], r["seed"]) for r in rows}
    with args.out.open("a") as file:
        for seed in range(args.first, args.first + args.studies):
            for kind in studies.KINDS:
                if (kind, seed) not in done:
                    rows.append(one(kind, seed, args.replicates))
                    print(json.dumps(rows[-1]), file=file, flush=True)
    print(table(rows))


if __name__ == "__main__":
    main()
