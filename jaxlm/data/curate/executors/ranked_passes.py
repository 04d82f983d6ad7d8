"""Tasks of a curation by rank, for an engine that runs one function in many processes or machines.

datatrove's executors (local, SLURM, Ray) take functions of (data, rank, world size) as steps of a
pipeline. A recipe is a few passes, one after the other, over a work folder that all ranks see; the
results of each are stored there for the next. `jaxlm data curate` with that work folder then finds
every score, decides and writes. A rank that was killed is run again by its engine.
"""

import dataclasses
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from jaxlm.core import check, config
from jaxlm.data.curate import curation, reading, recipe, scoring
from jaxlm.data.curate.workspace import Workspace


@dataclasses.dataclass(frozen=True)
class Pass:
    """One pass over a recipe's shards: a step of a datatrove pipeline."""

    recipe: str
    """The file of the recipe, as on the command line."""
    work: str
    """The work folder."""
    number: int
    """The passes before this one."""

    def __call__(self, data: Any = None, rank: int = 0, world_size: int = 1) -> None:
        """Run the tasks of one rank. Raises: ValueError where the pass before is not complete, and
        what the tasks raise."""
        given = config.load(self.recipe)
        tasks = Ranked(Workspace(self.work), recipe.digest(given), self.number, rank, world_size)
        curation.rehearse(given, tasks.work, tasks)


def passes(recipe_file: str, work: str) -> list[Pass]:
    """The passes of a recipe, in order. Raises: ValueError with `Recipe.problems`."""
    given = config.load(recipe_file)
    check.refuse("the recipe cannot run:", given.problems())
    stages = scoring.stages(given)
    count = 1 + 2 * sum(bool(getattr(s.step, "against", ())) for s in stages)
    for segment in scoring.segments(stages):
        count += 1 + hasattr(segment[-1].step, "rewrite")
    return [Pass(recipe_file, work, number) for number in range(count)]


class Ranked:
    """The part of one rank in one pass; results of earlier passes are read."""

    def __init__(self, work: Workspace, name: str, number: int, rank: int, world_size: int):
        self.work = work
        self._name, self._number, self._rank, self._size = name, number, rank, world_size
        self._call = 0

    def map(self, task: Callable[..., Any], arguments: Iterable[tuple[Any, ...]]) -> Iterator[Any]:
        """Results of an earlier pass in order; of this pass, run the rank's part and end.

        Raises: curation.Rehearsed after the pass; ValueError for a result that is missing.
        """
        call, self._call = self._call, self._call + 1
        for place, given in enumerate(arguments):
            key = recipe.key(self._name, str(call), str(place))
            if call < self._number:
                if not self.work.has("results", key):
                    raise ValueError(
                        f"pass {call} of the recipe is not complete in {self.work.root}: task "
                        f"{place} has no result; run that pass again"
                    )
                yield _RESULTS[task](self.work.json("results", key))
            elif place % self._size == self._rank:
                self.work.put_json("results", key, task(*given))
        if call == self._number:
            raise curation.Rehearsed


def _read(saved: Any) -> reading.Read:
    shards, empty, files = saved
    return reading.Read([reading.Shard(*s) for s in shards], empty, [(n, h) for n, h in files])


def _chain(saved: Any) -> scoring.Chain:
    return scoring.Chain(saved[0], tuple(saved[1]))


# Results of each task, from JSON.
_RESULTS: dict[Any, Callable[[Any], Any]] = {
    reading.read: _read,
    scoring.score: _chain,
    scoring.rewrite: lambda saved: (_chain(saved[0]), saved[1]),
}
