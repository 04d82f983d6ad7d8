"""Teacher distributions for every example, computed once and cached on disk.

In $XDG_CACHE_HOME/jaxlm/teachers, one directory for the training rows and one for the held-out ones
of each teacher, data, temperature and k:

    ids.npy        int32[rows, T, k]          the likeliest next tokens, likeliest first
    log_probs.npy  float32[rows, T, k + 1]    of these, and of all others together
    facts.json     what they belong to, and the SHA-256 of both files

8k + 4 bytes a position: 100 million tokens with k = 32 take 26 GB. Rows are read from the files as
they are needed; a start reads all of them once, and damaged ones are computed again. A pass that
was interrupted leaves nothing and is done again.
"""

import dataclasses
import hashlib
import pathlib
from typing import Any

import jax
import numpy as np
from numpy.lib import format as npy

from jaxlm.core import atomic, cache, io, json_file, log
from jaxlm.core.batch import Batch, Taught
from jaxlm.data.records import examples, records
from jaxlm.objectives import distill
from jaxlm.parallel import transfer
from jaxlm.train import trained_weights
from jaxlm.train.run import directory
from jaxlm.train.run.run import Run


class Rows:
    """Examples along with the teacher's distributions: `read` gives a `Taught`."""

    def __init__(self, plain: examples.Rows, folder: pathlib.Path):
        self._plain, self._folder = plain, folder
        self._kept: tuple[np.ndarray, np.ndarray] | None = None

    def __getstate__(self) -> dict[str, Any]:
        """Travel to another process as names of files."""
        return self.__dict__ | {"_kept": None}

    def __len__(self) -> int:
        return len(self._plain)

    def read(self, rows: np.ndarray) -> Taught:
        """The batch of these rows, int64[n]."""
        if self._kept is None:
            ids, log_probs = (np.load(self._folder / name, mmap_mode="r") for name in FILES)
            self._kept = ids, log_probs
        plain = self._plain.read(rows)
        # a conversation holds more than a row of text: which numbers are an answer, for one
        fields = (getattr(plain, name) for name in Batch._fields)
        return Taught(*fields, *(kept[rows] for kept in self._kept))


FILES, FACTS = ("ids.npy", "log_probs.npy"), "facts.json"


def rows(run: Run, plain: examples.Rows, identity: list[Any]) -> Rows:
    """The rows with the run's teacher's distributions, computed now if that was not done before.

    identity: JSON that decides the rows.

    Raises: ValueError for a teacher without a whole checkpoint, a teacher that is not finite, and
    with several processes; io.WriteError for a full disk, with what was kept before intact.
    """
    cfg = run.objective
    assert isinstance(cfg, distill.Config) and cfg.top_k is not None
    source = pathlib.Path(cfg.teacher).expanduser()
    facts = {
        "rows": identity,
        "weights": _identity(source),
        "temperature": cfg.temperature,
        "top_k": cfg.top_k,
    }
    key = records.digest([facts])[:16]
    target = cache.folder() / "teachers" / key
    if target.is_dir() and (fault := _fault(target)) is not None:
        directory.warn(f"{target} is damaged ({fault}); it is computed again")
        atomic.discard(target)
    if not target.is_dir():
        if jax.process_count() > 1:
            raise ValueError(
                "objective.read: 'stored' is computed by one process; run the same command with "
                "one first, and share its cache (XDG_CACHE_HOME)"
            )
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            with atomic.folder(target) as temporary:
                _write(run, plain, temporary)
                sums = {"files": {name: io.sha256(temporary / name) for name in FILES}}
                io.write(temporary / FACTS, json_file.sealed(facts | sums))
        except FileExistsError:
            pass  # another run was faster; its files hold the same
        except OSError as error:
            raise io.refused(target, error.strerror or str(error)) from error
    return Rows(plain, target)


def _fault(folder: pathlib.Path) -> str | None:
    """Describes damage to a teacher's stored targets, all of which are read; None if none is."""
    try:
        sums = json_file.read_object(folder / FACTS)["files"]
        bad = [name for name in FILES if io.sha256(folder / name) != sums[name]]
    except (OSError, ValueError, KeyError) as error:
        return str(error)
    return f"{bad[0]} is not what was written" if bad else None


def _identity(folder: pathlib.Path) -> str:
    """Identity of the teacher's weights: the hash of its last checkpoint's manifest, which lists
    theirs."""
    found = sorted(
        (folder / "checkpoints").glob("*/manifest.json"), key=lambda p: int(p.parent.name)
    )
    if not found:
        raise ValueError(f"objective.teacher: {folder} has no checkpoint")
    return hashlib.sha256(found[-1].read_bytes()).hexdigest()


def _write(run: Run, plain: examples.Rows, folder: pathlib.Path) -> None:
    cfg = run.objective
    assert isinstance(cfg, distill.Config) and cfg.top_k is not None
    found = trained_weights.load(pathlib.Path(cfg.teacher).expanduser(), "last", run.plan)
    keep = jax.jit(
        lambda params, batch: distill.kept(cfg, found.model, params, batch, run.plan),
        out_shardings=run.plan.replicated,
    )
    whole = (len(plain), run.data.seq)
    ids = npy.open_memmap(folder / FILES[0], "w+", np.int32, (*whole, cfg.top_k))
    wide = min(cfg.top_k + 1, found.run.model.vocab)
    kept = npy.open_memmap(folder / FILES[1], "w+", np.float32, (*whole, wide))
    log.Log(True, None).say(
        f"the teacher {cfg.teacher} reads {len(plain):,} rows of {run.data.seq}, once: "
        f"{(ids.nbytes + kept.nbytes) / 2**20:,.1f} MiB"
    )
    at = 0
    for batch in examples.val_batches(plain, run.data.batch):
        fields = (getattr(batch, name) for name in Batch._fields)
        some, theirs = keep(found.params, transfer.batch(run.plan, Batch(*fields)))
        count = min(run.data.batch, len(plain) - at)
        ids[at : at + count], kept[at : at + count] = (
            np.asarray(x)[:count] for x in (some, theirs)
        )
        if np.isnan(kept[at : at + count]).any():
            raise ValueError(f"objective.teacher: {cfg.teacher} gives logits that are not finite")
        at += count
    ids.flush()
    kept.flush()


def facts_of(data: Any) -> dict[str, Any]:
    """The fields of a data config that decide its rows, and not their order or size of batches."""
    told = dataclasses.asdict(data)
    return {n: v for n, v in told.items() if n not in ("batch", "seed", "workers", "ramp")}
