"""A reference policy's log-probability of every response, computed once and cached on disk.

In $XDG_CACHE_HOME/jaxlm/references, one directory for each reference, data and arithmetic:

    train-<first>.npz, val-<first>.npz   float32[rows, K]: the summed log-probability of each
                                         response of the rows from `first` on, 1,024 or fewer, with
                                         a checksum: what is damaged is computed again
    facts.json                           what they belong to

4K bytes a prompt. A pass that was interrupted resumes after its last whole file; runs with the same
reference and data, such as a sweep over beta, share one pass.
"""

import dataclasses
import hashlib
import json
import pathlib
import zipfile
import zlib
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from jaxlm.core import cache, config, io, log
from jaxlm.core.batch import Choices
from jaxlm.data.records import examples, records
from jaxlm.models.model import Model
from jaxlm.objectives import lora
from jaxlm.objectives.objective import Frozen, Objective
from jaxlm.objectives.preference import dpo, responses
from jaxlm.parallel import transfer
from jaxlm.train import initial_weights
from jaxlm.train.run import checkpoint, directory
from jaxlm.train.run import run as runs
from jaxlm.train.run.run import Run

BLOCK = 1024  # rows in a file

# A batch -> the reference's log-probabilities, float32[B, K].
Reader = Callable[[Choices], jax.Array]


@dataclasses.dataclass(frozen=True)
class Rows:
    """Examples along with the reference's log-probabilities."""

    plain: examples.Rows
    reference: np.ndarray
    """float32[rows, K]."""

    def __len__(self) -> int:
        """Number of prompts."""
        return len(self.plain)

    def read(self, rows: np.ndarray) -> Choices:
        """The `Choices` of these prompts, int64[n]."""
        return self.plain.read(rows)._replace(reference=self.reference[rows])


def attach(run: Run, model: Model, objective: Objective, split: examples.Split) -> examples.Split:
    """The examples with their log-probabilities by the run's reference, where the run stores them;
    computed now if that was not done before. The facts then name the reference.

    Raises: ValueError for a reference whose log-probabilities are not finite, files that do not
    fit, and with several processes where there is something to compute; as `initial_weights.frozen`
    for weights that cannot be read; io.WriteError for a full disk, with what was kept before
    intact.
    """
    cfg = run.objective
    if not isinstance(cfg, dpo.Config) or cfg.reference != "stored":
        return split
    begun = initial_weights.recorded(runs.folder(run))
    facts = {
        "rows": split.facts,
        "weights": _identity(run, begun),
        "model": config.to_dict(run.model),
        "compute": run.plan.compute,
        "quantise": None if run.adapter is None else run.adapter.quantise,
    }
    key = records.digest([facts])[:16]
    folder = cache.folder() / "references" / key
    io.make_folder(folder)
    io.write(folder / "facts.json", json.dumps(facts, indent=1) + "\n")
    made: list[Reader] = []

    def reader() -> Reader:
        made[:] = made or [_reader(run, model, objective, begun)]
        return made[0]

    train = _rows(run, split.train, folder, "train", reader)
    val = None if split.val is None else _rows(run, split.val, folder, "val", reader)
    return split._replace(train=train, val=val, facts=split.facts | {"reference": key})


def _identity(run: Run, begun: dict[str, Any]) -> Any:
    """Identity of the reference's weights: the hash of their checkpoint's manifest, or the seed
    they are drawn by."""
    if run.start is None:
        return ["seed", run.seed]
    place = pathlib.Path(run.start).expanduser() / "checkpoints"
    number = (
        begun["step"] if begun else checkpoint.good(place, directory.warn, checkpoint.steps(place))
    )
    file = place / str(number) / "manifest.json"
    if number is None or not file.is_file():
        raise ValueError(f"start: {run.start} no longer has the checkpoint of step {number}")
    return hashlib.sha256(file.read_bytes()).hexdigest()


def _reader(run: Run, model: Model, objective: Objective, begun: dict[str, Any]) -> Reader:
    """The compiled reference, as `reference="frozen"` would read it."""
    if jax.process_count() > 1:
        raise ValueError(
            "objective.reference: 'stored' is computed by one process; run the same command with "
            "one first, and share its cache (XDG_CACHE_HOME)"
        )
    # with adapters, their base, in 4 bits if it is
    part = Frozen(model.spec) if run.adapter is None else objective.frozen[lora.BASE]
    held = objective._replace(frozen={"reference": part})
    weights = initial_weights.frozen(run, held, begun)["reference"]
    read = jax.jit(
        lambda weights, batch: responses.summed(model, weights, batch, run.plan),
        out_shardings=run.plan.replicated,
    )
    return lambda batch: read(weights, transfer.batch(run.plan, batch))


def _rows(
    run: Run,
    plain: examples.Rows,
    folder: pathlib.Path,
    name: str,
    reader: Callable[[], Reader],
) -> Rows:
    """The rows with the blocks on the disk, those that are missing computed first."""
    firsts = range(0, len(plain), BLOCK)
    files = {first: folder / f"{name}-{first:09}.npz" for first in firsts}
    stored = {first: _load(file, min(BLOCK, len(plain) - first)) for first, file in files.items()}
    blocks = {first: block for first, block in stored.items() if block is not None}
    missing = [first for first in firsts if first not in blocks]
    if missing:
        log.Log(True, None).say(
            f"the reference reads {len(plain) - missing[0]:,} {name} prompts, once, into {folder}"
        )
    for first in missing:
        wanted = np.arange(first, min(first + BLOCK, len(plain)))
        blocks[first] = block = _block(run, plain, wanted, reader())
        io.put(files[first], lambda file, block=block: np.savez(file, block))
    whole = [blocks[first] for first in firsts]
    return Rows(plain, np.concatenate(whole) if whole else np.zeros((0, 1), np.float32))


def _block(run: Run, plain: examples.Rows, wanted: np.ndarray, reader: Reader) -> np.ndarray:
    """float32[wanted, K], in batches of a micro-batch's size."""
    each = run.data.batch // run.plan.microbatches
    out = []
    for at in range(0, len(wanted), each):
        some = wanted[at : at + each]
        found = np.asarray(reader(examples.filled(plain.read(some), each)))[: len(some)]
        if not np.isfinite(found).all():
            row = int(some[~np.isfinite(found).all(axis=1)][0])
            raise ValueError(
                f"objective.reference: the log-probabilities of prompt {row} of the data are not "
                f"finite under the weights that the run begins from: {found.tolist()}"
            )
        out.append(found)
    return np.concatenate(out)


def _load(file: pathlib.Path, rows: int) -> np.ndarray | None:
    """The block in a file; None if there is none, or it is damaged, which is warned of."""
    try:
        with np.load(file) as parts:
            (block,) = (parts[name] for name in parts.files)  # its checksum is verified here
        if block.dtype == np.float32 and block.ndim == 2 and len(block) == rows:
            return block
        fault = f"it holds {block.dtype}{list(block.shape)}"
    except FileNotFoundError:
        return None
    # what a damaged archive raises: a bad header, sum or length, or no archive at all
    except (ValueError, EOFError, OSError, KeyError, zipfile.BadZipFile, zlib.error) as error:
        fault = str(error)
    directory.warn(f"{file} is damaged ({fault}); it is computed again")
    return None
