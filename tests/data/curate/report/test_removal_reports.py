"""What a curated directory says of itself: why, the table, the page."""

import html.parser
import json
import random
import re

import pytest

from jaxlm.cli import main
from jaxlm.data.curate import curated_files, curation
from jaxlm.data.curate.decontaminate import Decontaminate
from jaxlm.data.curate.duplicates.copies import Exact
from jaxlm.data.curate.duplicates.near import Near
from jaxlm.data.curate.recipe import Recipe, Source
from jaxlm.data.curate.report import explanation, histograms, removal_table, report_page
from tests.data.curate.duplicates.test_near import drawn


@pytest.fixture(scope="module")
def curated(tmp_path_factory):
    """One source with an exact copy, a near copy, a copy of a directory and an item of a task."""
    folder, rng = tmp_path_factory.mktemp("curated"), random.Random(0)
    texts = [" ".join(drawn(rng, 60)) for _ in range(30)]
    old, question = " ".join(drawn(rng, 60)), " ".join(drawn(rng, 12))
    (folder / "task.jsonl").write_text(json.dumps({"question": question, "answer": "42"}) + "\n")
    planted = [texts[0], texts[1] + " extra", old, f"{texts[29]} {question} <b>&"]
    for name, content in (("new", texts[:29] + planted), ("old", [old + " end"])):
        lines = [json.dumps({"text": text}) + "\n" for text in content]
        (folder / f"{name}.jsonl").write_text("".join(lines))
    steps = (
        Decontaminate(tasks=(str(folder / "task.jsonl"),)),
        Exact(),
        Near(against=(str(folder / "old.jsonl"),)),
    )
    given = Recipe((Source("new <s>", str(folder / "new.jsonl")),), steps)
    curation.curate(given, folder / "clean")
    return folder / "clean", texts, old, question


def test_each_removal_has_a_witness_with_the_shared_text(curated):
    folder, texts, old, question = curated
    gone = {r["step"]: [] for r in curated_files.records(folder, "removed")}
    for record in curated_files.records(folder, "removed"):
        gone[record["step"]].append(explanation.verdicts(folder, record["id"])[-1])
    assert {step: len(v) for step, v in gone.items()} == {"near": 2, "exact": 1, "decontaminate": 1}
    (item,) = gone["decontaminate"]
    assert item.shared == question and item.witness == f"{question}\n42"
    assert item.record["witness"].startswith("task:") and "task.jsonl" in item.place
    (copy,) = gone["exact"]
    assert copy.shared == copy.witness == texts[0] and copy.place.startswith("new <s>: ")
    near = {v.record["text"]: v for v in gone["near"]}
    assert near[old].witness == old + " end" and "old.jsonl" in near[old].place
    assert near[texts[1]].shared == texts[1] and near[texts[1]].scores["near"] == {
        "similarity": near[texts[1]].record["score"]
    }
    text = "\n".join(explanation.lines(near[texts[1]]))
    assert re.search(r"removed by near: jaccard 0\.98\d+, threshold 0\.8\n", text)


def test_the_same_document_kept_and_removed(curated):
    """An exact copy has the id of the one that stays: both are told of, the kept one first."""
    folder, texts, *_ = curated
    ids = {r["text"]: r["id"] for r in curated_files.records(folder, "documents")}
    kept, copy = explanation.verdicts(folder, ids[texts[0]])
    assert "step" not in kept.record and copy.record["step"] == "exact"
    assert next(iter(explanation.lines(kept))).startswith(ids[texts[0]])
    assert explanation.verdicts(folder, ids[texts[2]][:12])[0].record["text"] == texts[2]
    with pytest.raises(ValueError, match="no document has it"):
        explanation.verdicts(folder, "zz")
    with pytest.raises(ValueError, match="documents begin so"):
        explanation.verdicts(folder, max(starts := [i[:1] for i in ids.values()], key=starts.count))
    with pytest.raises(FileNotFoundError, match="no curated directory"):
        explanation.manifest(folder / "documents")


def test_a_shared_run_is_the_longest_in_both():
    shared = explanation.shared_run
    assert shared("x, Q a b-c D e y", "a b c d f. A B, C d e") == "a b-c D e"
    assert shared("a b c", "c b a") is None and shared("One two", "zero one two") == "One two"
    assert shared("...", "a") is None
    rng = random.Random(0)
    for _ in range(30):
        a, b = ([rng.choice("abc") for _ in range(12)] for _ in range(2))
        runs = {" ".join(a[i:j]) for i in range(12) for j in range(i + 3, 13)}
        longest = max((r for r in runs if f" {r} " in f" {' '.join(b)} "), key=len, default=None)
        assert len(shared(" ".join(a), " ".join(b)) or "") == len(longest or "")


