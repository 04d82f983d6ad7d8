"""Scores of shards: every step's, computed once and stored under what decides them."""

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

from jaxlm.data.curate import corpus_step, document_step, recipe
from jaxlm.data.curate.workspace import Workspace


class Stage(NamedTuple):
    """A step with the hash of what decides its scores; seed: of the recipe."""

    step: Any
    identity: str
    seed: int


class Chain(NamedTuple):
    """A shard after some steps: the key of its texts now, and of the scores or arrays of each."""

    texts: str
    keys: tuple[str, ...]


def stages(given: recipe.Recipe) -> list[Stage]:
    """The steps of a recipe, in order."""
    return [Stage(s, recipe.identity(s, given.seed), given.seed) for s in given.steps]


def score(work: Workspace, chain: Chain, steps: Sequence[Stage]) -> Chain:
    """A shard after further steps; only scores that are not stored yet are computed."""
    loaded = _Texts(work, chain.texts)
    for stage in steps:
        key = recipe.key(loaded.key, stage.identity)
        if hasattr(stage.step, "measure"):
            if not work.has("arrays", f"{key}.json"):
                work.put_arrays(key, _measure(stage.step, stage.seed)(loaded.texts()))
        elif work.has("scores", key):
            loaded.move(work.scored_texts(key))
        else:
            scored = _scorer(stage.step)(loaded.texts())
            loaded.replace([s.text for s in scored])
            work.put_scores(key, [s.scores for s in scored], loaded.key)
        chain = chain._replace(keys=(*chain.keys, key))
    return chain._replace(texts=loaded.key)


def rewrite(
    work: Workspace, chain: Chain, stage: Stage, owners: Sequence[Sequence[Any]]
) -> tuple[Chain, str]:
    """A shard after a step that rewrites texts by what all documents have in common, and the key of
    its scores. owners: what `repeated` of that step gave for the shard."""
    key = recipe.key(chain.texts, stage.identity, "rewrite", *(str(line) for line in owners))
    loaded = _Texts(work, chain.texts)
    if work.has("scores", key):
        loaded.move(work.scored_texts(key))
    else:
        scored = stage.step.rewrite(loaded.texts(), owners)
        loaded.replace([s.text for s in scored])
        work.put_scores(key, [s.scores for s in scored], loaded.key)
    return chain._replace(texts=loaded.key), key


def segments(steps: Sequence[Stage]) -> Iterator[list[Stage]]:
    """The steps, cut after each that rewrites texts by what all documents have in common."""
    segment: list[Stage] = []
    for stage in steps:
        segment.append(stage)
        if hasattr(stage.step, "rewrite"):
            yield segment
            segment = []
    if segment:
        yield segment


class _Texts:
    """Texts of a shard as the steps change them, read from the work folder when needed."""

    def __init__(self, work: Workspace, key: str):
        self._work, self.key = work, key
        self._texts: list[str] | None = None

    def texts(self) -> list[str]:
        if self._texts is None:
            self._texts = self._work.texts(self.key)
        return self._texts

    def move(self, key: str) -> None:
        """Go on with the texts under another key."""
        if key != self.key:
            self.key, self._texts = key, None

    def replace(self, changed: Sequence[str | None]) -> None:
        """Go on with texts of which some are changed; None leaves one as it is."""
        if any(text is not None for text in changed):
            pairs = zip(self.texts(), changed, strict=True)
            self._texts = [old if new is None else new for old, new in pairs]
            self.key = self._work.put_texts(self._texts)


# A process builds each scorer once; recipes are frozen, so that equal steps are one.
@functools.lru_cache(maxsize=64)
def _scorer(given: Any) -> document_step.Scorer:
    return given.scorer()


@functools.lru_cache(maxsize=64)
def _measure(given: Any, seed: int) -> Callable[[Sequence[str]], corpus_step.Arrays]:
    return given.measure(seed)
