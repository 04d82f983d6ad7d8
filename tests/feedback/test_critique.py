"""Critique and revision with a scripted model: what it is asked, and what a kill costs."""

import dataclasses
import json

import pytest

from jaxlm.core import keyed_random
from jaxlm.data.templates.template import Message
from jaxlm.decode.token_sampling import Sampling
from jaxlm.feedback import critique as revise
from jaxlm.feedback import prompt_files
from jaxlm.feedback.chat_model import Reply

CONSTITUTION = {
    "principles": [
        {"name": n, "critique": f"critique {n}", "revision": f"revise {n}", "choice": n}
        for n in ("one", "two", "three")
    ],
    "examples": [
        {"principle": "two", "prompt": "P", "response": "R", "critique": "C", "revision": "V"}
    ],
}


def told(conversation, seed):
    """An answer that says all it depends on."""
    return f"<{conversation[-1].text}|{seed}>"


@pytest.fixture
def settings(tmp_path, write):
    (tmp_path / "c.json").write_text(json.dumps(CONSTITUTION))
    prompts = write("prompts.jsonl", *({"prompt": f"ask {i}"} for i in range(5)))
    return revise.Settings(
        prompts=prompts,
        out=str(tmp_path / "out.jsonl"),
        constitution=str(tmp_path / "c.json"),
        rounds=2,
        batch=2,
        sampling=Sampling(max_new=8),
    )


def test_records_and_what_was_asked(settings, script, read):
    said = script(told)
    summary = revise.run(said.voice, settings)
    assert (summary.written, summary.found, summary.dropped) == (5, 0, {})
    records = read(settings.out)
    assert [r["prompt"] for r in records] == [f"ask {i}" for i in range(5)]
    seeds = set()
    for r in records:
        answer = f"<{r['prompt']}|{r['seed']}>"
        assert r["response"] == answer and r["response_finish"] == "stop_token"
        for number, one in enumerate(r["rounds"]):
            name = one["principle"]
            asked = [
                Message("user", r["prompt"]),
                Message("assistant", answer),
                Message("user", f"critique {name}"),
            ]
            assert asked in said.asked
            critique = f"<critique {name}|{keyed_random.seed(0, r['id'], 'critique', number)}>"
            assert one["critique"] == critique
            assert [*asked, Message("assistant", critique), Message("user", f"revise {name}")] in (
                said.asked
            )
            answer = f"<revise {name}|{one['seed']}>"
            assert one["revision"] == answer and one["finish"] == "stop_token"
            seeds.add(one["seed"])
        assert r["completion"] == answer
        seeds.add(r["seed"])
        made = r["provenance"]
        assert made["by"] == "revise" and made["model"]["step"] == 7
        assert made["settings"]["rounds"] == 2 and len(made["constitution"]) == 12
        assert made["settings"]["sampling"]["max_new"] == 8
    assert len(seeds) == 15
    assert {one["principle"] for r in records for one in r["rounds"]} == {"one", "two", "three"}


@pytest.mark.parametrize("calls", [1, 4, 7, 11])
def test_a_kill_loses_a_batch_at_most_and_changes_nothing(settings, script, read, calls, tmp_path):
    revise.run(script(told).voice, settings)
    whole = read(settings.out)
    left = [calls]

    def dying(conversation, seed):
        left[0] -= 1
        if left[0] < 0:
            raise KeyboardInterrupt
        return told(conversation, seed)

    again = dataclasses.replace(settings, out=str(tmp_path / "again.jsonl"), batch=1)
    with pytest.raises(KeyboardInterrupt):
        revise.run(script(dying).voice, again)
    said = script(told)
    summary = revise.run(said.voice, dataclasses.replace(again, batch=3))
    # an answer takes five calls
    assert summary.found == calls // 5 and len(said.asked) == 5 * (5 - calls // 5)
    assert read(again.out) == whole
    assert revise.run(script(None).voice, again).written == 0


def test_the_file_of_prompts_may_grow_and_repeat(settings, script, read, write):
    revise.run(script(told).voice, settings)
    first = read(settings.out)
    write("prompts.jsonl", {"prompt": "new"}, *({"prompt": f"ask {i % 5}"} for i in range(6)))
    assert revise.run(script(told).voice, settings).written == 2
    records = read(settings.out)
    assert records[:5] == first and [r["prompt"] for r in records[5:]] == ["new", "ask 0"]
    assert records[6]["id"] == f"{first[0]['id']}.2"
    assert records[6]["response"] != first[0]["response"]


