"""`jaxlm data curate`: a recipe's sources, scored, decided and written as a directory.

Everything before the decision is a function of a shard and is stored under what decides it
(workspace.py). Decisions are taken in this process, in the order of the recipe, and the directory
appears under its name whole, so that a kill at any moment costs the shards at work and no more.
"""

import contextlib
import os
import pathlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Protocol

import numpy as np

import jaxlm
from jaxlm.core import atomic, check, io, json_file
from jaxlm.core.remote import objects
from jaxlm.data.curate import corpus_step, curated_files, decisions, reading, recipe, scoring
from jaxlm.data.curate.executors import workers
from jaxlm.data.curate.workspace import Workspace
from jaxlm.data.sources import source

FORMAT = 1


def curate(
    given: recipe.Recipe,
    out: str | os.PathLike[str],
    work: str | os.PathLike[str] | None = None,
    count: int = 1,
    recipe_file: str | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> json_file.Record:
    """Make a curated directory, and return its manifest.

    A directory that this recipe made of the same sources stays as it is; one of another recipe is
    replaced when the new one is complete.

    work: the folder of intermediate results; None: OUT.work. count: processes. recipe_file: where
    the recipe is from, for processes to find classes of its own. say: is given lines of progress.

    Raises: ValueError with `Recipe.problems`, for a document that cannot be read, and where a step
    keeps nothing or a source loses too much; FileExistsError where `out` is there and is no curated
    directory; io.WriteError; ImportError naming an extra; ChildProcessError.
    """
    objects.refuse(out)
    check.refuse("the recipe cannot run:", given.problems())
    check.field("workers", count, count >= 1, "at least 1")
    target = pathlib.Path(out).expanduser()
    _restore(target)
    if target.exists() and not reading.present(target):
        raise FileExistsError(
            f"out {str(target)!r} exists and is no curated directory; name a new one"
        )
    folder = Workspace(str(work or target.with_name(f"{target.name}.work")))
    try:
        pathlib.Path(folder.root).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise io.refused(pathlib.Path(folder.root), error.strerror or error) from error
    processes = workers.Workers(count, recipe_file)
    try:
        return _Curation(given, folder, processes, say).into(target)
    finally:
        processes.close()


class Rehearsed(Exception):
    """A pass of `rehearse` is complete."""


class Tasks(Protocol):
    """Runs tasks: `executors.workers.Workers`, or one rank of another engine."""

    def map(self, task: Callable[..., Any], arguments: Iterable[tuple[Any, ...]]) -> Iterator[Any]:
        """task(*arguments) of each, in order."""
        ...


def rehearse(given: recipe.Recipe, work: Workspace, tasks: Tasks) -> None:
    """Everything before the decisions, by tasks that may end it with Rehearsed."""
    check.refuse("the recipe cannot run:", given.problems())
    with contextlib.suppress(Rehearsed):
        _Curation(given, work, tasks, lambda line: None).scores()


class _Curation:
    """One run of a recipe."""

    def __init__(
        self,
        given: recipe.Recipe,
        work: Workspace,
        processes: Tasks,
        say: Callable[[str], None],
    ):
        self._recipe, self._work, self._processes, self._say = given, work, processes, say
        self._stages = scoring.stages(given)

    def into(self, target: pathlib.Path) -> json_file.Record:
        """Run the recipe and write the directory; its manifest."""
        documents, sources = self._read(self._recipe.sources)
        against = self._against()
        facts = {
            "format": FORMAT,
            "recipe": recipe.record(self._recipe),
            "identities": [stage.identity for stage in self._stages],
            "sources": [{k: v for k, v in s.items() if k != "shards"} for s in sources],
            "against": {
                self._stages[n].step.name: [s["fingerprint"] for s in read]
                for n, (_, read) in against.items()
            },
            "jaxlm": jaxlm.__version__,
        }
        facts["key"] = recipe.key(json_file.digest(facts))
        if reading.present(target):
            saved = json_file.read_object(target / source.CURATED)
            if saved.get("key") == facts["key"]:
                self._say(f"{target} is what this recipe makes of these sources")
                return saved
        shards = [shard for s in sources for shard in s["shards"]]
        chains = self._score(shards, documents)
        olds = {n: self._measure(n, *pair) for n, pair in against.items()}
        scores = decisions.Scores([chain.keys for chain in chains], olds)
        verdicts = decisions.decide(self._recipe, self._work, documents, scores)
        return self._write(target, facts, shards, chains, documents, verdicts)

    def scores(self) -> None:
        """Read and score everything."""
        documents, sources = self._read(self._recipe.sources)
        against = self._against()
        self._score([shard for s in sources for shard in s["shards"]], documents)
        for number, pair in against.items():
            self._measure(number, *pair)

    def _against(self) -> dict[int, tuple[corpus_step.Documents, list[dict[str, Any]]]]:
        """Documents that are kept elsewhere, by number of the step that compares with them."""
        return {
            number: self._read([recipe.Source(path, path, stage.step.field) for path in paths])
            for number, stage in enumerate(self._stages)
            if (paths := getattr(stage.step, "against", ()))
        }

    def _read(
        self, sources: Sequence[recipe.Source]
    ) -> tuple[corpus_step.Documents, list[dict[str, Any]]]:
        """The documents of some sources without arrays, and what was read of each."""
        parts = [(i, part) for i, s in enumerate(sources) for part in reading.parts(s)]
        longest = self._recipe.longest
        tasks = ((self._work, part, longest) for _, part in parts)
        results = [*self._processes.map(reading.read, tasks)]
        facts, ids, clusters = [], [], []
        numbers, sizes, first = [], [], [0]
        for number, given in enumerate(sources):
            reads = [r for (i, _), r in zip(parts, results, strict=True) if i == number]
            listed = [self._work.json("documents", s.documents) for r in reads for s in r.shards]
            for shard in listed:
                ids += [row[0] for row in shard]
                sizes += [row[2] for row in shard]
                clusters += [row[3] for row in shard]
                first.append(len(ids))
            count = sum(map(len, listed))
            if not count:
                raise ValueError(f"source {given.name!r} ({given.path}) holds no text")
            numbers += [number] * count
            facts.append(
                {
                    "name": given.name,
                    "fingerprint": reading.fingerprint(given, [f for r in reads for f in r.files]),
                    "documents": count,
                    "bytes": sum(sizes[-count:]),
                    "empty": sum(r.empty for r in reads),
                    "shards": [shard for r in reads for shard in r.shards],
                }
            )
            self._say(f"read {given.name}: {count:,} documents")
        arrays = (np.array(numbers, np.int32), np.array(sizes, np.int64), np.array(first))
        return corpus_step.Documents(ids, *arrays, [], clusters), facts

    def _score(
        self, shards: Sequence[reading.Shard], documents: corpus_step.Documents
    ) -> list[scoring.Chain]:
        """The scores of all steps for all shards."""
        chains = [scoring.Chain(shard.texts, ()) for shard in shards]
        for segment in scoring.segments(self._stages):
            tasks = ((self._work, chain, segment) for chain in chains)
            chains = [*self._processes.map(scoring.score, tasks)]
            stage = segment[-1]
            if hasattr(stage.step, "rewrite"):
                arrays = [self._work.arrays(chain.keys[-1]) for chain in chains]
                owners = stage.step.repeated(documents._replace(arrays=arrays))
                tasks = ((self._work, c, stage, o) for c, o in zip(chains, owners, strict=True))
                pairs = self._processes.map(scoring.rewrite, tasks)
                chains = [c._replace(keys=(*c.keys[:-1], key)) for c, key in pairs]
            self._say(f"scored {', '.join(s.step.name for s in segment)}")
        return chains

    def _measure(
        self, number: int, documents: corpus_step.Documents, sources: Sequence[dict[str, Any]]
    ) -> corpus_step.Documents:
        """Documents that are kept elsewhere, with what a step measures of them."""
        shards = [shard for s in sources for shard in s["shards"]]
        stage = [self._stages[number]]
        tasks = ((self._work, scoring.Chain(shard.texts, ()), stage) for shard in shards)
        chains = self._processes.map(scoring.score, tasks)
        return documents._replace(arrays=[self._work.arrays(c.keys[0]) for c in chains])

    def _write(
        self,
        target: pathlib.Path,
        facts: dict[str, Any],
        shards: Sequence[reading.Shard],
        chains: Sequence[scoring.Chain],
        documents: corpus_step.Documents,
        verdicts: decisions.Verdicts,
    ) -> json_file.Record:
        sizes = [*self._processes.map(_sizes, ((self._work, c.texts) for c in chains))]
        rows = _Rows(self._recipe, shards, chains, documents, verdicts, sizes)
        replaced = io.unfinished(target)
        try:
            with atomic.folder(target) as temporary:
                files: list[curated_files.File] = []
                for kind in curated_files.FOLDERS:
                    (temporary / kind).mkdir()
                    end = ".jsonl.gz" if self._recipe.compress else ".jsonl"
                    cut = curated_files.cut(rows.of(kind), self._recipe.shard)
                    names = ((f"{kind}/{n:05}{end}", part) for n, part in enumerate(cut))
                    tasks = ((self._work, str(temporary), name, part) for name, part in names)
                    files += self._processes.map(curated_files.write, tasks)
                kept = [i for i in range(len(documents.ids)) if i not in verdicts.removed]
                manifest = facts | {
                    "counts": [count._asdict() for count in verdicts.counts],
                    "documents": len(kept),
                    "bytes": int(np.concatenate(sizes)[kept].sum()),
                    "files": [file._asdict() for file in files],
                }
                io.write(temporary / source.CURATED, json_file.sealed(manifest))
                if target.exists():
                    target.rename(replaced)
        except BaseException:
            if replaced.exists() and not target.exists():
                replaced.rename(target)
            raise
        if replaced.exists():
            atomic.discard(replaced)
        return json_file.read_object(target / source.CURATED)


def _restore(target: pathlib.Path) -> None:
    """Give a directory its name again, if a kill came between the old one's loss of it and the new
    one's gain: both are whole, since the manifest is the last file to be written."""
    if target.exists() or not target.parent.is_dir():
        return
    for hidden in sorted(target.parent.glob(f".{target.name}.*.part")):
        if reading.present(hidden):
            with contextlib.suppress(BlockingIOError, ValueError), io.held(hidden):
                json_file.read_object(hidden / source.CURATED)
                hidden.rename(target)
                return


def _sizes(work: Workspace, key: str) -> np.ndarray:
    """int64[texts] UTF-8 bytes of the texts of a shard."""
    texts = work.texts(key)
    return np.array([len(t.encode("utf-8", "surrogateescape")) for t in texts], np.int64)


class _Rows:
    """The rows of the files of each kind, shard by shard."""

    def __init__(
        self,
        given: recipe.Recipe,
        shards: Sequence[reading.Shard],
        chains: Sequence[scoring.Chain],
        documents: corpus_step.Documents,
        verdicts: decisions.Verdicts,
        sizes: Sequence[np.ndarray],
    ):
        self._recipe, self._shards, self._chains = given, shards, chains
        self._documents, self._verdicts, self._sizes = documents, verdicts, sizes

    def of(self, kind: str) -> Iterator[tuple[curated_files.Rows, Sequence[int]]]:
        """(rows, their sizes) of one kind of files: documents, removed or scores."""
        for number, first in enumerate(self._documents.first[:-1].tolist()):
            end = int(self._documents.first[number + 1])
            name = self._recipe.sources[int(self._documents.source[first])].name
            gone = self._verdicts.removed
            chosen = [i for i in range(first, end) if kind == "scores" or self._is(kind, i)]
            fields = [self._fields(kind, i, gone.get(i)) for i in chosen]
            shard, chain = self._shards[number], self._chains[number]
            scores: list[tuple[str, str]] = []
            if kind == "scores":
                steps = zip(self._recipe.steps, chain.keys, strict=True)
                scores = [(s.name, key if hasattr(s, "removal") else "") for s, key in steps]
            places = [i - first for i in chosen]
            rows = curated_files.Rows(chain.texts, shard.documents, name, places, fields, scores)
            yield rows, self._sizes[number][places].tolist()

    def _is(self, kind: str, number: int) -> bool:
        return (number in self._verdicts.removed) == (kind == "removed")

    def _fields(self, kind: str, number: int, gone: Any) -> dict[str, Any]:
        """Fields of a document's record that the decisions give."""
        if kind == "documents":
            return {"cluster": self._verdicts.clusters[number]}
        step = None if gone is None else self._recipe.steps[gone[0]].name
        if kind == "removed":
            cluster = self._verdicts.clusters[number]
            return {"cluster": cluster, "step": step, **gone[1]._asdict()}
        own = {
            self._recipe.steps[n].name: dict(scores[number])
            for n, scores in self._verdicts.scores.items()
            if number in scores
        }
        return {"step": step, "scores": own}
