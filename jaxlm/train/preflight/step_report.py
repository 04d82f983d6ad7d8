"""The report of a planned step on a chip: fit, bytes, collectives, time, cost, and what binds."""

import dataclasses
from collections.abc import Iterator
from typing import Any, NamedTuple

from jaxlm.data import pretraining
from jaxlm.data.pretraining import Data
from jaxlm.objectives.objective import Objective
from jaxlm.parallel import devices
from jaxlm.parallel.collectives import Collective
from jaxlm.parallel.topology import Topology
from jaxlm.scaling.cost import cost_report, flops, roofline
from jaxlm.scaling.cost.cost_report import Row
from jaxlm.train.preflight import memory_check
from jaxlm.train.preflight.compiled_step import Compiled, Refused
from jaxlm.train.run.run import Run

GIB = 2**30
# A change is worth its line from this share of a step's time per token.
WORTH = 0.02
PARTS = {
    "products": "products: the matrix unit",
    "scores": "attention's products",
    "memory": "HBM: bytes of operands and results",
    "bubble": "the pipeline's bubble",
    "links": "ICI: bytes between chips",
    "network": "DCN: bytes between slices",
}


class Prediction(NamedTuple):
    """A step's time, its parts, and the tokens of all devices in it."""

    seconds: float
    parts: roofline.Seconds
    tokens: int
    utilisation: float


def predict(run: Run, topology: Topology, ledger: list[Collective] | None = None) -> Prediction:
    """The Prediction of a run's step on a topology. ledger: the collectives that it was compiled
    to; None takes the least that its layout allows."""
    rows, seq = _shape(run)
    chip = topology.chip
    work = roofline.work(
        run.model,
        run.plan,
        batch=rows,
        seq=seq,
        mxu=chip.mxu,
        again=roofline.recomputed(run.model, run.plan),
    )
    if ledger is not None:
        work = work._replace(links=_sent(ledger, False), network=_sent(ledger, True))
    parts = roofline.seconds(work, chip, roofline.RATES, topology.dimensions)
    targets = pretraining.target_length(run.data) if isinstance(run.data, Data) else None
    each = flops.per_token(run.model, seq, targets=targets).training
    peak = run.plan.devices * chip.flops * parts.total
    return Prediction(parts.total, parts, rows * seq, each * rows * seq / peak)


def _sent(ledger: list[Collective], between: bool) -> dict[str, float]:
    """Bytes sent, by mesh axes, between slices or in one."""
    rows = [row for row in ledger if row.between == between]
    sent = {", ".join(row.axes): 0.0 for row in rows}
    for row in rows:
        sent[", ".join(row.axes)] += row.sent
    return sent


def _shape(run: Run) -> tuple[int, int]:
    if not isinstance(run.data, Data):
        return run.data.batch, run.data.seq
    shapes = [(stage.batch, stage.seq) for stage in pretraining.stages(run.data)]
    return max(shapes, key=lambda shape: shape[0] * shape[1])


def rows(
    run: Run,
    objective: Objective,
    topology: Topology,
    compiled: Compiled | Refused | None,
    tokens: float | None,
) -> list[Row]:
    """The lines of a report. compiled: None for the closed form alone. tokens: the budget, None for
    that of the run's steps."""
    out = [*_fit(run, objective, topology, compiled)]
    if isinstance(compiled, Refused):
        return out
    if topology.chip.platform == "cpu":
        assert compiled is not None
        return [*out, *_collectives(compiled, topology), *_untimed(run)]
    ledger = None if compiled is None else compiled.ledger
    prediction = predict(run, topology, ledger)
    if isinstance(compiled, Compiled):
        out += _collectives(compiled, topology)
    out += _time(run, topology, prediction, tokens)
    change = smallest_change(run, objective, topology)
    return [*out, Row("what moves it", change)]


def _fit(
    run: Run, objective: Objective, topology: Topology, compiled: Compiled | Refused | None
) -> Iterator[Row]:
    """Whether a step fits, and the bytes of a device by kind."""
    space = int(topology.chip.hbm * GIB)
    part = memory_check.estimate(run, objective)
    if isinstance(compiled, Compiled):
        held = compiled.bytes._asdict()
        peak = sum(held.values())
        kernels = ", ".join(sorted(compiled.kernels)) or "none"
        yield Row(f"compiled for {topology.name} in {compiled.seconds:.0f} s: {run.plan}", "")
        yield Row("kernels", kernels)
        text = f"it fits: {devices.binary(peak)} of {devices.binary(space)} a device"
        if topology.chip.platform == "cpu":
            text = _shared(peak, topology.chips)
    else:
        held = {f.name: getattr(part, f.name) for f in dataclasses.fields(part)}
        fits = "it fits" if part.total <= space else "no"
        text = f"{fits}: {devices.binary(part.total)} of {devices.binary(space)} a device"
        how = "closed form, not compiled"
        if isinstance(compiled, Refused):
            how = f"refused by the compiler in {compiled.seconds:.0f} s; parts by the closed form"
            text = f"no: {compiled.used:.2f} GiB of {compiled.available:.2f} GiB"
        yield Row(f"{how}: {topology.name}, {run.plan}", "")
    largest = max(held, key=lambda name: held[name])
    yield Row("does it fit?", f"{text}; the largest part is {largest}")
    for name, size in held.items():
        if size:
            yield Row(name, devices.binary(size))


