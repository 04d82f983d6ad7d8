"""Records to conversations to rows: layouts, what is learnt, packing, truncation, the split."""

import json
import pathlib
import pickle

import numpy as np
import pytest

from jaxlm.data import tokenizers
from jaxlm.data.records import chat_formats, chats, records
from jaxlm.data.records.chats import Chats
from jaxlm.data.records.records import Record
from jaxlm.data.sources import source
from jaxlm.data.templates import template
from jaxlm.data.templates.template import Message

REAL = pathlib.Path(__file__).parents[3].parent / "shared" / "data" / "sft"
BYTES = tokenizers.load("bytes")
PLAIN = template.load("plain", "bytes")
U, A, S = "user", "assistant", "system"

TREE = {
    "message_tree_id": "t",
    "prompt": {
        "text": "q", "role": "prompter",
        "replies": [
            {"text": "second", "role": "assistant", "rank": 1, "replies": []},
            {"text": "gone", "role": "assistant", "rank": 0, "deleted": True, "replies": []},
            {"text": "best", "role": "assistant", "rank": 0, "replies": [
                {"text": "go on", "role": "prompter", "rank": None, "replies": [
                    {"text": "one", "role": "assistant", "rank": 1, "replies": []},
                    {"text": "two", "role": "assistant", "rank": 0, "replies": []},
                ]},
            ]},
        ],
    },
}  # fmt: skip


def read(value, tree="best"):
    found = chat_formats.read(Record(value, "f:1"), None, "\n\n", tree)
    return [([(m.role, m.text) for m in one.messages], one.learnt) for one in found]


