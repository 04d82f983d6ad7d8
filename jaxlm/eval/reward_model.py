"""Scores of texts by a trained reward model.

judge = trained_weights.judge("runs/reward")
reward_model.score(judge, [("Which colour is the sky?", "Blue."), ("Which?", "No.")])
"""

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import jax
import numpy as np

from jaxlm.core import param
from jaxlm.core.batch import Choices
from jaxlm.data.records import preference_formats, preferences
from jaxlm.data.templates import template
from jaxlm.data.templates.template import Message
from jaxlm.data.tokenizers import tokenizer as interface
from jaxlm.models.model import Model
from jaxlm.objectives.preference import reward

# A prompt, and a response to it; a string is the user's or the assistant's one message.
Asked = tuple[str | Sequence[Message], str | Sequence[Message]]

_ROWS = 16  # texts in a forward pass


class Judge(NamedTuple):
    """A reward model, and how texts are written for it: what `judge` returns and `score` reads.
    rewards(params, batch) -> float32[B, K], compiled."""

    params: param.Tree
    rewards: Callable[[param.Tree, Choices], jax.Array]
    tokenizer: interface.Tokenizer
    written: template.Template
    seq: int
    vocab: int


def judge(
    model: Model,
    params: param.Tree,
    vocab: int,
    data: preferences.Preferences,
    tokenizer: interface.Tokenizer,
) -> Judge:
    """A reward model of `vocab` token ids, and texts written by the template and cut to the length
    of the data that it learnt from."""
    written = template.load(data.template, data.tokenizer)
    compiled = jax.jit(functools.partial(reward.rewards, model))
    return Judge(params, compiled, tokenizer, written, data.seq, vocab)


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
        rows = [preferences.Example((text,), (0,), 1.0, ()) for text in texts]
        rows += [preferences.Example((), (), 1.0, ())] * (_ROWS - len(rows))
        batch = preferences.choices(rows, 1, judge.seq)
        interface.check_known(batch.tokens, judge.vocab, f"responses from {first} on")
        found = np.asarray(judge.rewards(judge.params, batch))[: len(part), 0]
        if not np.isfinite(found).all():
            number = int(np.flatnonzero(~np.isfinite(found))[0])
            raise ValueError(f"response {first + number}: its reward is {found[number]}")
        yield found


def _text(judge: Judge, number: int, asked: Asked) -> preferences.Text:
    prompt, response = (
        (Message(role, said),) if isinstance(said, str) else tuple(said)
        for role, said in zip(("user", "assistant"), asked)
    )
    try:
        if not response or response[-1].role != "assistant":
            raise preference_formats.Unusable("it does not end with the assistant's message")
        texts = preferences.encode(prompt, [response], judge.written, judge.tokenizer)
        return preferences.fit(texts, judge.seq)[0]
    except ValueError as error:
        raise ValueError(f"response {number}: {error}") from error
