"""How far from the truth is what was fitted? Scores the sweeps of this folder against the entropy.

    python experiments/known_entropy/score.py [--runs runs] [--out FOLDER]

Reads the sweeps' records (study.json with its draws, outcome.json), writes scores.json and
scores.md. The truth about the held-out documents is what the source itself loses on them: a model
is judged on the same luck. The source's own entropy stands beside it.
"""

import argparse
import importlib.util
import json
import math
import pathlib
from types import ModuleType
from typing import Any

import numpy as np

from jaxlm.data import pretraining, synthetic
from jaxlm.data.sources import source
from jaxlm.data.synthetic import learner, machine
from jaxlm.scaling import study_parts, study_record, table
from jaxlm.scaling.laws import bootstrap, fitting, loss_laws
from jaxlm.train.sweep.sweep_cells import Sweep

HERE = pathlib.Path(__file__).parent


def main() -> None:
    """Score every sweep that has a study."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=pathlib.Path, default=pathlib.Path("runs"))
    parser.add_argument("--out", type=pathlib.Path, default=HERE / "results")
    given = parser.parse_args()
    found = {}
    plans = sweeps()
    for name in plans.SOURCES:
        plan = getattr(plans, name)()
        folder = given.runs / plan.name
        if (folder / study_record.FILE).is_file():
            found[name] = scored(plan, folder)
    if not found:
        parser.error(f"{given.runs} holds no study of {', '.join(plans.SOURCES)}")
    record = {"sweeps": found, "ideal": ideal(found)}
    given.out.mkdir(parents=True, exist_ok=True)
    text = json.dumps(study_record.plain(record), indent=1, allow_nan=False)
    (given.out / "scores.json").write_text(text + "\n", "utf-8")
    (given.out / "scores.md").write_text(report(record), "utf-8")
    print(report(record))


def sweeps() -> ModuleType:
    """The file sweep.py beside this one."""
    spec = importlib.util.spec_from_file_location("known_entropy_sweep", HERE / "sweep.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def scored(plan: Sweep, folder: pathlib.Path) -> dict[str, Any]:
    """The truth, each form's E against it, and the prediction of the held-out run."""
    data = plan.base.data
    assert isinstance(data, pretraining.Data)
    truth = synthetic.entropy(data.source)
    held = list(source.texts(data.source, data.field, "val", data.holdout))
    here = synthetic.score(data.source, held) / truth.tokens
    record = study_record.load(folder).record
    smallest = min(record.points.loss)
    forms = {
        name: _against(form, float(here.mean()))
        for name, form in record.forms.items()
        if "E" in form.theta
    }
    return {
        "source": data.source,
        "entropy": truth.nats_per_token,
        "held_out": float(here.mean()),
        "held_out_error": float(here.std(ddof=1) / math.sqrt(len(here))),
        "documents": len(held),
        "points": len(record.points.loss),
        "smallest_loss": smallest,
        "law": record.law,
        "forms": forms,
        "larger": _larger(folder),
    }


def _larger(folder: pathlib.Path) -> dict[str, Any] | None:
    """The held-out run's prediction and outcome; None before it is trained."""
    if not (folder / "outcome.json").is_file():
        return None
    parts = (folder / name for name in ("prediction.json", "outcome.json"))
    told, came = (json.loads(part.read_text("utf-8")) for part in parts)
    return {
        "params": told["params"],
        "tokens": told["tokens"],
        "times_largest": told["times_largest"],
        "predicted": told["loss"],
        "interval": told["interval"],
        "measured": came["measured"],
        "error": came["error"],
        "inside": came["inside"],
    }


def _against(form: study_parts.Form, truth: float) -> dict[str, Any]:
    """(E - H) / H of a fitted form, with its interval, and whether that holds 0."""
    at = list(form.theta).index("E")
    draws = form.draws.reshape(-1, len(form.theta))[:, at]
    low, high = bootstrap.interval(draws)
    return {
        "E": form.theta["E"],
        "error": form.theta["E"] / truth - 1,
        "low": low / truth - 1,
        "high": high / truth - 1,
        "covers": bool(low <= truth <= high),
    }


# --- The same form where nothing is trained --------------------------------------------------

RANGES = ((1e4, 1e5), (1e4, 1e6), (1e5, 1e6), (1e5, 1e7))  # symbols read


def ideal(found: dict[str, Any]) -> dict[str, Any]:
    """E of E + b D^-beta as fitted to what ideal learners of each source lose, 60 a range, without
    noise and with all contexts kept. What is off here is the form's own error, not the runs'."""
    out = {}
    for name, one in found.items():
        cfg = synthetic.parse(one["source"])
        built = synthetic.build(cfg)
        assert isinstance(built, machine.Machine)
        entropy = one["entropy"] * (cfg.length + 1) / cfg.length
        out[name] = []
        for low, high in RANGES:
            read = np.geomspace(low, high, 60)
            loss = learner.loss(built, cfg.length, np.full(60, len(built.weights)), read)
            t = table.make(np.ones(60), read, loss, flops=read)
            seen = fitting.fit(loss_laws.LAWS["offset"], t).theta
            row = {"read": [low, high], "least": loss.min() / entropy - 1}
            out[name].append(row | {"error": seen["E"] / entropy - 1, "theta": seen})
    return out


# --- The table -------------------------------------------------------------------------------


def report(record: dict[str, Any]) -> str:
    """scores.md."""
    lines = [
        "| source | H | on the held-out text | least loss | form | (E - H)/H | 95 % | holds H |",
        "|---|---|---|---|---|---|---|---|",
    ]
    covered = total = 0
    for name, one in record["sweeps"].items():
        for form, e in one["forms"].items():
            mark = "**" if form == one["law"] else ""
            lines.append(
                f"| {name} | {one['entropy']:.4f} | {one['held_out']:.4f} | "
                f"{one['smallest_loss']:.4f} | {mark}{form}{mark} | {e['error']:+.2%} | "
                f"{e['low']:+.2%} to {e['high']:+.2%} | {'yes' if e['covers'] else 'no'} |"
            )
            covered, total = covered + e["covers"], total + 1
    lines += ["", f"Of {total} intervals {covered} hold the truth. Bold: the form that plans.", ""]
    lines += [
        "| larger run | compute | predicted | interval | measured | error | above the truth |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, one in record["sweeps"].items():
        run = one["larger"]
        if run is not None:
            low, high = run["interval"]
            lines.append(
                f"| {name} | x {run['times_largest']:.1f} | {run['predicted']:.4f} | "
                f"{low:.4f} to {high:.4f} | {run['measured']:.4f} | {run['error']:+.2f} % | "
                f"{run['measured'] - one['held_out']:.4f} |"
            )
    lines += [
        "",
        "| ideal learners of | symbols read | least loss above H | (E - H)/H | exponent |",
        "|---|---|---|---|---|",
    ]
    for name, rows in record["ideal"].items():
        for row in rows:
            low, high = row["read"]
            lines.append(
                f"| {name} | {low:.0e} to {high:.0e} | {row['least']:+.2%} | {row['error']:+.2%} | "
                f"{row['theta']['b']:.3f} |"
            )
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
