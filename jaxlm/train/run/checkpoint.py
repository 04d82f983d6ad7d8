"""Checkpoints: orbax writes them in the background; a manifest seals each; good ones are kept.

    checkpoints/400/            params, average, train (step, optimiser, key), carry, manifest.json
    checkpoints/400.corrupt/    one that did not verify, set aside when the run resumed

A checkpoint is committed by one rename, after all its files and its manifest are on the disk; in a
store, where there is no rename, by its manifest, which is written last (core/remote/staging.py).
"""

import contextlib
import errno
import functools
import os
import pathlib
import shutil
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import jax

from jaxlm.core import io
from jaxlm.core.remote import staging
from jaxlm.parallel import agreement
from jaxlm.train.run import integrity
from jaxlm.train.run.run import Checkpoint
from jaxlm.train.step import State

if TYPE_CHECKING:
    # Loading orbax takes a fifth of the time to the first step, which needs no checkpoint.
    import orbax.checkpoint as ocp

Facts = dict[str, Any]
# The parts of a checkpoint: those of `items`, and what the source of the batches needs.
ITEMS = ("params", "train", "average", "carry")


class Store:
    """The checkpoints of a run that is training. All processes call every method alike."""

    def __init__(
        self,
        folder: pathlib.Path,
        cfg: Checkpoint,
        primary: bool,
        confirm: Callable[[], None] = lambda: None,
    ):
        """confirm: called before a checkpoint is committed; raises where another process has taken
        the directory."""
        self._folder, self._cfg, self._primary, self._confirm = folder, cfg, primary, confirm
        self._apart = jax.process_count() > 1 and staging.origin(folder) is not None
        self._saving: int | None = None
        self._facts: Facts = {}
        self._bytes = 0

    @functools.cached_property
    def _manager(self) -> "ocp.CheckpointManager":
        """orbax's writer, which starts with the first checkpoint."""
        import orbax.checkpoint as ocp

        asynchronous = ocp.options.AsyncOptions(post_finalization_callback=self._seal)
        if not self._apart:
            options = ocp.CheckpointManagerOptions(create=False, async_options=asynchronous)
            return ocp.CheckpointManager(self._folder.absolute(), options=options)
        # each process has a folder of its own, and files of its own in it: no OCDBT, which would
        # have one process join those of all
        several = ocp.options.MultiprocessingOptions(primary_host=None)
        handlers = {
            name: ocp.StandardCheckpointHandler(multiprocessing_options=several, use_ocdbt=False)
            for name in ITEMS
        }
        options = ocp.CheckpointManagerOptions(
            create=False, async_options=asynchronous, multiprocessing_options=several
        )
        folder = self._folder.absolute()
        return ocp.CheckpointManager(folder, options=options, item_handlers=handlers)

    def save(self, state: State, facts: Facts, carry: Any) -> None:
        """Start writing a State; returns once it is copied, so that the step may reuse its memory.

        facts: JSON; facts["val"] is what the best checkpoint has least of, or None. carry: arrays
        that the source of the batches needs to go on, {} for none.

        Raises: io.WriteError if this or the previous checkpoint could not be written.
        """
        import orbax.checkpoint as ocp

        self.wait()
        step = int(state.step)
        self._saving, self._facts = step, facts
        parts = items(state) | ({"carry": carry} if carry else {})
        saved = {name: ocp.args.StandardSave(tree) for name, tree in parts.items()}
        self._bytes = sum(x.nbytes for x in jax.tree.leaves(parts) if hasattr(x, "nbytes"))
        with self._explained():
            self._manager.save(step, args=ocp.args.Composite(**saved))

    def poll(self) -> None:
        """Finish a save whose writing has ended. Raises: io.WriteError if it failed."""
        if self._saving is not None and not self._manager.is_saving_in_progress():
            self.wait()

    def wait(self) -> None:
        """Wait for the save in progress, then remove what need not be kept.

        Raises: io.WriteError if it failed; the earlier checkpoints are as they were.
        """
        if self._saving is None:
            return
        with self._explained():
            self._manager.wait_until_finished()
            self._manager.check_for_errors()
        self._saving = None
        if self._primary or self._apart:
            for step in surplus(self._folder, self._cfg):
                if self._primary:
                    staging.withdraw(self._folder / str(step))
                _remove(self._folder / str(step))

    def close(self) -> None:
        """Wait for the save in progress and end the writer's threads."""
        self.wait()
        if "_manager" in self.__dict__:
            self._manager.close()

    def _seal(self) -> None:
        """Called by orbax, in its thread, when all files are written and before the rename."""
        if self._primary or self._apart:
            for folder in self._folder.glob(f"{self._saving}.orbax-checkpoint-tmp*"):
                integrity.seal(folder, self._facts)
                self._confirm()
                target = self._folder / str(self._saving)
                integrity.commit(folder, target, jax.process_index(), jax.process_count())

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            step, self._saving = self._saving, None
            reason = _reason(error)
            if self._primary:
                _sweep_up(self._folder)
            # One part's error may hide the disk's, which another part met: orbax raises the first.
            if reason is None and shutil.disk_usage(self._folder).free < self._bytes:
                reason = os.strerror(errno.ENOSPC)
            if reason:
                text = f"{reason} (earlier checkpoints are intact)"
                raise io.refused(self._folder / str(step), text) from error
            raise


