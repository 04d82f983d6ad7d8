"""Public runs that laws are checked against; tests that need a file skip by its name without it.

The files are not part of the repository: they are looked for in `../shared/data/scaling` beside
the checkout. Sources: Epoch AI's reading of Hoffmann et al. 2022, figure 4 (Besiroglu et al. 2024);
Porian et al. 2024; Gadre et al. 2024; Muennighoff et al. 2023.
"""

import csv
import pathlib

import numpy as np
import pytest

from jaxlm.scaling import study_record, table
from tests.sources import ROOT

FOLDER = pathlib.Path(__file__).parents[2].parent / "shared" / "data" / "scaling"


def path(name: str) -> pathlib.Path:
    """The file of that name; the test is skipped where it is absent."""
    file = FOLDER / name
    if not file.is_file():
        pytest.skip(f"needs {name}, public data that is not in the repository")
    return file


def recorded() -> study_record.Record:
    """The study of the repository's own sweep in experiments/chinchilla, of version 0.1."""
    return study_record.load(ROOT / "experiments" / "chinchilla" / "results").record


def rows(name: str) -> list[dict[str, str]]:
    """The file's rows, as text by column."""
    with path(name).open(newline="") as f:
        return list(csv.DictReader(f))


def column(data: list[dict[str, str]], name: str) -> np.ndarray:
    """[n] float64 of one column; nan where a cell is empty."""
    return np.array([float(r[name]) if r[name] else np.nan for r in data])


def epoch(dropped: int = 5) -> table.Table:
    """Hoffmann et al.'s runs as read off their figure: 245, or those below the 5th largest loss.

    D = C / (6 N). Besiroglu et al. 2024 fit the 240 that are left.
    """
    data = rows("chinchilla_epoch_svg.csv")
    n, c, loss = (column(data, k) for k in ("Model Size", "Training FLOP", "loss"))
    t = table.make(n, c / (6 * n), loss, c)
    return table.take(t, loss < np.sort(loss)[-dropped]) if dropped else t


def epoch_resamples() -> np.ndarray:
    """[4000, 240] indices of Besiroglu et al.'s case bootstrap."""
    random = np.random.RandomState(42)
    return np.stack([random.choice(240, 240, replace=True) for _ in range(4000)])


def porian(**where: str) -> list[dict[str, str]]:
    """Porian et al.'s isoFLOP points on RefinedWeb, rows whose columns have these values."""
    data = rows("porian_rw_isoflop_points.csv")
    return [r for r in data if all(r[k] == v for k, v in where.items())]


def gadre(train: str | None = None) -> list[dict[str, str]]:
    """Gadre et al.'s 104 runs, or those trained on c4_original, rpj or rw_original."""
    data = rows("gadre_overtraining_runs.csv")
    return [r for r in data if train is None or r["dataset_name"] == train]


def datablations() -> table.Table:
    """Muennighoff et al.'s 182 runs with repeated tokens, their outliers removed."""
    data = rows("datablations_runs_182.csv")
    n, d, u, loss = (
        column(data, k) for k in ("params_N", "tokens_D", "unique_tokens_U", "val_loss")
    )
    return table.make(n, d, loss, unique=u)


def synthetic() -> table.Table:
    """77 runs of a known law: E 1.6, A 420, B 900, alpha .345, beta .315; 3 % are outliers."""
    data = rows("synth_known_truth.csv")
    return table.make(*(column(data, k) for k in ("N", "D", "loss", "C")))


def case(name: str) -> pathlib.Path:
    """A table that once was accepted or ended with a traceback; the test is skipped without it."""
    file = FOLDER.parents[1] / "cases" / "scaling" / f"{name}.csv"
    if not file.is_file():
        pytest.skip(f"needs {name}.csv, which is not in the repository")
    return file
