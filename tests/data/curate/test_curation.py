"""A recipe from sources to a directory: the same bytes however it ran, and nothing lost."""

import collections
import dataclasses
import gzip
import hashlib
import json
import os
import pathlib
import random
import resource
import subprocess
import sys
import time
from typing import ClassVar

import pytest

from jaxlm.cli import main
from jaxlm.core import io
from jaxlm.data import tokenizers
from jaxlm.data.curate import curated_files, curation, reading
from jaxlm.data.curate.document_step import Removal, Scored
from jaxlm.data.curate.duplicates.copies import Exact
from jaxlm.data.curate.duplicates.near import Near
from jaxlm.data.curate.duplicates.repeated_lines import Lines
from jaxlm.data.curate.recipe import Recipe, Source
from jaxlm.data.sources import source
from jaxlm.data.tokenized import shards
from tests.data.curate.duplicates.test_near import drawn

CALLS: collections.Counter[str] = collections.Counter()


@dataclasses.dataclass(frozen=True)
class Length:
    """Counts characters, and writes small letters where `lower`."""

    least: int = 0
    lower: bool = False
    label: str = "length"
    THRESHOLDS: ClassVar[frozenset[str]] = frozenset({"least"})

    @property
    def name(self):
        return self.label

    def problems(self):
        yield from ()

    def versions(self):
        return {}

    def scorer(self):
        def score(texts):
            CALLS[self.label] += len(texts)
            return [
                Scored({"characters": len(t)}, t.lower() if self.lower else None) for t in texts
            ]

        return score

    def removal(self, scores):
        if scores["characters"] < self.least:
            return Removal("characters", scores["characters"], self.least)
        return None


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """Two sources: 60 documents, some of them copies, near copies, short, or with a menu."""
    folder, rng = tmp_path_factory.mktemp("sources"), random.Random(0)
    first = [drawn(rng, 40 + i) for i in range(30)]
    texts = [" ".join(words) for words in first]
    texts += [texts[0], texts[1].upper(), "short", ""]
    menu = "Home | About | Contact | Nothing\n"
    second = [menu + " ".join(drawn(rng, 50)) for _ in range(20)]
    second += [" ".join(words[:-1]) for words in first[2:8]] + [texts[9]]
    write(folder / "a.jsonl", texts)
    write(folder / "b" / "0.jsonl.gz", second[:9])
    write(folder / "b" / "1.jsonl", second[9:])
    return folder


def write(path, texts):
    path.parent.mkdir(exist_ok=True)
    content = "".join(json.dumps({"text": t}) + "\n" for t in texts).encode()
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)


def recipe(folder, least=10, lower=True, **kwargs):
    steps = (Length(least), Length(0, lower, "lower"), Exact(), Lines(most=5), Near())
    sources = (Source("a", str(folder / "a.jsonl")), Source("b", str(folder / "b")))
    kwargs = {"sources": sources, "steps": steps, "shard": 4000} | kwargs
    return Recipe(**kwargs)


@pytest.fixture(scope="module")
def made(corpus, tmp_path_factory):
    out = tmp_path_factory.mktemp("made") / "clean"
    curation.curate(recipe(corpus), out)
    return out


def content(folder):
    """{name: bytes} of all files below a folder."""
    return {
        str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()
    }


def test_every_document_is_kept_or_has_a_reason(corpus, made):
    kept = [*curated_files.records(made, "documents")]
    gone = [*curated_files.records(made, "removed")]
    assert len(kept) == 50 and collections.Counter(r["step"] for r in gone) == {
        "length": 1, "exact": 3, "near": 6
    }  # fmt: skip
    manifest = json.loads((made / "curation.json").read_text())
    assert manifest["documents"] == 50 and manifest["sources"][0]["empty"] == 1
    for given in manifest["sources"]:
        path = {"a": "a.jsonl", "b": "b"}[given["name"]]
        assert given["fingerprint"] == source.fingerprint(corpus / path)
    raw = {hashlib.sha256(d.text.encode()).hexdigest()[:20]
           for path in ("a.jsonl", "b") for d in source.documents(corpus / path)}  # fmt: skip
    assert {r["id"] for r in kept + gone} == raw
    # in the recipe's order, with the texts as the steps left them; the menu stays in one document
    assert [r["source"] for r in kept] == sorted(r["source"] for r in kept)
    assert all(r["text"] == r["text"].lower() for r in kept)
    assert sum("home | about" in r["text"] for r in kept) == 1
    copies = [r for r in gone if r["step"] == "exact"]
    assert {r["source"] for r in copies} == {"a", "b"} and all(r["witness"] for r in copies)
    scores = [*curated_files.records(made, "scores")]
    assert len(scores) == 60 and all("characters" in s["scores"]["length"] for s in scores)
    names = {f["name"]: f["sha256"] for f in manifest["files"]}
    files = {n: hashlib.sha256(c).hexdigest() for n, c in content(made).items()}
    assert names == {n: h for n, h in files.items() if n != "curation.json"}
    assert len([n for n in names if n.startswith("documents/")]) > 2


