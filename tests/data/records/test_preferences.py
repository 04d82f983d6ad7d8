"""Preferences: formats, tokens, truncation, what is left out and named."""

import gzip
import json
import pathlib

import numpy as np
import pytest

from jaxlm.data import tokenizers
from jaxlm.data.records import examples, preference_formats, preferences, records
from jaxlm.data.synthetic import bradley_terry
from jaxlm.data.templates import template
from jaxlm.data.templates.template import Message

HH = pathlib.Path(__file__).parents[4] / "shared" / "data" / "pref" / "hh_harmless_test.jsonl.gz"
BYTES = tokenizers.load("bytes")
BOS, EOS = BYTES.special["bos"], BYTES.special["eos"]


def read(value, format=None):
    return preference_formats.read(records.Record(value, "f.jsonl:3"), format)


def split_of(tmp_path, values, **fields):
    file = tmp_path / "p.jsonl"
    file.write_text("".join(json.dumps(v) + "\n" for v in values))
    return preferences.prepare(
        preferences.Preferences(source=str(file), **{"holdout": 0.0, **fields})
    )


def texts(choices, row=0):
    """The texts of a row, without begin and end."""
    found = []
    for tokens, segments in zip(choices.tokens[row], choices.segments[row]):
        found.append(BYTES.decode(tokens[segments > 0].tolist()))
    return found


def user(text):
    return Message("user", text)


def bot(text):
    return Message("assistant", text)


# --- Formats ---------------------------------------------------------------------------------


def test_pairs_are_strings_or_messages_that_may_repeat_the_prompt():
    said = [{"role": "user", "content": "p"}]
    answers = {n: {"role": "assistant", "content": n} for n in ("yes", "no")}
    for value in (
        {"prompt": "p", "chosen": "yes", "rejected": "no"},
        {"prompt": said, "chosen": [answers["yes"]], "rejected": [answers["no"]]},
        {"prompt": "p", "chosen": [*said, answers["yes"]], "rejected": [*said, answers["no"]]},
        {"chosen": [*said, answers["yes"]], "rejected": [*said, answers["no"]]},
    ):
        found = read(value)
        assert found.prompt == (user("p"),)
        assert found.responses == ((bot("yes"),), (bot("no"),))
        assert found.rank == (0, 1) and found.preference == 1.0


def test_a_response_may_be_the_whole_conversation():
    """The prompt was written twice where the responses begin with a system message that the prompt
    lacks."""
    asked, system = {"role": "user", "content": "q"}, {"role": "system", "content": "s"}
    earlier = [{"role": "user", "content": "h"}, {"role": "assistant", "content": "w"}]
    answer = {n: [{"role": "assistant", "content": n}] for n in ("a", "b")}
    head = Message("system", "s")
    cases = [
        ("q", [system, asked], (head, user("q"))),
        ("q ", [asked], (user("q"),)),
        ([asked], [system, asked], (head, user("q"))),
        ([system, asked], [system, asked], (head, user("q"))),
        ([system, asked], [asked], (head, user("q"))),
        ([system, asked], [], (head, user("q"))),
        ("q", [system, *earlier, asked], (head, user("h"), bot("w"), user("q"))),
        ("h", [*earlier, asked], (user("h"), bot("w"), user("q"))),
    ]
    for prompt, before, wanted in cases:
        both = {name: [*before, *answer[n]] for name, n in (("chosen", "a"), ("rejected", "b"))}
        found = read({"prompt": prompt} | both)
        assert [m.text.strip() for m in found.prompt] == [m.text for m in wanted], prompt
        assert found.responses == ((bot("a"),), (bot("b"),))
        listed = {"prompt": prompt, "responses": [*both.values()], "ranks": [1, 2]}
        labelled = {"prompt": prompt, "completion": both["chosen"], "label": True}
        if prompt != "h":
            assert read(listed).prompt == found.prompt == read(labelled, "labelled").prompt
            given = preference_formats.pairs(records.Record(listed, "f:1"))
            assert given == [(found.prompt, (bot("a"),)), (found.prompt, (bot("b"),))]
    # one response alone is a conversation; a field holds the system message
    mixed = read({"prompt": "q", "chosen": [system, asked, *answer["a"]], "rejected": "b"})
    fielded = read({"prompt": "q", "chosen": "a", "rejected": "b", "system": "s"})
    assert mixed.prompt == fielded.prompt == (head, user("q"))
    assert mixed.responses == fielded.responses == ((bot("a"),), (bot("b"),))