def test_the_table_counts_by_source_and_step(curated):
    lines = [*removal_table.lines(removal_table.summary(curated[0]))]
    assert lines[0].startswith("29 documents, ")
    rows = [re.split(r" {2,}", line) for line in lines[3:6]]
    assert [row[:3] + row[4:6] for row in rows] == [
        ["new <s>", "decontaminate", "33", "1", "3.0%"],
        ["new <s>", "exact", "32", "1", "3.1%"],
        ["new <s>", "near", "31", "2", "6.5%"],
    ]
    assert "removed by decontaminate:" in lines and any("repeats task:" in line for line in lines)


def test_histograms_hold_every_document_once(curated):
    folder = curated[0]
    found = {
        (h.step, h.score): h for h in histograms.histograms(folder, explanation.manifest(folder))
    }
    share = found["decontaminate", "share"]
    assert (share.kept.sum(), share.removed.sum()) == (32, 1) and share.thresholds == (0.5,)
    assert share.removed[-1] == 1 and share.kept[0] == 32
    assert found["near", "similarity"].removed.sum() == 2


def test_thresholds_are_those_of_the_fields_and_of_the_rules(tmp_path):
    """By hand: a field after `least_`, a rule of that name, and a threshold too far to be drawn."""
    scores = [{"words": float(n), "all": n < 3, "share": 0.0} for n in range(100)]
    lines = [
        json.dumps({"id": str(n), "step": "s" if n < 20 else None, "scores": {"s": score}})
        for n, score in enumerate(scores)
    ]
    for kind in ("scores", "removed"):
        (tmp_path / kind).mkdir()
    (tmp_path / "scores" / "0.jsonl").write_text("\n".join(lines))
    removed = {"id": "0", "step": "s", "rule": "share", "threshold": 0.5}
    (tmp_path / "removed" / "0.jsonl").write_text(json.dumps(removed))
    facts = {
        "counts": [{"step": "s"}],
        "recipe": {"steps": [{"kind": "s", "least_words": 20, "most_words": 10**5, "all": True}]},
    }
    share, words = histograms.histograms(tmp_path, facts)
    assert (words.score, words.thresholds) == ("words", (20.0,))
    assert (words.kept.sum(), words.removed.sum()) == (80, 20) and words.edges[-1] < 100
    assert (share.score, share.thresholds) == ("share", (0.5,))


class Page(html.parser.HTMLParser):
    def __init__(self):
        super().__init__()
        self.open, self.tags = [], []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        assert not {"src", "href"} & {name for name, _ in attrs}
        if tag != "meta":
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_the_page_is_whole_and_needs_no_other_file(curated, tmp_path, capsys):
    folder = str(curated[0])
    assert main.main(["data", "report", folder, "--html", str(tmp_path / "r.html")]) == 0
    text = (tmp_path / "r.html").read_text()
    page = Page()
    page.feed(text)
    assert not page.open and page.tags.count("svg") >= 3 and page.tags.count("pre") == 7
    assert "new &lt;s&gt;" in text and "<s>" not in text and "&lt;b&gt;&amp;" in text
    assert not re.search(r"https?:|@import|url\(", text)
    assert report_page.page(curated[0]) == text
    assert "removed by near:" in capsys.readouterr().out


def test_the_command_line(curated, tmp_path, capsys, monkeypatch):
    folder = str(curated[0])
    (tmp_path / "recipe.py").write_text(
        "import tests.data.curate.report.test_removal_reports as t\n"
        f"def config(): return t.again({folder!r})\ndef other(): return 3\n"
    )
    recipe = str(tmp_path / "recipe.py")
    assert main.main(["data", "curate", recipe, "--out", str(tmp_path / "again")]) == 0
    out = capsys.readouterr().out
    assert "read more: 29 documents" in out and "29 documents, " in out
    record = next(curated_files.records(tmp_path / "again", "documents"))
    assert main.main(["data", "why", str(tmp_path / "again"), record["id"]]) == 0
    assert f"kept, in cluster {record['cluster']}" in capsys.readouterr().out
    # what was curated before keeps the clusters that it has
    first = {r["id"]: r["cluster"] for r in curated_files.records(curated[0], "documents")}
    assert {
        r["id"]: r["cluster"] for r in curated_files.records(tmp_path / "again", "documents")
    } == first
    assert main.main(["data", "curate", f"{recipe}:other", "--out", folder]) == 2
    assert "returns a int; `jaxlm data curate` needs a Recipe" in capsys.readouterr().err


def again(folder):
    return Recipe((Source("more", folder),), (Exact(),))
