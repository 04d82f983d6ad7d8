"""Self-instruct: ROUGE-L against its definition, filters, order, and going on after a kill."""

import dataclasses
import json

import numpy as np
import pytest

from jaxlm.feedback import rouge, self_instruct
from jaxlm.feedback.chat_model import Reply

SEEDS = [f"Describe {a} to {b} in plain words" for a in ("rain", "snow") for b in ("Ann", "Bo")]


def slow_common(a, b):
    """The textbook's table."""
    table = np.zeros((len(a) + 1, len(b) + 1), int)
    for i, x in enumerate(a, 1):
        for j, y in enumerate(b, 1):
            table[i, j] = (
                table[i - 1, j - 1] + 1 if x == y else max(table[i - 1, j], table[i, j - 1])
            )
    return int(table[-1, -1])


def texts(seed, count):
    draw = np.random.default_rng(seed)
    return [" ".join(draw.choice(list("abcde"), draw.integers(0, 90))) for _ in range(count)]


def test_the_longest_common_subsequence():
    for a, b in zip(texts(0, 40), texts(1, 40), strict=True):
        x, y = rouge.words(a), rouge.words(b)
        assert rouge.common(x, y) == slow_common(x, y)
        wanted = 2 * slow_common(x, y) / (len(x) + len(y)) if x and y else 0
        assert rouge.score(x, y) == pytest.approx(wanted)


def test_words_and_nearest():
    assert rouge.words("It's 3 O\u2019Clock, na\u00efve!") == [
        "it",
        "s",
        "3",
        "o",
        "clock",
        "na",
        "ve",
    ]
    found = texts(2, 30)
    pool = rouge.Pool(found)
    for text in texts(3, 10):
        scores = [rouge.score(rouge.words(text), rouge.words(other)) for other in found]
        near = pool.nearest(text)
        assert near.score == max(scores)
        assert near.text == (found[int(np.argmax(scores))] if max(scores) else "")
    assert rouge.Pool().nearest("a") == (0.0, "")


@pytest.mark.parity
def test_rouge_score_agrees():
    scorer = pytest.importorskip("rouge_score.rouge_scorer").RougeScorer(["rougeL"])
    odd = ["", "It's 3 O\u2019Clock, na\u00efve! \u0130stanbul", "the cat sat on the mat"]
    for a in [*texts(4, 12), *odd]:
        for b in [*texts(5, 12), *odd, "The mat, the cat: sat ON it"]:
            wanted = scorer.score(a, b)["rougeL"].fmeasure
            assert rouge.score(rouge.words(a), rouge.words(b)) == pytest.approx(wanted, abs=1e-12)


@pytest.mark.parametrize(
    "text, reason",
    [
        ("Say a word", "3 words or fewer"),
        ("w " * 151, "more than 150 words"),
        ("Describe this picture to me", "needs more than text"),
        ("Please go to the shop", "needs more than text"),
        ("Write a program that adds numbers", "begins with 'Write a program'"),
        ("(Do what I say)", None),
        ("\u00c9crire une lettre polie", "begins with a letter that is not ASCII"),
        ("Describe paragraphs of a letter", None),
    ],
)
def test_filters(text, reason):
    if text.startswith("("):
        reason = "begins with punctuation"
    assert self_instruct.unfit(text, rouge.Near(0.7, ""), 0.7) == reason
    assert self_instruct.unfit("Tell me of the sea", rouge.Near(0.71, ""), 0.7) == "like another"


def test_lists_are_cut_at_their_numbers():
    said = [
        Reply(" first\nthing\n6. second\n 7) third, 3. of it", "stop_token"),
        Reply("1. one\n2. tw", "length"),
    ]
    found = [(c.request, c.place, c.text) for c in self_instruct.candidates(said)]
    assert found == [
        (0, 0, "First thing"), (0, 1, "Second"), (0, 2, "Third, 3. of it"), (1, 0, "One"),
    ]  # fmt: skip


@pytest.fixture
def settings(tmp_path, write):
    return self_instruct.Settings(
        seeds=write("seeds.jsonl", *({"instruction": s} for s in SEEDS)),
        out=str(tmp_path / "out.jsonl"),
        count=7,
        requests=2,
        shown=4,
        own=2,
    )


VERBS = ("Explain", "Compare", "Praise", "Rhyme", "Doubt", "Rank", "Mock", "Recall")
NOUNS = ("rivers", "bread", "clocks", "owls", "songs", "stones", "rumours", "shoes")


def lists(conversation, seed):
    """Three instructions that the seed decides, the last nearly the first."""
    verb, noun = VERBS[seed % 8], NOUNS[seed // 8 % 8]
    other = VERBS[seed // 64 % 8]
    return (
        f" {verb} some {noun} before dawn {seed % 1000}\n"
        f"6. {other} {seed} of {noun} twice, calmly\n"
        f"7. {verb} some {noun} before dawn {seed % 1000} again"
    )


def test_each_is_unlike_all_before_it(settings, script, read):
    said = script(lists)
    summary = self_instruct.run(said.voice, settings)
    found = read(settings.out)
    assert summary.written == len(found) == 7
    assert summary.dropped["like another"] >= 3  # the last of each list, for the sake of the first
    kept = list(SEEDS)
    for record in found:
        near = max(
            (rouge.score(rouge.words(record["instruction"]), rouge.words(k)), k) for k in kept
        )
        assert record["nearest"]["rouge_l"] == near[0] <= 0.7
        kept.append(record["instruction"])
    assert {m.text.splitlines()[-1] for (m,) in said.asked} == {"5."}
    # the model's own are shown from the second round on, two in each request
    for record in found:
        own = set(record["shown"]) - set(SEEDS)
        assert len(record["shown"]) == 4 and len(own) == (0 if record["round"] == 0 else 2)


@pytest.mark.parametrize("torn", [1, 3, 5])
def test_going_on_after_a_kill(settings, script, read, torn, tmp_path):
    self_instruct.run(script(lists).voice, settings)
    whole = read(settings.out)
    path = tmp_path / "again.jsonl"
    lines = [json.dumps(r) + "\n" for r in whole]
    path.write_text("".join(lines[:torn]) + lines[torn][:20])
    again = dataclasses.replace(settings, out=str(path))
    summary = self_instruct.run(script(lists).voice, again)
    assert (summary.written, summary.found) == (7 - torn, torn)
    assert read(path) == whole
    said = script(lists)
    assert self_instruct.run(said.voice, again).written == 0 and said.asked == []
    more = self_instruct.run(script(lists).voice, dataclasses.replace(again, count=9))
    assert more.written == 2 and read(path)[:7] == whole


@pytest.mark.parametrize(
    "changes, told",
    [
        ({"shown": 5, "own": 0}, "shown: 5 given; it must be 1 to 4, the instructions of"),
        ({"own": 5}, "own: 5 given; it must be 0 to shown=4"),
        ({"most_alike": 1.5}, r"most_alike: 1.5 given; it must be in \[0, 1\]"),
        ({"out": "x"}, "out: 'x' given; it must be a name that ends in .jsonl"),
        ({"count": 0}, "count: 0 given; it must be at least 1"),
    ],
)
def test_wrong_settings(settings, script, changes, told):
    with pytest.raises(ValueError, match=told):
        self_instruct.run(script(None).voice, dataclasses.replace(settings, **changes))


def test_no_room_for_a_request(settings, script):
    with pytest.raises(ValueError, match="exceed the model's positions"):
        self_instruct.run(script(lists, room=50).voice, settings)
