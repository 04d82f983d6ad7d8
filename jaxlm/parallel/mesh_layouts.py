"""Layouts by name: a plan for a number of devices."""

import dataclasses
from collections.abc import Callable, Iterator

from jaxlm.core import check
from jaxlm.parallel.plan import Plan

# Most devices over which tensors are split, and those of a copy of the weights in `hybrid`: those
# of one host, whose network is the fastest.
HOST = 8

Axes = dict[str, int]


def named(
    name: str,
    devices: int,
    slices: int = 1,
    base: Plan = Plan(),
    suits: Callable[[Plan], None] = lambda plan: None,
) -> Plan:
    """The base plan on so many devices, laid out as one of `LAYOUTS`; each of several slices has a
    copy of the weights or, of a pipeline, its own stages.

        named("fsdp_tensor", 16) == Plan(fsdp=4, tensor=4)
        named("hybrid", 16, slices=2) == Plan(data=2, fsdp=8, slices=2)

    suits(plan) raises a ValueError for one that does not fit a run: the first that does is taken,
    in the layout's order of preference.

    Raises: ValueError for another name; and where no such plan fits, with the nearest that does.
    """
    check.field("layout", name, name in LAYOUTS, f"one of {sorted(LAYOUTS)}")
    fits = f"at least 1, and a multiple of {slices} slices"
    check.field("layout: devices", devices, devices >= 1 and devices % slices == 0, fits)
    base = dataclasses.replace(base.alone, microbatches=base.microbatches)
    plan, reason = _first(name, devices, slices, base, suits)
    if plan is not None:
        return plan
    others = [other for other in LAYOUTS if other != name]
    # as many devices in another layout, or fewer in this one
    tries = [(other, devices) for other in others] + [(name, n) for n in range(devices - 1, 0, -1)]
    fitting = ((n, other, _first(other, n, slices, base, suits)[0]) for other, n in tries)
    nearest = next((f"{other}:{n}, {plan}" for n, other, plan in fitting if plan), "one device")
    raise ValueError(f"layout: {name} of {devices} devices given; {reason}; what fits: {nearest}")


def _first(
    name: str, devices: int, slices: int, base: Plan, suits: Callable[[Plan], None]
) -> tuple[Plan | None, str]:
    """The first plan of a layout that fits, or None and the reason of the first that does not."""
    reasons = []
    for axes in LAYOUTS[name](devices, slices) if devices % slices == 0 else ():
        try:
            plan = dataclasses.replace(base, slices=slices, **axes)
            suits(plan)
        except ValueError as error:
            reasons.append(str(error))
        else:
            return plan, ""
    return None, reasons[0] if reasons else "there is no such layout of so many devices"


def _divisors(n: int) -> list[int]:
    return [k for k in range(1, n + 1) if n % k == 0]


def _fsdp(devices: int, slices: int) -> Iterator[Axes]:
    yield {"data": slices, "fsdp": devices // slices}


def _fsdp_tensor(devices: int, slices: int) -> Iterator[Axes]:
    inner = devices // slices
    for tensor in reversed(_divisors(inner)):
        if 1 < tensor <= HOST and tensor * tensor <= inner:
            yield {"data": slices, "fsdp": inner // tensor, "tensor": tensor}


def _hybrid(devices: int, slices: int) -> Iterator[Axes]:
    inner = devices // slices
    for fsdp in reversed(_divisors(inner)):
        if 1 < fsdp < devices and (slices > 1 or fsdp <= HOST):
            yield {"data": devices // fsdp, "fsdp": fsdp}


def _expert(devices: int, slices: int) -> Iterator[Axes]:
    return _with("expert", devices, slices)


def _context(devices: int, slices: int) -> Iterator[Axes]:
    return _with("context", devices, slices)


def _with(axis: str, devices: int, slices: int) -> Iterator[Axes]:
    """As much of this axis as fits, and fsdp."""
    inner = devices // slices
    for n in reversed(_divisors(inner)):
        if n > 1:
            yield {"data": slices, axis: n, "fsdp": inner // n}


def _pipeline(devices: int, slices: int) -> Iterator[Axes]:
    """A stage on each slice; on one slice as few stages as fit, whose bubble is the shortest."""
    for stages in _divisors(devices):
        if stages > 1 and stages % slices == 0:
            yield {"pipe": stages, "fsdp": devices // stages}


LAYOUTS: dict[str, Callable[[int, int], Iterator[Axes]]] = {
    "fsdp": _fsdp,
    "fsdp_tensor": _fsdp_tensor,
    "hybrid": _hybrid,
    "expert": _expert,
    "context": _context,
    "pipeline": _pipeline,
}
