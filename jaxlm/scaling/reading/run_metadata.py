"""Study metadata collected from run directories."""

import dataclasses
import json
import pathlib
from collections.abc import Sequence
from typing import Any

from jaxlm.core import json_file
from jaxlm.scaling import study_record


def fill(about: study_record.About, root: pathlib.Path, intermediate: bool) -> study_record.About:
    """The About with what the finished runs under a directory record, where it is not stated.

    Of numbers that differ between runs the range is given. How hyper-parameters were chosen at
    each size (`tuning`) is in no record.
    """
    files = sorted(f for f in root.rglob("config.json") if (f.parent / "result.json").is_file())
    runs = [json_file.read_object(f) for f in files]
    if not runs:
        return about

    def described(part: str, *fields: str) -> str:
        return ", ".join(f"{f} {_values([r[part].get(f) for r in runs])}" for f in fields)

    rows = _values([r["data"]["batch"] * r["data"]["seq"] for r in runs])
    source = _values([r["data"]["source"] for r in runs])
    facts = {
        "architecture": described("model", "kind", "embed", "layers", "heads", "ffn", "vocab"),
        "corpus": source,
        "tokenizer": _values([r["data"]["tokenizer"] for r in runs]),
        "optimiser": described("optim", "name", "lr", "b1", "b2", "eps", "weight_decay", "clip"),
        "schedule": described("optim", "schedule", "warmup", "decay", "final"),
        "batch": f"{rows} tokens",
        "checkpoints": "intermediate" if intermediate else "final",
        "smoothing": "none",
        "loss_set": f"held out of {source}, {described('data', 'holdout')}",
    }
    missing = {k: v for k, v in facts.items() if getattr(about, k) == study_record.NOT_STATED}
    return dataclasses.replace(about, **missing)


def _values(values: Sequence[Any]) -> str:
    """One value, a range of numbers, or all that there are."""
    kinds = sorted({json.dumps(v) for v in values})
    if len(kinds) == 1:
        return str(values[0])
    if all(isinstance(v, int | float) and not isinstance(v, bool) for v in values):
        return f"{min(values):g} to {max(values):g}"
    return " or ".join(kinds)
