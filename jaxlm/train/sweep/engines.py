"""Engines that run the trials of a sweep: one starts `jaxlm train SPEC` and reports its end.

    local       processes of this machine, each with its share of the cores
    inline      this process, one after the other
    population  this process; those of one shape were trained before as one program
                (`scheduler.populate`), the others come one after the other
    ray         a cluster of hosts under Ray (extra `cluster`)
    slurm       jobs of SLURM, through submitit (extra `cluster`)

Hosts of a cluster share a file system: a trial is known by the path of its spec, and what it has
done by its run directory. So nothing but an exit code comes back, and a trial that is started again
resumes wherever it runs.
"""

import contextlib
import dataclasses
import importlib
import os
import pathlib
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from typing import Any, Literal, NamedTuple

import jax

Name = Literal["local", "inline", "population", "ray", "slurm"]
# These compute where the sweep itself does.
IN_PROCESS = ("inline", "population")
# Seconds that a stopped trial has for its last checkpoint.
GRACE = 60.0
# Runs in the child before it becomes the trial: it is to end with the sweep (only Linux supports
# that), and to keep to its cores, which XLA counts its threads by.
PREFACE = """
import ctypes, os, signal, sys
parent, cores, *command = sys.argv[1:]
if sys.platform.startswith("linux"):
    ctypes.CDLL(None).prctl(1, signal.SIGTERM)
    if cores:
        os.sched_setaffinity(0, [int(core) for core in cores.split(",")])
    if os.getppid() != int(parent):
        raise SystemExit(143)
os.execv(command[0], command)
"""


class Task(NamedTuple):
    """A trial to start."""

    name: str
    spec: str  # path of the Run as JSON
    log: str  # path that gets what it prints
    slot: int | None  # which of the workers' shares of the cores; None is all


class Job(NamedTuple):
    """A trial that was started."""

    poll: Callable[[], int | None]  # its exit code, None while it runs
    stop: Callable[[], None]  # ends it; it saves what it has


class Engine(NamedTuple):
    """A named way to start trials."""

    name: Name
    submit: Callable[[Task], Job]


class Resources(NamedTuple):
    """Resources that a trial requests from a cluster; `local` and `inline` read none of them."""

    cpus: int = 1
    """Cores of a trial."""
    gpus: int = 0
    """GPUs of a trial."""
    memory_gb: int = 8
    """Memory of a trial."""
    minutes: int = 240
    """SLURM: the longest a trial may take at once; one cut off is resumed as a retry."""
    partition: str | None = None
    """SLURM: where to submit; None is the site's default."""
    address: str = "auto"
    """Ray: the cluster's address; "auto" is the one this machine is of."""
    cluster: str = "slurm"
    """submitit's executor: `slurm`; `local` and `debug` run its jobs on this machine."""


@dataclasses.dataclass(frozen=True)
class Execution:
    """Settings for running the trials of a sweep or an ablation."""

    workers: int = 1
    """Trials at once."""
    engine: Name = "local"
    """Place that trials run in: processes of this machine, this process, Ray, SLURM. `population`
    is this process too, with runs of one shape (seeds, learning rates) as one compiled program: for
    an accelerator that one small model does not fill."""
    retries: int = 1
    """Retries of a trial that failed; one that diverged is never tried again."""
    cluster: Resources = Resources()
    """Resources of a trial under Ray or SLURM."""

    def __post_init__(self) -> None:
        if self.workers < 1 or self.retries < 0:
            raise ValueError(
                f"workers, retries: {self.workers}, {self.retries} given; at least 1 and 0"
            )


def spare(name: Name) -> None:
    """Leave the accelerator to the trials where they are other processes: what is computed here is
    small. Before anything is."""
    if name not in IN_PROCESS:
        jax.config.update("jax_platforms", "cpu")


@contextlib.contextmanager
def opened(
    name: Name, workers: int, folder: str | os.PathLike[str], resources: Resources = Resources()
) -> Iterator[Engine]:
    """The engine of that name; trials that still run when the `with` ends are stopped.

    Raises: ImportError naming the extra that brings what is missing.
    """
    started: list[Job] = []
    with contextlib.ExitStack() as stack:
        if name == "local":
            submit = _local(workers)
        elif name in IN_PROCESS:
            submit = _inline
        elif name == "ray":
            submit = _ray(resources, stack)
        else:
            submit = _slurm(resources, pathlib.Path(folder))

        def remembered(task: Task) -> Job:
            started.append(_once(submit(task)))
            return started[-1]

        try:
            yield Engine(name, remembered)
        finally:
            for job in started:
                if job.poll() is None:
                    job.stop()


def _once(job: Job) -> Job:
    """The job, not polled again once it has ended."""
    ended: list[int] = []

    def poll() -> int | None:
        code = ended[0] if ended else job.poll()
        if code is not None and not ended:
            ended.append(code)
        return code

    return Job(poll, job.stop)


def command(spec: str) -> list[str]:
    """The command line of a trial."""
    return [sys.executable, "-m", "jaxlm", "train", spec]


