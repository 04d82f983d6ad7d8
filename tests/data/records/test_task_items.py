"""Items of evaluation tasks, in the forms in which they are published."""

import gzip
import json
import pathlib
import zipfile

import pytest

from jaxlm.data.records import task_items

EVAL = pathlib.Path(__file__).parents[4] / "shared/data/eval"


def pairs(path):
    return [(item.task, item.question, item.answer) for item in task_items.items(str(path))]


def test_formats(tmp_path):
    lines = [{"question": "Q?", "answer": "A"}, {"input": "I", "target": ["x"]}]
    content = "".join(json.dumps(line) + "\n\n" for line in lines).encode()
    (tmp_path / "gsm.jsonl.gz").write_bytes(gzip.compress(content))
    assert pairs(tmp_path / "gsm.jsonl.gz") == [("gsm", "Q?", "A"), ("gsm", "I", '["x"]')]
    (tmp_path / "t.csv").write_text('Question,Other,Best Answer\n"W, x?",1,"no\nyes"\n')
    assert pairs(tmp_path / "t.csv") == [("t", "W, x?", "no\nyes")]
    (tmp_path / "m.csv").write_text('"Find c",0,1,2,3,B\n\nWhich?,a,b,c,d,D\n')
    assert pairs(tmp_path / "m.csv") == [("m", "Find c", "1"), ("m", "Which?", "d")]
    with zipfile.ZipFile(tmp_path / "all.zip", "w") as archive:
        archive.writestr("bbh/README.md", "not a task")
        archive.writestr(
            "bbh/sort.json", json.dumps({"examples": [{"input": "b a", "target": "a b"}]})
        )
        archive.write(tmp_path / "t.csv", "t.csv")
    assert [task for task, *_ in pairs(tmp_path / "all.zip")] == ["sort", "t"]
    first, second = task_items.items(str(tmp_path / "m.csv"))
    assert first.id.startswith("m:") and len({first.id, second.id}) == 2
    assert first.text == "Find c\n1"


@pytest.mark.parametrize(
    ("name", "content", "match"),
    [
        ("a.jsonl", b'{"q": 1}\n', r"item 1: an object with \['q'\]"),
        ("a.jsonl", b"{\n", "not JSON"),
        ("a.jsonl", b"", "no items"),
        ("a.jsonl", b"\xff", "not UTF-8 text at offset 0"),
        ("a.json", b"[]", "list `examples`"),
        ("a.csv", b"x,y\n", "item 1: 2 columns"),
        ("a.csv", b"q,a,b,c,d,E\n", "item 1: 6 columns"),
        ("a.zip", b"x", "not a zip file"),
        ("a.jsonl.gz", b"x", "corrupt or truncated"),
        ("a.txt", b"x", r"\.jsonl, \.json, \.csv or \.zip is needed"),
    ],
)
def test_other_files_are_refused(tmp_path, name, content, match):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=match):
        pairs(tmp_path / name)


def test_a_missing_file_and_an_archive_without_tasks(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such file"):
        pairs(tmp_path / "none.jsonl")
    zipfile.ZipFile(tmp_path / "a.zip", "w").close()
    with pytest.raises(ValueError, match=r"no \.jsonl, \.json, \.csv file"):
        pairs(tmp_path / "a.zip")


@pytest.mark.parametrize(
    ("file", "count"),
    [("mmlu_dev.zip", 285), ("gsm8k_train.jsonl", 7473), ("TruthfulQA.csv", 790),
     ("bbh.zip", 6511), ("crows_pairs.csv", 1508)],
)  # fmt: skip
def test_published_files(file, count):
    if not (EVAL / file).is_file():
        pytest.skip(f"no ../shared/data/eval/{file}")
    items = pairs(EVAL / file)
    assert len(items) == count and all(question and answer for _, question, answer in items)