def test_a_response_that_only_calls_is_no_empty_one():
    call = {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "f"}}]}
    chosen, rejected = read({"prompt": "q", "chosen": [call], "rejected": "b"}).responses
    assert chosen[0].text == "" and chosen[0].fields() == {"content": None} | {
        "tool_calls": call["tool_calls"]
    }
    assert rejected == (bot("b"),)


def test_conversations_that_contradict_each_other_are_refused():
    def said(system, question, answer):
        roles = (("system", system), ("user", question), ("assistant", answer))
        return [{"role": role, "content": text} for role, text in roles]

    with pytest.raises(preference_formats.Unusable, match="different prompts"):
        read({"prompt": "q", "chosen": said("s", "q", "a"), "rejected": said("t", "q", "b")})
    with pytest.raises(ValueError, match="f.jsonl:3: chosen: .*does not repeat the prompt"):
        read({"prompt": "q", "chosen": said("s", "p", "a"), "rejected": said("s", "p", "b")})
    system = [{"role": "system", "content": "u"}, {"role": "user", "content": "q"}]
    with pytest.raises(ValueError, match="another system message than its prompt"):
        read({"prompt": system, "chosen": said("s", "q", "a"), "rejected": said("s", "q", "b")})
    with pytest.raises(ValueError, match="p.jsonl:1: message 1: .*does not read the field 'tool_"):
        call = {"role": "assistant", "content": "a", "tool_calls": [{"id": 1}]}
        value = {"prompt": "q", "chosen": [call], "rejected": "b"}
        record, plain = records.Record(value, "p.jsonl:1"), template.load("plain", "bytes")
        preferences._read(record, plain, BYTES, preferences.Preferences("p"))


def test_transcripts_part_where_the_assistant_does():
    same = "\n\nHuman: hi\n\nAssistant: yes?\n\nHuman: why"
    found = read({"chosen": same + "\n\nAssistant: so", "rejected": same + "\n\nAssistant: no"})
    assert found.prompt == (user("hi"), bot("yes?"), user("why"))
    assert found.responses == ((bot("so"),), (bot("no"),))
    # where the user's turns differ, the assistant's before it is of both responses
    other = same.replace("why", "what") + "\n\nAssistant: so"
    found = read({"chosen": same + "\n\nAssistant: so", "rejected": other})
    assert found.prompt == (user("hi"),)
    assert found.responses[1] == (bot("yes?"), user("what"), bot("so"))


@pytest.mark.parametrize(
    "preference, rank, sure",
    [("a", (0, 1), 1), ("B", (1, 0), 1), (0, (0, 1), 1), (1, (1, 0), 1), (0.25, (0, 1), 0.75),
     (0.9, (1, 0), 0.9), (0.5, (0, 1), 0.5)],
)  # fmt: skip
def test_a_preference_is_a_name_or_the_probability_of_b(preference, rank, sure):
    value = {"prompt": "p", "response_a": "x", "response_b": "y", "preference": preference}
    found = read(value)
    assert found.rank == rank and found.preference == pytest.approx(sure)


def test_lists_have_ranks_or_scores_with_ties():
    value = {"prompt": "p", "responses": ["x", "y", "z"]}
    assert read(value | {"ranks": [2, 1, 2]}).rank == (1, 0, 1)
    scored = read(value | {"scores": [0.5, 4, -1]})
    assert scored.rank == (1, 0, 2) and scored.score == (0.5, 4.0, -1.0)
    rated = read({"prompt": "p", "chosen": "x", "rejected": "y", "margin": 2})
    assert rated.score == (2.0, 0.0)
    both = {"score_chosen": 7.5, "score_rejected": 3}
    assert read({"prompt": "p", "chosen": "x", "rejected": "y"} | both).score == (7.5, 3.0)


