"""Sources of a mixture, with their weights."""

import itertools
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass

from jaxlm.core import check

_NAME = re.compile(r"[\w.-]+")


@dataclass(frozen=True)
class Part:
    """A source of a mixture."""

    source: str
    """As `Data.source`."""
    weight: float
    """Share of the tokens trained on, relative to the weights of the other parts. 0 reads nothing
    before the first of `changes`."""
    changes: tuple[tuple[int, float], ...] = ()
    """Changes of the weight: (first step, weight) pairs. Before the first pair it is `weight`."""
    field: str = "text"
    """As `Data.field`."""
    max_epochs: float = 4.0
    """The most times that a run may read the source. Longer runs are refused: repeated tokens are
    worth less, from about four epochs on much less (Muennighoff et al. 2023)."""
    name: str | None = None
    """The source's name in tables and metrics; None takes it from `source`."""


# The parts of a mixture. No weight has a default: a mixture that nobody chose is not trained on.
Mix = tuple[Part, ...]


def names(mix: Mix) -> list[str]:
    """The name of every part: its own, or the last folder or file of its source, without endings
    and patterns."""
    return [_own(part.source) if part.name is None else part.name for part in mix]


def _own(source: str) -> str:
    pieces = [p for p in re.split(r"[/\\]", source) if p and not set(p) & set("*?[")]
    # known:tree?seed=1 is no pattern, and has but one piece
    last = (pieces or [source])[-1]
    return re.sub(r"[^\w.-]+", "-", last.split(".")[0] or last)


def weights(mix: Mix) -> list[tuple[int, tuple[float, ...]]]:
    """(first step, the weight of every part from there on), by rising steps from 0."""
    steps = sorted({0, *(step for part in mix for step, _ in part.changes)})
    return [(step, tuple(_in_force(part, step) for part in mix)) for step in steps]


def _in_force(part: Part, step: int) -> float:
    return ([part.weight] + [value for first, value in part.changes if first <= step])[-1]


def problems(mix: Mix) -> Iterator[str]:
    """Problems of a mixture, in lines that name the field, its value and what fits."""
    wrong = [line for i, part in enumerate(mix) for line in _of_part(f"data.mix[{i}]", part)]
    yield from wrong
    if wrong or not mix:
        return
    named = names(mix)
    fits = "different ones; give each part a `name`"
    yield from check.problem("data.mix: names", named, len({*named}) == len(mix), fits)
    for (i, a), (j, b) in itertools.combinations(enumerate(mix), 2):
        ok = (a.source, a.field) != (b.source, b.field)
        fits = f"another source than data.mix[{i}]: it would be read twice as often as planned"
        yield from check.problem(f"data.mix[{j}].source", b.source, ok, fits)
    stages = weights(mix)
    for step, values in stages:
        fits = f"above 0 for at least one part from step {step} on"
        yield from check.problem("data.mix: weights", values, any(values), fits)
    for i, name in enumerate(named):
        ok = any(values[i] for _, values in stages)
        fits = f"above 0 at some step; leave {name!r} out to read nothing of it"
        yield from check.problem(f"data.mix[{i}].weight", mix[i].weight, ok, fits)


def _of_part(where: str, part: Part) -> Iterator[str]:
    for name, fits in (("source", "a name or path"), ("field", "the name of a field")):
        value = getattr(part, name)
        yield from check.problem(f"{where}.{name}", value, bool(value), fits)
    yield from check.outside(where, part, "weight", least=0)
    yield from check.outside(where, part, "max_epochs", above=0)
    steps = [step for step, _ in part.changes]
    ok = steps == sorted({*steps}) and min(steps, default=1) >= 1
    ok = ok and all(0 <= value < math.inf for _, value in part.changes)
    fits = "(first step, weight) pairs with rising steps from 1 and weights of at least 0"
    yield from check.problem(f"{where}.changes", part.changes, ok, fits)
    ok = part.name is None or _NAME.fullmatch(part.name) is not None
    fits = "None, or of letters, digits and . _ -"
    yield from check.problem(f"{where}.name", part.name, ok, fits)
