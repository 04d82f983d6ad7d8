"""The record of a study: one JSON file with points, fits, draws, back-tests and the checklist.

    s = study_record.load("runs/fit/study.json")
    s.law, s.theta, s.draws.shape                # "chinchilla", {"E": 1.8172, ...}, (1000, 5)

The checklist is that of Li et al. 2025, "(Mis)Fitting scaling laws" (arXiv:2502.18969), appendix:
most of the papers that it surveys leave out enough that nobody can repeat their fit. What the
runs do not record is requested (`About`), and what is not stated is recorded as not stated.
"""

import dataclasses
import json
import math
import pathlib
from typing import Any, NamedTuple

import numpy as np

from jaxlm.core import io, json_file
from jaxlm.scaling import table

FILE = "study.json"
FORMAT = 1
# Value of a field that is not given.
UNTOLD = "not stated"

Record = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class About:
    """Facts about the points that they do not record themselves."""

    architecture: str = UNTOLD
    """Architecture of the models, such as "LLaMA, depth 4 to 24, width 64 per layer"."""
    corpus: str = UNTOLD
    """Data that was trained on, with its version."""
    tokenizer: str = UNTOLD
    """Tokenizer whose tokens D counts."""
    optimiser: str = UNTOLD
    """Name and hyper-parameters."""
    schedule: str = UNTOLD
    """Warm-up and decay, and whether the decay ends where the run ends."""
    batch: str = UNTOLD
    """Tokens per update, and how they depend on size."""
    tuning: str = UNTOLD
    """Hyper-parameters that were tuned or set by rule at each size."""
    checkpoints: str = UNTOLD
    """Kind of checkpoints that the points are: "final", "intermediate"."""
    smoothing: str = UNTOLD
    """Smoothing or interpolation of the losses, "none" if there was none."""
    loss_set: str = UNTOLD
    """Data that the loss is measured on."""
    loss_unit: str = "nats per token"
    """Unit of the loss column."""


class Study(NamedTuple):
    """The parts of a study that a plan needs, and all the rest as it was written."""

    law: str
    """The form that plans: its name in loss_laws.LAWS."""
    theta: dict[str, float]
    """Its natural parameters, full precision."""
    draws: np.ndarray
    """[R, k] bootstrap draws of them, in the order of theta."""
    counting: table.Counting
    """The counting of N and C."""
    flops: tuple[float, float]
    """Least and largest training FLOPs among the points used."""
    record: Record
    """The whole file."""
    named: bool = False
    """Whether `law` was requested, instead of the form that the study plans by."""


def save(folder: pathlib.Path, record: Record) -> pathlib.Path:
    """Write study.json whole or not at all; its path. Raises: io.WriteError."""
    io.make_folder(folder)
    path = folder / FILE
    io.write(path, json.dumps(plain(record), indent=1, allow_nan=False) + "\n")
    return path


def load(path: str | pathlib.Path, law: str | None = None) -> Study:
    """The Study in a file, or in a directory's study.json; `law` names another of its forms.

    Raises: FileNotFoundError; ValueError naming the field that is missing or the form that was
    not fitted.
    """
    path = pathlib.Path(path).expanduser()
    path = path / FILE if path.is_dir() else path
    record = json_file.read(path)
    if not isinstance(record, dict) or record.get("format") != FORMAT:
        raise ValueError(f"{path}: format {FORMAT} of a study is needed; `jaxlm fit` writes one")
    missing = [k for k in ("law", "forms", "counting", "flops") if k not in record]
    if missing:
        raise ValueError(f"{path}: the study lacks {', '.join(missing)}")
    name = law or record["law"]
    if name not in record["forms"]:
        why = record.get("skipped", {}).get(name, "it is no form of this study")
        raise ValueError(f"{path}: law {name!r}: {why}; fitted are {sorted(record['forms'])}")
    form = record["forms"][name]
    low, high = record["flops"]
    return Study(
        law=name,
        theta={k: float(v) for k, v in form["theta"].items()},
        draws=np.array(form["draws"], float).reshape(-1, len(form["theta"])),
        counting=table.Counting(**record["counting"]),
        flops=(float(low), float(high)),
        record=record,
        named=law is not None,
    )


def plain(value: Any) -> Any:
    """The value as JSON knows it: arrays as lists, infinities and nan as null."""
    if isinstance(value, dict):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, np.ndarray):
        return plain(value.tolist())
    if hasattr(value, "_asdict"):
        return plain(value._asdict())
    if isinstance(value, list | tuple):
        return [plain(v) for v in value]
    if isinstance(value, np.generic):
        return plain(value.item())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def checklist(about: About, t: table.Table, record: Record) -> Record:
    """{hypothesis, setup, extraction, fitting: {item: what is known of it}} for a study's record.

    Every item of the four headings has a field; t is the table that was fitted.
    """
    options, per_run = record["options"], np.unique(t.run, return_counts=True)[1]
    sizes = np.unique(t.params)
    dropped = record["source"]["dropped"]
    return {
        "hypothesis": {
            "forms": {name: form["source"] for name, form in record["forms"].items()},
            "variables": f"N parameters ({t.counting.params}), D training tokens, "
            f"C training FLOPs ({t.counting.flops})",
            "predicted": f"loss in {about.loss_unit} on {about.loss_set}",
        },
        "setup": {
            "runs": len(per_run),
            "sizes": len(sizes),
            "size_range": [sizes[0], sizes[-1]],
            "tokens_range": [t.tokens.min(), t.tokens.max()],
            "flops_range": [t.flops.min(), t.flops.max()],
            "architecture": about.architecture,
            "corpus": about.corpus,
            "tokenizer": about.tokenizer,
            "optimiser": about.optimiser,
            "schedule": about.schedule,
            "batch": about.batch,
            "tuning": about.tuning,
        },
        "extraction": {
            "points": len(t.loss),
            "points_per_run": [int(per_run.min()), int(per_run.max())],
            "checkpoints": about.checkpoints,
            "dropped": dropped,
            "smoothing": about.smoothing,
            "loss_set": about.loss_set,
            "counting": t.counting._asdict(),
        },
        "fitting": {
            "objective": f"sum of Huber(log L - log fit), delta {options['delta']:g}",
            "optimiser": "variable projection seeds, then Newton with exact Huber curvature "
            "(jaxlm.scaling.laws.fitting), float64",
            "reached": {name: f["reached"] for name, f in record["forms"].items()},
            "gradient": {name: f["gradient"] for name, f in record["forms"].items()},
            "selection": "least objective of all starts; other optima within 1 % are listed",
            "validation": record["backtest"],
            "confidence": f"{options['bootstrap']} bootstrap, {options['replicates']} "
            f"replicates, seed {options['seed']}, percentiles at level {options['level']:g}",
        },
    }


def untold(found: Record) -> list[str]:
    """The items of a checklist that are not stated, as heading.item."""
    return [
        f"{heading}.{item}"
        for heading, items in found.items()
        for item, value in items.items()
        if isinstance(value, str) and UNTOLD in value
    ]