@pytest.mark.parametrize(
    "value, told",
    [
        ({"prompt": "p", "chosen": "x"}, "of no format"),
        ({"prompt": "p", "chosen": "x", "rejected": 3}, "'rejected' holds a int"),
        ({"prompt": "p", "response_a": "x", "response_b": "y", "preference": 2}, "in \\[0, 1\\]"),
        ({"prompt": "p", "response_a": "x", "response_b": "y", "preference": "x"}, "'tie' or"),
        ({"prompt": "p", "responses": ["x", "y"], "ranks": [1]}, "each of the 2"),
        ({"prompt": "p", "responses": ["x", "y"]}, "'ranks' or 'scores'"),
        ({"prompt": "p", "completion": "x", "label": True}, "format='labelled'"),
        ({"chosen": "hello", "rejected": "there"}, "a transcript begins with"),
        ({"prompt": [{"role": "user"}], "chosen": "x", "rejected": "y"}, "no field 'content'"),
    ],
)
def test_what_means_nothing_is_refused_with_its_place(value, told):
    with pytest.raises(ValueError, match=told) as error:
        read(value)
    assert "f.jsonl:3" in str(error.value) and not isinstance(
        error.value, preference_formats.Unusable
    )


# --- Batches ---------------------------------------------------------------------------------


def test_a_row_holds_whole_texts_and_learns_the_response_with_its_end(tmp_path):
    made = split_of(tmp_path, [{"prompt": "pq", "chosen": "x", "rejected": "yz"}], seq=8)
    b = made.train.read(np.zeros(1, np.int64))
    ids = {c: BYTES.encode(c)[0] for c in "pqxyz"}
    assert b.tokens[0, 0].tolist() == [BOS, ids["p"], ids["q"], ids["x"], EOS, 0, 0, 0]
    assert b.targets[0, 1].tolist() == [ids["p"], ids["q"], ids["y"], ids["z"], EOS, 0, 0, 0]
    assert b.weight[0].tolist() == [[0, 0, 1, 1, 0, 0, 0, 0], [0, 0, 1, 1, 1, 0, 0, 0]]
    assert b.segments[0].sum(-1).tolist() == [5, 6]
    assert b.positions[0, 1].tolist() == [0, 1, 2, 3, 4, 5, 0, 0]
    assert b.rank.tolist() == [[0, 1]] and b.reference is None
    assert made.val is None and made.facts["prompts"] == {"train": 1, "val": 0}


def test_earlier_turns_of_the_assistant_are_not_learnt(tmp_path):
    same = "\n\nHuman: h\n\nAssistant: earlier\n\nHuman: w\n\nAssistant: "
    made = split_of(tmp_path, [{"chosen": same + "so", "rejected": same + "no"}], seq=32)
    b = made.train.read(np.zeros(1, np.int64))
    assert b.weight.sum(-1).tolist() == [[3, 3]]


def test_truncation_keeps_responses_and_cuts_all_prompts_alike(tmp_path):
    prompt = "0123456789"
    made = split_of(tmp_path, [{"prompt": prompt, "chosen": "abcdef", "rejected": "xy"}], seq=12)
    b = made.train.read(np.zeros(1, np.int64))
    assert texts(b) == ["6789abcdef", "6789xy"]
    assert (b.tokens[0, :, 0] == BOS).all()
    assert b.weight.sum(-1).tolist() == [[7, 3]]
    assert b.segments[0, 0].all()  # full
    assert made.facts["prompts_cut"] == 1


def test_what_is_left_out_is_counted_and_named(tmp_path):
    pair = {"prompt": "p", "chosen": "x", "rejected": "y"}
    values = [pair, pair | {"chosen": "y"}, pair | {"chosen": "x" * 40}, pair | {"chosen": " "}]
    values.append({"prompt": "p", "responses": ["x", "y"], "ranks": [1, 1]})
    facts = split_of(tmp_path, values, seq=10).facts
    assert facts["left_out"] == {
        "all responses are the same": 1,
        "a response is too long for data.seq=10": 1,
        "a response is empty": 1,
        "all responses are tied": 1,
    }
    assert facts["left_out_first"]["a response is empty"] == ["p.jsonl:4"]
    with pytest.raises(ValueError, match="no record .* can be learnt from"):
        split_of(tmp_path, values[1:], seq=10)


def test_losing_most_of_the_data_is_told(tmp_path):
    """920 of 2,312 records were left out without a word."""
    pair = {"prompt": "p", "chosen": "x", "rejected": "y"}
    made = split_of(tmp_path, [pair] * 18 + [pair | {"chosen": "x" * 40}] * 2, seq=10)
    assert made.tally.line() == (
        "data: 20 preferences read, 18 to train on; left out: 2 (a response is too long for "
        "data.seq=10)"
    )
    assert made.tally.warnings() == []
    made = split_of(tmp_path, [pair] * 8 + [pair | {"chosen": "x" * 40}] * 2, seq=10)
    (told,) = made.tally.warnings()
    assert "2 of 10 preferences (20%) are left out: 2 a response is too long" in told


