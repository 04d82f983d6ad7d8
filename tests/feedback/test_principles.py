"""Constitutions: the library's own, the formats, and what a wrong file is told."""

import json

import pytest

from jaxlm.feedback import critique, principles

GOOD = {"name": "a", "critique": "c?", "revision": "r!", "choice": "which?"}


def test_the_librarys_own():
    found = principles.load("default")
    assert len(found.principles) >= 10
    assert len({p.name for p in found.principles}) == len(found.principles)
    for field in ("critique", "revision", "choice"):
        assert len({getattr(p, field) for p in found.principles}) == len(found.principles)
    shown = critique.examples(found, 3)
    assert [m.role for m in shown] == ["user", "assistant"] * 9
    asked = {m.text for m in shown if m.role == "user"}
    assert {p.critique for p in found.principles if p.name in ("law", "honesty")} <= asked


@pytest.mark.parametrize(
    "name, text",
    [
        ("c.json", json.dumps({"principles": [{"principle": "be kind"}]})),
        ("c.json", json.dumps([{"principle": "be kind"}])),
        ("c.jsonl", json.dumps({"principle": "be kind"}) + "\n"),
        ("c.txt", "# what we want\n\n  be kind\n"),
    ],
)
def test_formats(tmp_path, name, text):
    (tmp_path / name).write_text(text)
    found = principles.load(str(tmp_path / name))
    assert found == principles.Constitution((found.principles[0],))
    only = found.principles[0]
    assert only.name == "be kind"
    assert all("be kind" in words and "{" not in words for words in only)
    assert principles.digest(found) != principles.digest(principles.load("default"))


def test_what_is_filled_in_is_not_read_again():
    assert principles.fill("{a} {b} {c}", {"a": "{b}", "b": "{a}"}) == "{b} {a} {c}"


@pytest.mark.parametrize(
    "name, value, told",
    [
        ("c.json", {"principles": []}, "at least one is needed"),
        ("c.json", {"principle": []}, "no such field 'principle'; did you mean 'principles'?"),
        ("c.json", {"principles": {"name": "a"}}, "principles is a dict; a list is needed"),
        ("c.json", [GOOD, GOOD], "the name 'a' is given twice"),
        ("c.json", [GOOD, {"name": "b", "critique": "c"}], "principle 2: no field 'revision'"),
        ("c.json", [GOOD | {"chioce": "x"}], "no such field 'chioce'; did you mean 'choice'?"),
        ("c.json", [GOOD | {"choice": 3}], "field 'choice' holds a int, expected a string"),
        ("c.json", [GOOD | {"choice": " "}], "field 'choice' is empty"),
        ("c.json", [3], "principle 1: a int; an object is needed"),
        ("c.json", {"principles": [GOOD], "compare": "{a} or {b}: {question}"}, "{conversation}"),
        ("c.json", {"principles": [GOOD], "turn": "said"}, "turn: {text} must be in it once"),
        ("c.json", {"principles": [GOOD], "choices": ["A", "A"]}, "two different texts"),
        ("c.json", {"principles": [GOOD], "compare": 3}, "compare: a int; a text is needed"),
        ("c.yaml", [GOOD], "a constitution is a .json, .jsonl or .txt file"),
    ],
)
def test_wrong_files(tmp_path, name, value, told):
    (tmp_path / name).write_text(json.dumps(value))
    with pytest.raises(ValueError, match="c.") as error:
        principles.load(str(tmp_path / name))
    assert told in str(error.value) and name in str(error.value)


def test_examples_name_a_principle(tmp_path):
    example = {k: "x" for k in ("principle", "prompt", "response", "critique", "revision")}
    (tmp_path / "c.json").write_text(json.dumps({"principles": [GOOD], "examples": [example]}))
    with pytest.raises(ValueError, match=r"examples: principle 'x' is none of \['a'\]"):
        principles.load(str(tmp_path / "c.json"))


def test_missing_and_broken_files(tmp_path):
    with pytest.raises(FileNotFoundError, match="or 'default' for the library's"):
        principles.load(str(tmp_path / "none.json"))
    (tmp_path / "c.json").write_text("{")
    with pytest.raises(ValueError, match="not JSON"):
        principles.load(str(tmp_path / "c.json"))
