"""Prompts of files: which lines they are, and the tokens that a run of each kind makes of them."""

import json

import pytest

from jaxlm.data import pretraining
from jaxlm.data.records.chats import Chats
from jaxlm.data.records.records import Record
from jaxlm.data.templates import template
from jaxlm.data.templates.template import Message
from jaxlm.data.tokenizers import bytelevel
from jaxlm.decode import completions
from jaxlm.decode.prompt_tokens import Turn
from jaxlm.decode.serve.bulk import prompt_lines

BYTES = bytelevel.Bytes()
VICUNA = template.load("vicuna", "bytes")


def test_lines_of_a_text_keep_their_numbers(tmp_path):
    file = tmp_path / "p.txt"
    file.write_bytes(b"\xef\xbb\xbfone\r\n\ntw\xc3\xb6 \n  \nlast")
    found = [(r.value, r.origin) for r in prompt_lines.read(file)]
    texts = [("one", 1), ("tw\u00f6 ", 3), ("  ", 4), ("last", 5)]
    assert found == [({"prompt": text}, f"{file}:{n}") for text, n in texts]
    file.write_bytes(b"one\n\xff\n")
    with pytest.raises(ValueError, match="p.txt:2: not UTF-8"):
        list(prompt_lines.read(file))
    with pytest.raises(FileNotFoundError):
        prompt_lines.read(tmp_path / "none.txt")
    assert [r.origin for r in prompt_lines.listed(["a", "b"])] == ["prompts[0]", "prompts[1]"]


def test_a_text_is_read_across_pieces(tmp_path, monkeypatch):
    pieces = [b"on", b"e\ntwo", b"\n", b"three"]
    monkeypatch.setattr(prompt_lines.files, "chunks", lambda path: iter(pieces))
    assert [r.value["prompt"] for r in prompt_lines._lines(["p"])] == ["one", "two", "three"]


def test_a_field_that_would_be_overwritten_is_named(tmp_path):
    file = tmp_path / "p.jsonl"
    file.write_text('{"prompt": "a", "id": 1}\n{"prompt": "b", "finish": 2}\n')
    rows = prompt_lines.read(file)
    assert next(rows).value == {"prompt": "a", "id": 1}
    with pytest.raises(ValueError, match="p.jsonl:2: field 'finish' is what a continuation adds"):
        next(rows)


def turn(value, data=pretraining.Data(), layout=None):
    return prompt_lines.encoder(data, layout, BYTES)(Record(value, "p.jsonl:7"))


def test_prompts_of_a_run_of_text():
    assert turn({"prompt": "ab"}) == Turn(completions.encode(BYTES, "ab"), ())
    talk = [{"role": "user", "content": "a"}]
    for value in ({"messages": talk}, {"prompt": [*talk, *talk]}, {"prompt": "a", "system": "b"}):
        with pytest.raises(ValueError, match="p.jsonl:7: a conversation, for a run that was trai"):
            turn(value)
    with pytest.raises(ValueError, match="p.jsonl:7: no field 'prompt'"):
        turn({"promt": "a"})


def test_prompts_of_a_run_of_conversations(tmp_path):
    data = Chats("x", template="vicuna", system="Be brief.")
    talk = [("user", "a"), ("assistant", "b"), ("user", "c")]
    value = {"messages": [{"role": role, "content": text} for role, text in talk], "id": 3}
    messages = [Message(*pair) for pair in talk]
    for system, given in (("Be brief.", {}), ("Other.", {"system": "Other."})):
        tokens, stops, _ = turn(value | given, data, VICUNA)
        want = template.prompt(VICUNA, BYTES, [Message("system", system), *messages])
        assert tokens == want.tolist() and BYTES.special["eos"] in stops
    jinja = tmp_path / "own.jinja"
    jinja.write_text(
        "{{ tools[0].name }}{% for m in messages %}{{ m.content }}{{ eos_token }}{% endfor %}"
    )
    own = template.load(str(jinja), "bytes")
    value = {"prompt": "hi", "tools": json.dumps([{"name": "clock"}])}
    assert bytes(turn(value, pretraining.Data(), own).tokens[:7]) == b"clockhi"
    with pytest.raises(ValueError, match="p.jsonl:7: .*does not read 'tools'"):
        turn(value, data, VICUNA)
