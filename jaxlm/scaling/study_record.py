"""The record of a study: points, fits, draws, back-tests and the checklist, as study.json holds it.

    s = study_record.load("runs/fit/study.json")
    s.law, s.theta, s.draws.shape                # "chinchilla", {"E": 1.8172, ...}, (1000, 5)
    s.record.plan.params.interval                # (5.1e10, 9.6e10)

A record has the fields of study.json, which `save` writes and `load` reads by their types.

The checklist is that of Li et al. 2025, "(Mis)Fitting scaling laws" (arXiv:2502.18969), appendix:
most of the papers that it surveys leave out enough that nobody can repeat their fit. What the
runs do not record is requested (`About`), and what is not stated is recorded as not stated.
"""

import dataclasses
import json
import math
import pathlib
from typing import Any, Literal, NamedTuple

import numpy as np

from jaxlm.core import config, io, json_file
from jaxlm.scaling import study_parts, table

FILE = "study.json"
FORMAT = 1
# Value of a field of `About` that is not given.
NOT_STATED = "not stated"


@dataclasses.dataclass(frozen=True)
class About:
    """Facts about the points that they do not record themselves."""

    architecture: str = NOT_STATED
    """Architecture of the models, such as "LLaMA, depth 4 to 24, width 64 per layer"."""
    corpus: str = NOT_STATED
    """Data that was trained on, with its version."""
    tokenizer: str = NOT_STATED
    """Tokenizer whose tokens D counts."""
    optimiser: str = NOT_STATED
    """Name and hyper-parameters."""
    schedule: str = NOT_STATED
    """Warm-up and decay, and whether the decay ends where the run ends."""
    batch: str = NOT_STATED
    """Tokens per update, and how they depend on size."""
    tuning: str = NOT_STATED
    """Hyper-parameters that were tuned or set by rule at each size."""
    checkpoints: str = NOT_STATED
    """Kind of checkpoints that the points are: "final", "intermediate"."""
    smoothing: str = NOT_STATED
    """Smoothing or interpolation of the losses, "none" if there was none."""
    loss_set: str = NOT_STATED
    """Data that the loss is measured on."""
    loss_unit: str = "nats per token"
    """Unit of the loss column."""


@dataclasses.dataclass(frozen=True)
class Options:
    """Options of a study."""

    laws: tuple[str, ...] = ()
    """Forms to fit; none named: every form that the runs identify."""
    law: str | None = None
    """The form that plans, or isoflop; not named: chinchilla, unless another predicts held-out
    budgets better beyond noise."""
    fix: tuple[str, ...] = ()
    """NAME=VALUE, a parameter held in every form that has it (alpha=0.35), or LAW.NAME=VALUE."""
    drop_highest: int = 0
    """Points of highest loss left out of every fit."""
    delta: study_parts.Delta = 1e-3
    """Huber's delta, of log loss. Hoffmann et al. 2022 take 1e-3."""
    replicates: int = 1000
    """Bootstrap refits of each form."""
    bootstrap: Literal["auto", "case", "cluster"] = "auto"
    """Resample points, or whole runs; auto: runs where any has several points, and
    there are six or more."""
    seed: int = 0
    """Seed of all resampling."""
    holdout: float | None = None
    """Runs of this many FLOPs or more are the back-test's; not given: the largest budgets in turn,
    or the largest half of the runs, four tenths, and so on to a tenth."""
    target: float | None = None
    """FLOPs that the report extrapolates to; not given: ten times the largest budget."""
    noise: float | None = None
    """Standard deviation of the loss between seeds, for the bootstrap of approach 2; not given: it
    is measured from the points."""
    level: float = 0.95
    """Level of all intervals."""


@dataclasses.dataclass(frozen=True)
class Hypothesis:
    """The checklist's first heading."""

    forms: dict[str, str]  # {form: source}
    variables: str
    predicted: str


@dataclasses.dataclass(frozen=True)
class Setup:
    """The checklist's second heading; texts as in `About`."""

    runs: int
    sizes: int
    size_range: tuple[float, float]
    tokens_range: tuple[float, float]
    flops_range: tuple[float, float]
    architecture: str
    corpus: str
    tokenizer: str
    optimiser: str
    schedule: str
    batch: str
    tuning: str