def test_lists_of_several_lengths_share_a_batch(tmp_path):
    values = [
        {"prompt": "p", "responses": ["x", "y", "z"], "scores": [1, 3, 2]},
        {"prompt": "q", "chosen": "x", "rejected": "y"},
    ]
    b = split_of(tmp_path, values, seq=8).train.read(np.arange(2))
    assert b.tokens.shape == (2, 3, 8)
    assert b.rank.tolist() == [[2, 0, 1], [0, 1, -1]]
    assert not b.segments[1, 2].any() and not b.weight[1, 2].any()


def test_labels_come_with_another_examples_response(tmp_path):
    """Whose response it is depends on the order of the records alone, not on the batch."""
    values = [
        {"prompt": p, "completion": c, "label": bool(i % 2)}
        for i, (p, c) in enumerate([("p", "one"), ("q", "two"), ("r", "three")])
    ]
    train = split_of(tmp_path, values, seq=12, format="labelled").train
    b = train.read(np.arange(3))
    assert b.rank.tolist() == [[1, -1], [0, -1], [1, -1]]
    assert [texts(b, i) for i in range(3)] == [
        ["pone", "ptwo"], ["qtwo", "qthree"], ["rthree", "rone"]
    ]  # fmt: skip
    assert texts(train.read(np.array([2]))) == ["rthree", "rone"]
    with pytest.raises(ValueError, match="several prompts"):
        split_of(tmp_path, values[:1], seq=12, format="labelled")


def test_copies_of_a_prompt_are_on_one_side(tmp_path):
    values = [{"prompt": f"p{i % 20}", "chosen": f"x{i}", "rejected": f"y{i}"} for i in range(60)]
    made = split_of(tmp_path, values, seq=12, holdout=0.3)
    sides = [
        {texts(rows.read(np.array([i])))[0].partition("x")[0] for i in range(len(rows))}
        for rows in (made.train, made.val)
    ]
    assert all(sides) and not sides[0] & sides[1]
    assert len(made.train) + len(made.val) == 60


def test_the_real_transcripts_are_read(tmp_path):
    """Anthropic's harmless-base test file, its first 80 pairs."""
    if not HH.is_file():
        pytest.skip(f"{HH.name} is not there")
    file = tmp_path / "hh.jsonl"
    with gzip.open(HH, "rt", encoding="utf-8") as lines:
        file.write_text("".join(line for line, _ in zip(lines, range(80))), "utf-8")
    made = preferences.prepare(
        preferences.Preferences(source=str(file), template="vicuna", seq=512)
    )
    left = sum(made.facts["left_out"].values())
    assert sum(made.facts["prompts"].values()) + left == 80 and left < 25
    b = next(examples.batches(made.train, 4, 0))
    assert b.tokens.shape == (4, 2, 512) and (b.weight.sum(-1) > 0).all()
    ends = (b.segments > 0).sum(-1) - 1
    assert (np.take_along_axis(b.tokens, ends[..., None], -1) == EOS).all()
    written = template.load("vicuna", "bytes")
    whole = template.encode(written, BYTES, [user("a"), bot("b")])
    assert whole.answer.any()


def test_the_known_source_follows_its_reward():
    """Labels agree with the reward that made them as often as `limit` says, pairs and lists."""
    best = bradley_terry.limit()
    found = list(bradley_terry.pairs())
    apart = np.array(
        [
            bradley_terry.reward(r["prompt"], r["chosen"])
            - bradley_terry.reward(r["prompt"], r["rejected"])
            for r in found
        ]
    )
    error = 4 * 0.44 / len(found) ** 0.5
    assert abs(np.mean(0.5 + 0.5 * np.sign(apart)) - best.accuracy) < error
    assert abs(np.mean(np.log1p(np.exp(-apart))) - best.nll) < error
    assert next(bradley_terry.pairs()) == found[0]
    agree = []
    for record in bradley_terry.lists():
        r = np.array([bradley_terry.reward(record["prompt"], x) for x in record["responses"]])
        rank = np.array(record["ranks"])
        above = rank[:, None] < rank[None]
        agree.append(np.mean((0.5 + 0.5 * np.sign(r[:, None] - r[None]))[above]))
    assert abs(np.mean(agree) - best.accuracy) < 4 * 0.44 / len(agree) ** 0.5
