"""Recipe of a curation: its sources by priority, and its steps in order."""

import dataclasses
import hashlib
import json
from collections.abc import Iterator
from typing import Any

from jaxlm.core import check, config
from jaxlm.data import synthetic
from jaxlm.data.sources import corpora, source


@dataclasses.dataclass(frozen=True)
class Source:
    """Documents of one origin."""

    name: str
    """Name of the source in reports and in the records of its documents."""
    path: str
    """A corpus, file, directory or glob, as `data.source` of a run."""
    field: str = "text"
    """The field of .jsonl or column of .parquet that holds the text."""


@dataclasses.dataclass(frozen=True)
class Recipe:
    """Everything that decides a curated directory, but for the versions of libraries."""

    sources: tuple[Source, ...]
    """Sources by priority: of two copies, that of the earlier source stays."""
    steps: tuple[Any, ...]
    """Steps in order: each is a `document_step.Step` or a `corpus_step.CorpusStep`."""
    most_lost: float = 0.5
    """Share of a source's documents that may be removed; a source that loses more is an error."""
    longest: int = 10_000_000
    """Characters of the longest document; a longer one is an error."""
    shard: int = 32 << 20
    """Bytes of text in a file of the result."""
    compress: bool = True
    """Whether the files of the result are compressed (gzip)."""
    seed: int = 0
    """Decides the hash functions of MinHash, and the samples in reports."""

    def problems(self) -> Iterator[str]:
        """Problems of the fields, in lines that name the field, its value and what fits."""
        names = [s.name for s in self.sources]
        fits = "names of at least one source, each once, without /"
        ok = bool(names) and len({*names}) == len(names) and all(n and "/" not in n for n in names)
        yield from check.problem("recipe.sources", names, ok, fits)
        steps = [step.name for step in self.steps]
        fits = "steps of at least one, each name once"
        yield from check.problem("recipe.steps", steps, len({*steps}) == len(steps) > 0, fits)
        yield from check.outside("recipe", self, "most_lost", least=0, most=1)
        yield from check.outside("recipe", self, "longest", "shard", least=1)
        for step in self.steps:
            yield from (f"recipe.steps: {step.name}: {line}" for line in step.problems())
        for part in self.sources:
            if part.path not in corpora.CORPORA and not synthetic.named(part.path):
                where = f"recipe.sources: {part.name}"
                yield from check.loaded(where, lambda path=part.path: source.listing(path))


def record(recipe: Recipe) -> dict[str, Any]:
    """The recipe as JSON holds it."""
    return json.loads(json.dumps(config.to_dict(recipe)))


def identity(step: Any, seed: int) -> str:
    """Everything that decides a step's scores, as JSON: its kind, its fields but for thresholds,
    the versions that it reports, and the recipe's seed where it draws."""
    fields = {f.name: getattr(step, f.name) for f in dataclasses.fields(step)}
    deciding = {name: value for name, value in fields.items() if name not in step.THRESHOLDS}
    drawn = seed if hasattr(step, "decide") else None
    facts = [config.kind(type(step)), deciding, dict(step.versions()), drawn]
    return json.dumps(facts, sort_keys=True, default=config.to_dict)


def digest(given: Recipe) -> str:
    """The hash of a recipe and of everything that decides its steps' scores."""
    steps = [identity(step, given.seed) for step in given.steps]
    return key(json.dumps(record(given), sort_keys=True), *steps)


def key(*parts: str) -> str:
    """24 hex digits of SHA-256 over some texts: the name of what they decide."""
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:24]