# Messages of a file system that refuses to write. tensorstore passes them on as text.
REFUSALS = tuple(
    os.strerror(n) for n in (errno.ENOSPC, errno.EFBIG, errno.EDQUOT, errno.EROFS, errno.EIO)
)


def _reason(error: BaseException) -> str | None:
    """Reason why the file system refused to write, None if the error is of another kind."""
    for text in REFUSALS:
        if text in str(error):
            return text
    return str(error) if isinstance(error, OSError) else None


def commit_weights(folder: str | os.PathLike[str], params: Any, facts: Facts) -> None:
    """Write weights alone as the checkpoint of step 0, sealed, in a folder that nobody reads yet.

    facts: as in `Store.save`. Raises: io.WriteError if it could not be written.
    """
    folder = pathlib.Path(folder)
    import orbax.checkpoint as ocp

    options = ocp.CheckpointManagerOptions(create=False, enable_async_checkpointing=False)
    try:
        with ocp.CheckpointManager(folder.absolute(), options=options) as manager:
            manager.save(0, args=ocp.args.Composite(params=ocp.args.StandardSave(params)))
        integrity.seal(folder / "0", facts)
    except Exception as error:
        if reason := _reason(error):
            raise io.refused(folder / "0", reason) from error
        raise


def items(state: State) -> dict[str, Any]:
    """The saved parts of a State, each of which can be restored alone: `params`, the `average` of
    the weights if one is kept, and all else as `train`. Frozen weights come from their own source.

    state: of arrays, or an abstract one, whose shardings decide where to restore to.
    """
    opt = state.opt._replace(average=None)
    parts = {"params": state.params, "train": {"step": state.step, "opt": opt, "key": state.key}}
    return parts if state.opt.average is None else parts | {"average": state.opt.average}


def restore(
    folder: str | os.PathLike[str], step: int, like: State, carry: Any
) -> tuple[State, Any]:
    """(the State of a checkpoint, its carry), placed like the abstract ones: on any mesh. The
    State's frozen weights are {}: they come from their own source."""
    saved = read(folder, step, items(like) | ({"carry": carry} if carry else {}))
    train = saved["train"]
    opt = train["opt"]._replace(average=saved.get("average"))
    state = State(train["step"], saved["params"], opt, {}, train["key"])
    return state, saved.get("carry", {})


def read(folder: str | os.PathLike[str], step: int, parts: dict[str, Any]) -> dict[str, Any]:
    """Some of the `items` of a checkpoint, placed like these abstract ones. Of arrays whose parts
    are files, a process fetches from a store those that its devices hold."""
    import orbax.checkpoint as ocp

    place, names = pathlib.Path(folder, str(step)), tuple(parts)
    integrity.fetch(place, names, lambda name: not integrity.is_part(name))
    integrity.fetch(place, names, integrity.read_by_this_process(place, parts))
    args = {name: ocp.args.StandardRestore(tree) for name, tree in parts.items()}
    options = ocp.CheckpointManagerOptions(create=False)
    with ocp.CheckpointManager(pathlib.Path(folder).absolute(), options=options) as manager:
        saved = manager.restore(step, args=ocp.args.Composite(**args))
    return {name: saved[name] for name in parts}


def facts(folder: str | os.PathLike[str], step: int) -> Facts:
    """Facts recorded with a checkpoint. Raises: ValueError if it has no readable manifest."""
    place = pathlib.Path(folder, str(step))
    recorded = integrity.facts(place)
    if recorded is None:
        raise ValueError(f"{place}: {integrity.fault(place)}")
    return recorded


def steps(folder: str | os.PathLike[str]) -> list[int]:
    """The steps of all committed checkpoints, rising; not whether they are whole."""
    places = pathlib.Path(folder).glob("*")
    return sorted(int(p.name) for p in places if p.is_dir() and p.name.isdecimal())


