"""Prompts: what a record asks, what is left out, and how a batch holds them."""

import json

import numpy as np
import pytest

from jaxlm.data import tokenizers
from jaxlm.data.records import chats, examples, prompts
from jaxlm.data.records.prompts import Prompts
from jaxlm.data.templates import template


def write(folder, *records):
    path = folder / "asked.jsonl"
    path.write_text("".join(json.dumps(r) + "\n" for r in records), "utf-8")
    return str(path)


def test_strings_and_messages_ask_the_same_and_an_answer_at_the_end_is_left_out(tmp_path):
    asked = [{"role": "user", "content": "2+2"}]
    answered = [*asked, {"role": "assistant", "content": "4"}]
    source = write(
        tmp_path,
        {"prompt": "2+2", "answer": "4"},
        {"prompt": asked},
        {"messages": answered},
        {"question": "2+2"},
    )
    found = prompts.prepare(Prompts(source, holdout=0.0, seq=8))
    assert found.val is None and len(found.train) == 4
    batch = found.train.read(np.array([3, 0]))
    np.testing.assert_array_equal(batch.tokens[0], batch.tokens[1])
    tokenizer = tokenizers.load("bytes")
    right = template.prompt(
        template.load("plain", "bytes"), tokenizer, [template.Message("user", "2+2")]
    )
    np.testing.assert_array_equal(batch.tokens[0, : len(right)], right)
    assert batch.row.tolist() == [3, 0] and found.train.record(0)["answer"] == "4"
    assert batch.segments.sum(1).tolist() == [len(right)] * 2
    np.testing.assert_array_equal(batch.positions[0, : len(right)], np.arange(len(right)))
    assert not batch.tokens[:, len(right) :].any()


def test_an_instruction_stands_around_the_last_message_and_does_not_move_the_split(tmp_path):
    source = write(tmp_path, *({"prompt": f"{i}+1="} for i in range(40)))
    plain = prompts.prepare(Prompts(source, holdout=0.3, seq=40))
    told = prompts.prepare(Prompts(source, holdout=0.3, seq=40, before="Think. ", after=" ?"))
    for name in ("train", "val"):
        one, other = getattr(plain, name), getattr(told, name)
        texts = [one.text(i) for i in range(len(one))]
        assert texts == [other.text(i) for i in range(len(other))] and len(texts) > 5
    row = told.train.read(np.zeros(1, np.int64)).tokens[0]
    assert tokenizers.load("bytes").decode(row).startswith("Think. 0+1= ?"[:9])
    assert plain.facts != told.facts


def test_a_prompt_is_held_out_of_imitation_and_of_reinforcement_or_of_neither(tmp_path):
    source = write(tmp_path, *({"prompt": f"{i}+1=", "completion": "?"} for i in range(40)))
    asked = prompts.prepare(Prompts(source, holdout=0.3, seq=40)).val
    imitated = chats.prepare(chats.Chats(source, holdout=0.3, seq=40, packing="single")).val
    held = {asked.text(i) for i in range(len(asked))}
    rows = imitated.read(np.arange(len(imitated))).tokens
    said = {tokenizers.load("bytes").decode(row).partition("=")[0].strip() + "=" for row in rows}
    assert held == said and len(held) > 5


def test_long_prompts_are_counted_and_named_or_refused(tmp_path):
    source = write(tmp_path, {"prompt": "ab"}, {"prompt": "x" * 50}, {"prompt": "y" * 60})
    found = prompts.prepare(Prompts(source, holdout=0.0, seq=10))
    assert len(found.train) == 1 and found.facts["too_long"] == 2
    assert "asked.jsonl:2 (5" in found.facts["too_long_first"][0]
    with pytest.raises(ValueError, match=r"data.seq: 10 .* 2 prompts are longer.*jsonl:2"):
        prompts.prepare(Prompts(source, holdout=0.0, seq=10, long="refuse"))
    with pytest.raises(ValueError, match="no prompt of .* is left: 3 are longer than data.seq=1"):
        prompts.prepare(Prompts(source, holdout=0.0, seq=1))


@pytest.mark.parametrize(
    "record, told",
    [
        ({"promt": "a"}, "no field 'prompt' or 'messages' or 'question'.*did you mean 'promt'"),
        ({"prompt": 3}, "asked.jsonl:1: field 'prompt' holds a int"),
        ({"prompt": []}, "holds a list"),
        ({"messages": [{"role": "user"}]}, "message 0: no field 'content'"),
        ({"messages": [{"role": "system", "content": "s"}]}, "must end with what a user says"),
        ({"messages": [{"role": "assistant", "content": "s"}]}, "must end with what a user says"),
    ],
)
def test_a_record_that_asks_nothing_is_named(tmp_path, record, told):
    with pytest.raises(ValueError, match=told):
        prompts.prepare(Prompts(write(tmp_path, record)))


def test_a_batch_is_a_function_of_seed_and_step(tmp_path):
    source = write(tmp_path, *({"prompt": str(i)} for i in range(5)))
    rows = prompts.prepare(Prompts(source, holdout=0.0, seq=4)).train
    steps = [examples.Steps(rows, 2, 7, first, 0, 1) for first in (0, 3)]
    np.testing.assert_array_equal(steps[0][3].tokens, steps[1][0].tokens)
    seen = np.concatenate([steps[0][i].row for i in range(5)])
    assert sorted(seen[:5]) == sorted(seen[5:]) == [0, 1, 2, 3, 4]