def test_a_run_reads_the_documents_alone(made):
    texts = [d.text for d in source.documents(made)]
    assert texts == [r["text"] for r in curated_files.records(made, "documents")]
    assert reading.present(made)


def test_two_workers_write_the_same_bytes(corpus, made, tmp_path):
    curation.curate(recipe(corpus), tmp_path / "clean", count=2)
    assert content(tmp_path / "clean") == content(made)


def test_a_recipe_that_fails_at_any_write_goes_on(corpus, made, tmp_path, monkeypatch):
    """A disk that fills at every write in turn: a named error, no directory, and the next try
    writes nothing again that is there."""
    real, out = io.put, tmp_path / "clean"
    names, failures = [], 0

    def put(path, fill):
        names.append(pathlib.Path(path).name)
        if len(names) % 3 == 0:
            raise io.refused(path, "No space left on device")
        real(path, fill)

    monkeypatch.setattr(io, "put", put)
    for _ in range(100):
        try:
            curation.curate(recipe(corpus), out)
            break
        except io.WriteError as error:
            failures += 1
            assert "No space left" in str(error) and not out.exists()
            if "part" in str(error):  # the directory itself takes more writes than two
                monkeypatch.setattr(io, "put", real)
    assert content(out) == content(made) and failures > 5
    assert not [p for p in tmp_path.iterdir() if p.name.startswith(".")]


def test_a_changed_threshold_scores_nothing(corpus, made, tmp_path):
    out = tmp_path / "clean"
    curation.curate(recipe(corpus), out)
    before, CALLS["length"], CALLS["lower"] = content(out), 0, 0
    steps = recipe(corpus, least=300).steps[:-1]
    changed = recipe(corpus, steps=(*steps, Near(threshold=0.99)), most_lost=0.99)
    manifest = curation.curate(changed, out)
    assert not +CALLS and content(out) != before
    assert manifest["counts"][0]["removed"] > 3
    gone = {r["step"] for r in curated_files.records(out, "removed")}
    assert "length" in gone and "near" not in gone
    # the first recipe again, from the same work folder, and the same again: nothing at all
    curation.curate(recipe(corpus), out)
    assert content(out) == before == content(made) and not +CALLS
    said = []
    curation.curate(recipe(corpus), out, say=said.append)
    assert "is what this recipe makes" in said[-1]
    # a field that decides scores does score again, that step alone
    curation.curate(recipe(corpus, lower=False, most_lost=1.0), out)
    assert CALLS == {"length": 0, "lower": 60}


def test_losses_stop_a_recipe_before_anything_is_replaced(corpus, made, tmp_path, monkeypatch):
    out = tmp_path / "clean"
    curation.curate(recipe(corpus), out)
    before = content(out)
    match = (
        r"source 'b' has lost 25.9% of its 27 documents after step 'near'.*most_lost allows 20.0%: "
        "exact removed 1, near removed 6"
    )
    with pytest.raises(ValueError, match=match):
        curation.curate(recipe(corpus, most_lost=0.2), out)
    steps = (Length(10**6),)
    with pytest.raises(ValueError, match="step 'length' keeps nothing: length removed 60"):
        curation.curate(recipe(corpus, steps=steps, most_lost=1.0), out)
    assert content(out) == before
    # the same where a kill came between the renames, or the last of them fails
    out.rename(io.unfinished(out))
    with pytest.raises(ValueError, match="keeps nothing"):
        curation.curate(recipe(corpus, steps=steps, most_lost=1.0), out)
    assert content(out) == before
    real, calls = os.rename, []

    def rename(*names):
        calls.append(names)
        if len(calls) == 2:
            raise OSError("no")
        real(*names)

    monkeypatch.setattr(os, "rename", rename)
    with pytest.raises(OSError, match="no"):
        curation.curate(recipe(corpus, least=20), out)
    assert content(out) == before and len(calls) == 3


