"""Check that a run fits into the available memory, before anything is computed.

A run is refused if even the least that it needs (`Memory.least`) is more than there is, so one that
would have fitted is not. JAXLM_MEMORY_CHECK=0 (`devices.UNCHECKED`) starts it all the same.
"""

import dataclasses
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp

from jaxlm.core import param
from jaxlm.data import pretraining
from jaxlm.objectives.objective import Frozen, Objective
from jaxlm.parallel import devices
from jaxlm.parallel.devices import Space
from jaxlm.parallel.plan import Plan
from jaxlm.scaling.cost import memory
from jaxlm.scaling.cost.memory import Memory
from jaxlm.train import program
from jaxlm.train.run.run import Run

if TYPE_CHECKING:
    from jaxlm.scaling.cost.cost_report import Row

MOST_DEVICES = 1024


def check(run: Run) -> None:
    """Raises: ValueError if the run needs more memory than there is, naming its largest part and
    what would fit."""
    there = devices.space()
    if there is None or devices.unchecked():
        return
    objective = program.training(run)[1]
    reason = refusal(run, objective, there)
    if reason is not None:
        raise ValueError(
            f"this run cannot start: {reason}\n  {devices.UNCHECKED}=0 starts it all the same"
        )


def rows(run: Run, objective: Objective, gib: float | None) -> "list[Row]":
    """The lines of a report on whether a run fits: into devices of so many GiB each, or where
    that is None into this machine's."""
    from jaxlm.scaling.cost import cost_report  # and with it flax, which no run needs

    there = devices.space()
    if gib is not None:
        there = Space(int(gib * 2**30), False, "such a device")
    if there is None:
        return []
    part, sharing = estimate(run, objective), _sharing(run.plan, there)
    need = part.total * sharing
    reason = refusal(run, objective, there)
    answer = "it fits" if need <= there.bytes else "it may just fit" if reason is None else "no"
    shared = f", {devices.binary(need)} by {sharing} devices" if sharing > 1 else ""
    heading = cost_report.Row(f"memory: {there}{shared}", "")
    return [heading, cost_report.Row("does it fit?", answer if reason is None else f"no: {reason}")]


def refusal(run: Run, objective: Objective, there: Space) -> str | None:
    """Reason why a run does not fit into this memory, with what would; None if it may fit."""
    part, sharing = estimate(run, objective), _sharing(run.plan, there)
    if part.least * sharing <= there.bytes:
        return _sampling(run, part, there)
    parts = {f.name: getattr(part, f.name) for f in dataclasses.fields(part)}
    largest = max(parts, key=lambda name: parts[name])
    each = " per device" if run.plan.devices > 1 else ""
    text = (
        f"it needs {devices.binary(part.total)}{each} (at least {devices.binary(part.least)}), and "
        f"{there}; the largest part is {largest}, {devices.binary(parts[largest])}"
    )
    fitting = []
    for kind in _ways(run, there):
        ways = (way for way in kind if _fits(changed(run, way), objective, there))
        if mildest := next(ways, None):
            fitting.append(" ".join(f"--{k} {v}" for k, v in mildest.items()))
    if fitting:
        return f"{text}\n  what would fit: {'; or '.join(dict.fromkeys(fitting))}"
    state = part.weights + part.optimiser + part.gradients + part.frozen
    if state * sharing <= there.bytes:
        return f"{text}\n  no change of the plan or batch makes it fit; a smaller data.seq may"
    return (
        f"{text}\n  no batch fits: weights, gradients and optimiser alone are "
        f"{devices.binary(state)}{each}; a smaller model is needed, or more memory"
    )


def _sampling(run: Run, part: Memory, there: Space) -> str | None:
    """Reason why the responses of a rollout, all sampled together, do not fit; None if they may.

    Their prompts may be shorter than data.seq: what is sure is the cache of the new tokens."""
    if run.rollout is None:
        return None
    rows, slots = run.data.batch * run.rollout.samples, run.rollout.max_new
    cache = memory.cache(run.model, run.plan, batch=rows, slots=slots, dtype=run.plan.dtype)
    need = part.weights + part.optimiser + part.frozen + cache
    if need * _sharing(run.plan, there) <= there.bytes:
        return None
    return (
        f"to sample, it needs {devices.binary(need)}, and {there}; the cache of {rows} responses "
        f"of {slots:,} tokens is {devices.binary(cache)} of it: lower data.batch, rollout.samples "
        "or rollout.max_new"
    )


