"""Decisions of a recipe: which documents go, by which step, and why, from stored scores alone."""

import collections
import functools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxlm.data.curate import corpus_step, recipe
from jaxlm.data.curate.document_step import Removal, Score
from jaxlm.data.curate.workspace import Workspace


class Count(NamedTuple):
    """Documents of a source that reached a step, and those that it removed, with their bytes as
    read."""

    step: str
    source: str
    documents: int
    bytes: int
    removed: int
    removed_bytes: int


class Verdicts(NamedTuple):
    """The outcome for N documents.

    removed: the step (its number) and the reason, by document; scores: of corpus steps, by number
    of the step and document; clusters: the component of each document; counts: by step and source.
    """

    removed: Mapping[int, tuple[int, Removal]]
    scores: Mapping[int, Mapping[int, Mapping[str, Score]]]
    clusters: Sequence[str]
    counts: Sequence[Count]


class Scores(NamedTuple):
    """Keys of the scores of each shard, by step, and the documents of `against` by step."""

    keys: Sequence[Sequence[str]]
    against: Mapping[int, corpus_step.Documents]


def decide(
    given: recipe.Recipe, work: Workspace, documents: corpus_step.Documents, scores: Scores
) -> Verdicts:
    """The outcome of all steps in order.

    Raises: ValueError naming step, source and share, where a step keeps nothing or a source has
    lost more than `most_lost`.
    """
    alive = np.ones(len(documents.ids), bool)
    removed: dict[int, tuple[int, Removal]] = {}
    own: dict[int, Mapping[int, Mapping[str, Score]]] = {}
    components = _Components(documents)
    counts: list[Count] = []
    read = functools.partial(_column, given, work, documents, scores)
    for number, step in enumerate(given.steps):
        keys = [shard[number] for shard in scores.keys]
        if hasattr(step, "removal"):
            gone = _apply(step, work, documents, keys, alive)
        else:
            old = scores.against.get(number, corpus_step.none())
            arrays = documents._replace(arrays=[work.arrays(key) for key in keys])
            decision = step.decide(corpus_step.Corpus(arrays, alive, old, read))
            gone, own[number] = decision.removals, decision.scores
            components.link(decision.links, old)
        removed |= {place: (number, reason) for place, reason in gone.items()}
        before = alive.copy()
        alive[[*gone]] = False
        counts += _counted(given, step.name, documents, before, alive)
        _refuse_losses(given, step.name, documents, alive, counts)
    return Verdicts(removed, own, components.names(), counts)


def _apply(
    step: Any,
    work: Workspace,
    documents: corpus_step.Documents,
    keys: Sequence[str],
    alive: np.ndarray,
) -> dict[int, Removal]:
    """The living documents that a step removes by their own scores."""
    gone = {}
    for first, key in zip(documents.first.tolist(), keys):
        for place, scores in enumerate(work.scores(key), start=first):
            if alive[place] and (reason := step.removal(scores)) is not None:
                gone[place] = reason
    return gone


def _column(
    given: recipe.Recipe,
    work: Workspace,
    documents: corpus_step.Documents,
    scores: Scores,
    step: str,
    score: str,
) -> np.ndarray:
    """float64[N] of one score of a step, NaN where a document has none. Raises: ValueError for a
    step that the recipe lacks, and a score that it does not give."""
    names = [s.name for s in given.steps]
    if step not in names or not hasattr(given.steps[names.index(step)], "removal"):
        raise ValueError(f"near.quality: no step {step!r} with scores; the steps are {names}")
    values: list[float] = []
    for shard in scores.keys:
        for record in work.scores(shard[names.index(step)]):
            if score not in record:
                raise ValueError(
                    f"near.quality: step {step!r} has no score {score!r}; it has {sorted(record)}"
                )
            value = record[score]
            values.append(float(value) if isinstance(value, int | float) else np.nan)
    return np.array(values)


def _counted(
    given: recipe.Recipe,
    name: str,
    documents: corpus_step.Documents,
    before: np.ndarray,
    after: np.ndarray,
) -> list[Count]:
    counts = []
    for number, source in enumerate(given.sources):
        here = documents.source == number
        reached, gone = here & before, here & before & ~after
        sizes = [int(documents.size[mask].sum()) for mask in (reached, gone)]
        count = Count(name, source.name, int(reached.sum()), sizes[0], int(gone.sum()), sizes[1])
        counts.append(count)
    return counts


def _refuse_losses(
    given: recipe.Recipe,
    name: str,
    documents: corpus_step.Documents,
    alive: np.ndarray,
    counts: Sequence[Count],
) -> None:
    if not alive.any():
        raise ValueError(
            f"step {name!r} keeps nothing: {_steps_of(counts, None)}; nothing was written"
        )
    for number, source in enumerate(given.sources):
        here = documents.source == number
        share = 1 - alive[here].mean()
        if share > given.most_lost:
            raise ValueError(
                f"source {source.name!r} has lost {share:.1%} of its {here.sum():,} documents "
                f"after step {name!r}; recipe.most_lost allows {given.most_lost:.1%}: "
                f"{_steps_of(counts, source.name)}; nothing was written. Read what would go with a "
                "higher most_lost before it is raised for good"
            )


def _steps_of(counts: Sequence[Count], source: str | None) -> str:
    """The steps that removed documents, each with their number."""
    totals: collections.Counter[str] = collections.Counter()
    for count in counts:
        if source is None or count.source == source:
            totals[count.step] += count.removed
    return ", ".join(f"{step} removed {n:,}" for step, n in totals.items() if n)


class _Components:
    """Components of documents that are copies of one another, removed ones included."""

    def __init__(self, documents: corpus_step.Documents):
        self._ids = documents.ids
        self._parents: dict[str, str] = {}  # a root is absent
        self._old: set[str] = set()  # components that are drawn already
        for own, cluster in zip(documents.ids, documents.cluster):
            self._join(own, cluster)  # of a source that was curated before

    def link(self, pairs: Sequence[tuple[int, int]], old: corpus_step.Documents) -> None:
        """Join the components of pairs of documents; a number from N on is one of `old`."""
        total = len(self._ids)
        for a, b in pairs:
            names = [self._ids[i] if i < total else old.cluster[i - total] for i in (a, b)]
            self._old |= {name for i, name in zip((a, b), names) if i >= total}
            self._join(*names)

    def _join(self, a: str, b: str) -> None:
        roots = sorted({self._root(a), self._root(b)}, key=lambda n: (n not in self._old, n))
        for other in roots[1:]:
            self._parents[other] = roots[0]

    def _root(self, name: str) -> str:
        root = name
        while root in self._parents:
            root = self._parents[root]
        while name != root:
            self._parents[name], name = root, self._parents[name]
        return root

    def names(self) -> list[str]:
        """The component of each document: the one that documents kept elsewhere are in, or else the
        smallest id in it."""
        return [self._root(name) for name in self._ids]