def test_bad_input_is_named(corpus, tmp_path):
    def refused(data, match, name="x.jsonl", **kwargs):
        (tmp_path / name).write_bytes(data)
        given = recipe(corpus, sources=(Source("x", str(tmp_path / name)),), **kwargs)
        with pytest.raises(ValueError, match=match):
            curation.curate(given, tmp_path / "clean")
        assert not (tmp_path / "clean").exists()

    line = json.dumps({"text": "x" * 3000}).encode() + b"\n"
    refused(line + b'{"text": "\xff"}\n', r"x.jsonl:2: not UTF-8 text: byte 0xff")
    refused(b"", r"source 'x' .* holds no text")
    refused(b'{"text": ""}\n', r"source 'x' .* holds no text")
    refused(b"\xff\xfe", r"x.txt: not UTF-8 text", "x.txt")
    refused(
        line, r"x.jsonl:1: a document of 3,000 characters; recipe.longest is 2,999", longest=2999
    )
    refused(b"{", r"x.jsonl:1: bad JSON")


def test_a_line_of_a_hundred_megabytes(corpus, tmp_path):
    with (tmp_path / "x.jsonl").open("wb") as file:
        file.write(b'{"text": "' + b"a " * 50_000_000 + b'"}\n')
    given = recipe(corpus, sources=(Source("x", str(tmp_path / "x.jsonl")),))
    with pytest.raises(ValueError, match=r"x.jsonl:1: a document of 100,000,000 characters"):
        curation.curate(given, tmp_path / "clean")


def test_a_file_system_without_room(corpus, tmp_path):
    """The system's own limit on the size of a file, as a full disk would answer."""
    script = (
        "import resource, signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN);"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000));"
        f"from jaxlm.cli import main; raise SystemExit(main.main({['data', 'curate']!r} + "
        f"[{str(tmp_path / 'recipe.py')!r}, '--out', {str(tmp_path / 'clean')!r}]))"
    )
    (tmp_path / "recipe.py").write_text(
        "from jaxlm.data.curate.recipe import Recipe, Source\n"
        "from jaxlm.data.curate.duplicates.copies import Exact\n"
        f"def config(): return Recipe((Source('a', {str(corpus / 'a.jsonl')!r}),), (Exact(),))\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 2 and "jaxlm: cannot write" in done.stderr
    assert "free on its file system" in done.stderr and not (tmp_path / "clean").exists()
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] != 2000


def test_a_recipe_is_checked_first(corpus, tmp_path):
    sources = (Source("a", str(corpus / "a.jsonl")), Source("a", str(corpus / "none")))
    given = recipe(corpus, sources=sources, steps=(Exact(), Exact(), Near(words=0)), most_lost=2)
    with pytest.raises(ValueError, match="the recipe cannot run") as error:
        curation.curate(given, tmp_path / "clean")
    for part in ("recipe.sources: ['a', 'a']", "recipe.steps: ['exact', 'exact', 'near']",
                 "recipe.most_lost: 2", "near.words: 0", "no such file"):  # fmt: skip
        assert part in str(error.value)
    (tmp_path / "other").mkdir()
    with pytest.raises(FileExistsError, match="no curated directory"):
        curation.curate(recipe(corpus), tmp_path / "other")
    quality = (Near(quality=("lengths", "characters")),)
    with pytest.raises(ValueError, match="no step 'lengths'"):
        curation.curate(recipe(corpus, steps=quality), tmp_path / "clean")
    quality = (Length(), Near(quality=("length", "words")))
    with pytest.raises(ValueError, match=r"no score 'words'; it has \['characters'\]"):
        curation.curate(recipe(corpus, steps=quality), tmp_path / "clean")