def train(spec: str, log: str, where: str) -> int:
    """Run a trial to its end in a child process, in the directory `where`; its exit code. What a
    host of a cluster does."""
    with open(log, "ab") as out:
        return subprocess.run(
            command(spec), stdin=subprocess.DEVNULL, stdout=out, stderr=out, cwd=where
        ).returncode


# --- This machine ----------------------------------------------------------------------------


def _local(workers: int) -> Callable[[Task], Job]:
    cores = _cores()

    def submit(task: Task) -> Job:
        own = cores if task.slot is None else cores[task.slot % len(cores) :: workers]
        listed = ",".join(map(str, own if len(own) < len(cores) else []))
        preface = [sys.executable, "-c", PREFACE, str(os.getpid()), listed]
        with open(task.log, "ab") as out:
            child = subprocess.Popen(
                [*preface, *command(task.spec)],
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                env=dict(os.environ),
            )

        def stop() -> None:
            child.send_signal(signal.SIGTERM)
            try:
                child.wait(GRACE)
            except subprocess.TimeoutExpired:
                child.kill()
                child.wait()

        return Job(lambda: _code(child.poll()), stop)

    return submit


def _code(returned: int | None) -> int | None:
    """An exit code as a shell gives it: 128 + n after signal n."""
    return 128 - returned if returned is not None and returned < 0 else returned


def _cores() -> list[int]:
    """The cores this process may use, by number; except on Linux, as many as there are."""
    if sys.platform.startswith("linux"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


def _inline(task: Task) -> Job:
    from jaxlm.core import config, json_file
    from jaxlm.train import loop
    from jaxlm.train.run.run import Run

    with (
        open(task.log, "a", encoding="utf-8") as out,
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(out),
    ):
        try:
            record = json_file.read_object(pathlib.Path(task.spec))
            code = loop.run(config.from_dict(Run, record)).exit_code
        except Exception:
            traceback.print_exc()
            code = 1
    if code in (128 + signal.SIGINT, 128 + signal.SIGTERM):  # of this process, not of the trial
        raise KeyboardInterrupt
    return Job(lambda: code, lambda: None)


# --- Clusters --------------------------------------------------------------------------------


@contextlib.contextmanager
def _extra(name: str) -> Iterator[None]:
    """Names the extra where a module is missing."""
    try:
        yield
    except ImportError as error:
        raise ImportError(f"{name} is not installed: pip install 'jaxlm[cluster]'") from error


def _ray(resources: Resources, stack: contextlib.ExitStack) -> Callable[[Task], Job]:
    with _extra("ray"):
        ray: Any = importlib.import_module("ray")
    if not ray.is_initialized():
        ray.init(address=resources.address, log_to_driver=False)
        stack.callback(ray.shutdown)
    options = {"num_cpus": resources.cpus, "num_gpus": resources.gpus, "max_retries": 0}
    remote = ray.remote(**options)(_ray_trial)
    where = os.getcwd()

    def submit(task: Task) -> Job:
        reference = remote.remote(task.spec, task.log, where)

        def poll() -> int | None:
            done, _ = ray.wait([reference], timeout=0)
            if not done:
                return None
            try:
                return int(ray.get(reference))
            except ray.exceptions.RayError as error:
                _note(task, error)
                return 1

        def stop() -> None:
            ray.cancel(reference)
            ray.wait([reference], timeout=GRACE)

        return Job(poll, stop)

    return submit


def _ray_trial(spec: str, log: str, where: str) -> int:
    """`train` in Ray's worker; a cancelled one passes the interrupt on, so that the trial saves."""
    with open(log, "ab") as out:
        child = subprocess.Popen(
            command(spec), stdin=subprocess.DEVNULL, stdout=out, stderr=out, cwd=where
        )
        try:
            return child.wait()
        finally:
            if child.poll() is None:
                child.send_signal(signal.SIGTERM)
                child.wait(GRACE)


def _slurm(resources: Resources, folder: pathlib.Path) -> Callable[[Task], Job]:
    with _extra("submitit"):
        submitit: Any = importlib.import_module("submitit")
    executor = submitit.AutoExecutor(folder=folder / "slurm", cluster=resources.cluster)
    options = {
        "timeout_min": resources.minutes,
        "cpus_per_task": resources.cpus,
        "gpus_per_node": resources.gpus,
        "mem_gb": resources.memory_gb,
    }
    if resources.partition is not None:
        options["slurm_partition"] = resources.partition
    executor.update_parameters(name="jaxlm", **options)
    where = os.getcwd()

    def submit(task: Task) -> Job:
        job = executor.submit(train, task.spec, task.log, where)

        def poll() -> int | None:
            if not job.done():
                return None
            error = job.exception()
            if error is None:
                return int(job.result())
            _note(task, error)
            return 1

        def stop() -> None:
            job.cancel()
            end = time.monotonic() + GRACE
            while not job.done() and time.monotonic() < end:
                time.sleep(0.2)

        return Job(poll, stop)

    return submit


def _note(task: Task, error: BaseException) -> None:
    """Writes an engine's report on a trial into the trial's log."""
    with open(task.log, "a", encoding="utf-8") as out:
        out.write(f"{type(error).__name__}: {error}\n")
