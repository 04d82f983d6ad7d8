"""Plan of a mixture: the share of every source in a run, and how often the run reads it."""

import dataclasses
from collections.abc import Callable, Iterator, Sequence

from jaxlm.data.rows import row_schedule
from jaxlm.data.rows.row_schedule import Size


@dataclasses.dataclass(frozen=True)
class Source:
    """A source of a mixture: its documents and packed rows, and the most times it may be read."""

    name: str
    documents: int
    size: Size
    max_epochs: float


@dataclasses.dataclass(frozen=True)
class MixPlan:
    """A run of a mixture.

    stages: (first step, first row, weight of every source), by rising steps from 0.
    rows_before(step): rows that the steps before it read, of all sources.
    """

    sources: tuple[Source, ...]
    stages: tuple[tuple[int, int, tuple[float, ...]], ...]
    steps: int
    rows_before: Callable[[int], int]

    @property
    def rows(self) -> int:
        """Rows of the whole run."""
        return self.rows_before(self.steps)

    @property
    def schedule(self) -> list[row_schedule.Stage]:
        """The order of the rows."""
        changes = [(row, weights) for _, row, weights in self.stages]
        return row_schedule.stages(changes, [source.size for source in self.sources])

    @property
    def reached(self) -> list[tuple[int, int, tuple[float, ...]]]:
        """The stages that the run comes to."""
        return [stage for stage in self.stages if stage[1] < self.rows]

    def read(self) -> list[list[int]]:
        """Rows of every source [stages reached, sources]."""
        schedule = self.schedule
        ends = [row for _, row, _ in self.reached[1:]] + [self.rows]
        before = [0] * len(self.sources)
        out = []
        for end in ends:
            until = row_schedule.counts(schedule, end)
            out.append([b - a for a, b in zip(before, until, strict=True)])
            before = until
        return out


def table(plan: MixPlan) -> list[str]:
    """Lines of the planned shares of tokens and epochs of every source, by stage and in all."""
    read = plan.read()
    stages = [_shares(plan, rows) for rows in read]
    total = [sum(rows) for rows in zip(*read, strict=True)]
    every = _shares(plan, total)
    firsts = [f"from step {step}" for step, _, _ in plan.reached]
    head = ["source", "documents", "tokens", *(firsts if len(firsts) > 1 else []), "share"]
    lines = [[*head, "epochs", "at most"]]
    for k, source in enumerate(plan.sources):
        by_stage = [f"{shares[k]:.2%}" for shares in stages] if len(stages) > 1 else []
        epochs = total[k] / source.size.rows
        lines.append(
            [
                source.name,
                f"{source.documents:,}",
                f"{source.size.tokens:,}",
                *by_stage,
                f"{every[k]:.2%}",
                f"{epochs:.3g}",
                f"{source.max_epochs:g}",
            ]
        )
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    text = [
        "  ".join([cells[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(cells[1:], widths[1:]))])
        for cells in lines
    ]
    return [f"mixture: shares of tokens in {plan.steps:,} steps, planned", *text]


def _shares(plan: MixPlan, rows: Sequence[int]) -> list[float]:
    """Shares of tokens, of so many rows of every source."""
    tokens = [
        n * source.size.tokens / source.size.rows
        for n, source in zip(rows, plan.sources, strict=True)
    ]
    return [count / max(sum(tokens), 1e-300) for count in tokens]


def problems(plan: MixPlan) -> Iterator[str]:
    """A line for each source that the run would read more than `max_epochs` times, with what would
    fit."""
    total = [sum(rows) for rows in zip(*plan.read(), strict=True)]
    for k, source in enumerate(plan.sources):
        if total[k] > source.max_epochs * source.size.rows:
            yield (
                f"data.mix: {source.name!r} would be read {total[k] / source.size.rows:.3g} times "
                f"in {plan.steps:,} steps; max_epochs is {source.max_epochs:g}. {_fitting(plan, k)}"
            )


def _fitting(plan: MixPlan, k: int) -> str:
    """Changes by which source k would be read no more often than it may be."""
    source = plan.sources[k]
    most = source.max_epochs * source.size.rows
    schedule = plan.schedule
    low, high = 0, plan.steps  # steps of a run that fits, and of one that does not
    while high - low > 1:
        middle = (low + high) // 2
        fits = row_schedule.counts(schedule, plan.rows_before(middle))[k] <= most
        low, high = (middle, high) if fits else (low, middle)
    texts = [f"steps={low}"] if low else []
    if factor := _factor(plan, k, most):
        texts.append(f"its weights times {factor:g}")
    return f"What fits: {', or '.join([*texts, 'more of its text', 'a larger max_epochs'])}"


def _factor(plan: MixPlan, k: int, most: float) -> float:
    """The largest factor, in thousandths, of a source's weights with which no more than `most` rows
    of it are read."""
    low, high = 0, 1000  # thousandths that fit, and that do not
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if _times(plan, k, middle / 1000) <= most else (low, middle)
    return low / 1000


def _times(plan: MixPlan, k: int, factor: float) -> int:
    """Rows of source k that are read with its weights times a factor."""
    stages = tuple(
        (step, row, tuple(w * factor if i == k else w for i, w in enumerate(weights)))
        for step, row, weights in plan.stages
    )
    changed = dataclasses.replace(plan, stages=stages)
    return sum(rows[k] for rows in changed.read())