def test_what_is_left_out(settings, script, read):
    def odd(conversation, seed):
        request = conversation[-1].text
        if request.startswith("revise"):
            prompt = conversation[0].text
            endings = {"ask 1": Reply("half", "length"), "ask 2": " ", "ask 3": "x" * 100}
            return endings.get(prompt, told(conversation, seed))
        return told(conversation, seed)

    said = script(odd, room=120)
    summary = revise.run(said.voice, settings)
    assert summary.written == 2 and sorted(summary.dropped.values()) == [1, 1, 1]
    assert "cut at sampling.max_new" in summary.dropped
    assert [r["prompt"] for r in read(settings.out)] == ["ask 0", "ask 4"]
    # what was left out is not asked again
    again = script(odd, room=120)
    assert revise.run(again.voice, settings) == summary._replace(written=0, found=2)
    assert again.asked == []


def test_cut_revisions_may_be_kept(settings, script, read):
    said = script(lambda conversation, seed: Reply("half", "length"))
    kept = dataclasses.replace(settings, unfinished="keep")
    assert revise.run(said.voice, kept).written == 5
    assert read(settings.out)[0]["rounds"][-1]["finish"] == "length"


def test_without_critique_and_with_examples(settings, script):
    said = script(told)
    revise.run(said.voice, dataclasses.replace(settings, critique=False, examples=1, rounds=1))
    assert not [c for c in said.asked if "critique" in c[-1].text]
    shown = [Message(*turn) for turn in (("user", "P"), ("assistant", "R"), ("user", "revise two"))]
    revisions = [c for c in said.asked if c[-1].text.startswith("revise")]
    assert len(revisions) == 5
    assert all(c[:4] == [*shown, Message("assistant", "V")] and len(c) == 7 for c in revisions)


def test_conversations(settings, script, read, write):
    turns = [
        {"role": r, "content": c} for r, c in (("user", "a"), ("assistant", "b"), ("user", "c"))
    ]
    write("prompts.jsonl", {"messages": [*turns, {"role": "assistant", "content": "old"}]})
    revise.run(script(told).voice, settings)
    (record,) = read(settings.out)
    assert record["messages"][:3] == turns and "prompt" not in record
    assert record["messages"][3]["content"] == record["rounds"][-1]["revision"]


@pytest.mark.parametrize(
    "changes, told_",
    [
        ({"rounds": 0}, "rounds: 0 given; it must be at least 1"),
        ({"examples": 2}, "examples: 2 given; it must be 0 to 1, the examples of"),
        ({"out": "x.txt"}, "out: 'x.txt' given; it must be a name that ends in .jsonl"),
        ({"sampling": Sampling(seed=1)}, "sampling.seed: 1 given"),
    ],
)
def test_wrong_settings(settings, script, changes, told_):
    with pytest.raises(ValueError, match=told_):
        revise.run(script(None).voice, dataclasses.replace(settings, **changes))


@pytest.mark.parametrize(
    "value, told_",
    [
        ({"promt": "a"}, "no field 'prompt' or 'messages' or 'instruction'"),
        ({"prompt": 3}, "holds a int"),
        ({"prompt": []}, "the last message must be the user's"),
        ({"messages": [{"role": "assistant", "content": "a"}]}, "the last message must be"),
        ({"messages": [{"role": "robot", "content": "a"}]}, "role 'robot' is none of"),
        ({"messages": ["a"]}, "expected an object with role and content"),
    ],
)
def test_wrong_prompts(write, value, told_):
    with pytest.raises(ValueError, match=told_) as error:
        prompt_files.read(write("p.jsonl", {"prompt": "fine"}, value))
    assert "p.jsonl:2" in str(error.value)


def test_instructions_with_their_input(write):
    name = write("p.jsonl", {"instruction": "Add.", "input": "1 2"}, {"instruction": "Hi"})
    assert [a.messages for a in prompt_files.read(name)] == [
        (Message("user", "Add.\n\n1 2"),),
        (Message("user", "Hi"),),
    ]
