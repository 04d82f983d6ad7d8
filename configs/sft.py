"""A small decoder taught to follow written instructions, from Alpaca-style records.

Five things to do with made-up words; `python configs/sft.py` writes the records anew.

Reproduces: nothing published; that answers and their ends are learnt, for words never seen
Command: jaxlm train configs/sft.py
Hardware: 2 CPU cores
Time: 116 s of CPU time, so between 1 and 2 minutes; not yet timed on an idle machine
Expected: 0.004 nats per answer token held out, 99.9 % of them right (one run)
"""

import json
import random
from collections.abc import Iterator

from jaxlm.data.records.chats import Chats
from jaxlm.models import llama
from jaxlm.objectives import sft
from jaxlm.train.optim.optimizer import Optim
from jaxlm.train.run.run import Checkpoint, Run

TASKS = {
    "Write the word in capital letters.": lambda word: word.upper() + "!",
    "Spell the word.": lambda word: "-".join(word),
    "Say the word twice.": lambda word: f"{word} {word}",
    "Give the first letter of the word.": lambda word: f"It is {word[0]}.",
    "Give the last letter of the word.": lambda word: f"It is {word[-1]}.",
}


def config() -> Run:
    """The run."""
    return Run(
        name="sft",
        model=llama.Config(
            vocab=259, embed=96, layers=3, heads=4, kv=2, head=24, ffn=256, qk_norm=True
        ),
        objective=sft.Config(neftune=1.0),
        data=Chats(
            source="configs/tasks.jsonl",
            tokenizer="bytes",
            template="vicuna",
            seq=192,
            batch=16,
            holdout=0.1,
        ),
        optim=Optim(name="muon", lr=2e-2, warmup=20, schedule="linear", final=0.0),
        steps=200,
        eval_every=100,
        samples=("Spell the word.\n\nkamuso",),
        sample_tokens=24,
        checkpoint=Checkpoint(every=100),
    )


def _records(count: int = 1500, seed: int = 0) -> Iterator[dict[str, str]]:
    """The records of tasks.jsonl: words of two or three syllables, each with one task."""
    draw = random.Random(seed)
    for number in range(count):
        syllables = (draw.choice("bdfgklmnprstvz") + draw.choice("aeiou") for _ in range(3))
        word = "".join(list(syllables)[: draw.choice((2, 3))])
        asked = list(TASKS)[number % len(TASKS)]
        yield {"instruction": asked, "input": word, "output": TASKS[asked](word)}


if __name__ == "__main__":
    with open("configs/tasks.jsonl", "w", encoding="utf-8") as file:
        file.writelines(json.dumps(record) + "\n" for record in _records())