def test_new_data_against_data_that_is_kept(corpus, made, tmp_path):
    """Copies of what a curated directory holds go, with its ids as witnesses; a removed copy that
    joins a new document to an old one puts both on the same side of a holdout."""
    old = {r["text"]: r for r in curated_files.records(made, "documents")}
    text = next(iter(old))
    write(tmp_path / "new.jsonl", [text, text + " more", "quite another text, which is new here"])
    steps = (Exact(against=(str(made),)), Near(against=(str(made),)))
    given = recipe(corpus, sources=(Source("n", str(tmp_path / "new.jsonl")),), steps=steps)
    curation.curate(dataclasses.replace(given, most_lost=0.7), tmp_path / "clean")
    gone = [*curated_files.records(tmp_path / "clean", "removed")]
    assert [r["step"] for r in gone] == ["exact", "near"]
    assert {r["witness"] for r in gone} == {old[text]["id"]}
    assert {r["cluster"] for r in gone} == {old[text]["cluster"]}


def test_a_holdout_is_drawn_by_cluster(tmp_path):
    """Near copies that both stay, for what they share with a third that went, are in one split."""
    rng, texts = random.Random(0), []
    for _ in range(60):
        words = ["w" + word for word in drawn(rng, 254)]
        texts += [" ".join(words[low:high]) for low, high in ((0, 220), (20, 238), (40, 252))]
    write(tmp_path / "x.jsonl", texts)
    given = Recipe((Source("x", str(tmp_path / "x.jsonl")),), (Near(),))
    curation.curate(given, tmp_path / "clean")
    clusters = collections.defaultdict(list)
    for document in source.documents(tmp_path / "clean"):
        clusters[document.cluster].append(document)
    assert [len(d) for d in clusters.values()].count(2) > 50
    splits = [{source.document_split(d, 0.3) for d in ds} for ds in clusters.values()]
    assert all(len(s) == 1 for s in splits) and len({*map(frozenset, splits)}) == 2
    # by text, some would straddle
    assert any(len({source.split(d.text, 0.3) for d in ds}) == 2 for ds in clusters.values())
    facts = shards.tokenize(
        tmp_path / "clean", "text", tokenizers.load("bytes"), tmp_path / "shards", 0.3
    )
    held = sum(len(d) for d, s in zip(clusters.values(), splits) if s == {"val"})
    assert facts.splits["val"].documents == held
    assert {*source.texts(tmp_path / "clean", "text", "val", 0.3)} == {
        d.text for ds, s in zip(clusters.values(), splits) if s == {"val"} for d in ds
    }


KILLED = """
import sys
from tests.data.curate import test_curation as t
import pathlib
if __name__ == "__main__":
    t.curation.curate(t.recipe(pathlib.Path(sys.argv[1])), sys.argv[2], count=int(sys.argv[3]))
"""


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2])
def test_the_same_bytes_after_twenty_kills(corpus, made, tmp_path, workers):
    script, rng = tmp_path / "run.py", random.Random(workers)
    script.write_text(KILLED)
    root = str(pathlib.Path(__file__).parents[3])
    line = [sys.executable, str(script), str(corpus), str(tmp_path / "clean"), str(workers)]
    env = os.environ | {"PYTHONPATH": root}
    began = time.monotonic()
    subprocess.run(line, cwd=root, env=env, check=True)
    whole = time.monotonic() - began
    assert content(tmp_path / "clean") == content(made)
    for _ in range(20):
        process = subprocess.Popen(line, cwd=root, env=env, stderr=subprocess.DEVNULL)
        try:
            process.wait(rng.uniform(0.4, 1.0) * whole)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        if rng.random() < 0.5:  # some of what was there is gone, so that kills meet work
            for path in rng.sample(sorted(p for p in tmp_path.rglob("scores/*/*")), 1):
                path.unlink()
        if (tmp_path / "clean").exists() and rng.random() < 0.5:
            (tmp_path / "clean").rename(tmp_path / f"away{rng.random()}")
    subprocess.run(line, cwd=root, env=env, check=True)
    assert content(tmp_path / "clean") == content(made)


@pytest.mark.slow
def test_the_recipe_of_the_built_in_corpora(tmp_path, monkeypatch, capsys):
    """recipes/stdlib.py, as the README has it: few documents go, each for one that stays."""
    monkeypatch.chdir(pathlib.Path(__file__).parents[3])
    out = tmp_path / "stdlib"
    assert main.main(["data", "curate", "recipes/stdlib.py", "--out", str(out)]) == 0
    assert "removed by near:" in capsys.readouterr().out
    kept = {r["id"] for r in curated_files.records(out, "documents")}
    gone = [*curated_files.records(out, "removed")]
    assert 0 < len(gone) < 0.02 * len(kept)
    assert all(r["witness"] in kept and r["score"] >= 0.8 for r in gone)