@dataclasses.dataclass(frozen=True)
class Extraction:
    """The checklist's third heading."""

    points: int
    points_per_run: tuple[int, int]  # least and most
    checkpoints: str
    dropped: tuple[study_parts.Dropped, ...]
    smoothing: str
    loss_set: str
    counting: table.Counting


@dataclasses.dataclass(frozen=True)
class Fitting:
    """The checklist's fourth heading."""

    objective: str
    optimiser: str
    reached: dict[str, float]  # {form: share of the starts that end at the optimum}
    gradient: dict[str, study_parts.Number]
    selection: str
    validation: study_parts.Backtest
    confidence: str


@dataclasses.dataclass(frozen=True)
class Checklist:
    """The checklist of Li et al. 2025, "(Mis)Fitting scaling laws" (arXiv:2502.18969), appendix."""

    hypothesis: Hypothesis
    setup: Setup
    extraction: Extraction
    fitting: Fitting


@dataclasses.dataclass(frozen=True, kw_only=True)
class Record:
    """A study."""

    format: int
    jaxlm: str
    """Version that made it."""
    source: study_parts.Source
    counting: table.Counting
    """Counting of N and C."""
    per: float
    """C / (N D), the median of the points used."""
    flops: tuple[float, float]
    """Least and largest training FLOPs among the points used."""
    options: Options
    law: str
    """The form that plans: its name in loss_laws.LAWS."""
    theta: study_parts.Theta
    """Its natural parameters."""
    forms: dict[str, study_parts.Form]
    skipped: dict[str, str]
    """{form: why it was not fitted}."""
    backtest: study_parts.Backtest
    approaches: dict[str, study_parts.Approach]
    outliers: tuple[study_parts.Outlier, ...]
    profiles: dict[str, study_parts.Profile]
    """{parameter of the form that plans: its profile}."""
    points: study_parts.Points
    plan: study_parts.StudyPlan | None = None
    """None in files of earlier versions."""
    next: tuple[study_parts.Candidate, ...]
    """Candidates for the next run, the best first."""
    checklist: Checklist
    cautions: tuple[study_parts.Caution, ...]
    """The most important first."""
    extended: dict[str, Any] | None = dataclasses.field(default=None, metadata=study_parts.LEFT_OUT)
    """{analysis: its record} of `jaxlm.scaling.extended`."""

    @property
    def planned(self) -> study_parts.StudyPlan:
        """The plan. Raises: ValueError where an earlier version recorded none."""
        if self.plan is None:
            raise ValueError(f"plan: jaxlm {self.jaxlm} recorded none; fit the runs again")
        return self.plan


class Study(NamedTuple):
    """A record and the form of it that is used."""

    law: str
    """Its name in loss_laws.LAWS."""
    theta: dict[str, float]
    """Its natural parameters."""
    draws: np.ndarray
    """[R, k] bootstrap draws of them, in the order of theta."""
    record: Record
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

    Raises: FileNotFoundError; ValueError naming the field that is missing or of another type, or
    the form that was not fitted.
    """
    path = pathlib.Path(path).expanduser()
    path = path / FILE if path.is_dir() else path
    content = json_file.read(path)
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise ValueError(f"{path}: format {FORMAT} of a study is needed; `jaxlm fit` writes one")
    record = config.from_dict(Record, content, f"{path}: ")
    name = law or record.law
    if name not in record.forms:
        why = record.skipped.get(name, "it is no form of this study")
        raise ValueError(f"{path}: law {name!r}: {why}; fitted are {sorted(record.forms)}")
    form = record.forms[name]
    draws = form.draws.reshape(-1, len(form.theta))
    return Study(name, form.theta, draws, record, law is not None)


def plain(value: Any) -> Any:
    """The value as JSON knows it: records as objects, arrays as lists, nan and infinities null."""
    if isinstance(value, dict):
        return {str(k): plain(v) for k, v in value.items()}
    if dataclasses.is_dataclass(value):
        written = [
            f.name
            for f in dataclasses.fields(value)
            if getattr(value, f.name) is not None or f.metadata != study_parts.LEFT_OUT
        ]
        return {name: plain(getattr(value, name)) for name in written}
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
