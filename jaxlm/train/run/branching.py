"""A run that takes its beginning from a longer one: decay branches of one trunk.

While the learning rate is constant nothing in a run depends on its length, and its batches are a
stateless function of (seed, step). So runs with schedule wsd that differ in length alone are the
same run, bit for bit, until the first of them decays, and the longest begins them all (Hagele et
al. 2024, section 4; Hu et al. 2024, section 4):

    trunk     warm-up -- constant ------------------------- decay
    branches                     \\ decay       \\ decay

A run with schedule constant has the same learning rates, but its step is compiled otherwise and
rounds otherwise: it is no trunk.
"""

import json
import os
import pathlib
import shutil
from collections.abc import Callable

from jaxlm.core import config, io
from jaxlm.core.remote import staging
from jaxlm.data import tokenizers
from jaxlm.train.optim import optimizer, schedule
from jaxlm.train.run import checkpoint, directory, integrity, metrics
from jaxlm.train.run import run as runs
from jaxlm.train.run.run import Run

# Fields that decide a run's length, its end and what is reported on the way.
FREE = ("steps", "optim.decay", "eval_every", "eval_batches", "samples", "sample_tokens")


def length(run: Run) -> int:
    """The steps of a run that do not depend on how long it is: all before its decay.

    Raises: ValueError for another schedule than wsd.
    """
    cfg = run.optim
    if cfg.schedule != "wsd":
        raise ValueError(
            f"optim.schedule: {cfg.schedule!r} given with a trunk; 'wsd' is needed, whose learning "
            "rates do not depend on the run's length until the decay"
        )
    decay = optimizer.DECAY["wsd"] if cfg.decay is None else cfg.decay
    return run.steps - schedule.falling(run.steps, cfg.warmup, decay)


def check(run: Run) -> None:
    """Raises: ValueError if the trunk is no run directory, is another run than this one's
    beginning, naming the first field that differs, or has no checkpoint early enough."""
    if run.trunk is not None:
        _point(run, staging.local(run.trunk))


def _point(run: Run, trunk: pathlib.Path) -> list[int]:
    """The steps of the trunk's checkpoints that this run may go on from, rising."""
    if run.start is not None:
        raise ValueError(
            f"start: {run.start!r} given with a trunk, which has its own; leave it None"
        )
    try:
        theirs = directory.load(trunk)
    except (FileNotFoundError, ValueError) as error:
        raise ValueError(f"trunk: {error}") from error
    until = min(length(run), length(theirs))
    before, now = (config.without(config.to_dict(r), *runs.EXECUTION, *FREE) for r in (theirs, run))
    for path, there, here in config.differences(before, now):
        raise ValueError(
            f"trunk: {run.trunk} has {path}={there!r}, this run has {path}={here!r}; a trunk is "
            "the same run but for its length and the end of its schedule"
        )
    have = checkpoint.steps(trunk / "checkpoints")
    wanted = [step for step in have if step <= until]
    if not wanted:
        raise ValueError(
            f"trunk: {run.trunk} has checkpoints of steps {have}, none at or before {until}; train "
            f"it with checkpoint.at=({until},)"
        )
    return wanted


def begin(
    run: Run,
    folder: str | os.PathLike[str],
    warn: Callable[[str], None],
    say: Callable[[str], None],
) -> None:
    """Copy the beginning of a run that has a trunk and no checkpoint yet: the trunk's newest whole
    checkpoint before this run's decay, and the metrics up to there. For the primary process, which
    holds the directory.

    Raises: as `check`; ValueError if no such checkpoint is whole; io.WriteError.
    """
    folder = pathlib.Path(folder)
    if run.trunk is None or checkpoint.steps(folder / "checkpoints"):
        return
    trunk = staging.local(run.trunk)
    step = checkpoint.good(trunk / "checkpoints", warn, _point(run, trunk))
    assert step is not None
    directory.record(folder, run)
    seen = metrics.records(trunk / metrics.FILE)
    kept = "".join(json.dumps(r) + "\n" for r in seen if r["step"] <= step and _recorded(run, r))
    io.write(folder / metrics.FILE, kept)
    # named as an unfinished write, which a start removes, until all of it is here
    part = folder / "checkpoints" / f"{step}.orbax-checkpoint-tmp-trunk"
    shutil.rmtree(part, ignore_errors=True)
    try:
        shutil.copytree(trunk / "checkpoints" / str(step), part)
        tokenizer = tokenizers.load(run.data.tokenizer).hash
        facts = directory.identity(run, tokenizer, {}) | {"metrics": metrics.mark_of(kept.encode())}
        integrity.restate(part, facts)
        integrity.commit(part, folder / "checkpoints" / str(step), 0, 1)
        part.rename(folder / "checkpoints" / str(step))
    except OSError as error:
        raise io.refused(part, error.strerror or error) from error
    say(f"{step} of {run.steps} steps are those of {run.trunk}")


def _recorded(run: Run, record: metrics.Record) -> bool:
    """Whether this run, trained whole, would have had the record."""
    step = record["step"]
    if record["split"] == "val":
        return run.eval_every is not None and step % run.eval_every == 0
    return step == 1 or step % run.log_every == 0
