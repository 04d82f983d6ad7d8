"""Points of jaxlm's run directories, without their checkpoints.

config.json    the model, the data and the optimiser
result.json    how the run ended: the last evaluation
metrics.jsonl  all evaluations
"""

import dataclasses
import math
import pathlib
from typing import Any, NamedTuple

import numpy as np

from jaxlm import models
from jaxlm.core import config, json_file
from jaxlm.scaling.cost import conventions
from jaxlm.scaling.table import Counting, Table

# Schedules that do not depend on the run's length, so that any moment is the end of a run.
WITHOUT_END = ("constant", "inverse_sqrt")


@dataclasses.dataclass(frozen=True)
class Model:
    """The part of a config.json that decides N and C."""

    model: models.AnyConfig
    """The model's Config."""


class _SavedRun(NamedTuple):
    """One run directory."""

    name: str
    config: dict[str, Any]
    evaluations: list[tuple[int, float]]  # (positions trained on, nats per token)


def read(root: pathlib.Path, how: Counting, intermediate: bool, decaying: bool) -> Table:
    """The Table of all finished runs under a directory: see `tables.read`.

    Runs that are unfinished, not evaluated, or started from other weights are named in `left_out`.

    Raises: ValueError naming the run directory and the field.
    """
    files = sorted(p for p in root.rglob("config.json"))
    if not files:
        raise ValueError(f"{root} holds no run directory: none has a config.json")
    runs, left = [], []
    for file in files:
        name = str(file.parent.relative_to(root)) if file.parent != root else root.name
        record = json_file.read_object(file)
        reason = _unfit(file.parent, record)
        if reason:
            left.append(f"{name}: {reason}")
            continue
        if intermediate and not decaying:
            _ends_anywhere(file, record)
        runs.append(_SavedRun(name, record, _evaluations(file.parent, intermediate)))
    if not runs:
        raise ValueError(f"{root}: no finished run: {'; '.join(left)}")
    _comparable(root, runs)
    return _table(root, runs, how, tuple(left))


def _named(root: pathlib.Path, folder: pathlib.Path) -> str:
    """The name a run directory has in the table: its path from the root, if it is under it."""
    inside, root = folder.resolve(), root.resolve()
    return str(inside.relative_to(root)) if inside.is_relative_to(root) else str(folder)


def _table(
    root: pathlib.Path, saved: list[_SavedRun], how: Counting, left: tuple[str, ...]
) -> Table:
    rows: list[tuple[float, float, float, float, str]] = []
    for run in saved:
        try:
            cfg = config.from_dict(Model, {"model": run.config["model"]}).model
        except ValueError as error:
            raise ValueError(f"{run.name}/config.json: {error}") from None
        if run.config["data"].get("curriculum") and how.flops != "6ND":
            raise ValueError(
                f"{run.name}/config.json: data.curriculum changes the rows' length, and with it "
                f"the FLOPs of a token under {how.flops!r}; --counting {how.params} 6ND counts "
                "without it"
            )
        n = conventions.params(cfg, how.params)
        each = conventions.per_token(cfg, run.config["data"]["seq"], how)
        # branches share their trunk's updates, so that a bootstrap takes them together
        trunk = run.config.get("trunk")
        name = run.name if trunk is None else _named(root, pathlib.Path(trunk).expanduser())
        rows += [(n, d, each * d, loss, name) for d, loss in run.evaluations]
    n, d, c, loss = (np.array([r[i] for r in rows], np.float64) for i in range(4))
    runs = np.array([r[4] for r in rows])
    return Table(n, d, c, loss, None, runs, how, np.arange(1, len(rows) + 1), left)


def _unfit(folder: pathlib.Path, record: dict[str, Any]) -> str | None:
    """Reason why a run is no point of a law, None if it is one."""
    for field in ("start", "adapter", "rollout"):
        if record.get(field):
            return f"{field} is {record[field]!r}: not all it learnt from is in its tokens"
    if not (folder / "result.json").is_file():
        return "it is not finished (no result.json)"
    result = json_file.read_object(folder / "result.json")
    if result.get("diverged"):
        return f"it diverged: {result['diverged']}"
    if result["signal"] or result["step"] < result["steps"]:
        return f"it stopped at step {result['step']} of {result['steps']}"
    if not result["val"] or "nll" not in result["val"]:
        return "it was not evaluated on held-out text (eval_every)"
    nll = json_file.number(result["val"], "nll")
    if nll is None or not math.isfinite(nll):
        return f"it diverged: held-out nll is {nll}"
    return None


def _ends_anywhere(file: pathlib.Path, record: dict[str, Any]) -> None:
    """Raises: ValueError if the loss before the run's end is not that of a shorter run."""
    schedule = record["optim"]["schedule"]
    if schedule not in WITHOUT_END:
        raise ValueError(
            f"{file}: optim.schedule {schedule!r} decays towards the run's end, so its loss before "
            "is higher than that of a shorter run decayed to its end; take the last evaluation "
            "alone (no --intermediate), or those of decaying runs too (--decaying)"
        )


def _evaluations(folder: pathlib.Path, intermediate: bool) -> list[tuple[int, float]]:
    """(positions trained on, nats per token) of the last or of all evaluations, in order."""
    result = json_file.read_object(folder / "result.json")
    last = (result["tokens"], result["val"]["nll"])
    if not intermediate:
        return [last]
    tokens, out = {}, {}
    file = folder / "metrics.jsonl"
    for i, line in enumerate(file.read_bytes().splitlines(), 1):
        record = json_file.parse(line, f"{file} row {i}")
        if record["split"] == "train":
            tokens[record["step"]] = record["tokens"]
        elif record["split"] == "val" and math.isfinite(_nll(record)):
            # positions grow evenly between logged steps unless the batch does
            step = record["step"]
            out[tokens.get(step, round(last[0] * step / result["step"]))] = record["nll"]
    return sorted((out | {last[0]: last[1]}).items())


def _nll(record: dict[str, Any]) -> float:
    """A record's nats per token; NaN where it has none."""
    nll = json_file.number(record, "nll")
    return math.nan if nll is None else nll


def _comparable(root: pathlib.Path, saved: list[_SavedRun]) -> None:
    """Raises: ValueError if losses are of different texts, tokens or objectives."""
    for path in (("data", "tokenizer"), ("data", "source"), ("objective", "kind")):
        values = [_at(run.config, path) for run in saved]
        for run, value in zip(saved, values):
            if value != values[0]:
                raise ValueError(
                    f"{root}: {run.name} has {'.'.join(path)} = {value!r}, {saved[0].name} has "
                    f"{values[0]!r}: their nats per token are not comparable"
                )


def _at(record: dict[str, Any], path: tuple[str, ...]) -> Any:
    for name in path:
        record = record[name]
    return record
