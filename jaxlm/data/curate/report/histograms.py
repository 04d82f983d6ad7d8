"""Histograms of scores by step, kept and removed documents apart, with the thresholds."""

import os
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from jaxlm.core import json_file
from jaxlm.data.curate import curated_files

BINS = 40


class Histogram(NamedTuple):
    """Counts of one score of a step.

    edges: float64[BINS + 1]; kept, removed: int64[BINS], documents that the step let pass and that
    it removed; thresholds: the values at which its rules decide, where they are numbers.
    """

    step: str
    score: str
    edges: np.ndarray
    kept: np.ndarray
    removed: np.ndarray
    thresholds: tuple[float, ...]


def histograms(folder: str | os.PathLike[str], facts: json_file.Record) -> list[Histogram]:
    """Histograms of all scores that are numbers, of the documents that reached each step."""
    values: dict[tuple[str, str], tuple[list[float], list[float]]] = {}
    order = {name: place for place, name in enumerate(_names(facts))}
    for record in curated_files.records(folder, "scores"):
        last = order.get(record["step"], len(order))
        for step, scores in record["scores"].items():
            if order[step] > last:
                continue
            for name, value in scores.items():
                if isinstance(value, int | float) and not isinstance(value, bool):
                    both = values.setdefault((step, name), ([], []))
                    both[order[step] == last].append(float(value))
    limits = _thresholds(folder, facts)
    ordered = sorted(values, key=lambda pair: (order[pair[0]], pair[1]))
    return [_histogram(pair, *values[pair], limits.get(pair, ())) for pair in ordered]


def _names(facts: json_file.Record) -> Iterator[str]:
    yield from dict.fromkeys(count["step"] for count in facts["counts"])


def _thresholds(
    folder: str | os.PathLike[str], facts: json_file.Record
) -> dict[tuple[str, str], tuple[float, ...]]:
    """Thresholds by (step, score): numbers in the step's fields that bear the score's name, alone
    or after `least_` and `most_`, and those of removals whose rule is the score."""
    limits: dict[tuple[str, str], set[float]] = {}
    for step, fields in zip(_names(facts), facts["recipe"]["steps"], strict=True):
        for name, value in fields.items():
            score = name.removeprefix("least_").removeprefix("most_")
            if isinstance(value, int | float) and not isinstance(value, bool):
                limits.setdefault((step, score), set()).add(float(value))
    for record in curated_files.records(folder, "removed"):
        limit = record["threshold"]
        if isinstance(limit, int | float) and not isinstance(limit, bool):
            score = "similarity" if record["step"] == "near" else record["rule"]
            limits.setdefault((record["step"], score), set()).add(float(limit))
    return {pair: tuple(sorted(values)) for pair, values in limits.items()}


def _histogram(
    pair: tuple[str, str], kept: list[float], removed: list[float], limits: tuple[float, ...]
) -> Histogram:
    every = np.array([*kept, *removed])
    every = every[np.isfinite(every)]
    low, high = 0.0, 1.0
    if len(every):
        # a long tail would leave the rest in one bar; what is beyond is in the last
        low, high = float(every.min()), float(np.quantile(every, 0.995))
        high = high if high > low else float(every.max())
    reach = high - low or 1.0
    # a threshold far from all documents is not drawn
    limits = tuple(v for v in limits if low - reach <= v <= high + reach)
    low, high = min([low, *limits]), max([high, *limits])
    edges = np.linspace(low, high if high > low else low + 1, BINS + 1)
    counts = [np.histogram(np.clip(v, edges[0], edges[-1]), edges)[0] for v in (kept, removed)]
    return Histogram(*pair, edges, *counts, limits)
