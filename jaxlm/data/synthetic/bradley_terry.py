"""Preferences of exactly known truth: how near to what can be known does a reward model come?

A prompt begins with one of four letters, a response has one to eight of them. The prompt's letter
is liked, the others are not; two responses are compared as in Bradley and Terry, lists are
ranked as in Luce 1959, of which every pair is compared the same way. So the reward behind every
label, and the best that any model can reach, are known numbers.

    {"prompt": "cyw:", "chosen": "cacbc", "rejected": "bdca"}
    {"prompt": "cyw:", "responses": ["bdca", "cc", "ccda", "bbb"], "ranks": [3, 1, 2, 4]}
"""

import hashlib
import math
import random
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

LETTERS = "abcd"
FILLER = "wxyz"
FILLED = 3  # letters of a prompt that say nothing: they make different prompts
LONGEST = 8  # letters in a response
LIKED, OTHER = 1.6, -0.8  # reward of a letter
PROMPTS = 12_000
LISTED = 4  # responses in a list
SEED = 20260301


class Limit(NamedTuple):
    """The accuracy, and the nats a comparison, of the reward that made the labels."""

    accuracy: float
    nll: float


def reward(prompt: str, response: str) -> float:
    """The true reward, which the labels of `pairs` and `lists` follow."""
    return sum(LIKED if letter in prompt else OTHER for letter in response)


def pairs() -> Iterator[dict[str, Any]]:
    """Records {prompt, chosen, rejected}, the same on every machine."""
    draw = random.Random(SEED)
    for _ in range(PROMPTS):
        prompt = _prompt(draw)
        a, b = _responses(draw, 2)
        first = draw.random() < _sigmoid(reward(prompt, a) - reward(prompt, b))
        chosen, rejected = (a, b) if first else (b, a)
        yield {"prompt": prompt, "chosen": chosen, "rejected": rejected}


def lists() -> Iterator[dict[str, Any]]:
    """Records {prompt, responses, ranks} with four responses, the same on every machine."""
    draw = random.Random(SEED + 1)
    for _ in range(PROMPTS // LISTED):
        prompt = _prompt(draw)
        responses = _responses(draw, LISTED)
        # who is best of reward + Gumbel noise is best with Luce's probability
        noisy = [reward(prompt, r) - math.log(-math.log(draw.random())) for r in responses]
        ranks = []
        for score in noisy:
            ranks.append(1 + sum(other > score for other in noisy))
        yield {"prompt": prompt, "responses": responses, "ranks": ranks}


def answers() -> Iterator[dict[str, Any]]:
    """Records {prompt, completion} with responses as `pairs` compares, liked or not: what an
    indifferent policy writes. The same on every machine."""
    draw = random.Random(SEED + 2)
    for _ in range(PROMPTS):
        yield {"prompt": _prompt(draw), "completion": _responses(draw, 1)[0]}


def limit() -> Limit:
    """The best accuracy and nats that a model can have on a random pair, exactly: the sum over all
    numbers of liked and other letters, less pairs of equal responses, which are not drawn."""
    size = len(LETTERS)
    # reward, probability, how many responses there are
    kinds = [
        (LIKED * m + OTHER * (n - m), ways / size**n / LONGEST, ways)
        for n in range(1, LONGEST + 1)
        for m in range(n + 1)
        for ways in [math.comb(n, m) * (size - 1) ** (n - m)]
    ]
    total = accuracy = nll = 0.0
    for i, (r, p, ways) in enumerate(kinds):
        for j, (s, q, _) in enumerate(kinds):
            weight = p * q * (1 - (i == j) / ways)
            won = _sigmoid(r - s)
            total += weight
            accuracy += weight * max(won, 1 - won)
            nll -= weight * (won * math.log(won) + (1 - won) * math.log(1 - won))
    return Limit(accuracy / total, nll / total)


def _sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


# Only `random` of Python's generator is promised to give the same numbers in every version.
def _choose(draw: random.Random, among: str) -> str:
    return among[int(draw.random() * len(among))]


def _prompt(draw: random.Random) -> str:
    return _choose(draw, LETTERS) + "".join([_choose(draw, FILLER) for _ in range(FILLED)]) + ":"


def _responses(draw: random.Random, count: int) -> list[str]:
    """Different ones."""
    texts: list[str] = []
    while len(texts) < count:
        size = 1 + int(draw.random() * LONGEST)
        text = "".join([_choose(draw, LETTERS) for _ in range(size)])
        if text not in texts:
            texts.append(text)
    return texts


SOURCES: dict[str, Callable[[], Iterator[dict[str, Any]]]] = {
    "tastes": pairs,
    "tastes-answers": answers,
    "tastes-ranked": lists,
}


def fingerprint(name: str) -> str:
    """A sha256 over what decides the records of a source."""
    facts = (name, LETTERS, FILLER, FILLED, LONGEST, LIKED, OTHER, PROMPTS, LISTED, SEED)
    return hashlib.sha256(repr(("tastes/1", facts)).encode()).hexdigest()
