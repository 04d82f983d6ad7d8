"""Decontamination: contamination in many forms is found, other items and other text are not."""

import json
import pathlib
import random

import pytest

from jaxlm.data.curate.decontaminate import Decontaminate
from jaxlm.data.records import task_items
from jaxlm.data.sources import source
from tests.data.curate.duplicates.test_near import drawn

EVAL = pathlib.Path(__file__).parents[4] / "shared/data/eval"
TASKS = ("mmlu_dev.zip", "gsm8k_train.jsonl", "TruthfulQA.csv")


def write(path, items):
    lines = [json.dumps({"question": q, "answer": a}) + "\n" for q, a in items]
    path.write_text("".join(lines))
    return str(path)


def changed(rng, text, rate, words):
    return " ".join(rng.choice(words) if rng.random() < rate else w for w in text.split())


def forms(rng, item, page):
    """The nine forms of a contamination."""
    question, answer = item
    both = f"{question}\n{answer}"
    words = page.split()
    return {
        "verbatim": both,
        "wrapped": f"Question: {question}\n\nAnswer: {answer}\n(see the key)",
        "embedded": f"{page} {both} {page}",
        "question": f"{page}\n{question}\n{page}",
        "lines": "\n".join(both.split()),
        "punctuation": f"* {question} *\n- {answer.replace(',', ';')}",
        "upper": both.upper(),
        "title": both.title(),
        "changed": changed(rng, both, 0.05, words),
    }


def shares(rng, step, items, pages):
    score = step.scorer()
    made = [forms(rng, item, rng.choice(pages)) for item in items]
    return {
        form: sum(step.removal(s.scores) is not None for s in score([m[form] for m in made]))
        / len(made)
        for form in made[0]
    }


LEAST = {"question": 0.9, "upper": 0.9, "title": 0.9, "changed": 0.9}


def test_contamination_in_nine_forms(tmp_path):
    """Items with a frame that all share, half of them in the task file; seeded."""
    rng = random.Random(0)

    def item():
        name, thing = drawn(rng, 2)
        body = " ".join(drawn(rng, rng.randrange(10, 30)))
        return f"Which of the following is true of the {thing}? {body}", f"{name} {thing}"

    items = [item() for _ in range(300)]
    step = Decontaminate(tasks=(write(tmp_path / "t.jsonl", items[:150]),))
    pages = [" ".join(drawn(rng, 200)) for _ in range(20)]
    for form, share in shares(rng, step, items[:150], pages).items():
        assert share >= LEAST.get(form, 0.95), form
    others = step.scorer()(["\n".join(item) for item in items[150:]] + pages)
    assert not [s for s in others if step.removal(s.scores)]


@pytest.mark.slow
def test_published_tasks(tmp_path):
    """Half of the items of three tasks are planted; the other half and pydocs must stay."""
    if not EVAL.is_dir():
        pytest.skip("no ../shared/data/eval")
    rng = random.Random(0)
    planted, others = [], []
    for task in TASKS:
        items = [(i.question, i.answer) for i in task_items.items(str(EVAL / task))]
        rng.shuffle(items)
        half = min(len(items) // 2, 300)
        planted += items[:half]
        others += items[half : half + 100]
    rng.shuffle(planted)
    step = Decontaminate(tasks=(write(tmp_path / "t.jsonl", planted),))
    docs = [d.text for d in source.documents("pydocs")][:1500]
    pages = [d for d in docs if 300 < len(d) < 1500]
    for form, share in shares(rng, step, planted[:200], pages).items():
        assert share >= LEAST.get(form, 0.95), (form, share)
    score = step.scorer()
    false = [step.removal(s.scores) for s in score(["\n".join(item) for item in others])]
    assert sum(f is not None for f in false) <= 0.05 * len(others)
    assert not [s for s in score(docs) if step.removal(s.scores)]


def test_share_is_that_of_the_items_rare_ngrams(tmp_path):
    """By hand: 12 words are 8 5-grams, of which 3 are in six items and so count for none."""
    frame = "one two three four five six seven"
    words = "a b c d e"
    items = [(f"{frame} {words}", "yes")] + [(f"{frame} {i}1 {i}2 {i}3", "no") for i in range(5)]
    step = Decontaminate(tasks=(write(tmp_path / "t.jsonl", items),))
    score = step.scorer()
    full = next(task_items.items(str(tmp_path / "t.jsonl")))
    wholes, part, frames, none = score(
        [f"x {frame} {words} y", "five six seven a b c", frame, "nothing of the kind"]
    )
    assert wholes.scores == {"share": 1.0, "item": full.id}
    assert part.scores["share"] == pytest.approx(2 / 5) and frames.scores["share"] == 0
    assert none.scores == {"share": 0.0, "item": None}
    assert step.removal(part.scores) is None
    reason = step.removal(wholes.scores)
    assert reason == ("share", 1.0, 0.5, wholes.scores["item"])


def test_short_items_are_found_as_whole_documents(tmp_path):
    step = Decontaminate(tasks=(write(tmp_path / "t.jsonl", [("1 + 1?", "2"), ("Why so?", "No")]),))
    score = step.scorer()
    found = [s.scores["share"] for s in score(["1 + 1 = 2", "why so", "He asked: why so? No."])]
    assert found == [1.0, 1.0, 0.0]


def test_problems_and_versions(tmp_path):
    lines = [*Decontaminate(tasks=(), threshold=0).problems()]
    assert lines[0].startswith("decontaminate.tasks: () given")
    assert lines[1] == "decontaminate.threshold: 0 given; it must be in (0, 1]"
    assert "must be a file" in [*Decontaminate(tasks=("none",)).problems()][0]
    path = write(tmp_path / "t.jsonl", [("q", "a")])
    before = Decontaminate(tasks=(path,)).versions()
    write(tmp_path / "t.jsonl", [("q", "b")])
    assert Decontaminate(tasks=(path,)).versions() != before