@pytest.mark.parametrize(
    "value, wanted",
    [
        ({"instruction": "i", "input": "x", "output": "o"}, [(U, "i\n\nx"), (A, "o")]),
        ({"instruction": "i", "input": "", "output": "o"}, [(U, "i"), (A, "o")]),
        ({"instruction": "i", "instances": [{"input": "", "output": "o"}]}, [(U, "i"), (A, "o")]),
        ({"instruction": "i", "context": "c", "response": "r", "category": "qa"},
         [(U, "i\n\nc"), (A, "r")]),
        ({"conversations": [{"from": "human", "value": "h"}, {"from": "gpt", "value": "g"}]},
         [(U, "h"), (A, "g")]),
        ({"system": "s", "conversations": [{"role": "user", "content": "h"},
                                           {"role": "assistant", "content": "g"}]},
         [(S, "s"), (U, "h"), (A, "g")]),
        ({"messages": [{"role": "developer", "content": "s"}, {"role": "user", "content":
          [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
          {"role": "assistant", "content": "g"}]}, [(S, "s"), (U, "ab"), (A, "g")]),
        ({"prompt": "p", "completion": "c"}, [(U, "p"), (A, "c")]),
        ({"inputs": "p", "targets": "c", "task": "flan"}, [(U, "p"), (A, "c")]),
        ({"prompt": [{"role": "user", "content": "p"}],
          "completion": [{"role": "assistant", "content": "c"}]}, [(U, "p"), (A, "c")]),
        (TREE, [(U, "q"), (A, "best"), (U, "go on"), (A, "two")]),
    ],
)  # fmt: skip
def test_layouts_are_told_by_their_fields(value, wanted):
    ((messages, learnt),) = read(value)
    assert messages == wanted
    assert learnt == tuple(role == A for role, _ in wanted)


def test_every_path_of_a_tree_and_each_message_learnt_once():
    """Paths share their beginnings: learnt in each, an early reply counts as often as it has
    descendants."""
    found = read(TREE, "all")
    assert [m[-1][1] for m, _ in found] == ["two", "one", "second"]
    taught = [m[i][1] for m, learnt in found for i, yes in enumerate(learnt) if yes]
    assert sorted(taught) == ["best", "one", "second", "two"]


def test_openai_weights_and_the_last_answer_alone():
    said = [(U, "a"), (A, "b"), (U, "c"), (A, "d")]
    value = {"messages": [{"role": r, "content": t} for r, t in said]}
    value["messages"][1]["weight"] = 0
    ((_, learnt),) = read(value)
    assert learnt == (False, False, False, True)
    one = chat_formats.Conversation(
        tuple(Message(*m) for m in said), (False, True, False, True), "f:1"
    )
    for learn, wanted in (("all", "b.d."), ("last", "d.")):
        (found,) = chats.encode(one, PLAIN, BYTES, learn)
        ids = found.tokens[found.learnt]
        assert "".join("." if i == 258 else chr(i) for i in ids) == wanted


@pytest.mark.parametrize(
    "value, told",
    [
        ({"instruction": "i", "input": "x", "ouput": "o"}, "no field 'output'.*did you mean 'oup"),
        ({"instruction": 3, "output": "o"}, "field 'instruction' holds a int"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "message 0: role 'tool' is unknown"),
        ({"conversations": {"from": "human"}}, "must be a list of objects"),
        ({"messages": [{"role": "user"}]}, r"messages\[0\]: no field 'content'"),
        ({"messages": [{"role": "user", "content": [{"type": "text", "text": "a"},
                                                    {"type": "image"}]}]},
         r"messages\[0\]: content\[1\]: a part of type 'image' given; only parts of text are"),
        ({"prompt": [{"role": "user", "content": [{"type": "image_url", "text": "caption"}]}],
          "completion": "c"}, r"prompt\[0\]: content\[0\]: a part of type 'image_url' given"),
        ({"prompt": {"text": "q", "role": "prompter", "replies": [
            {"text": "a", "role": "assistant", "rank": "first"}]}}, r"replies\[0\].*'rank'"),
        ({"question": "q"}, "of no known layout"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_named_with_its_line(tmp_path, value, told):
    file = tmp_path / "x.jsonl"
    good = {"prompt": "p", "completion": "c"}
    file.write_text("\n".join(map(json.dumps, (good, value))))
    told = told.replace("oup", "ouput")
    with pytest.raises(ValueError, match=f"x.jsonl:2.*{told}"):
        chats.prepare(Chats(str(file), seq=32))


def write(folder, pairs):
    file = folder / "pairs.jsonl"
    file.write_text("\n".join(json.dumps({"prompt": p, "completion": c}) for p, c in pairs))
    return str(file)


def test_a_row_in_tokens_targets_and_weight(tmp_path):
    data = Chats(write(tmp_path, [("ab", "c"), ("d", "e")]), seq=8, holdout=0.0)
    split = chats.prepare(data)
    got = split.train.read(np.array([0]))
    assert len(split.train) == 1 and split.val is None
    assert got.tokens[0].tolist() == [257, *b"abc", 257, *b"de", 0]
    assert got.targets[0].tolist() == [*b"abc", 258, *b"de", 258, 0]
    assert got.weight[0].tolist() == [0, 0, 1, 1, 0, 1, 1, 0]
    assert got.segments[0].tolist() == [1, 1, 1, 1, 2, 2, 2, 0]
    assert got.positions[0].tolist() == [0, 1, 2, 3, 0, 1, 2, 0]
    assert [x.dtype for x in got] == [np.int32, np.int32, np.float32, np.int32, np.int32]
    assert split.facts["train_answer_tokens"] == 4


def test_single_rows_hold_the_same_conversations_and_rows_can_be_pickled(tmp_path):
    pairs = [("p" * (i % 5 + 1), "r" * (i % 7 + 1)) for i in range(40)]
    source_file = write(tmp_path, pairs)
    whole = {}
    for packing in ("best_fit", "single"):
        data = Chats(source_file, seq=16, packing=packing, holdout=0.0)
        rows = pickle.loads(pickle.dumps(chats.prepare(data).train))
        got = rows.read(np.arange(len(rows)))
        pieces = []
        for r in range(len(rows)):
            for s in range(1, int(got.segments[r].max()) + 1):
                at = got.segments[r] == s
                assert got.positions[r][at].tolist() == list(range(at.sum()))
                pieces.append(tuple(np.stack([x[r][at] for x in got[:3]]).ravel().tolist()))
        whole[packing] = sorted(pieces)
    assert whole["best_fit"] == whole["single"] and len(whole["single"]) == 40


def test_answers_of_no_text_are_not_learnt():
    said = [Message(*m) for m in ((U, "a"), (A, ""), (U, "b"), (A, "c"), (U, "d"), (A, " "))]
    one = chat_formats.Conversation(tuple(said), (False, True) * 3, "f:1")
    (found,) = chats.encode(one, PLAIN, BYTES, "all")
    assert found.tokens.tolist() == [257, *b"a", 258, *b"bc", 258]
    assert found.tokens[found.learnt].tolist() == [*b"c", 258]


def example(prompt, answer, earlier=0):
    """begin, an earlier answer of so many tokens, the prompt, the last answer."""
    parts = [(1, False), (earlier, True), (prompt, False), (answer, True)]
    learnt = np.concatenate([np.full(n, yes) for n, yes in parts])
    return chats.Example(np.arange(len(learnt), dtype=np.int32), learnt)


def test_what_is_too_long_loses_the_prompts_beginning_not_the_answer():
    kept, cut = chats.shorten(example(20, 5), 11)
    assert cut == "prompts_cut" and len(kept.tokens) == 12
    assert kept.tokens.tolist() == [0, *range(15, 26)] and kept.learnt.sum() == 5
    same, cut = chats.shorten(example(6, 5), 11)
    assert cut is None and len(same.tokens) == 12


def test_an_answer_too_long_keeps_its_beginning_and_gets_no_false_end():
    """Cut at the left, a long answer would be learnt without the question; with an end added, the
    model would learn to stop in the middle."""
    whole = example(20, 30)
    kept, cut = chats.shorten(whole, 11)
    assert cut == "answers_cut" and len(kept.tokens) == 12
    assert kept.tokens.tolist() == [0, 19, 20, *range(21, 30)]
    assert kept.learnt.tolist() == [False] * 3 + [True] * 9


def test_an_earlier_answer_whose_beginning_is_gone_is_not_learnt():
    kept, cut = chats.shorten(example(4, 5, earlier=10), 11)
    assert cut == "prompts_cut"
    assert kept.tokens.tolist() == [0, *range(9, 20)]
    assert kept.tokens[kept.learnt].tolist() == list(range(15, 20))


def test_what_teaches_nothing_is_left_out_and_counted(tmp_path):
    rows = [{"messages": [{"role": "user", "content": "a"}]}]
    rows += [{"prompt": "p", "completion": " "}, {"prompt": "p", "completion": "c"}]
    file = tmp_path / "x.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)))
    facts = chats.prepare(Chats(str(file), seq=8, holdout=0.0)).facts
    assert (facts["conversations"], facts["unanswered"]) == (3, 2)
    file.write_text(json.dumps(rows[0]))
    with pytest.raises(ValueError, match="leaves no conversation to train on"):
        chats.prepare(Chats(str(file), seq=8))


def test_copies_of_a_prompt_are_on_one_side_of_the_split(tmp_path):
    pairs = [(f"p{i % 50}", f"answer {i}") for i in range(200)]
    data = Chats(write(tmp_path, pairs), seq=32, holdout=0.3, packing="single")
    split = chats.prepare(data)
    prompts = []
    for rows in (split.train, split.val):
        got = rows.read(np.arange(len(rows)))
        said = [bytes(row[(row > 0) & (row < 256)].astype(np.uint8)) for row in got.tokens]
        prompts.append({text.split(b"answer")[0] for text in said})
    assert len(prompts[0]) + len(prompts[1]) == 50
    assert prompts[0] and prompts[1] and not prompts[0] & prompts[1]
    key = chat_formats.opening(next(chats.read(data, PLAIN)))
    assert source.split(key, 0.3) in ("train", "val")


def test_a_system_message_is_added_only_where_there_is_none(tmp_path):
    rows = [{"prompt": "p", "completion": "c"}]
    rows += [{"messages": [{"role": r, "content": r} for r in (S, U, A)]}]
    file = tmp_path / "x.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)))
    found = list(chats.read(Chats(str(file), system="be kind"), PLAIN))
    assert [one.messages[0].text for one in found] == ["be kind", S]
    assert [one.learnt for one in found] == [(False, False, True)] * 2


@pytest.mark.parametrize(
    "file, layout, tree, least",
    [
        ("instruction-data.json", "alpaca", "best", 1100),
        ("alpaca_seed_tasks.jsonl", "alpaca", "best", 175),
        ("oasst_en_100_tree.jsonl", "oasst", "best", 100),
        ("oasst_en_100_tree.jsonl", "oasst", "all", 500),
    ],
)
def test_real_files_are_read_whole(file, layout, tree, least):
    if not (REAL / file).is_file():
        pytest.skip(f"no ../shared/data/sft/{file}")
    data = Chats(str(REAL / file), format=layout, tree=tree)
    found = list(chats.read(data, template.load("alpaca", "bytes")))
    assert len(found) >= least
    assert all(any(one.learnt) for one in found) or tree == "all"
    assert {chat_formats.detect(r) for r in records.read(data.source)} == {layout}


def test_what_is_cut_and_left_out_is_told(tmp_path):
    """93 of 100 answers lost their end at seq 192 without a word."""
    pairs = [("p", "x" * 40)] * 93 + [("p", "x")] * 6 + [("p", " ")]
    tally = chats.prepare(Chats(write(tmp_path, pairs), seq=16, holdout=0.0)).tally
    cut = "answers longer than data.seq=16, which lose their end"
    assert tally.line() == (
        f"data: 100 conversations read, 99 to train on; cut: 93 ({cut}); left out: 1 (no answer to "
        "learn)"
    )
    assert tally.warnings() == [f"data: 93 of 99 texts (94%) are cut: {cut}"]
