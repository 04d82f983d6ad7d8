"""Plots of records: the loss curve of a run."""

import math
import os
import pathlib

from jaxlm.core import json_file
from jaxlm.core.remote import staging
from jaxlm.train.run import metrics


def loss(folder: str | os.PathLike[str]) -> pathlib.Path | None:
    """Draw loss.png from a run's metrics.jsonl; its path, or None if there is nothing to draw.

    Left axis: nats per token on the training and the held-out split. Right axis: held-out bits per
    byte, which is comparable across tokenizers, of a mixture also by source. A red line where a
    loss is first not finite.
    """
    folder = staging.local(folder)
    records = list(metrics.records(folder / metrics.FILE))
    train = _series(records, "train", "loss")
    held_out, bits = _series(records, "val", "nll"), _series(records, "val", "bits_per_byte")
    sources = dict.fromkeys(name for r in records for name in metrics.by_source(r))
    odd = [r["step"] for r in records if _odd(r)]
    if not train[0] and not held_out[0] and not odd:
        return None
    # matplotlib.figure alone draws to files: no global state, no window system.
    from matplotlib import figure
    from matplotlib.backends import backend_agg

    # Margins are given: to lay the figure out would take as long as to draw it.
    picture = figure.Figure(figsize=(8, 5))
    picture.subplots_adjust(left=0.09, right=0.91, bottom=0.1, top=0.93)
    backend_agg.FigureCanvasAgg(picture)
    axes = picture.add_subplot()
    axes.plot(*train, label="train", linewidth=1.0, color="tab:blue")
    if held_out[0]:
        axes.plot(*held_out, label="held out", marker="o", markersize=3, color="tab:orange")
        other = axes.twinx()
        other.plot(*bits, label="held out, bits per byte", linestyle=":", color="tab:green")
        for number, name in enumerate(sources):  # of a mixture
            series = _series(records, "val", f"{metrics.BY_SOURCE}{name}")
            color, label = f"C{number % 7 + 3}", f"held out, bits per byte of {name}"
            other.plot(*series, label=label, linestyle=":", linewidth=0.8, color=color)
        other.set_ylabel("bits per byte (held out)")
        other.spines["top"].set_visible(False)
        lines = [*axes.get_lines(), *other.get_lines()]
    else:
        lines = list(axes.get_lines())
    if odd:
        lines.append(axes.axvline(min(odd), color="tab:red", label="not finite from here"))
    axes.set_xlabel("step (updates)")
    axes.set_ylabel("loss (nats per token)")
    axes.set_title(folder.name)
    axes.grid(alpha=0.3)
    axes.legend(lines, [str(line.get_label()) for line in lines])
    path = folder / "loss.png"
    picture.savefig(path, dpi=120)
    staging.publish(path)
    return path


def _series(records: list, split: str, name: str) -> tuple[list[int], list[float]]:
    """(steps, values) of one number, without the values that were not finite."""
    points = [
        (r["step"], r[name]) for r in records if r["split"] == split and r.get(name) is not None
    ]
    return [step for step, _ in points], [value for _, value in points]


def _odd(record: metrics.Record) -> bool:
    """Whether the loss of a record is NaN or infinite."""
    name = "nll" if "nll" in record else "loss"
    value = json_file.number(record, name)
    return value is not None and not math.isfinite(value)
