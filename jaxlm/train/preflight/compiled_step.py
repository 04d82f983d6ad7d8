"""The compiled step of a run for a TPU that is elsewhere, or for CPU devices, and what the compiler
says of it."""

import math
import re
import time
from typing import Any, NamedTuple

import jax

from jaxlm.core import param, target
from jaxlm.data import pretraining
from jaxlm.parallel import collectives, hlo
from jaxlm.parallel.collectives import Collective
from jaxlm.parallel.topology import Topology, worst_hop
from jaxlm.scaling.cost import memory
from jaxlm.train import program, step
from jaxlm.train.preflight import scheduled_step
from jaxlm.train.run.run import Run


class Refused(NamedTuple):
    """A step for which the compiler finds no room: GiB that it would use, and that there are."""

    used: float
    available: float
    seconds: float


class Bytes(NamedTuple):
    """The compiler's peak of a device, in parts that add up to it.

    weights, optimiser, inputs: arguments (frozen weights are among the first). gradients: float32,
    by the shardings. activations: stacked over layers between the forward and the backward pass.
    temporaries: the rest, with the program itself.
    """

    weights: int
    optimiser: int
    inputs: int
    gradients: int
    activations: int
    temporaries: int


class Compiled(NamedTuple):
    """A step compiled for a topology. hops: the worst of each axis, as `topology.worst_hop` has
    it. kernels: Pallas kernels by name. seconds: of lowering and compiling, without machine code.
    """

    bytes: Bytes
    ledger: list[Collective]
    hops: dict[str, int]
    kernels: frozenset[str]
    seconds: float


def compile_step(
    run: Run, topology: Topology, options: scheduled_step.Options | None = None
) -> Compiled | Refused:
    """The run's step, as its plan has it, for the devices of a topology.

    options: of the compiler.

    Raises: ValueError for a plan that needs another number of devices, and for other data than
    text.
    """
    have = len(topology.devices)
    if run.plan.devices != have:
        raise ValueError(
            f"plan: {run.plan} needs {run.plan.devices} devices; {topology.name} has {have}: "
            f"--plan.fsdp {have // math.gcd(have, run.plan.devices // run.plan.fsdp)}, say"
        )
    if not isinstance(run.data, pretraining.Data):
        name = type(run.data).__name__
        raise ValueError(f"--topology: data of kind {name} given; it compiles steps on plain text")
    cpu = topology.chip.platform == "cpu"
    with target.compiling_for(topology.chip.platform, topology.devices):
        objective = program.training(run)[1]
        tx = program.optimiser(run, objective.spec)
        state = step.abstract(objective, tx, run.plan)
        begin = time.perf_counter()
        try:
            if cpu:
                text, peak = scheduled_step.on_cpu(run, topology)
            else:
                text, peak = scheduled_step.schedule(run, topology.name, options or {})
        except jax.errors.JaxRuntimeError as error:
            return refused(error, time.perf_counter() - begin)
        seconds = time.perf_counter() - begin
        held = memory.training(
            run.model,
            run.plan,
            batch=run.data.batch,
            seq=run.data.seq,
            tx=tx,
            dtype=run.plan.dtype,
            targets=pretraining.target_length(run.data),
            trained=objective.spec,
        )
        parts = _parts(state, peak, held.gradients, hlo.parse(text), objective.spec)
        ledger = collectives.ledger(text, run.plan.mesh)
        mesh = run.plan.mesh
        parts_of = zip(mesh.shape.items(), run.plan.across, strict=True)
        inside = [axis for (axis, size), slices in parts_of if size > 1 == slices]
        rings = {axis: worst_hop(mesh, axis) for axis in inside}
    hops = {axis: hop for axis, hop in rings.items() if hop is not None}
    return Compiled(parts, ledger, hops, frozenset(_KERNEL.findall(text)), seconds)


_KERNEL = re.compile(r"%((?:splash|flash|gmm|tgmm)\w*?)(?:\.\d+)? = ")
# "... required for HLO temporaries (36.00G) exceeds available HBM (15.75G)", before the memory is
# assigned, and "Used 31.22G of 15.75G hbm" after it
_USED = re.compile(
    r"(?:\(|Used )([\d.]+)([GMK])\)? (?:exceeds available HBM \(|of )([\d.]+)([GMK])(?:\)| hbm)"
)
_UNITS = {"G": 1.0, "M": 2.0**-10, "K": 2.0**-20}


def refused(error: jax.errors.JaxRuntimeError, seconds: float) -> Refused:
    """The memory that a compiler's error names; any other error is raised again."""
    used = _USED.search(str(error))
    if used is None:
        raise error
    need, there = (float(used[i]) * _UNITS[used[i + 1]] for i in (1, 3))
    return Refused(need, there, seconds)


def _parts(
    state: step.State, peak: int, gradients: int, compiled: hlo.Program, spec: param.Tree
) -> Bytes:
    """A peak in parts. Gradients and activations are at most what arguments leave of it."""
    weights = _held((state.params, state.frozen))
    optimiser = _held(state.opt)
    inputs = _held((state.step, state.key))
    left = peak - weights - optimiser - inputs
    gradients = max(0, min(gradients, left))
    shards = {_shard(x) for x in jax.tree.leaves(state.params)}
    activations = max(0, min(stacked(compiled, shards), left - gradients))
    return Bytes(weights, optimiser, inputs, gradients, activations, left - gradients - activations)


def stacked(compiled: hlo.Program, weights: set[tuple[int, ...]]) -> int:
    """Bytes of the arrays that the largest loop carries, an entry for each of its iterations, but
    for those of a weight's shape: what a scan over layers keeps for its backward pass."""
    most = 0
    for name in hlo.executions(compiled):
        for loop in compiled.computations[name]:
            length = hlo.trips(compiled, loop) if loop.opcode == "while" else None
            if length is None:
                continue
            arrays = [(hlo.shape(kind), hlo.nbytes(kind)) for kind in hlo.elements(loop.type)]
            kept = [n for shape, n in arrays if shape[:1] == (length,) and shape not in weights]
            most = max(most, sum(kept))
    return most


def _shard(x: jax.ShapeDtypeStruct) -> tuple[int, ...]:
    assert x.sharding is not None
    return x.sharding.shard_shape(x.shape)


def _held(tree: Any) -> int:
    """Bytes per device of a tree of shapes with shardings."""
    return sum(math.prod(_shard(x)) * x.dtype.itemsize for x in jax.tree.leaves(tree))
