"""What a trained reward model says of texts.

judge = rewards.load("runs/reward")
rewards.score(judge, [("Which colour is the sky?", "Blue."), ("Which?", "No.")])
"""

import functools
import pathlib
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import jax
import numpy as np

from jaxlm.core import config, param
from jaxlm.core.batch import Choices
from jaxlm.data import prefer, rankings, template
from jaxlm.data.template import Message
from jaxlm.data.tokenizers import tokenizer as interface
from jaxlm.objectives import reward
from jaxlm.train import directory, saved

# What was said, and a response to it; a string is the user's or the assistant's one message.
Asked = tuple[str | Sequence[Message], str | Sequence[Message]]

_ROWS = 16  # texts in a forward pass


class Judge(NamedTuple):
    """A reward model, and how texts are written for it: what `load` makes and `score` reads.
    rewards(params, batch) -> float32[B, K], compiled."""

    params: param.Tree
    rewards: Callable[[param.Tree, Choices], jax.Array]
    tokenizer: interface.Tokenizer
    written: template.Template
    seq: int
    vocab: int


def load(folder: str | pathlib.Path, which: saved.Which = "last") -> Judge:
    """The reward model of a run directory, with the tokenizer, template and length of its data.

    Raises: ValueError for a run of another objective; else as `saved.load`.
    """
    place = pathlib.Path(folder).expanduser()
    found = saved.load(place, which)
    data = found.run.data
    if not isinstance(found.run.objective, reward.Config) or not isinstance(
        data, prefer.Preferences
    ):
        name = config.kind(type(found.run.objective))
        raise ValueError(f"{folder}: objective {name}; a run with objective reward scores texts")
    made = template.load(data.template, data.tokenizer)
    tokenizer = directory.tokenizer(place, found.run)
    compiled = jax.jit(functools.partial(reward.rewards, found.model))
    return Judge(found.params, compiled, tokenizer, made, data.seq, found.run.model.vocab)


def score(judge: Judge, asked: Sequence[Asked]) -> np.ndarray:
    """float32[n]: the reward of each response to its prompt, read at the text's last token. Longer
    prompts lose their oldest tokens, as in training.

    Raises: ValueError naming the number of a response that is too long or that is empty,
    or whose reward is not finite.
    """
    found = [*scores(judge, asked)]
    return np.concatenate(found) if found else np.zeros(0, np.float32)


def scores(judge: Judge, asked: Sequence[Asked]) -> Iterator[np.ndarray]:
    """`score` of a few at a time, as they are computed."""
    for first in range(0, len(asked), _ROWS):
        part = asked[first : first + _ROWS]
        texts = [_text(judge, first + i, one) for i, one in enumerate(part)]
        rows = [prefer.Example((text,), (0,), 1.0, ()) for text in texts]
        rows += [prefer.Example((), (), 1.0, ())] * (_ROWS - len(rows))
        batch = prefer.choices(rows, 1, judge.seq)
        interface.check_known(batch.tokens, judge.vocab, f"responses from {first} on")
        found = np.asarray(judge.rewards(judge.params, batch))[: len(part), 0]
        if not np.isfinite(found).all():
            number = int(np.flatnonzero(~np.isfinite(found))[0])
            raise ValueError(f"response {first + number}: its reward is {found[number]}")
        yield found


def _text(judge: Judge, number: int, asked: Asked) -> prefer.Text:
    prompt, response = (
        (Message(role, said),) if isinstance(said, str) else tuple(said)
        for role, said in zip(("user", "assistant"), asked)
    )
    try:
        if not response or response[-1].role != "assistant":
            raise rankings.Unusable("it does not end with the assistant's message")
        texts = prefer.encode(prompt, [response], judge.written, judge.tokenizer)
        return prefer.fit(texts, judge.seq)[0]
    except ValueError as error:
        raise ValueError(f"response {number}: {error}") from error