def good(
    folder: str | os.PathLike[str],
    warn: Callable[[str], None],
    wanted: list[int],
    parts: tuple[str, ...] = (),
) -> int | None:
    """The last of the `wanted` steps whose checkpoint verifies; None if none is wanted.

    parts: which items must be whole, all by default. Each checkpoint that is not is named in a
    warning.

    Raises: ValueError naming all of them if there are checkpoints and none is whole.
    """
    folder = pathlib.Path(folder)
    return _whole(folder, warn, wanted, lambda n: integrity.fault(folder / str(n), parts))


def _whole(
    folder: pathlib.Path,
    warn: Callable[[str], None],
    wanted: list[int],
    fault_of: Callable[[int], str | None],
) -> int | None:
    """The last of the steps of which no fault is found."""
    faults = []
    for step in reversed(wanted):
        fault = fault_of(step)
        if fault is None:
            return step
        faults.append(f"checkpoint {folder / str(step)} is unusable: {fault}")
        warn(faults[-1])
    if faults:
        raise ValueError(
            f"{folder}: no usable checkpoint among {wanted}; restore one from a copy, or remove "
            "the run directory to start again\n  " + "\n  ".join(faults)
        )
    return None


def resumable(
    folder: str | os.PathLike[str], warn: Callable[[str], None], like: State, carry: Any
) -> int | None:
    """The last step whose checkpoint is whole, agreed on by all processes; None without any.

    like, carry: as of `restore`. On a disk the first process verifies every file. From a store each
    of several fetches and verifies the files that its own devices read, and those about arrays.

    Raises: as `good`.
    """
    place, first = pathlib.Path(folder), jax.process_index() == 0
    if jax.process_count() == 1 or staging.origin(place) is None:
        return agreement.first(good(place, warn, steps(place)) if first else None)
    agreement.first(None)  # the first has removed what was never complete
    staging.refresh(place.parent)
    parts = items(like) | ({"carry": carry} if carry else {})

    def fault(step: int) -> str | None:
        one, names = place / str(step), tuple(parts)
        own = integrity.fault(one, names, lambda name: not integrity.is_part(name))
        own = own or integrity.fault(one, names, integrity.read_by_this_process(one, parts))
        others = agreement.largest(int(own is not None))
        return own or ("another process found a damaged file" if others else None)

    return _whole(place, warn, steps(place), fault)


def set_aside(folder: str | os.PathLike[str], after: int) -> list[str]:
    """Rename the checkpoints after a step, none of which verified, to N.corrupt; the new names. All
    processes call it; the first does it, and other copies of a store's run have them no longer."""
    folder = pathlib.Path(folder)
    moved = []
    for step in steps(folder) if jax.process_index() == 0 else ():
        if step > after:
            target = folder / f"{step}.corrupt"
            staging.set_aside(folder / str(step), target)
            shutil.rmtree(target, ignore_errors=True)
            (folder / str(step)).rename(target)
            moved.append(target.name)
    agreement.first(None)
    if jax.process_index():
        staging.refresh(folder.parent)
    return moved


def surplus(folder: str | os.PathLike[str], cfg: Checkpoint) -> list[int]:
    """The steps that need not be kept: not among the last, nor every n-th, nor asked
    for by number, nor the best."""
    have = steps(folder)
    keep = set(have[-cfg.keep_last :])
    if cfg.keep_every is not None:
        keep |= {step for step in have if step % cfg.keep_every == 0}
    keep |= set(cfg.at)
    if cfg.keep_best and (top := best(folder)) is not None:
        keep.add(top)
    return [step for step in have if step not in keep]


def best(folder: str | os.PathLike[str]) -> int | None:
    """The step with the fewest validation bits per byte, the first of equals; None without any."""
    scores = {}
    for step in steps(folder):
        noted = integrity.facts(pathlib.Path(folder, str(step)))
        if noted is not None and noted["val"] is not None:
            scores[step] = noted["val"]
    return min(scores, key=lambda step: (scores[step], step)) if scores else None


def sweep(folder: str | os.PathLike[str]) -> None:
    """Remove what a killed process left half-written or half-removed."""
    staging.sweep(pathlib.Path(folder))
    for path in pathlib.Path(folder).glob("*"):
        if ".orbax-checkpoint-tmp" in path.name or path.name.endswith(".removed"):
            shutil.rmtree(path, ignore_errors=True)


def _sweep_up(folder: pathlib.Path) -> None:
    """`sweep` after a save that failed. Where one of orbax's threads failed, the others may still
    write into the directory while it is removed; they end by themselves soon."""
    for _ in range(50):
        sweep(folder)
        if not list(folder.glob("*.orbax-checkpoint-tmp*")):
            return
        time.sleep(0.1)


def _remove(path: pathlib.Path) -> None:
    # Renamed first: a checkpoint is there whole or not at all, also for one who reads meanwhile.
    gone = path.with_name(f"{path.name}.removed")
    path.rename(gone)
    shutil.rmtree(gone)
