"""Reinforcement from a reward that checks: words turned round, after a start from bad examples.

Reproduces: nothing published; that a policy leaves the quality of what it imitated behind it.
Command: jaxlm train configs/grpo.py:start && jaxlm train configs/grpo.py
Hardware: 2 CPU cores
Time: 1 minute of CPU for the start, 1 for 200 steps
Expected: of held-out words 51 % are right as the start samples, 98.7 % after 200 steps (91 % after
100); responses of 5 tokens, all of them ended

The start imitates records of which 60 % are wrong; then the reward is `exact` (`:dapo`, `:dr_grpo`
and `:rloo` are other variants). `python configs/grpo.py` writes the records, turned.jsonl.

A reward of your own is a function in a file, named by `--rollout.rewards mine.py:turned`:

    def turned(samples):
        return [float(s.response == s.prompt[-2::-1]) for s in samples]

It receives a list of `jaxlm.train.rl.reward_functions.Sample`: prompt and response (text without
special tokens), record (the JSON object that the prompt is of) and finished (whether the response
ended by itself). It returns one finite number for each, in their order, larger for better; where it
raises, the samples are passed to it one at a time.
"""

import dataclasses
import json
import random
from collections.abc import Iterator

from jaxlm.data.records.chats import Chats
from jaxlm.data.records.prompts import Prompts
from jaxlm.models import llama
from jaxlm.objectives import sft
from jaxlm.objectives.rl import grpo
from jaxlm.train.optim.optimizer import Optim
from jaxlm.train.rl.rollout import Rollout
from jaxlm.train.run.run import Checkpoint, Run

SOURCE = "configs/turned.jsonl"
MODEL = llama.Config(vocab=259, embed=64, layers=2, heads=4, kv=4, head=16, ffn=192)


def start() -> Run:
    """Supervised: the policy that reinforcement begins from."""
    return Run(
        name="turned-sft",
        model=MODEL,
        objective=sft.Config(),
        data=Chats(source=SOURCE, seq=16, batch=64, holdout=0.1, packing="single"),
        optim=Optim(lr=3e-3, warmup=20, schedule="linear", final=0.1),
        steps=500,
        eval_every=250,
        checkpoint=Checkpoint(every=500),
    )


def config() -> Run:
    """GRPO: 16 words, 8 responses to each, a step."""
    return Run(
        name="turned-grpo",
        model=MODEL,
        start="runs/turned-sft",
        objective=grpo.Config(),
        data=Prompts(source=SOURCE, seq=8, batch=16, holdout=0.1),
        rollout=Rollout(samples=8, max_new=8, rewards=("exact",)),
        optim=Optim(lr=1e-3, warmup=10, schedule="linear", final=0.1),
        steps=200,
        eval_every=100,
        checkpoint=Checkpoint(every=200),
    )


def dapo() -> Run:
    """A wider clip upwards, a mean over tokens, and new prompts for groups that scored alike."""
    return _variant("dapo", resample=1)


def dr_grpo() -> Run:
    """Neither the group's deviation nor the response's length divides."""
    return _variant("dr_grpo", divisor=8.0)


def rloo() -> Run:
    """Each response against the mean of the others."""
    return _variant("rloo")


def _variant(name: grpo.Name, resample: int = 0, divisor: float = 64.0) -> Run:
    run = config()
    assert run.rollout is not None
    return dataclasses.replace(
        run,
        name=f"turned-{name}",
        objective=grpo.Config(variant=name, divisor=divisor),
        rollout=dataclasses.replace(run.rollout, resample=resample),
    )


def _records(count: int = 1500, seed: int = 0) -> Iterator[dict[str, str]]:
    """The records of turned.jsonl: words of four letters, what is said (wrong 6 times of 10, a word
    with two letters exchanged), and what is right."""
    draw = random.Random(seed)
    for _ in range(count):
        word = "".join(draw.choice("abcdefgh") for _ in range(4))
        right = word[::-1]
        said = right
        if draw.random() < 0.6:
            place = draw.randrange(4)
            said = right[:place] + draw.choice("abcdefgh".replace(right[place], ""))
            said += right[place + 1 :]
        yield {"prompt": f"{word}>", "completion": said, "answer": right}


if __name__ == "__main__":
    with open(SOURCE, "w", encoding="utf-8") as file:
        file.writelines(json.dumps(record) + "\n" for record in _records())