def _shared(peak: int, count: int) -> str:
    """Whether `count` CPU devices that take so many bytes each fit into this machine."""
    need, there = count * peak, devices.host_memory()
    text = f"{devices.binary(peak)} a device, {devices.binary(need)} by {count} of one machine"
    if there is None:
        return text
    answer = "it fits" if need <= there else "no"
    return f"{answer}: {text}, {devices.binary(there)} here"


def _untimed(run: Run) -> Iterator[Row]:
    """FLOPs of a step whose time is not predicted."""
    rows, seq = _shape(run)
    each = flops.per_token(run.model, seq).training
    yield Row(f"a step: {rows * seq:,} tokens", "")
    yield Row("FLOPs of a step, model's", f"{cost_report.si(each * rows * seq)}FLOPs")
    yield Row("seconds a step", "not predicted: no peaks of a CPU are assumed")


def _collectives(compiled: Compiled, topology: Topology) -> Iterator[Row]:
    yield Row("collectives of a step, a device", "")
    for row in compiled.ledger:
        name = f"{row.kind} over {', '.join(row.axes) or 'no axis'} ({row.size})"
        name += " between slices" if row.between else ""
        if topology.chip.platform == "cpu":
            yield Row(name, f"{row.count:,} times, {devices.binary(row.sent)} sent")
            continue
        time = row.sent / topology.chip.network if row.between else _seconds(row.sent, topology)
        yield Row(name, f"{row.count:,} times, {devices.binary(row.sent)} sent, {time:.3f} s")
    if compiled.hops:
        text = ", ".join(f"{axis} {hop}" for axis, hop in compiled.hops.items())
        yield Row("worst hop of a ring, in links", text)


def _seconds(sent: float, topology: Topology) -> float:
    return sent / (roofline.RATES.links * 2 * topology.dimensions * topology.chip.link)


def _time(
    run: Run, topology: Topology, prediction: Prediction, tokens: float | None
) -> Iterator[Row]:
    """The step's time and what it costs to a budget of tokens."""
    parts = prediction.parts
    each = flops.per_token(run.model, _shape(run)[1]).training
    yield Row(f"prediction: {topology.name}, {prediction.tokens:,} tokens a step", "")
    yield Row("FLOPs of a step, model's", f"{cost_report.si(each * prediction.tokens)}FLOPs")
    yield Row("seconds a step", f"{prediction.seconds:.4f}")
    for name, value in parts._asdict().items():
        if value:
            yield Row(f"  {name}", f"{value:.4f}")
    yield Row("MFU", f"{prediction.utilisation:.1%}")
    speed = prediction.tokens / prediction.seconds
    yield Row("tokens/s", f"{speed:,.0f}, {speed / topology.chips:,.0f} a chip")
    budget = run.steps * prediction.tokens if tokens is None else tokens
    days = budget / speed / 86400
    text = f"{days:,.2f} days, {days * 24 * topology.chips:,.0f} chip-hours"
    yield Row(f"to {cost_report.short(budget)} tokens", text)
    yield Row("what binds", PARTS[parts.binds])


def smallest_change(run: Run, objective: Objective, topology: Topology) -> str:
    """The mildest change of plan or batch that fits and makes a token cheaper, by the closed form:
    "--plan.remat dots: 12 % less time a token"."""
    before = predict(run, topology)
    for way in _ways(run):
        try:
            changed = memory_check.changed(run, way)
            part = memory_check.estimate(changed, objective)
            after = predict(changed, topology)
        except ValueError:  # it does not divide
            continue
        gain = 1 - after.seconds / after.tokens * before.tokens / before.seconds
        if gain > WORTH and part.total <= topology.chip.hbm * GIB:
            text = " ".join(f"--{name} {value}" for name, value in way.items())
            return f"{text}: {gain:.0%} less time a token by the closed form"
    return "no change of remat, micro-batches, batch or one axis that fits"


def _ways(run: Run) -> Iterator[dict[str, Any]]:
    plan, batch = run.plan, run.data.batch
    if plan.microbatches > 1:
        yield {"plan.microbatches": plan.microbatches // 2}
    yield {"plan.loss_chunk": 2 * plan.loss_chunk}
    milder = {"full": ("dots", "none"), "dots": ("none",), "none": ()}[plan.remat]
    yield from ({"plan.remat": remat} for remat in milder)
    if plan.pipe > 1:
        yield {"plan.pipe_parts": 2 * plan.parts}
    yield {"data.batch": 2 * batch}
    for axis in ("tensor", "context", "expert"):
        size = getattr(plan, axis)
        if size % 2 == 0:
            yield {f"plan.{axis}": size // 2, "plan.fsdp": plan.fsdp * 2}
    if plan.fsdp % 2 == 0:
        yield {"plan.fsdp": plan.fsdp // 2, "plan.tensor": plan.tensor * 2}
