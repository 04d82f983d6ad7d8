"""A small decoder taught to follow written instructions, from Alpaca-style records.

Reproduces: nothing published; that answers are learnt, their end included, and prompts are not.
Command: jaxlm train configs/sft.py
Data: configs/tasks.jsonl, written by `python configs/sft.py`: five things to do with made-up words
Hardware: 2 CPU cores
Time: TIME
Expected: EXPECTED
"""

import json
import random
from collections.abc import Iterator

from jaxlm.data.chat import Chats
from jaxlm.models import llama
from jaxlm.objectives import sft
from jaxlm.train.optim import Optim
from jaxlm.train.run import Checkpoint, Run

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


def records(count: int = 1500, seed: int = 0) -> Iterator[dict[str, str]]:
    """The records of tasks.jsonl: words of two or three syllables, each with one task."""
    draw = random.Random(seed)
    for number in range(count):
        syllables = (draw.choice("bdfgklmnprstvz") + draw.choice("aeiou") for _ in range(3))
        word = "".join(list(syllables)[: draw.choice((2, 3))])
        asked = list(TASKS)[number % len(TASKS)]
        yield {"instruction": asked, "input": word, "output": TASKS[asked](word)}


if __name__ == "__main__":
    with open("configs/tasks.jsonl", "w", encoding="utf-8") as file:
        file.writelines(json.dumps(record) + "\n" for record in records())
