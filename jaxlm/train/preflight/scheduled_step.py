"""A run's step as the compiler schedules it for a TPU that is elsewhere: HLO and memory, no code;
and as it compiles it for CPU devices.

Most of a compilation generates machine code, for every fusion on its own, after the program and its
memory are final. So another process compiles; the compiler writes both to disk before it begins
with the code, and the process is ended there.
"""

import multiprocessing
import os
import pathlib
import re
import tempfile
import threading
from collections.abc import Mapping
from multiprocessing.connection import Connection, wait
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxlm.core import target
from jaxlm.core.batch import Batch, Pairs
from jaxlm.data import pretraining
from jaxlm.parallel import topology
from jaxlm.train import program, step
from jaxlm.train.run.run import Run

Options = Mapping[str, str | bool]

# In the order in which they are written; DONE is begun when the others are complete.
HLO = "*.jit_step*.after_optimizations.txt"
MEMORY = "*.jit_step*.after_optimizations-memory-usage-report.txt"
DONE = "*.jit_step*.after_optimizations_after_buffer_assignment.txt"
_TOTAL = re.compile(r"^Memory Space: default .*\nTotal bytes: (\d+)", re.M)


class Scheduled(NamedTuple):
    """A step's HLO text, and bytes of HBM at its peak."""

    text: str
    peak: int


def schedule(run: Run, name: str, options: Options) -> Scheduled:
    """The Scheduled step for the topology of this name.

    options: the compiler's. A kernel that exceeds a core's memory is refused later, with the code.

    Raises: jax.errors.JaxRuntimeError, the compiler's own.
    """
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    with tempfile.TemporaryDirectory(prefix="jaxlm-plan-") as folder:
        path = pathlib.Path(folder)
        child = context.Process(target=_compile, args=(run, name, options, folder, sender))
        child.start()
        sender.close()
        try:
            while not receiver.poll(0.1) and not any(path.glob(DONE)):
                pass
            answer = receiver.recv() if receiver.poll() else None
        except EOFError:
            child.join()
            raise RuntimeError(f"the compiler's process ended with {child.exitcode}") from None
        finally:
            child.kill()
            child.join()
        if isinstance(answer, str):
            raise jax.errors.JaxRuntimeError(answer)
        if answer is not None:  # compiled to the end: this libtpu writes no such files
            return answer
        text, memory = (next(path.glob(pattern)).read_text() for pattern in (HLO, MEMORY))
    total = _TOTAL.search(memory)
    if total is None:
        raise RuntimeError(f"libtpu's report of memory has an unknown form: {memory[:80]!r}")
    return Scheduled(text, int(total[1]))


def on_cpu(run: Run, described: topology.Topology) -> Scheduled:
    """The Scheduled step for CPU devices of this process, and the bytes of one of them."""
    # code of LLVM's first level is compiled in a quarter of the time, from the same program
    first: Any = {"xla_backend_optimization_level": 1}
    compiled = lower(run, described).compile(first)
    held: Any = compiled.memory_analysis()
    peak = held.argument_size_in_bytes + held.output_size_in_bytes + held.temp_size_in_bytes
    return Scheduled(compiled.as_text() or "", peak - held.alias_size_in_bytes)


def _compile(run: Run, name: str, options: Options, folder: str, sender: Connection) -> None:
    """Compile, and send the Scheduled step, or the compiler's error as text."""
    threading.Thread(
        target=_end_with, args=(multiprocessing.parent_process(),), daemon=True
    ).start()
    jax.config.update("jax_enable_compilation_cache", False)  # TPUs elsewhere cannot read it
    lowered = lower(run, topology.load(name))
    try:
        compiled = lowered.compile(compiler_options={**options, "xla_dump_to": folder})
    except jax.errors.JaxRuntimeError as raised:
        sender.send(str(raised))
        return
    held: Any = compiled.memory_analysis()
    peak = held.peak_memory_in_bytes - held.generated_code_size_in_bytes
    sender.send(Scheduled(compiled.as_text() or "", peak))


def _end_with(parent: Any) -> None:
    """Wait for the end of the process that waits for this one, and end with it."""
    wait([parent.sentinel])
    os._exit(1)


def lower(run: Run, described: topology.Topology) -> jax.stages.Lowered:
    """The run's step, lowered for the devices of a topology."""
    with target.compiling_for(described.chip.platform, described.devices):
        objective = program.training(run)[1]
        tx = program.optimiser(run, objective.spec)
        state = step.abstract(objective, tx, run.plan)
        update: Any = program.update(run, objective, tx)
        return update.lower(state, batch(run))


def batch(run: Run) -> Batch | Pairs:
    """A batch's shapes, dtypes and shardings, the largest that a run on plain text has."""
    data = run.data
    assert isinstance(data, pretraining.Data)
    shapes = [(stage.batch, stage.seq) for stage in pretraining.stages(data)]
    rows, seq = max(shapes, key=lambda shape: shape[0] * shape[1])
    own = pretraining.target_length(data) or seq
    whole = [jax.ShapeDtypeStruct((rows, own), jnp.int32) for _ in range(5)]
    whole[2] = jax.ShapeDtypeStruct((rows, own), jnp.float32)
    batch: Any = Batch(*whole)
    if pretraining.target_length(data) is not None:
        batch = Pairs(*whole, *(jax.ShapeDtypeStruct((rows, seq), jnp.int32) for _ in range(3)))
    return jax.tree.map(
        lambda x, where: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where),
        batch,
        run.plan.shard_batch(batch),
    )
