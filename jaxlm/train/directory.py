"""A run directory: which run it holds, whether that is finished, and who may write to it.

config.json      the Run                       env.json   machine, versions, devices, kernels
metrics.jsonl    one record a logged step      events.*   the same for TensorBoard
checkpoints/     orbax                         samples/   continued prompts by step
result.json      written last: the run is finished
"""

import dataclasses
import json
import pathlib
from typing import Any

from jaxlm.core import config, io
from jaxlm.train import run as runs
from jaxlm.train.run import Run


@dataclasses.dataclass(frozen=True)
class Result:
    """How a run ended."""

    folder: str
    """The run directory."""
    step: int
    """Updates done."""
    steps: int
    """Updates wanted."""
    tokens: int
    """Positions trained on, padding included."""
    val: dict[str, Any] | None
    """The last evaluation over the whole held-out split: nll, bits_per_byte, perplexity, ..."""
    signal: int
    """The signal that ended it early, or 0."""

    @property
    def exit_code(self) -> int:
        """0, or 128 + the signal's number, as a shell reports it."""
        return 128 + self.signal if self.signal else 0


def finished(run: Run) -> Result | None:
    """The Result of a finished run, None if there is more to do.

    Raises: ValueError if the directory holds another run, naming the first field that differs.
    """
    folder = runs.folder(run)
    check(folder, run)
    try:
        return Result(**json.loads((folder / "result.json").read_text("utf-8")))
    except FileNotFoundError:
        return None


def check(folder: pathlib.Path, run: Run) -> None:
    """Raises: ValueError if the directory's config is not this run's, naming the first field that
    differs and both values; fields in `run.EXECUTION` may differ."""
    file = folder / "config.json"
    if not file.is_file():
        # an empty folder is what a start leaves that was killed before it had begun
        if any((folder / "checkpoints").glob("*")):
            raise ValueError(f"{folder} has checkpoints but no config.json; it is not a run's")
        return
    # by way of a Run: fields that came after the run was recorded have their defaults
    theirs = config.without(config.to_dict(load(folder)), *runs.EXECUTION)
    ours = config.without(config.to_dict(run), *runs.EXECUTION)
    found = config.differences(theirs, ours)
    if found:
        path, there, here = found[0]
        more = f" (and {len(found) - 1} more)" if len(found) > 1 else ""
        raise ValueError(
            f"{folder} holds a run with {path}={there!r}, this one has {path}={here!r}{more}; "
            "give this run another name, or remove the directory"
        )


# What env.json says that may change a run's last bits.
ROUNDING = ("revision", "packages", "backend", "devices", "cpus", "dtype")


def changed(folder: pathlib.Path, run: Run, described: dict[str, Any]) -> list[str]:
    """What differs from the last start, as "field: old -> new": in fields that a run may change,
    and in the machine and the code, as `env.describe` describes them now."""
    found = []
    for name, now in (("config.json", config.to_dict(run)), ("env.json", described)):
        file = folder / name
        if file.is_file():
            before = json.loads(file.read_text("utf-8"))
            if name == "env.json":
                before, now = ({k: d.get(k) for k in ROUNDING} for d in (before, now))
            found += config.differences(before, now)
    return [f"{path}: {a} -> {b}" for path, a, b in found]


def record(folder: pathlib.Path, run: Run) -> None:
    """Write config.json. Raises: io.WriteError."""
    io.write(folder / "config.json", json.dumps(config.to_dict(run), indent=1) + "\n")


def load(folder: pathlib.Path) -> Run:
    """The Run of a run directory.

    Raises: FileNotFoundError if it is none; ValueError naming a field this version cannot read.
    """
    file = config.run_file(folder)
    return config.from_dict(Run, json.loads(file.read_text("utf-8")))


def finish(folder: pathlib.Path, result: Result) -> None:
    """Mark the run as finished. Raises: io.WriteError."""
    io.write(folder / "result.json", json.dumps(dataclasses.asdict(result), indent=1) + "\n")