def estimate(run: Run, objective: Objective) -> Memory:
    """Bytes per device of a step of this run, in the largest shape that its batches have.

    Of a rollout, a minibatch of its responses. With adapters the backward pass needs no inputs of
    the frozen matrices: about half of the activations.
    """
    batch, seq, targets = run.data.batch, run.data.seq, None
    if isinstance(run.data, pretraining.Data):
        shapes = [(stage.batch, stage.seq) for stage in pretraining.stages(run.data)]
        batch, seq = max(shapes, key=lambda shape: shape[0] * shape[1])
        targets = pretraining.target_length(run.data)
    if run.rollout is not None:
        batch = batch * run.rollout.samples // run.rollout.minibatches
        seq += run.rollout.max_new
    on = memory.mesh(run.plan)
    part = memory.training(
        run.model,
        run.plan,
        batch=batch,
        seq=seq,
        tx=program.optimiser(run, objective.spec),
        dtype=run.plan.dtype,
        targets=targets,
        trained=objective.spec,
        frozen=sum(_frozen_bytes(x, on) for x in objective.frozen.values()),
    )
    if run.adapter is None:
        return part
    return dataclasses.replace(part, activations=part.activations // 2)


def _frozen_bytes(part: Frozen, on: memory.Mesh) -> int:
    """Bytes per device of frozen weights as they are stored."""
    full = memory.spec_bytes(part.places, on, jnp.float32)
    leaves: Any = jax.tree.leaves(part.abstract())
    stored = sum(x.size * x.dtype.itemsize for x in leaves)
    count = param.count(part.places)
    return full * stored // (4 * count) if count else 0


def _sharing(plan: Plan, there: Space) -> int:
    """The number of this process's devices that take from one memory."""
    return max(1, plan.devices // jax.process_count()) if there.shared else 1


def _fits(run: Run, objective: Objective, there: Space) -> bool:
    try:
        part = estimate(run, objective)
    except ValueError:  # a dimension that does not divide over this mesh
        return False
    return part.total * _sharing(run.plan, there) <= there.bytes


def _ways(run: Run, there: Space) -> list[list[dict[str, Any]]]:
    """Changes that save memory, as overrides by field; of each kind the mildest first."""
    plan, batch = run.plan, run.data.batch
    rows = batch * plan.microbatches // plan.multiple
    parts = [n for n in _doublings(2 * plan.microbatches, rows) if rows % n == 0]
    ways = [[{"plan.microbatches": n} for n in parts]]
    if plan.remat != "full":
        full = {"plan.remat": "full"}
        ways += [[full], [full | {"plan.microbatches": n} for n in parts]]
    if run.rollout is None and not (isinstance(run.data, pretraining.Data) and run.data.ramp):
        split = plan.multiple
        fewer = (split * (batch // split >> n) for n in range(1, batch.bit_length()))
        ways.append([{"data.batch": n} for n in fewer if n])
    if not there.shared:
        wide = _doublings(2 * plan.fsdp, MOST_DEVICES * plan.fsdp // plan.devices)
        ways.append([_wider(run, n) for n in wide])
    return ways


def _wider(run: Run, fsdp: int) -> dict[str, Any]:
    """The overrides that split a run's weights over so many devices; the batch has to divide."""
    split = run.plan.multiple // run.plan.fsdp * fsdp
    wider = {"plan.fsdp": fsdp}
    return wider if run.data.batch % split == 0 else wider | {"data.batch": split}


def _doublings(first: int, last: int) -> list[int]:
    return [first << n for n in range(max(0, last // first).bit_length())]


def changed(run: Run, changes: dict[str, Any]) -> Run:
    """The run with overrides of its plan and data, by field."""
    for path, value in changes.items():
        name, field = path.split(".")
        run = dataclasses.replace(
            run, **{name: dataclasses.replace(getattr(run, name), **{field: value})}
        )
    return run
